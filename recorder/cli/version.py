"""`recorder version`."""

from __future__ import annotations

from k8sproxy.common.cli import installed, version_command
from recorder import __version__

_PACKAGES = ("h2", "zstandard", "obstore", "uvloop")

command = version_command("recorder", __version__, lambda: {name: installed(name) for name in _PACKAGES})
