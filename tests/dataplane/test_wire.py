"""One socket, plain or TLS: every byte once and in order, each end told apart, and nothing lost at a half-close."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator
from types import SimpleNamespace

import pytest

from k8sproxy.common.states import ImpossibleMove, State
from k8sproxy.dataplane import wire as module
from k8sproxy.dataplane.handshake import handshake
from k8sproxy.dataplane.wire import TURN, ReadBuffer, Wire
from k8sproxy.dataplane.wirestates import Look, Reading, Writing
from tests.dataplane.proxied import Raw, Truncated, pki
from tests.lives import assert_documented

both = pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])


class Ends:
    """A Wire's owner that keeps everything. ends: what `end` was called with. pausing: after every turn."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.data = b""
        self.ends: list[Exception | None] = []
        self.turns: list[int] = []
        self.drained = 0
        self.pausing = False
        wire.receiver, wire.end, wire.drained = self.receive, self.ends.append, self.drain

    def receive(self, view: memoryview) -> None:
        self.turns.append(len(view))
        self.data += view
        if self.pausing:
            self.wire.pause()

    def drain(self) -> None:
        self.drained += 1


@contextlib.asynccontextmanager
async def connected(tls: bool) -> AsyncIterator[tuple[Ends, Raw]]:
    """A wire and the raw other end of its connection."""
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as server:
        theirs = socket.create_connection(server.getsockname())
        ours, _ = server.accept()
    ours.setblocking(False)
    raw = Raw(theirs)
    if tls:
        ours, _ = await asyncio.gather(
            handshake(loop, ours, pki()[0], server_name=None), raw.start_tls(pki()[1], server_side=False)
        )
    wire = Wire(loop, ours, ReadBuffer())
    try:
        yield Ends(wire), raw
    finally:
        wire.close()
        raw.close()


async def until(condition: object) -> None:
    while not condition():  # type: ignore[operator]  # noqa: ASYNC110
        await asyncio.sleep(0.001)


def peek(wire: Wire) -> int:
    """Bytes that wait in the socket."""
    with contextlib.suppress(BlockingIOError):
        return len(socket.socket.recv(wire._sock, 1 << 17, socket.MSG_PEEK))
    return 0


@pytest.mark.parametrize("states", [Reading, Writing, Look])
@pytest.mark.skipif(module.__file__.endswith(".so"), reason="mypyc keeps no docstring of an enum")
def test_the_docstrings_have_the_tables(states: type[State]) -> None:
    assert_documented(states)


@both
async def test_everything_arrives_in_turns(tls: bool) -> None:
    async with connected(tls) as (ends, raw):
        data = bytes(range(256)) * 4096
        ends.wire.resume()
        await raw.send(data)
        await raw.end()
        await until(lambda: ends.ends)
        assert ends.data == data and ends.ends == [None]
        assert max(ends.turns) < TURN + 16384 and ends.wire.ended


@both
async def test_kept_pieces_stay_in_order(tls: bool) -> None:
    async with connected(tls) as (ends, raw):
        pieces = [bytes((number,)) * size for number, size in enumerate((1, 5_000_000, 0, 3, 100_000, 16384))]
        for piece in pieces:
            ends.wire.write(memoryview(piece))
        assert ends.wire.blocked and ends.drained == 0
        expected = b"".join(pieces)
        assert await raw.exactly(len(expected)) == expected
        await until(lambda: not ends.wire.blocked)
        assert ends.drained == 1
        ends.wire.write(b"more")
        assert await raw.exactly(4) == b"more"


@both
async def test_what_is_written_is_copied_where_it_is_kept(tls: bool) -> None:
    """The view is good during the call alone."""
    async with connected(tls) as (ends, raw):
        data = bytearray(b"x" * 8_000_000)
        ends.wire.write(memoryview(data))
        ends.wire.write(memoryview(data)[:10])
        data[:] = b"y" * len(data)
        assert set(await raw.exactly(8_000_010)) == {ord("x")}


@both
async def test_pause(tls: bool) -> None:
    async with connected(tls) as (ends, raw):
        ends.wire.resume()
        await raw.send(b"1")
        await until(lambda: ends.data)
        ends.wire.pause()
        await raw.send(b"2")
        await asyncio.sleep(0.005)
        assert ends.data == b"1"
        ends.wire.resume()
        await until(lambda: ends.data == b"12")


async def test_resume_with_bytes_inside_openssl(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decrypted bytes wake no descriptor: resuming delivers them by itself."""
    monkeypatch.setattr(module, "_RECORD", 1000)
    async with connected(True) as (ends, raw):
        ends.wire.most = 1000
        ends.pausing = True
        ends.wire.resume()
        await raw.send(b"x" * 3500)
        for expected in (1000, 2000, 3000, 3500):
            await until(lambda expected=expected: len(ends.data) == expected)
            await asyncio.sleep(0.002)
            assert len(ends.data) == expected
            ends.wire.resume()


async def test_turns_go_on_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_RECORD", 1000)
    async with connected(True) as (ends, raw):
        ends.wire.most = 1000
        ends.wire.resume()
        await raw.send(b"x" * 16384)
        await until(lambda: len(ends.data) == 16384)


async def test_turns_go_on_though_a_look_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The look gives way to the turn that comes before it, and must not take its next turn along."""
    monkeypatch.setattr(module, "_RECORD", 1000)
    async with connected(True) as (ends, raw):
        wire = ends.wire
        wire.most = 1000
        wire.resume()
        await raw.send(b"x")
        await until(lambda: ends.data)
        wire.pause()
        await raw.send(b"x" * 3500)
        await until(lambda: peek(wire) >= 3500)
        wire.resume()
        wire.look()
        wire._readable()  # as the loop does where both are due
        assert len(ends.data) == 1001
        async with asyncio.timeout(5):
            await until(lambda: len(ends.data) == 3501)


async def test_session_tickets_are_no_data_and_no_end() -> None:
    """A TLS 1.3 server sends them on its own."""
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    raw = Raw(theirs)
    ours.setblocking(False)
    sock, _ = await asyncio.gather(
        handshake(loop, ours, pki()[1], server_name="127.0.0.1"), raw.start_tls(pki()[0], server_side=True)
    )
    wire = Wire(loop, sock, ReadBuffer())
    ends = Ends(wire)
    wire.resume()
    await asyncio.sleep(0.005)
    assert wire.idle_alive() and ends.data == b"" and ends.ends == []
    wire.close()
    raw.close()


# -- half-closes


@both
async def test_half_close_loses_nothing(tls: bool) -> None:
    """Our end goes out while the other side's bytes wait, in the kernel and in OpenSSL; they are read all the same."""
    async with connected(tls) as (ends, raw):
        data = b"x" * 200_000
        await raw.send(data)
        ends.wire.write(b"last")
        ends.wire.write_end()
        ends.wire.write(b"not sent")
        assert await raw.rest() == b"last"
        ends.wire.resume()
        await raw.send(b"y")
        await raw.end()
        await until(lambda: ends.ends)
        assert ends.data == data + b"y" and ends.ends == [None]


async def test_a_turn_leaves_nothing_inside_openssl() -> None:
    """A half-close would lose it (SSL_shutdown drops what is decrypted), so a read takes a whole record."""
    async with connected(True) as (ends, raw):
        ends.pausing = True
        await raw.send(b"x" * 100 + b"y" * 300_000)
        while len(ends.data) < 300_100:
            seen = len(ends.turns)
            ends.wire.resume()
            await until(lambda seen=seen: len(ends.turns) > seen)
            assert ends.wire._pending() == 0


async def test_a_short_record_ends_a_turn_unless_bytes_flow(monkeypatch: pytest.MonkeyPatch) -> None:
    async with connected(True) as (ends, raw):
        monkeypatch.setattr(module, "FLOW", 4096)
        wire = ends.wire

        async def came_with(*records: int) -> list[int]:
            before, seen = len(ends.data), len(ends.turns)
            for size in records:
                await raw.send(b"x" * size)
            waiting = sum(size + 22 for size in records)  # all of it is there before the first of it is read
            await until(lambda: peek(wire) >= waiting)
            wire.resume()
            await until(lambda: len(ends.data) - before == sum(records))
            wire.pause()
            return ends.turns[seen:]

        assert await came_with(100, 5000) == [100, 5000]
        assert await came_with(100, 5000) == [5100]
        assert await came_with(10) == [10]
        assert await came_with(20, 30) == [20, 30]


@both
async def test_half_close_after_the_other_sides(tls: bool) -> None:
    async with connected(tls) as (ends, raw):
        ends.wire.resume()
        await raw.end()
        await until(lambda: ends.ends)
        ends.wire.write(b"still")
        ends.wire.write_end()
        assert await raw.rest() == b"still" and ends.ends == [None]


async def test_close_notify_that_the_socket_does_not_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full buffer takes no alert, or half of one: the rest goes when there is room, and FIN behind it."""
    async with connected(True) as (ends, raw):
        takes = [None, 5, None, 1000]

        def send(sock: socket.socket, data: bytes) -> int:
            size = takes.pop(0)
            if size is None:
                raise BlockingIOError
            return socket.socket.send(sock, data[:size])

        fake = SimpleNamespace(
            socket=SimpleNamespace(send=send, shutdown=socket.socket.shutdown),
            socketpair=socket.socketpair,
            SHUT_WR=socket.SHUT_WR,
        )
        monkeypatch.setattr(module, "socket", fake)
        ends.wire.write(b"last")
        ends.wire.write_end()
        assert await raw.rest() == b"last" and takes == []


async def test_half_close_without_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    """No end at all would leave the other side waiting for ever."""

    def none_left() -> None:
        raise OSError(24, "Too many open files")

    async with connected(True) as (ends, raw):
        monkeypatch.setattr("socket.socketpair", none_left)
        ends.wire.write_end()
        with pytest.raises(Truncated):
            await raw.rest()


# -- endings, as each side sees the other's


@both
@pytest.mark.parametrize("how", ["cut", "reset"])
async def test_broken_is_no_end(tls: bool, how: str) -> None:
    async with connected(tls) as (ends, raw):
        ends.wire.resume()
        await raw.send(b"x")
        if how == "reset":
            await until(lambda: ends.data)
            raw.reset()
        else:
            raw.cut()
        await until(lambda: ends.ends)
        assert ends.data == b"x"
        assert ends.ends == [None] if how == "cut" and not tls else isinstance(ends.ends[0], OSError)


@both
async def test_close_is_clean(tls: bool) -> None:
    async with connected(tls) as (ends, raw):
        ends.wire.write(b"x")
        ends.wire.close()
        assert await raw.rest() == b"x"


@both
async def test_cut_is_seen_where_it_can_be(tls: bool) -> None:
    async with connected(tls) as (ends, raw):
        ends.wire.write(b"x")
        ends.wire.cut()
        assert await raw.exactly(1) == b"x"
        if tls:
            with pytest.raises(Truncated):
                await raw.rest()
        else:
            assert await raw.rest() == b""


@both
async def test_abort_is_always_seen(tls: bool) -> None:
    async with connected(tls) as (ends, raw):
        ends.wire.abort()
        with pytest.raises((Truncated, ConnectionResetError)):
            await raw.rest()


@both
async def test_close_with_something_kept_is_seen_as_a_cut(tls: bool) -> None:
    async with connected(tls) as (ends, raw):
        ends.wire.write(b"x" * 8_000_000)
        assert ends.wire.blocked
        ends.wire.close()
        if tls:
            with pytest.raises((Truncated, ConnectionResetError)):
                await raw.rest()
        else:
            assert len(await raw.rest()) < 8_000_000


@both
async def test_last_words_are_read_after_writing_has_failed(tls: bool) -> None:
    """More than a turn of them, while the wire was paused."""
    async with connected(tls) as (ends, raw):
        words = b"x" * (TURN * 2)
        ends.wire._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1_000_000)
        await raw.send(words)
        await raw.end()
        raw.close()
        for _ in range(3):
            ends.wire.write(b"into nothing")
            await asyncio.sleep(0.002)
        assert ends.ends == [] and ends.wire.sent_end
        ends.wire.resume()
        await until(lambda: ends.ends)
        assert ends.data == words and ends.ends == [None]


@both
async def test_write_that_fails_after_the_other_sides_end(tls: bool) -> None:
    async with connected(tls) as (ends, raw):
        ends.wire.resume()
        await raw.end()
        await until(lambda: ends.ends)
        raw.reset()
        for _ in range(3):
            ends.wire.write(b"into nothing")
            await asyncio.sleep(0.002)
        assert len(ends.ends) == 2 and isinstance(ends.ends[1], OSError)


@both
async def test_blocked_wire_that_breaks_is_drained(tls: bool) -> None:
    """Nobody waits for ever for room on a connection that is gone."""
    async with connected(tls) as (ends, raw):
        ends.wire.write(b"x" * 8_000_000)
        assert ends.wire.blocked
        raw.reset()
        await until(lambda: ends.drained)
        assert not ends.wire.blocked


async def test_write_that_fails_while_the_next_one_is_kept() -> None:
    """The failure is dealt with in the next turn of the loop. What was kept meanwhile goes nowhere."""
    async with connected(False) as (ends, _):

        def write(data: bytes | memoryview) -> int:
            raise ConnectionResetError if data == b"a" else BlockingIOError

        ends.wire._write = write
        ends.wire.write(b"a")
        ends.wire.write(b"b")
        assert ends.wire.blocked
        await until(lambda: ends.drained)
        assert not ends.wire.blocked and ends.wire.sent_end
        ends.wire.write(b"c")


@both
async def test_no_end_is_sent_ahead_of_what_is_kept(tls: bool) -> None:
    async with connected(tls) as (ends, raw):
        data = b"x" * 8_000_000
        ends.wire.write(data)
        with pytest.raises(ImpossibleMove):
            ends.wire.write_end()
        assert ends.wire.blocked and not ends.wire.sent_end
        assert await raw.exactly(len(data)) == data


@both
async def test_idle_alive(tls: bool) -> None:
    async with connected(tls) as (ends, raw):
        assert ends.wire.idle_alive()
        await raw.send(b"x")
        await until(lambda: not ends.wire.idle_alive())
    assert not ends.wire.idle_alive()


@both
async def test_closed_wire_does_nothing(tls: bool) -> None:
    async with connected(tls) as (ends, raw):
        ends.wire.close()
        for call in (ends.wire.close, ends.wire.abort, ends.wire.cut, ends.wire.pause, ends.wire.resume):
            call()
        ends.wire.write(b"x")
        ends.wire.write_end()
        assert await raw.rest() == b"" and ends.ends == []


async def test_closing_in_the_receiver() -> None:
    async with connected(False) as (ends, raw):
        ends.wire.receiver = lambda view: ends.wire.close()
        ends.wire.resume()
        await raw.send(b"x")
        assert await raw.gone()


@both
async def test_fault_of_a_receiver_breaks_the_wire(tls: bool) -> None:
    faults: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda *fault: faults.append(fault))
    async with connected(tls) as (ends, raw):
        ends.wire.receiver = lambda view: 1 / 0  # type: ignore[assignment]  # never returns
        ends.wire.resume()
        await raw.send(b"x")
        await until(lambda: ends.ends)
        assert isinstance(ends.ends[0], ZeroDivisionError) and len(faults) == 1


def test_renegotiation_is_off() -> None:
    """A write that has to wait for a read would spin while reading is paused; without renegotiation there is none."""
    assert pki()[0].options & ssl.OP_NO_RENEGOTIATION
