"""What of a changed configuration waits for a restart of the recorder.

A reload uses what can change without a new socket, store or key. The rest stays as it was when the recorder started.
An administrator is told so at every reload, for as long as the file and the recorder differ.
"""

from __future__ import annotations

from recorder.config.models import Config

# Sections of which nothing changes in a running recorder.
_FIXED = ("admin", "encryption", "index", "proof", "store", "web")


def needs_restart(started: Config, loaded: Config) -> list[str]:
    """The keys in which a configuration that was loaded differs from the one that the recorder was started with, as far
    as a reload does not use them."""
    keys = [name for name in _FIXED if getattr(started, name) != getattr(loaded, name)]
    if started.ingest.listen != loaded.ingest.listen:
        keys.append("ingest.listen")
    if started.tailnet.socket != loaded.tailnet.socket:
        keys.append("tailnet.socket")
    # Who may send goes by the new domain; who may look at recordings, by the old one.
    if started.web.listen and started.tailnet.capability_domain != loaded.tailnet.capability_domain:
        keys.append("tailnet.capabilityDomain")
    return sorted(keys)
