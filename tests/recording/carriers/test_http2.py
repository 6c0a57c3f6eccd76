"""One HTTP/2 connection whose other end does what no HTTP/2 library does. The rest is test_upload's."""

from __future__ import annotations

import asyncio
import socket

import pytest

from k8sproxy.recording.carriers.errors import ConnectionLost
from k8sproxy.recording.carriers.http2 import Connection, State
from tests.common.tailnet.leakless import run
from tests.lives import assert_documented

SETTINGS = b"\0\0\0\4\0\0\0\0\0"
PING = b"\0\0\x08\6\0\0\0\0\0" + b"12345678"


def test_the_states() -> None:
    assert_documented(State)


def test_who_asks_for_answers_and_reads_none_is_left() -> None:
    async def scene() -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            ours.setblocking(False)
            theirs.setblocking(False)
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            connection = Connection(ours, "100.64.0.9:80", lambda connection: None)
            probe = asyncio.ensure_future(connection.probe())
            flood = SETTINGS + PING * 30_000
            loop = asyncio.get_running_loop()
            with pytest.raises(OSError):  # whatever the system calls a pipe that is gone
                await loop.sock_sendall(theirs, flood)
            with pytest.raises(ConnectionLost, match="does not read them"):
                await probe
            assert connection.lost is not None and not connection.usable

    run(scene())


def test_many_pings_of_one_who_reads_are_answered() -> None:
    async def scene() -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            ours.setblocking(False)
            theirs.setblocking(False)
            connection = Connection(ours, "100.64.0.9:80", lambda connection: None)
            loop = asyncio.get_running_loop()
            sending = asyncio.ensure_future(loop.sock_sendall(theirs, SETTINGS + PING * 10_000))
            heard = b""
            while heard.count(PING[9:]) < 10_000:
                heard += await loop.sock_recv(theirs, 65536)
            await sending
            assert connection.usable
            connection.close()

    run(scene())
