"""The real `k8sproxy serve` as a process, and what is looked at from outside: its log, its admin site, its end."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from tests.bed import Node, free_port
from tests.bed.http import Reply, request
from tests.bed.processes import Processes

T = TypeVar("T")

_POLL = 0.02  # seconds between two looks at a condition
_READY = 20.0  # seconds; one and a half are usual, on two busy cores


def wait_until(check: Callable[[], T | None], what: str, timeout: float = 15.0) -> T:
    """The first answer of check() that is true."""
    end = time.monotonic() + timeout
    while True:
        answer = check()
        if answer:
            return answer
        assert time.monotonic() < end, f"no {what} after {timeout:g} s"
        time.sleep(_POLL)


class Proxy:
    """One proxy with one listener, unless `config` says otherwise. Its log is kept after its end.

    node: whose tailscaled it asks. kubeconfig: its account. listen: the listeners in place of the one on `port`, which
    has a generated certificate. Further sections come as keyword arguments, as they stand in the file.
    """

    def __init__(
        self,
        directory: Path,
        node: Node,
        kubeconfig: Path,
        *,
        listen: Sequence[dict[str, Any]] | None = None,
        prefix: Sequence[str] = (),
        **sections: Any,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.node = node
        self.port = free_port()
        self.file = directory / "k8sproxy.yaml"
        self.log_file = directory / "k8sproxy.log"
        self.config: dict[str, Any] = {
            "apiVersion": "k8sproxy/v1alpha1",
            "tailnet": {"socket": str(node.socket)},
            "listen": list(listen) if listen is not None else [self.generated(self.port)],
            "clusters": [{"name": "bed", "kubeconfig": str(kubeconfig)}],
            "admin": {"address": f"unix:{directory / 'admin.sock'}"},
            **sections,
        }
        admin = self.config["admin"]["address"]
        self.admin: Path | str = Path(admin.removeprefix("unix:")) if admin.startswith("unix:") else f"http://{admin}"
        self._prefix = list(prefix)
        self._processes: Processes | None = None
        self._popen: subprocess.Popen[bytes] | None = None

    def generated(self, port: int) -> dict[str, Any]:
        """A listener on loopback with a certificate of the proxy's own CA."""
        return {
            "address": f"127.0.0.1:{port}",
            "tls": {"source": "generated", "directory": str(self.directory / "ca")},
        }

    @property
    def url(self) -> str:
        """Where clients of the tailnet go."""
        return f"https://{self.node.dns_name}:{self.port}"

    @property
    def ca(self) -> Path:
        """The CA of generated certificates."""
        return self.directory / "ca" / "ca.crt"

    # -- its life

    def __enter__(self) -> Proxy:
        try:
            self.start()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def write(self, text: str | None = None) -> None:
        """Write the configuration (JSON is YAML), or any text in its place."""
        self.file.write_text(text if text is not None else json.dumps(self.config, indent=2))

    def start(self, *, ready: bool = True) -> None:
        """Start it; returns when /readyz says so."""
        self.write()
        self._processes = Processes(self.directory)  # with a watchdog, should the tests be killed
        argv = [*self._prefix, *command("serve", "--config", str(self.file))]
        self._popen = self._processes.start("k8sproxy", argv).popen
        if ready:
            wait_until(self._ready, "readiness of the proxy", _READY)

    def _ready(self) -> bool:
        assert self.running, f"the proxy ended:\n{self.log_tail()}"
        with contextlib.suppress(OSError, http.client.HTTPException):
            return self.get("/readyz").ok
        return False

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._popen is not None, "the proxy has not been started"
        return self._popen

    @property
    def running(self) -> bool:
        return self._popen is not None and self._popen.poll() is None

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        """End it, politely for two seconds."""
        if self._popen is None:
            return
        for number in (signal.SIGTERM, signal.SIGTERM):  # the second one ends a drain
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._popen.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(1.0)
                break
        if self._processes is not None:
            self._processes.close()

    # -- what it says

    def get(self, path: str) -> Reply:
        """GET of the admin site."""
        return request("GET", self.admin, path)

    def metrics(self) -> dict[str, float]:
        """Every sample of /metrics by its name and labels, as in the text."""
        lines = self.get("/metrics").body.decode().splitlines()
        samples = (line.rpartition(" ") for line in lines if line and not line.startswith("#"))
        return {name: float(value) for name, _, value in samples}

    def log(self) -> str:
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    def events(self, name: str) -> list[dict[str, Any]]:
        """The log's lines of one event."""
        lines = (json.loads(line) for line in self.log().splitlines() if line.startswith("{"))
        return [line for line in lines if line.get("event") == name]

    def wait_event(self, name: str, seen: int = 0) -> dict[str, Any]:
        """The event behind the first `seen` ones of its name, as soon as it is there."""
        return wait_until(lambda: self.events(name)[seen:], f"event {name} in the log")[0]

    def log_tail(self, lines: int = 25) -> str:
        return "\n".join(self.log().splitlines()[-lines:])


def command(*arguments: str) -> list[str]:
    """The argv of the k8sproxy that belongs to this Python."""
    return [str(Path(sys.executable).with_name("k8sproxy")), *arguments]


# Whose logs belong to the report of a test that fails now.
REPORTED: list[Proxy] = []


@contextlib.contextmanager
def reported(proxy: Proxy) -> Iterator[None]:
    """Tests that fail within the block show this proxy's log."""
    REPORTED.append(proxy)
    try:
        yield
    finally:
        REPORTED.remove(proxy)
