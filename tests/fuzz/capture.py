"""Saves what real clients and a real API server send each other, by hand: python -m tests.fuzz.capture

A relay of its own stands in front of the bed's API server: plain TCP to the client, TLS with a client certificate to
the API server. It copies, and saves what passes behind a 101, in the order in which it came; heads are not kept.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import random
import re
import shlex
import socket
import ssl
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from kubernetes import client, config
from kubernetes.stream import stream

from tests.bed import Bed, free_port
from tests.bed.kubectl import kubectl
from tests.fuzz.sessions import CLIENT, CORPUS, UPSTREAM, Pieces, Session
from tests.system import raw
from tests.system.kubectl import STREAMING, Kubectl
from tests.system.terminal import Terminal

# What a terminal finds hard: wide, combining, joined, and bytes that are no UTF-8.
TEXT = "na\u00efve \u65e5\u672c e\u0301 \U0001f469\u200d\U0001f4bb"
SCRIPT = f"printf '%s\\n' '{TEXT}'; printf 'cut \\342\\202'; printf '\\254 \\377\\n'; echo problem >&2; exit 3"
PATH = "/api/v1/namespaces/default/pods/web/"
# What kubectl itself writes on the terminal.
_KUBECTLS_OWN = re.compile(
    rb"(?m)^(?:All commands and output|If you don't see|warning:|Session ended|command terminated).*?\r?\n"
)
ECHO = """
import socketserver, sys
class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        while data := self.request.recv(65536):
            self.request.sendall(data)
class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True
Server(("127.0.0.1", int(sys.argv[1])), Echo).serve_forever()
"""


class Relay:
    """url: where clients find the API server. taken: (head of the answer, pieces) of each upgraded connection."""

    def __init__(self, port: int, context: ssl.SSLContext) -> None:
        self._target = port
        self._context = context
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.taken: list[tuple[bytes, Pieces]] = []
        self._thread.start()
        self._started.wait()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", self.port))
        self._started.set()
        self._loop.run_forever()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        outer, out = await asyncio.open_connection("127.0.0.1", self._target, ssl=self._context)
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            out.write(head)
            pieces: Pieces = []
            if b"\nupgrade:" in head.lower():
                answer = await outer.readuntil(b"\r\n\r\n")
                writer.write(answer)
                if b" 101 " in answer.split(b"\n")[0]:
                    self.taken.append((answer, pieces))
            await asyncio.gather(
                self._pump(reader, out, CLIENT, pieces),
                self._pump(outer, writer, UPSTREAM, pieces),
            )
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            out.close()
            writer.close()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, side: bytes, pieces: Pieces
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(64 * 1024):
                pieces.append((side, data))
                writer.write(data)
                await writer.drain()
        writer.close()


class Capture:
    def __init__(self, bed: Bed, relay: Relay, directory: Path) -> None:
        self.relay = relay
        self.directory = directory
        self.kubeconfig = bed.cluster.kubeconfig_for("relayed", anonymous=True, server=relay.url)

    @contextlib.contextmanager
    def session(self, name: str, by: str, **facts: Any) -> Iterator[dict[str, Any]]:
        """Saves the session that the block opens, its last; what the block finds out belongs into what it is given."""
        self.relay.taken.clear()
        found = {"kind": "remotecommand", "by": by, "tty": False, **facts}
        yield found
        time.sleep(0.3)  # for a connection's last bytes: there is nothing to wait for
        answer, pieces = self.relay.taken[-1]
        match = re.search(rb"(?im)^(?:sec-websocket-protocol|x-stream-protocol-version): *([^\r]*)", answer)
        found["subprotocol"] = match[1].decode() if match else ""
        found["upgrade"] = "websocket" if b"websocket" in answer.lower() else "spdy/3.1"
        path = Session(name, found, pieces).write(self.directory)
        print(f"{name}: {path.stat().st_size} bytes, {len(pieces)} pieces, {found['subprotocol']}")
        assert path.stat().st_size < 30 * 1024

    def kubectl(self, version: str, protocol: str) -> Kubectl:
        binary = kubectl(version) if version != "current" else None
        return Kubectl(self.kubeconfig, binary=binary).speaking(STREAMING[protocol])

    def run(self, name: str, program: Kubectl, *arguments: str, input: bytes | None = None) -> None:
        version = program.binary.parent.name.removeprefix("kubectl-")
        # The folder's name is another one each time, and nobody's business.
        words = [re.sub(r"/.*/", "", word) if arguments[0] == "cp" else word for word in arguments]
        by = f"kubectl {version if version[0].isdigit() else 'current'}: {shlex.join(words)}"
        with self.session(name, by) as facts:
            done = program.run(*arguments, input=input)
            facts["exit"] = done.returncode
            if arguments[0] != "cp":
                facts["stdout"] = digest(done.stdout)
                # kubectl's own last line is no output.
                facts["stderr"] = digest(re.sub(rb"command terminated with exit code \d+\n", b"", done.stderr))
            if input is not None:
                facts["typed"] = len(input)

    def terminal(self, name: str, program: Kubectl, *arguments: str, typing: Callable[[Terminal], None]) -> None:
        with self.session(name, f"kubectl: {shlex.join(arguments)}", tty=True) as facts:
            with Terminal(program.argv(*arguments), program.environ(), rows=24, columns=80) as terminal:
                typing(terminal)
                facts["exit"] = terminal.wait()
            facts["stdout"] = digest(_KUBECTLS_OWN.sub(b"", bytes(terminal.raw)))
            facts["sizes"] = [[80, 24], [100, 30], [61, 17]]
            if arguments[0] == "attach":
                facts["sizes"].insert(0, [81, 25])  # kubectl asks for a redraw so

    def raw(self, name: str, protocol: str, *, tty: bool) -> None:
        """Forms that kubectl does not speak, by a client of the tests' own."""
        encoded = "base64" in protocol
        opcode = raw.TEXT if encoded else raw.BINARY

        def said(channel: int, data: bytes) -> bytes:
            return b"%d" % channel + base64.b64encode(data) if encoded else bytes((channel,)) + data

        flags = f"stdin=true&stdout=true&tty=true{'' if tty else '&stderr=true'}".replace(
            "tty=true", f"tty={tty}".lower()
        )
        words = ("sh", "-c", "read line; stty size; echo heard $line; exit 3")
        command = urlencode([("command", word) for word in words])
        with (
            self.session(name, f"a WebSocket of {protocol or 'no subprotocol'}", tty=tty) as facts,
            raw.Connection(socket.create_connection(("127.0.0.1", self.relay.port), 30)) as connection,
        ):
            socket_ = raw.WebSocket(connection, f"{PATH}exec?{flags}&{command}", protocol or None)
            assert socket_.status == 101, socket_.body
            if tty:
                socket_.send(opcode, said(4, b'{"Width":100,"Height":30}'))
                facts["sizes"] = [[100, 30]]
            time.sleep(0.2)  # the size before the word; the kubelet says nothing of it
            socket_.send(raw.PING, b"there?")
            socket_.send(opcode, said(0, b"word\n"))
            facts["typed"] = 5
            heard = socket_.channels()
            facts["stdout"] = digest(heard.get(1, b""))
            facts["stderr"] = digest(heard.get(2, b""))

    def python_client(self, name: str) -> None:
        with config.new_client_from_config(str(self.kubeconfig)) as made:  # type: ignore[no-untyped-call]  # no types
            api = client.CoreV1Api(made)
            with self.session(name, "the Python client's exec") as facts:
                session = stream(
                    api.connect_get_namespaced_pod_exec,
                    "web",
                    "default",
                    command=["sh", "-c", f"read line; echo heard $line; {SCRIPT}"],
                    stdin=True,
                    stdout=True,
                    stderr=True,
                    tty=False,
                    binary=True,
                    _preload_content=False,
                )
                session.write_stdin(b"word\n")
                session.run_forever(timeout=20)
                facts["stdout"] = digest(session.read_stdout())
                facts["stderr"] = digest(session.read_stderr())
                facts["exit"] = session.returncode
                facts["typed"] = 5
                session.close()

    def forward(self, name: str, program: Kubectl, port: int, sizes: tuple[int, ...]) -> None:
        with self.session(name, "kubectl port-forward", kind="portforward") as facts:
            with program.start("port-forward", "pod/echo", f":{port}") as forward:
                forward.expect("Forwarding from 127.0.0.1:")
                found = re.search(r"Forwarding from 127\.0\.0\.1:(\d+)", forward.out)
                assert found
                for size in sizes:
                    data = random.Random(size).randbytes(size)
                    with socket.create_connection(("127.0.0.1", int(found[1])), 20) as sock:
                        sock.sendall(data)
                        got = b""
                        while len(got) < size:
                            got += sock.recv(65536)
                        assert got == data
                time.sleep(0.3)  # kubectl tells the API server of the end in its own time
            facts["ports"] = [port] * len(sizes)
            facts["sent"] = facts["received"] = sum(sizes)

    def raw_forward(self, name: str, protocol: str, port: int) -> None:
        encoded = "base64" in protocol
        with self.session(name, f"port-forward on channels of {protocol}", kind="portforward") as facts:
            with raw.Connection(socket.create_connection(("127.0.0.1", self.relay.port), 30)) as connection:
                target = f"/api/v1/namespaces/default/pods/echo/portforward?ports={port}"
                socket_ = raw.WebSocket(connection, target, protocol)
                assert socket_.status == 101, socket_.body
                data = b"over channels"
                payload = b"0" + base64.b64encode(data) if encoded else b"\0" + data
                socket_.send(raw.TEXT if encoded else raw.BINARY, payload)
                for opcode, got in socket_.frames():
                    if opcode < raw.CLOSE and (base64.b64decode(got[1:]) if encoded else got[1:]) == data:
                        break
                socket_.send(raw.CLOSE, b"\x03\xe8")
            facts["ports"] = [port]
            # Three characters for four where they are whole, in base64.
            facts["sent"] = facts["received"] = len(data)


def digest(data: bytes) -> list[Any]:
    return [len(data), hashlib.sha256(data).hexdigest()]


def typing(terminal: Terminal) -> None:
    terminal.expect(r"\$ |# ")
    terminal.type("PS1='> '; stty size\r")
    terminal.expect("24 80")
    terminal.resize(30, 100)
    terminal.type(f"echo '{TEXT}'\r")
    terminal.expect("\r\n> ")
    # A size may come behind what is typed after it.
    terminal.type("until stty size | grep '^3. 100'; do sleep .1; done\r")
    terminal.expect("30 100")
    terminal.resize(17, 61)
    terminal.type("printf '\\033[1mbold\\033[0m\\007'; until stty sizx\x7fe | grep '^1. 61'; do sleep .1; done\r")
    terminal.expect("17 61")
    terminal.type("sleep 60\r")
    terminal.expect("sleep 60\r\n")
    terminal.type("\x03")
    terminal.expect(r"\^C(?s:.*)> ")
    terminal.type("exit 4\r")


def attach_typing(terminal: Terminal) -> None:
    terminal.expect("command prompt")
    time.sleep(1)  # until then the terminal echoes what is typed itself, and nothing says when that ends
    terminal.type("one\r")
    terminal.expect("got one")
    terminal.resize(30, 100)
    time.sleep(0.5)  # two sizes at once are one to kubectl
    terminal.resize(17, 61)
    terminal.type(f"{TEXT}\r")
    terminal.expect("got na")
    terminal.type("end\r")


def main() -> None:
    CORPUS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="capture-") as folder, Bed(folder, tailnet=False, progress=print) as bed:
        context = ssl.create_default_context(cafile=str(bed.ca_path))
        context.load_cert_chain(bed.cluster.pki / "driver.crt", bed.cluster.pki / "driver.key")
        capture = Capture(bed, Relay(bed.cluster.port, context), CORPUS)
        bed.pod("web")
        port = free_port()
        bed.pod("echo", command=[sys.executable, "-c", ECHO, str(port)])
        noise = random.Random(4).randbytes(5000)
        (Path(folder) / "noise").write_bytes(noise)
        for short, version, protocol in (
            ("v5", "current", "websocket"),
            ("v5-old", "1.29", "websocket"),
            ("spdy", "current", "spdy"),
            ("spdy-old", "1.29", "spdy"),
        ):
            program = capture.kubectl(version, protocol)
            capture.run(f"exec-{short}", program, "exec", "web", "--", "sh", "-c", SCRIPT)
            if short.endswith("old"):
                continue
            capture.run(f"stdin-{short}", program, "exec", "-i", "web", "--", "cat", input=(TEXT * 40).encode())
            capture.run(f"empty-{short}", program, "exec", "web", "--", "true")
            capture.run(f"ping-{short}", program, "exec", "web", "--", "sh", "-c", "sleep 5.5; echo late")
            capture.run(f"cp-in-{short}", program, "cp", f"{folder}/noise", "web:noise")
            capture.run(f"cp-out-{short}", program, "cp", "web:noise", f"{folder}/back-{short}")
            assert (Path(folder) / f"back-{short}").read_bytes() == noise
            capture.terminal(f"exec-it-{short}", program, "exec", "-it", "web", "--", "sh", typing=typing)
            loop = 'while read line; do echo got $line; test "$line" = end && exit 5; done'
            containers = [{"name": "main", "image": "bed", "command": ["sh", "-c", loop], "stdin": True, "tty": True}]
            bed.pod(f"reader-{short}", containers=containers, restartPolicy="Never")
            capture.terminal(f"attach-{short}", program, "attach", "-it", f"reader-{short}", typing=attach_typing)
            capture.forward(f"forward-{short}", program, port, (1, 3000, 700))
        for name, protocol in (("v4", "v4.channel.k8s.io"), ("v4-base64", "v4.base64.channel.k8s.io"), ("v1", "")):
            for tty in (False, True):
                capture.raw(f"raw-{'tty-' if tty else ''}{name}", protocol, tty=tty)
        capture.python_client("python-v5")
        capture.raw_forward("forward-channels", "v4.channel.k8s.io", port)
        capture.raw_forward("forward-channels-base64", "v4.base64.channel.k8s.io", port)
    total = sum(path.stat().st_size for path in CORPUS.glob("*.session"))
    print(f"{total} bytes in all")
    assert total < 300 * 1024


if __name__ == "__main__":
    main()
