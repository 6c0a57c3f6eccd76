"""A session between a client and an upstream without sockets: the real Session, Switched and Upload, and at their
edges wires and a recorder whose every byte and silence the test decides.

    scene = Scene(WebSocket(), RecordingLevel.CLOSED)
    await scene.begin()
    scene.down(scene.speech.out(b"hello"))      # from upstream
    assert scene.shown == ..                    # what the client got
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec, cast

from k8sproxy.access.decision import RecordingDemand
from k8sproxy.access.grants import Impersonation
from k8sproxy.access.ownrules import RecordingLevel
from k8sproxy.common.formats.asciicast import decode_output, read_event, read_header
from k8sproxy.common.tailnet.peer import Peer
from k8sproxy.dataplane.switched import Switched
from k8sproxy.dataplane.turns import Turns
from k8sproxy.dataplane.wire import Wire
from k8sproxy.protocol.spdy import DICTIONARY
from k8sproxy.recording.health import Health
from k8sproxy.recording.limits import Limits
from k8sproxy.recording.upload import NoRecorder, Upload
from k8sproxy.request.classify import SessionKind
from k8sproxy.sessions.facts import Facts
from k8sproxy.sessions.session import Session
from tests.protocol.streams import (
    MASK,
    Heard,
    SpdyWriter,
    data,
    goaway,
    heard_spdy,
    heard_websocket,
    ping,
    said,
    said64,
    typed,
    typed64,
    websocket,
)

CLOSED, OPEN = RecordingLevel.CLOSED, RecordingLevel.OPEN
SUCCESS = b'{"metadata":{},"status":"Success"}'
P = ParamSpec("P")

FACTS = Facts(
    id="0f0e0d0c-0000-4000-8000-000000000001",
    kind="exec",
    peer=Peer("100.64.0.7", "n-ana", "laptop.tail.ts.net.", login_name="ana@example.com"),
    impersonation=Impersonation("ana@example.com", ("dev",)),
    cluster="prod",
    connection="c1",
    namespace="a",
    pod="web",
    container="main",
    node="",
    command="sh -c x",
    tty=False,
    user_agent="kubectl/v1.36",
)


def scene(function: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """A test that is a coroutine: no fault of a callback, and no task left behind."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        faults: list[dict[str, Any]] = []

        async def main() -> None:
            asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
            async with asyncio.timeout(10):  # nothing here waits for time to pass
                await function(*args, **kwargs)
            await turns()
            assert not asyncio.all_tasks() - {asyncio.current_task()}

        asyncio.run(main())
        assert not faults, faults

    return run


async def turns(count: int = 8) -> None:
    """Lets the loop go round."""
    for _ in range(count):
        await asyncio.sleep(0)


async def until(condition: Callable[[], object]) -> None:
    """Wait for something of which the session tells nobody; a scene that waits for ever is ended by its runner."""
    while not condition():  # noqa: ASYNC110  # see above
        await asyncio.sleep(0)


@dataclass
class Understood:
    """What a client understood. closed: whether the session was ended as its protocol has it."""

    stdout: bytes
    stderr: bytes
    error: bytes
    closed: bool

    @classmethod
    def of(cls, heard: Heard, channels: tuple[int, int, int], *, closed: bool) -> Understood:
        stdout, stderr, error = (heard.channels.get(channel, b"") for channel in channels)
        return cls(stdout, stderr, error, closed)

    @property
    def message(self) -> str:
        """Of the Status on the error channel."""
        status = json.loads(self.error)
        assert status["kind"] == "Status" and status["status"] == "Failure"
        return str(status["message"])


class WebSocket:
    """kubectl's v5, on WebSocket."""

    upgrade = "websocket"
    subprotocol = "v5.channel.k8s.io"
    field = b"Sec-WebSocket-Protocol"
    opening = b""
    accepted = b""
    pong = websocket(10, b"now")

    def ping(self) -> bytes:
        return websocket(9, b"now", mask=MASK)

    def out(self, text: bytes, *, stderr: bool = False) -> bytes:
        return said(2 if stderr else 1, text)

    def status(self, text: bytes = SUCCESS) -> bytes:
        return said(3, text)

    def typed(self, text: bytes) -> bytes:
        return typed(0, text)

    def resize(self, width: int, height: int) -> bytes:
        return typed(4, b'{"Width":%d,"Height":%d}\n' % (width, height))

    def end(self) -> bytes:
        return websocket(8, (1000).to_bytes(2, "big"))

    def understood(self, frames: bytes) -> Understood:
        heard = heard_websocket(frames)
        return Understood.of(heard, (1, 2, 3), closed=heard.close == 1000)


class Base64(WebSocket):
    subprotocol = "v4.base64.channel.k8s.io"

    def out(self, text: bytes, *, stderr: bool = False) -> bytes:
        return said64(2 if stderr else 1, text)

    def status(self, text: bytes = SUCCESS) -> bytes:
        return said64(3, text)

    def typed(self, text: bytes) -> bytes:
        return typed64(0, text)

    def resize(self, width: int, height: int) -> bytes:
        return typed64(4, b'{"Width":%d,"Height":%d}\n' % (width, height))

    def understood(self, frames: bytes) -> Understood:
        heard = heard_websocket(frames, base64_text=True)
        return Understood.of(heard, (1, 2, 3), closed=heard.close == 1000)


class Spdy:
    """kubectl's v4, on SPDY/3.1: streams 1 error, 3 stdin, 5 stdout, 7 stderr, 9 resize."""

    upgrade = "spdy/3.1"
    subprotocol = "v4.channel.k8s.io"
    field = b"X-Stream-Protocol-Version"
    pong = ping(7)

    def __init__(self) -> None:
        writer = SpdyWriter(DICTIONARY)
        kinds = (b"error", b"stdin", b"stdout", b"stderr", b"resize")
        self.opening = b"".join(writer.opened(2 * index + 1, kind) for index, kind in enumerate(kinds))
        answer = SpdyWriter(DICTIONARY)
        self.accepted = b"".join(answer.syn_reply(stream) for stream in (1, 3, 5, 7, 9))

    def ping(self) -> bytes:
        return ping(7)

    def out(self, text: bytes, *, stderr: bool = False) -> bytes:
        return data(7 if stderr else 5, text)

    def status(self, text: bytes = SUCCESS) -> bytes:
        return data(1, text)

    def typed(self, text: bytes) -> bytes:
        return data(3, text)

    def resize(self, width: int, height: int) -> bytes:
        return data(9, b'{"Width":%d,"Height":%d}\n' % (width, height))

    def end(self) -> bytes:
        return b"".join(data(stream, b"", fin=True) for stream in (5, 7, 1)) + goaway(9)

    def understood(self, frames: bytes) -> Understood:
        heard = heard_spdy(frames)
        closed = heard.close == 0 and {1, 5, 7} <= heard.ended
        return Understood.of(heard, (5, 7, 1), closed=closed)


Speech = WebSocket | Spdy
SPEECHES: tuple[Callable[[], Speech], ...] = (WebSocket, Base64, Spdy)


class FakeWire:
    """What Switched needs of a Wire. written: the bytes; ended_with: of write_end, None without."""

    def __init__(self, *, paused: bool) -> None:
        self.written = bytearray()
        self.blocked = False
        self.paused = paused
        self.most = 1 << 16
        self.end_written = False
        self.receiver: Callable[[memoryview], None] | None = None
        self.end: Callable[[Exception | None], None] | None = None
        self.drained: Callable[[], None] = lambda: None

    def write(self, data: bytes | memoryview) -> None:
        assert not self.end_written
        self.written += data

    def write_end(self) -> None:
        assert not self.blocked
        self.end_written = True

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False

    def arrive(self, data: bytes) -> None:
        """Bytes from the other side. As a Wire hands them over: good during the call alone."""
        assert self.receiver is not None
        buffer = bytearray(data)
        self.receiver(memoryview(buffer))
        buffer[:] = bytes(len(buffer))

    def ends(self, error: Exception | None = None) -> None:
        assert self.end is not None
        self.end(error)


class FakeCarrier:
    """The way to a recorder, and the recorder. flowing: takes bytes; acks: stores them; finishes: ends well."""

    def __init__(self, limits: Limits, *, flowing: bool = True, acks: bool = True, finishes: bool = True) -> None:
        self.flowing, self.acks, self.finishes = flowing, acks, finishes
        self.body = bytearray()
        self.was_reset = False
        self.health = Health(lambda: 0.0, lambda: None)
        self.health.accepted()
        self.upload = Upload("100.64.0.9:80", 2, self, self.health, limits)

    def wake(self) -> None:
        # Reports have a turn of their own, as they have from a socket.
        asyncio.get_running_loop().call_soon(self.flow)

    def flow(self) -> None:
        upload = self.upload
        if self.flowing:
            pieces: list[bytes | memoryview] = []
            upload.take(1 << 30, pieces)
            self.body += b"".join(pieces)
            if self.acks:
                upload.receive_data(b'{"ack":%d}\n' % len(self.body))
                if upload.ending and self.finishes:
                    upload.receive_end()

    def open(self) -> None:
        """Takes, stores and ends from now on."""
        self.flowing = self.acks = self.finishes = True
        self.flow()

    def reset(self) -> None:
        self.was_reset = True

    @property
    def cast(self) -> Cast:
        return Cast(bytes(self.body))


class Cast:
    """A recording as a reader has it. stdout: the output of both, where the recorder does not know "e"."""

    def __init__(self, body: bytes) -> None:
        assert body.endswith(b"\n")
        first, *rest = body.splitlines(keepends=True)
        self.header = read_header(first, 1 << 20)
        self.events = [read_event(line, 1 << 24) for line in rest]
        assert [event[0] for event in self.events] == sorted(event[0] for event in self.events)

    @property
    def output(self) -> bytes:
        return b"".join(decode_output(text) for _, code, text in self.events if code in "oe")

    def texts(self, code: str) -> list[str]:
        return [text for _, its, text in self.events if its == code]


class FakeRegistry:
    """Sessions, without a list."""

    def __init__(self, carrier: FakeCarrier | None) -> None:
        self.carrier = carrier
        self.failures: list[tuple[str, RecordingLevel]] = []
        self.log: list[str] = []
        self.tasks: set[asyncio.Task[None]] = set()
        self.acks = False  # whether a recorder was asked for that confirms within a session
        self.user = ""  # whose session it was said to be
        self.declined = False  # by a recorder that is well

    async def accept(self, recorders: tuple[str, ...], *, acks: bool = False, user: str = "") -> Upload:
        await asyncio.sleep(0)
        self.acks, self.user = acks, user
        if self.carrier is None:
            attempts = (("100.64.0.9:80", "connection refused"), ("100.64.0.8:80", "it said 500"))
            raise NoRecorder(attempts, declined=self.declined)
        return self.carrier.upload

    def begun(self, session: Session) -> None:
        self.log.append("begun")

    def over(self, session: Session) -> None:
        self.log.append("over")

    def failed(self, stage: str, mode: RecordingLevel) -> None:
        self.failures.append((stage, mode))

    def run(self, session: Session) -> asyncio.Task[None]:
        task = asyncio.create_task(session.settle())
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task


class Scene:
    """mode: None where nothing demands a recording. recorder: False where none is to be had."""

    def __init__(
        self,
        speech: Speech,
        mode: RecordingLevel | None,
        *,
        tty: bool = False,
        recorder: bool = True,
        limits: Limits | None = None,
        kind: str = "exec",
        offered: tuple[str, ...] | None = None,
        **carrier: bool,
    ) -> None:
        self.speech = speech
        self.recorder = FakeCarrier(limits or Limits(), **carrier) if recorder else None
        self.registry = FakeRegistry(self.recorder)
        demand = RecordingDemand(("100.64.0.9:80",), mode, SessionKind.EXEC) if mode is not None else None
        facts = {name: getattr(FACTS, name) for name in Facts.__slots__} | {"tty": tty, "kind": kind}
        self.session = Session(
            self.registry,
            Facts(**facts),
            demand,
            upgrade=speech.upgrade,
            offered=(speech.subprotocol,) if offered is None else offered,
        )
        self.client, self.upstream = FakeWire(paused=True), FakeWire(paused=False)
        self.outcome: Exception | None = None
        self.over = False
        self.switched = Switched(
            asyncio.get_running_loop(),
            cast(Wire, self.client),
            cast(Wire, self.upstream),
            self.session,
            turns=Turns(asyncio.get_running_loop()),
            owner="n-ana",
            finish=lambda: self._ended(None),
            fail=self._ended,
        )

    def _ended(self, error: Exception | None) -> None:
        assert not self.over
        self.over, self.outcome = True, error

    @property
    def cast(self) -> Cast:
        assert self.recorder is not None
        return self.recorder.cast

    @property
    def shown(self) -> bytes:
        """What the client was sent."""
        return bytes(self.client.written)

    def switch(self, fields: bytes | None = None) -> None:
        line = self.speech.field + b": " + self.speech.subprotocol.encode() + b"\r\n"
        self.session.switched(self.speech.upgrade, line if fields is None else fields)
        self.switched.start(from_client=b"", from_upstream=memoryview(b""))

    async def begin(self) -> None:
        """Accepted, switched, the streams open, and the recorder has what was written until then (the header, but for a
        terminal), whatever becomes of what follows."""
        await self.session.open()
        recorder = self.recorder
        if recorder is not None:
            before = recorder.flowing, recorder.acks
            recorder.flowing = recorder.acks = True
        self.switch()
        await turns(3)
        if recorder is not None:
            recorder.flowing, recorder.acks = before
        if self.speech.opening:
            self.up(self.speech.opening)
            self.down(self.speech.accepted)

    def up(self, *pieces: bytes) -> None:
        for piece in pieces:
            if not self.over:
                self.client.arrive(piece)

    def down(self, *pieces: bytes) -> None:
        for piece in pieces:
            if not self.over:
                self.upstream.arrive(piece)

    async def finish(self) -> None:
        """Upstream ends, then the client; the session is brought to its end."""
        if not self.over:
            self.upstream.ends()
        await until(lambda: self.client.end_written or self.over)
        if not self.over:
            self.client.ends()
        await self.close()

    async def close(self) -> None:
        self.switched.let_go()
        await self.session.close()
        await turns(2)
        assert self.registry.log[-1] == "over" and not self.registry.tasks

    def let_go(self) -> None:
        """What the exchange does where it ends: the wires forget who had them. And the scene's own circles."""
        for wire in (self.client, self.upstream):
            wire.receiver = wire.end = None
            wire.drained = lambda: None
        self.registry.carrier = None
        self.__dict__.clear()
