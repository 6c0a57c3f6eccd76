"""What the tailnet's policy says in this project's own words: the capability `DOMAIN/cap/k8sproxy`.

    {"recording": "acknowledged"}

`tailscale.com/cap/kubernetes` has Tailscale's fields, and other proxies read it too, so nothing can be added there. The
domain is the configuration's (tailnet.capabilityDomain), as it is for the recorder's capability. Rules of this kind
grant nothing by themselves: they say how sessions are recorded that another rule or RBAC allows.

`recording` is a RecordingLevel. The strongest level of all rules of a peer counts, those of
`tailscale.com/cap/kubernetes` included. A rule that cannot be read refuses everything of that peer. An unknown field
also refuses: a rule that narrows must not be passed over because its field is misspelt, or because it was written for a
later version of this program. Names match in any case, as in the other capability; null is refused.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NoReturn

from k8sproxy.access.spelling import did_you_mean, shown
from k8sproxy.common.errors import Refusal
from k8sproxy.common.tailnet.peer import Peer, Repeated

# Tailscale's: a policy may name capabilities below it without owning a domain.
DEFAULT_DOMAIN = "tailscale.com"


class RecordingLevel(enum.Enum):
    """What recording promises about a session; from the weakest to the strongest.

    OPEN: recording is tried; a session that no recorder takes, or whose recorder fails, goes on. CLOSED: it is refused,
    or ended. ACKNOWLEDGED: as CLOSED, and no output reaches the user before the recorder has confirmed it.
    """

    OPEN = "open"
    CLOSED = "closed"
    ACKNOWLEDGED = "acknowledged"

    @property
    def enforced(self) -> bool:
        """Whether a session must not go on without its recording."""
        return self is not RecordingLevel.OPEN

    def holds(self, demanded: RecordingLevel) -> bool:
        """Whether what this level promises is all that another one demands."""
        return _ORDER.index(self) >= _ORDER.index(demanded)


_ORDER = tuple(RecordingLevel)


def strongest(levels: Iterable[RecordingLevel]) -> RecordingLevel | None:
    """The strongest of several levels; None of none."""
    return max(levels, key=_ORDER.index, default=None)


@dataclass(frozen=True, slots=True)
class OwnRule:
    """One rule of a peer under the project's own capability, checked. recording: None where it says nothing of it."""

    capability: str
    recording: RecordingLevel | None = None


def own_capability(domain: str) -> str:
    """The capability's name under a domain."""
    return f"{domain}/cap/k8sproxy"


def own_rules(peer: Peer, domain: str = DEFAULT_DOMAIN) -> tuple[OwnRule, ...]:
    """The peer's rules, in the order of the control plane. Raises Refusal (403, malformed_grant) for any fault."""
    name = own_capability(domain)
    return tuple(_rule(name, number, value) for number, value in enumerate(peer.capabilities.get(name, ()), 1))


_FIELDS = ("recording",)
_LEVELS = tuple(level.value for level in RecordingLevel)


def _rule(capability: str, number: int, value: object) -> OwnRule:
    def refuse(fault: str) -> NoReturn:
        raise Refusal(403, "malformed_grant", f"the capability {capability} is malformed: rule {number}{fault}")

    if isinstance(value, Repeated):
        refuse(" names a field twice")
    if not isinstance(value, Mapping):
        refuse(" must be an object")
    fields: dict[str, object] = {}
    for name, member in value.items():
        folded = str(name).casefold()
        if folded not in _FIELDS:
            refuse(f" has the unknown field {shown(str(name))}{did_you_mean(str(name), _FIELDS)}")
        if folded in fields:
            refuse(f" has the field {folded!r} twice, in different case")
        fields[folded] = member
    if "recording" not in fields:
        return OwnRule(capability)
    level = fields["recording"]
    if not isinstance(level, str) or level not in _LEVELS:
        refuse(': recording must be "open", "closed" or "acknowledged"')
    return OwnRule(capability, RecordingLevel(level))
