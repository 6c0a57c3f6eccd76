"""Connections to the daemon: kept, taken again, limited and given up, against a server that sends what a test says."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from k8sproxy.common.tailnet import transport as module
from k8sproxy.common.tailnet.answers import Malformed
from k8sproxy.common.tailnet.transport import Answer, LinkState, Stream, Transport
from tests.lives import assert_documented

ASK = b"GET /x HTTP/1.1\r\nHost: local-tailscaled.sock\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Server:
    """A unix socket whose connections are answered by `serve`. connections: how many there were."""

    def __init__(self, serve: Serve) -> None:
        self._serve = serve
        self.connections = 0
        self.open: set[asyncio.StreamWriter] = set()
        self.ended = asyncio.Event()

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open.add(writer)
        self.ended.clear()
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await self._serve(reader, writer)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        self.open.discard(writer)
        if not self.open:
            self.ended.set()


@asynccontextmanager
async def serving(
    path: Path, serve: Serve, *, most: int = 4, keep: float = 60.0
) -> AsyncIterator[tuple[Server, Transport]]:
    server = Server(serve)
    listener = await asyncio.start_unix_server(server.take, path / "sock")
    transport = Transport(str(path / "sock"), most=most, keep=keep)
    try:
        yield server, transport
    finally:
        await transport.aclose()
        if server.connections:
            await server.ended.wait()
        listener.close()
        await listener.wait_closed()


def answering(*answers: bytes) -> Serve:
    """Answers each connection's questions in turn, then waits for its end."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in answers:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
        await reader.read()

    return serve


def test_the_life_of_a_link_is_documented() -> None:
    assert_documented(LinkState)


@pytest.mark.parametrize(
    ("answer", "status", "body"),
    [
        (OK, 200, b"hi"),
        (CHUNKED + b"2\r\nhi\r\n0\r\n\r\n", 200, b"hi"),
        (b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK, 200, b"hi"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b""),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 3\r\n\r\nno\n", 404, b"no\n"),
    ],
)
async def test_answers_however_they_come(tmp_path: Path, answer: bytes, status: int, body: bytes) -> None:
    async def piecemeal(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for step in (len(answer), 1):
            await reader.readuntil(b"\r\n\r\n")
            for at in range(0, len(answer), step):
                writer.write(answer[at : at + step])
                await writer.drain()
                await asyncio.sleep(0)
        await reader.read()

    async def scene() -> None:
        async with serving(tmp_path, piecemeal) as (server, transport):
            assert await transport.get(ASK, 100) == Answer(status, body)
            assert await transport.get(ASK, 100) == Answer(status, body)
            assert server.connections == 1

    await scene()


async def test_a_kept_connection_that_the_daemon_closes_costs_no_question(tmp_path: Path) -> None:
    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK)
        await reader.readuntil(b"\r\n\r\n")  # the next question: closed without an answer

    async def scene() -> None:
        async with serving(tmp_path, once) as (server, transport):
            for _ in range(3):
                assert await transport.get(ASK, 100) == Answer(200, b"hi")
            assert server.connections == 3

    await scene()


async def test_an_answer_that_breaks_off_on_a_kept_connection_is_not_asked_for_again(tmp_path: Path) -> None:
    async def scene() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(OK)
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhi")

        async with serving(tmp_path, serve) as (server, transport):
            assert await transport.get(ASK, 100) == Answer(200, b"hi")
            with pytest.raises(ConnectionError):
                await transport.get(ASK, 100)
            assert server.connections == 1

    await scene()


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.9\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nhi",
        b"HTTP/1.1 200 OK\nContent-Length: 2\n\nhi",
        CHUNKED + b"2 \r\nhi\r\n0\r\n\r\n",
        CHUNKED + b"x\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 101\r\n\r\n" + b"x" * 101,
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * (module.MAX_BESIDE + 1),
        CHUNKED + b"1;" + b"x" * (module.MAX_BESIDE + 1),
    ],
)
async def test_answers_that_are_none(tmp_path: Path, answer: bytes) -> None:
    async def scene() -> None:
        async with serving(tmp_path, answering(answer)) as (server, transport):
            with pytest.raises(Malformed) as caught:
                await transport.get(ASK, 100)
            assert "SSH" not in str(caught.value) and server.connections == 1

    await scene()


async def test_of_an_error_the_first_words_are_read(tmp_path: Path) -> None:
    answer = b"HTTP/1.1 500 No\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 400

    async def scene() -> None:
        async with serving(tmp_path, answering(answer)) as (_, transport):
            assert (await transport.get(ASK, 100)).body == b"x" * 400

    await scene()


@pytest.mark.parametrize("more", [OK, b"garbage", b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 20"])
async def test_bytes_behind_an_answer_are_no_answer_to_the_next_question(tmp_path: Path, more: bytes) -> None:
    async def scene() -> None:
        async with serving(tmp_path, answering(OK + more)) as (server, transport):
            assert await transport.get(ASK, 100) == Answer(200, b"hi")
            assert await transport.get(ASK, 100) == Answer(200, b"hi")
            assert server.connections == 2

    await scene()


async def test_bytes_on_an_idle_connection_end_it(tmp_path: Path) -> None:
    async def scene() -> None:
        answered = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(OK)
            await answered.wait()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
            await reader.read()

        async with serving(tmp_path, serve) as (server, transport):
            assert await transport.get(ASK, 100) == Answer(200, b"hi")
            answered.set()
            await server.ended.wait()
            assert await transport.get(ASK, 100) == Answer(200, b"hi")
            assert server.connections == 2

    await scene()


async def test_bytes_that_wait_on_an_idle_connection_are_no_answer_to_the_next_question(tmp_path: Path) -> None:
    """Another answer has come and the loop has not read it: it would be taken for that to a question about another."""

    async def scene() -> None:
        async with serving(tmp_path, answering(OK)) as (server, transport):
            assert await transport.get(ASK, 100) == Answer(200, b"hi")
            (writer,) = server.open
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
            assert await transport.get(ASK, 100) == Answer(200, b"hi")
            assert server.connections == 2

    await scene()


async def test_an_answer_that_says_close_is_the_last_one(tmp_path: Path) -> None:
    async def scene() -> None:
        last = OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
        async with serving(tmp_path, answering(last)) as (server, transport):
            assert await transport.get(ASK, 100) == Answer(200, b"hi")
            assert await transport.get(ASK, 100) == Answer(200, b"hi")
            assert server.connections == 2

    await scene()


async def test_an_answer_without_a_length_has_no_end(tmp_path: Path) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nhi")

    async def scene() -> None:
        async with serving(tmp_path, serve) as (_, transport):
            with pytest.raises(ConnectionError):
                await transport.get(ASK, 100)

    await scene()


async def test_questions_wait_for_a_place(tmp_path: Path) -> None:
    async def scene() -> None:
        go, both = asyncio.Event(), asyncio.Barrier(3)

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            await both.wait()
            await go.wait()
            writer.write(OK)
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(OK)

        async with serving(tmp_path, serve, most=2) as (server, transport):
            questions = [asyncio.ensure_future(transport.get(ASK, 100)) for _ in range(6)]
            await both.wait()
            questions.pop().cancel()
            go.set()
            assert set(await asyncio.gather(*questions)) == {Answer(200, b"hi")}
            assert server.connections == 2

    await scene()


async def test_who_is_cancelled_closes_the_connection(tmp_path: Path) -> None:
    async def scene() -> None:
        asked = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            asked.set()
            await reader.read()

        async with serving(tmp_path, serve, most=1) as (server, transport):
            question = asyncio.ensure_future(transport.get(ASK, 100))
            await asked.wait()
            question.cancel()
            with pytest.raises(asyncio.CancelledError):
                await question
            await server.ended.wait()
            asked.clear()
            again = asyncio.ensure_future(transport.get(ASK, 100))
            await asked.wait()  # there is a place again
            again.cancel()

    await scene()


async def test_idle_connections_are_closed(tmp_path: Path) -> None:
    async def scene() -> None:
        async with serving(tmp_path, answering(OK), keep=0.01) as (server, transport):
            await transport.get(ASK, 100)
            await server.ended.wait()

    await scene()


async def test_a_stream_is_heard_and_ends(tmp_path: Path) -> None:
    async def scene() -> None:
        say = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(CHUNKED)
            await say.wait()
            writer.write(b"2\r\nhi\r\n")
            writer.write(b"0\r\n\r\n")
            await reader.read()

        async with serving(tmp_path, serve) as (_, transport):
            stream = await transport.stream(ASK)
            assert isinstance(stream, Stream)
            say.set()
            assert await stream.listen() is True
            assert await stream.listen() is False
            stream.close()

    await scene()


async def test_a_stream_that_breaks_off_says_so(tmp_path: Path) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(CHUNKED + b"2\r\nh")

    async def scene() -> None:
        async with serving(tmp_path, serve) as (_, transport):
            stream = await transport.stream(ASK)
            assert isinstance(stream, Stream)
            assert await stream.listen() is True
            with pytest.raises(ConnectionError):
                await stream.listen()
            stream.close()

    await scene()


async def test_the_end_of_all(tmp_path: Path) -> None:
    async def scene() -> None:
        asked = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            asked.set()
            await reader.read()

        async with serving(tmp_path, serve, most=1) as (_, transport):
            questions = [asyncio.ensure_future(transport.get(ASK, 100)) for _ in range(3)]
            await asked.wait()
            await transport.aclose()
            found = await asyncio.gather(*questions, return_exceptions=True)
            assert all(isinstance(error, ConnectionError) for error in found)

    await scene()
