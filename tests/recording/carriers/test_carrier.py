"""The socket itself: what is not taken waits, and what was said is read before a broken connection is reported."""

from __future__ import annotations

import asyncio
import socket

from k8sproxy.recording.carriers.carrier import Wire, words_of
from tests.common.tailnet.leakless import run
from tests.recording.dialled import turns


def test_what_was_said_before_the_connection_broke() -> None:
    async def scene() -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        told: list[object] = []
        wire = Wire(ours, flush=lambda: None, received=told.append, lost=told.append)
        theirs.sendall(b"disk full")
        theirs.close()
        wire.send((b"more",), 4)
        wire.send((b"and more",), 8)
        assert told == []  # never from within
        await turns()
        assert told == [b"disk full", "broken pipe"]
        assert wire.closed
        wire.send((b"late",), 4)
        wire.wake()
        wire.close()

    run(scene())


def test_more_pieces_than_one_call_takes_and_more_bytes_than_the_kernel() -> None:
    async def scene() -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        flushed = asyncio.Event()
        wire = Wire(ours, flush=flushed.set, received=lambda data: None, lost=lambda why: None)
        pieces = [b"%06d" % number + b"x" * 1000 for number in range(3000)]
        wire.send(pieces, sum(map(len, pieces)))
        wire.send((b"end",), 3)
        assert wire.stalled
        got = b""
        while not got.endswith(b"end"):
            got += await asyncio.get_running_loop().sock_recv(theirs, 1 << 20)
        await flushed.wait()
        assert got == b"".join(pieces) + b"end" and not wire.stalled
        wire.close()
        theirs.close()

    run(scene())


def test_words() -> None:
    assert words_of(TimeoutError()) == "timed out"
    assert words_of(ConnectionRefusedError(111, "Connect call failed ('100.64.0.9', 80)")) == "connection refused"
    assert words_of(OSError("a sentence")) == "a sentence"
    assert words_of(OSError()) == "OSError"
