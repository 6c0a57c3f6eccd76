"""`k8sproxy version`."""

from __future__ import annotations

from k8sproxy import __version__
from k8sproxy.common.cli import installed, version_command


def _beneath() -> dict[str, str]:
    import ssl

    return {"openssl": ssl.OPENSSL_VERSION.split()[1], "uvloop": installed("uvloop")}


command = version_command("k8sproxy", __version__, _beneath)
