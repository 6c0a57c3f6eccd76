"""Recorders for tests on the real parts, and what one does with a cast: read it, and play it to a screen.

`Sink` speaks the recorder wire's first version on Python's own HTTP server. It is independent on purpose: nothing in it
comes from the product, nor from the fake that the unit tests have, so a misreading that those share does not pass here.
`Recorder` is that fake on a thread of its own, for the second version and for whatever goes wrong.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import json
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, TypeVar

import pyte

from standins.recorder import FakeRecorder, FakeSession

T = TypeVar("T")
_PATIENCE = 15.0  # seconds for what takes milliseconds


# -- casts


@dataclass(frozen=True)
class Cast:
    """An asciicast v2. events: (seconds, code, text)."""

    header: dict[str, Any]
    events: list[tuple[float, str, str]] = field(default_factory=list)

    def output(self, codes: str = "oe") -> bytes:
        """What the events of these codes show, byte for byte."""
        return b"".join(_bytes_of(text) for _, code, text in self.events if code in codes)

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(columns, rows) at the start and after each resize."""
        changes = [text for _, code, text in self.events if code == "r"]
        return [(self.header["width"], self.header["height"])] + [_size(text) for text in changes]


def read_cast(body: bytes) -> Cast:
    """A whole cast; every line must be what asciicast v2 says it is."""
    assert body.endswith(b"\n"), f"a cast that ends within a line: ..{body[-80:]!r}"
    header, *events = (json.loads(line) for line in body.split(b"\n")[:-1])
    assert header["version"] == 2
    for event in events:
        seconds, code, text = event
        assert isinstance(seconds, float | int) and isinstance(code, str) and isinstance(text, str)
        assert code in ("o", "e", "r", "m"), f"a code that nobody asked for: {event}"
    assert [event[0] for event in events] == sorted(event[0] for event in events)
    return Cast(header, [tuple(event) for event in events])


def _bytes_of(text: str) -> bytes:
    """Bytes that are not UTF-8 stand in a cast as the last characters of Unicode, U+10FE80 to U+10FEFF."""
    return b"".join(
        bytes([ord(character) - 0x10FE00]) if 0x10FE80 <= ord(character) <= 0x10FEFF else character.encode()
        for character in text
    )


def _size(text: str) -> tuple[int, int]:
    columns, _, rows = text.partition("x")
    return int(columns), int(rows)


class Screen:
    """A terminal as a person sees it: fed with bytes, and told its size."""

    def __init__(self, columns: int, rows: int) -> None:
        self._screen = pyte.Screen(columns, rows)
        self._stream = pyte.ByteStream(self._screen)

    def feed(self, data: bytes) -> None:
        self._stream.feed(data)

    def resize(self, columns: int, rows: int) -> None:
        self._screen.resize(rows, columns)

    @property
    def display(self) -> list[str]:
        """Its rows; what is wide takes two columns there."""
        return [line.rstrip() for line in self._screen.display]


def play(cast: Cast) -> Screen:
    """The screen at a cast's end."""
    screen = Screen(*cast.sizes[0])
    for _, code, text in cast.events:
        if code == "r":
            screen.resize(*_size(text))
        elif code in "oe":
            screen.feed(_bytes_of(text))
    return screen


# -- a recorder of the first version


class Kept:
    """One recording as a Sink has it. end: "clean" behind the last chunk, "lost" where it was cut, "" meanwhile."""

    def __init__(self, headers: dict[str, str]) -> None:
        self.headers = headers
        self.body = bytearray()
        self.end = ""

    @property
    def cast(self) -> Cast:
        return read_cast(bytes(self.body))


class Sink:
    """A recorder of version 1 (POST /record) on a port of 127.0.0.1, and nothing else: 404, 505 for HTTP/2.

    event_codes: what it says that it knows beside "o" and "r".
    """

    def __init__(self, *, event_codes: str = "") -> None:
        self.event_codes = event_codes
        self.kept: list[Kept] = []
        self.refused: list[str] = []  # the request lines of what was no recording
        self._changed = threading.Condition()
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def __enter__(self) -> Sink:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.end_connections()
        self._server.server_close()
        self._thread.join(5)

    def wait(self, condition: Callable[[], T | None], what: str) -> T:
        """What condition() gives as soon as that is true."""
        with self._changed:
            found = self._changed.wait_for(condition, _PATIENCE)
        assert found, f"the sink never saw {what}"
        return found

    def ended(self, count: int = 1) -> Kept:
        """The count-th recording, once it has ended."""
        return self.wait(
            lambda: self.kept[count - 1] if len(self.kept) >= count and self.kept[count - 1].end else None,
            f"the end of recording {count}",
        )

    def change(self, act: Callable[[], object]) -> None:
        with self._changed:
            act()
            self._changed.notify_all()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = False  # so that server_close() waits for them

    def __init__(self, sink: Sink) -> None:
        self.sink = sink
        self._connections: set[socket.socket] = set()
        super().__init__(("127.0.0.1", 0), _Handler)

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        self._connections.add(connection)
        return connection, address

    def shutdown_request(self, request: socket.socket | tuple[bytes, socket.socket]) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def end_connections(self) -> None:
        for connection in tuple(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes in the middle of things is what some tests are about."""


class _Handler(http.server.BaseHTTPRequestHandler, socketserver.StreamRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        self.server.sink.change(lambda: self.server.sink.refused.append(self.requestline))
        super().send_error(code, message, explain)

    def handle_expect_100(self) -> bool:
        if self.command != "POST" or self.path != "/record":
            self.send_error(404)
            return False
        self.send_response_only(100)
        if self.server.sink.event_codes:
            self.send_header("Asciicast-Event-Codes", self.server.sink.event_codes)
        self.end_headers()
        return True

    def do_POST(self) -> None:
        if self.path != "/record" or self.headers["Transfer-Encoding"] != "chunked":
            self.send_error(404)
            return
        sink = self.server.sink
        kept = Kept({name.lower(): value for name, value in self.headers.items()})
        sink.change(lambda: sink.kept.append(kept))
        end = "lost"
        try:
            for chunk in self._chunks():
                sink.change(lambda chunk=chunk: kept.body.extend(chunk))  # type: ignore[misc]  # a default argument
            end = "clean"
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()
        except (OSError, EOFError):
            self.close_connection = True
        finally:
            sink.change(lambda: setattr(kept, "end", end))

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self._line().partition(b";")[0], 16):
            data = self.rfile.read(size)
            if len(data) < size:
                raise EOFError
            yield data
            assert self._line() == b""
        while self._line():
            pass

    def _line(self) -> bytes:
        line = self.rfile.readline(65536)
        if not line.endswith(b"\r\n"):
            raise EOFError
        return line[:-2]


# -- a recorder of either version, which fails as it is told


class Recorder:
    """FakeRecorder on a thread of its own: Recorder(version=1, hang="POST") sets its attributes before it begins."""

    def __init__(self, **attributes: Any) -> None:
        self._attributes = attributes
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self.fake: FakeRecorder

    def __enter__(self) -> Recorder:
        self._thread.start()
        try:
            self._await(self._start())
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._await(self.fake.stop())
        finally:
            self._close()

    async def _start(self) -> None:
        self.fake = FakeRecorder()
        for name, value in self._attributes.items():
            assert hasattr(self.fake, name), name
            setattr(self.fake, name, value)
        await self.fake.start()

    def _close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    def _await(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(_PATIENCE)

    @property
    def address(self) -> str:
        return self.fake.address

    @property
    def sessions(self) -> Sequence[FakeSession]:
        return self.fake.sessions

    def do(self, act: Callable[[], T]) -> T:
        """act(), on the fake's own thread, which is the one to touch it."""

        async def run() -> T:
            return act()

        result: T = self._await(run())
        return result

    def wait(self, condition: Callable[[], object], what: str) -> None:
        try:
            self._await(self.fake.until(condition))
        except TimeoutError:
            raise AssertionError(f"the recorder never saw {what}") from None

    def begun(self, count: int = 1) -> FakeSession:
        """The count-th session, once it has been accepted."""
        self.wait(lambda: len(self.sessions) >= count and self.sessions[count - 1].accepted, f"session {count}")
        return self.sessions[count - 1]

    def received(self, text: str, count: int = 1) -> FakeSession:
        """The count-th session, once its body has the text."""
        session = self.begun(count)
        self.wait(lambda: text.encode() in session.body, f"{text!r} in session {count}")
        return session

    def ended(self, count: int = 1) -> FakeSession:
        """The count-th session, once it has ended."""
        session = self.begun(count)
        self.wait(lambda: session.end, f"the end of session {count}")
        return session

    def stop(self) -> None:
        """It dies: nobody listens, every connection is cut."""
        self._await(self.fake.stop())


@contextlib.contextmanager
def deaf_port() -> Iterator[str]:
    """An address that completes no TCP connection: its queue is full, and nobody takes any off it."""
    with socket.socket() as listener, contextlib.ExitStack() as queue:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        while True:
            knocking = queue.enter_context(socket.socket())
            knocking.settimeout(0.2)  # loopback takes microseconds
            try:
                knocking.connect(listener.getsockname())
            except TimeoutError:
                break
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@contextlib.contextmanager
def dead_port() -> Iterator[str]:
    """An address where nobody listens: a socket holds the port, so that nobody comes to."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{holder.getsockname()[1]}"
