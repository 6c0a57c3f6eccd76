"""The real `recorder serve` as a process on a node of the bed, and what is looked at from outside: its API as somebody
on the tailnet sees it, its log, its admin site, its end."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlencode

from tests.bed import Bed, Node, free_port
from tests.bed.http import Reply, request
from tests.bed.processes import Process, Processes
from tests.system.proxy import wait_until

READY = 30.0  # seconds; two are usual, on two busy cores
API = "/api/v1"
CAP_RECORDER = "tailscale.com/cap/recorder"
_serial = itertools.count(1)


def new_word() -> str:
    """A word that no screen has shown yet."""
    return f"heron{next(_serial)}bird"


def printing(word: str) -> str:
    """A shell command that prints it, in one piece, without having it in its text."""
    return f"printf '{word[:3]}%s\\n' {word[3:]}"


def with_recorder(bed: Bed) -> dict[str, Node]:
    """The bed's nodes, with `recorder` (tag:recorder), `sender` (tag:k8sproxy) and `auditor`, a person."""
    wanted: dict[str, dict[str, Any]] = {
        "recorder": {"tags": ["tag:recorder"], "socks5": False},
        "sender": {"tags": ["tag:k8sproxy"]},
        "auditor": {"user": "auditor@example.com"},
    }
    missing = {name: arguments for name, arguments in wanted.items() if name not in bed.nodes}
    if missing:
        bed.add_nodes(**missing)
    return bed.nodes


class Keeper:
    """One recorder with its data in `directory`. Its log is kept after its end.

    node: whose tailscaled it asks; a userspace one forwards to loopback, where it listens. allow: who may send. prefix:
    words before its command. Further sections come as keyword arguments, as they stand in the file.
    """

    def __init__(
        self,
        directory: Path,
        node: Node,
        *,
        allow: tuple[str, ...] = ("tag:k8sproxy",),
        prefix: Sequence[str] = (),
        **sections: Any,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.node = node
        self.port, self.web_port = free_port(), free_port()
        self.file = directory / "recorder.yaml"
        self.log_file = directory / "recorder.log"
        self.config: dict[str, Any] = {
            "apiVersion": "recorder/v1alpha1",
            "tailnet": {"socket": str(node.socket)},
            "store": {"folder": str(directory / "data"), "minFree": "1MiB"},
            "ingest": {"listen": [f"tailnet:{self.port}"], "allow": list(allow)},
            "web": {"listen": [f"tailnet:{self.web_port}"]},
            "admin": {"address": f"127.0.0.1:{free_port()}"},
            "shutdown": {"grace": "0s"},
            **sections,
        }
        self.admin_url = f"http://{self.config['admin']['address']}"
        self._prefix = tuple(prefix)
        self._processes: Processes | None = None
        self._process: Process | None = None

    # -- its life

    def __enter__(self) -> Keeper:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start it; returns when it is ready."""
        self.file.write_text(json.dumps(self.config, indent=2))  # JSON is YAML
        if self._processes is None:
            self._processes = Processes(self.directory)
        program = str(Path(sys.executable).with_name("recorder"))
        self._process = self._processes.start("recorder", [*self._prefix, program, "serve", "--config", str(self.file)])
        wait_until(self._is_ready, f"readiness of the recorder; its log:\n{self.log_tail()}", READY)

    def _is_ready(self) -> bool:
        assert self.process.running(), f"the recorder ended:\n{self.log_tail()}"
        return self.readiness()[0] == 200

    @property
    def process(self) -> Process:
        assert self._process is not None, "the recorder has not been started"
        return self._process

    def kill(self) -> None:
        """kill -9."""
        self.process.signal_group(signal.SIGKILL)
        self.process.popen.wait()

    def stop(self) -> None:
        """End it, politely for some seconds."""
        if self._processes is not None:
            self._processes.close()
            self._processes = None

    # -- what it says

    def readiness(self) -> tuple[int, str]:
        """Status and text of /readyz; (0, "") where nobody listens."""
        with contextlib.suppress(OSError, http.client.HTTPException):
            reply = self.admin("/readyz?verbose")
            return reply.status, reply.body.decode()
        return 0, ""

    def admin(self, path: str) -> Reply:
        """GET of the admin site."""
        return request("GET", self.admin_url, path)

    def metrics(self) -> dict[str, float]:
        """Every sample of /metrics by its name and labels, as in the text."""
        lines = self.admin("/metrics").body.decode().splitlines()
        samples = (line.rpartition(" ") for line in lines if line and not line.startswith("#"))
        return {name: float(value) for name, _, value in samples}

    def events(self, name: str) -> list[dict[str, Any]]:
        """The log's lines of one event."""
        lines = self.log_file.read_text(errors="replace").splitlines()
        found = (json.loads(line) for line in lines if line.startswith("{") and line.endswith("}"))
        return [line for line in found if line.get("event") == name]

    def log_tail(self, lines: int = 25) -> str:
        if not self.log_file.exists():
            return ""
        return "\n".join(self.log_file.read_text(errors="replace").splitlines()[-lines:])

    # -- what somebody on the tailnet sees of it

    def get(self, who: Node, path: str, /, **query: str) -> Reply:
        """GET from a node, of a path behind /api/v1."""
        with self._asked(who, path, query) as answer:
            return Reply(answer.status, answer.read())

    @contextlib.contextmanager
    def watching(self, who: Node, identifier: str) -> Iterator[http.client.HTTPResponse]:
        """The lines of a session that runs, as they come."""
        with self._asked(who, f"/sessions/{identifier}/live", {}, Accept="application/x-ndjson") as answer:
            assert answer.status == 200, answer.read()
            yield answer

    @contextlib.contextmanager
    def _asked(self, who: Node, path: str, query: dict[str, str], **fields: str) -> Iterator[http.client.HTTPResponse]:
        connection = http.client.HTTPConnection(self.node.dns_name, self.web_port)
        connection.sock = who.dial(self.node.dns_name, self.web_port)
        try:
            connection.request("GET", f"{API}{path}" + (f"?{urlencode(query)}" if query else ""), headers=fields)
            with connection.getresponse() as answer:
                yield answer
        finally:
            connection.close()

    def welcomes(self, who: Node) -> bool:
        """Whether a node may look at anything."""
        try:
            return self.get(who, "/whoami").ok
        except OSError:  # a dial that meets a new packet filter on its way
            return False

    def sessions(self, who: Node, **query: str) -> list[dict[str, Any]]:
        """What the list of sessions shows to a node."""
        reply = self.get(who, "/sessions", **query)
        assert reply.ok, reply
        found: list[dict[str, Any]] = reply.json()["items"]
        return found

    def session(self, who: Node, **query: str) -> dict[str, Any]:
        """The one session of a query, once it is there."""
        found = wait_until(lambda: self.sessions(who, **query), f"session {query}; the log:\n{self.log_tail()}")
        assert len(found) == 1, found
        return found[0]

    def cast(self, who: Node, identifier: str) -> bytes:
        """A session's download."""
        reply = self.get(who, f"/sessions/{identifier}/cast")
        assert reply.ok, reply
        return reply.body

    def dial(self, who: Node) -> socket.socket:
        """A connection of a node's to where senders go."""
        return who.dial(self.node.dns_name, self.port)
