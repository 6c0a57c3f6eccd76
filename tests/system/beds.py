"""What the beds of this folder have in common: whether there can be one, where it is, and what its people may do."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from tests import bed
from tests.bed import kubernetes_grant

STANDARD_GRANTS = [
    kubernetes_grant("alice@example.com", ["system:masters"]),
    kubernetes_grant("tag:ci", ["viewers"]),
]
_BED_DIRECTORY = Path(bed.__file__).parent


def _missing() -> str | None:
    """Why there can be no bed here."""
    if shutil.which("go") is None:
        return "Go is not installed"
    make = ["make", "--silent", "--question", "-C", str(_BED_DIRECTORY), "all"]
    if subprocess.run(make, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False).returncode:
        return "the bed's programs are not built (make bed)"
    return None


def require_bed() -> None:
    """Skip where there can be no bed, or fail where it is required."""
    if missing := _missing():
        if os.environ.get("K8SPROXY_REQUIRE_BED") == "1":
            pytest.fail(missing)
        pytest.skip(missing)


def own_address() -> str:
    """This machine's own address where it has one: the API server refuses nodes/proxy to loopback addresses."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
        probe.connect(("192.0.2.1", 9))  # TEST-NET-1 (RFC 5737); nothing is sent
        return str(probe.getsockname()[0])
    return "127.0.0.1"
