"""The demo's folder, `.demo/` in the clone: kubeconfigs, the proxy's configuration, CA and log, the "pods'" folders.

Everything in it is for its owner only: kubeconfigs hold the SOCKS5 password of a run and the account of the proxy. What
is only good for one run is removed at its end; the CA and the log stay.
"""

from __future__ import annotations

import base64
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

_SUN_PATH = 107  # bytes that a unix socket's path may have (unix(7): 108 with the final NUL)
_LONGEST_SOCKET = "/tailscaled.sock"


class Busy(Exception):
    """Another demo uses the folder."""


class Workspace:
    """The folder `root`, and `sockets`, a folder whose path is short enough for unix sockets."""

    def __init__(self, root: Path, sockets: Path) -> None:
        self.root = root
        self.sockets = sockets
        self.pods = root / "pods"
        self._written: list[Path] = []

    def write(self, name: str, content: dict[str, Any]) -> Path:
        """A YAML file that only its owner may read, removed at the end of the run."""
        path = self.root / name
        self._written.append(path)
        path.unlink(missing_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            yaml.safe_dump(content, file, sort_keys=False)
        return path

    def socket(self, name: str) -> Path:
        """A path for a unix socket; whatever a run before this one has left there is gone, as is this one's later."""
        path = self.sockets / name
        self._written.append(path)
        path.unlink(missing_ok=True)
        return path

    def clean(self) -> None:
        """Removes what is only good for one run."""
        for path in self._written:
            path.unlink(missing_ok=True)
        shutil.rmtree(self.pods, ignore_errors=True)


@contextmanager
def workspace(root: Path) -> Iterator[Workspace]:
    """Takes the folder for this run. Raises Busy where another run has it."""
    root.mkdir(mode=0o700, exist_ok=True)
    root.chmod(0o700)
    with open(root / "lock", "w", encoding="ascii") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy(f"another demo is running in {root}") from None
        short = len(os.fsencode(root)) + len(_LONGEST_SOCKET) <= _SUN_PATH
        sockets = root if short else Path(tempfile.mkdtemp(prefix="k8sproxy-demo-"))
        space = Workspace(root, sockets)
        try:
            space.pods.mkdir(exist_ok=True)
            yield space
        finally:
            space.clean()
            if not short:
                shutil.rmtree(sockets, ignore_errors=True)


def kubeconfig(
    name: str, server: str, ca: bytes, *, proxy_url: str | None = None, token: str | None = None
) -> dict[str, Any]:
    """A kubeconfig with one cluster, context and user, all called `name`. ca: PEM.

    Without a token it has no credentials, but a placeholder: kubectl asks for a user name where there is nothing at all
    (client-go, clientcmd's canIdentifyUser). The proxy drops it.
    """
    cluster = {"server": server, "certificate-authority-data": base64.b64encode(ca).decode()}
    if proxy_url:
        cluster["proxy-url"] = proxy_url
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": name, "cluster": cluster}],
        "users": [{"name": name, "user": {"token": token or "unused"}}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name, "namespace": "default"}}],
        "current-context": name,
    }
