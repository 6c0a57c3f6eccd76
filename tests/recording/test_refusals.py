"""What a recorder says with a refusal reaches whoever was refused: bounded, on one printable line, and in time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from k8sproxy.common.formats.recorderapi import MAX_REFUSAL, read_refusal
from k8sproxy.recording.recorders import UploadError
from recorder.ingest.site import session_limit
from standins.tailscaled import tagged_whois
from tests.common.tailnet.leakless import run
from tests.recorder.ingest.ingesting import ingest
from tests.recorder.store.storing import until
from tests.recording.dialled import recorders
from tests.recording.test_recorders import refusal

FULL = "the recorder's disk is nearly full (40 MiB free, 256 MiB needed)"


@asynccontextmanager
async def answers(answer: bytes, *, pieces: int = 1 << 20, closes: bool = True) -> AsyncIterator[str]:
    """The address of a server of HTTP/1.1 that answers every request with these bytes, so many at a time."""

    served: set[asyncio.Task[None] | None] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.add(asyncio.current_task())
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            if head.startswith(b"PRI"):  # HTTP/2: not here
                writer.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
                return
            for start in range(0, len(answer), pieces):
                writer.write(answer[start : start + pieces])
                await asyncio.sleep(0)
            if not closes:
                await reader.read()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        await server.wait_closed()
        await asyncio.wait([task for task in served if task is not None])


def http1(body: bytes, fields: str = "", *, length: bool = True) -> bytes:
    return f"HTTP/1.1 503 No\r\n{fields}{f'Content-Length: {len(body)}' if length else 'X: y'}\r\n\r\n".encode() + body


CHUNKED = (
    b'HTTP/1.1 503 No\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\n{"err\r\n9\r\nor": "ful\r\n3\r\nl"}\r\n0\r\n\r\n'
)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (http1(b'{"error": "full"}'), ": full"),
        (http1(b'{"message": "full", "kind": "Status"}'), ": full"),
        (http1(b"full\nand more\n"), ": full"),
        (http1(b"full", length=False), ": full"),
        (CHUNKED, ": full"),
        (CHUNKED[:-20], ""),  # cut within its JSON
        (http1(b"<html><body>no</body></html>"), ""),
        (http1(b""), ""),
        (http1(b"", "Recorder-Error: full\r\n"), ": full"),
        (http1(b"[1, 2]"), ""),
        (http1(b'{"error": ["full"]}'), ""),
        (http1(b'{"error": "a\\u001b[2Jb\\u202ec\\r\\nd"}'), ": a [2Jb c  d"),
        (http1(b"x" * 100_000), ": " + "x" * 200 + ".."),
        (http1(b"\xff\xfe"), ": \ufffd\ufffd"),
        (b"HTTP/1.1 503 No\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nfull\r\nnonsense\r\n", ": full"),
        (b"HTTP/1.1 503 No\r\nContent-Length: 100\r\n\r\nfull", ": full"),
    ],
)
@pytest.mark.parametrize("pieces", [1, 7, 1 << 20])
def test_over_http1(answer: bytes, said: str, pieces: int) -> None:
    async def scene() -> None:
        async with answers(answer, pieces=pieces if len(answer) < 1000 else 5000) as address, recorders() as made:
            assert await refusal(made, address) == ((address, f"HTTP 503 to POST /record{said}"),)
            with pytest.raises(UploadError) as caught:
                await made.post_events(address, [b"{}"])
            words = str(caught.value)
            # An answer to HEAD has no body, whatever stands behind its head.
            wanted = ": full" if b"Recorder-Error" in answer else ""
            assert words == f"{address}: HTTP 503 to HEAD /v2/event{wanted}"

    run(scene())


def test_a_reason_that_does_not_come_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("k8sproxy.recording.refusals.REASON_TIME", 0.02)

    async def scene() -> None:
        answer = b"HTTP/1.1 503 No\r\nContent-Length: 100\r\n\r\nfull"
        async with answers(answer, closes=False) as address, recorders() as made:
            assert await refusal(made, address) == ((address, "HTTP 503 to POST /record: full"),)

    run(scene())


def test_whoever_is_cancelled_while_a_reason_is_read_leaves_nothing() -> None:
    async def scene() -> None:
        answer = b"HTTP/1.1 503 No\r\nContent-Length: 100\r\n\r\nfull"
        async with answers(answer, closes=False) as address, recorders() as made:
            opening = asyncio.create_task(made.open([address]))
            await until(lambda: any(one._reason for one in made._submissions))
            opening.cancel()
            await asyncio.wait((opening,))
            assert opening.cancelled() and not made._submissions

    run(scene())


def test_of_the_recorder_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        async with ingest(tmp_path) as running, recorders() as made:
            address = f"127.0.0.1:{running.port}"
            await made.probe_events(address)
            upload = await made.open([address])
            monkeypatch.setattr(type(running.store), "healthy", FULL)
            assert await refusal(made, address) == ((address, f"HTTP 503 to POST /v2/record: {FULL}"),)
            with pytest.raises(UploadError, match="nearly full"):
                await made.post_events(address, [b"{}"])
            with pytest.raises(UploadError, match="nearly full"):
                await made.probe_events(address)
            upload.abort()
            state = made.describe()[0]
            assert FULL in state.failure

    run(scene())


def test_of_a_recorder_that_does_not_let_us_in(tmp_path: Path) -> None:
    async def scene() -> None:
        who = tagged_whois("proxy", ["tag:k8s"], "100.64.0.5")
        async with ingest(tmp_path, who=who, insecure=False) as running, recorders() as made:
            address = f"127.0.0.1:{running.port}"
            ((_, why),) = await refusal(made, address)
            assert why.startswith(
                "HTTP 403 to POST /record: this recorder accepts no recordings from proxy.tail1234.ts.net"
            )
            with pytest.raises(
                UploadError, match=r"HTTP 403 to HEAD /v2/event: this recorder accepts no recordings from"
            ):
                await made.post_events(address, [b"{}"])

    run(scene())


def test_of_a_share_that_is_used_up(tmp_path: Path) -> None:
    async def scene() -> None:
        async with ingest(tmp_path, sessions=session_limit(10, 1)) as running, recorders() as made:
            address = f"127.0.0.1:{running.port}"
            upload = await made.open([address])
            ((_, why),) = await refusal(made, address)
            assert why == (
                "HTTP 429 to POST /v2/record: the recorder takes at most 1 sessions of one sender at once "
                "(ingest.sessionsPerSender)"
            )
            assert made.describe()[0].state == "good" and not made.describe()[0].failures
            upload.abort()

    run(scene())


@pytest.mark.parametrize(
    ("body", "field", "said"),
    [
        (b'{"error":"a"}', "b", "a"),
        (b"", "b", "b"),
        (b"{", "b", "b"),
        (b"[" * 4000, "b", "b"),
        (b'{"error":""}', None, ""),
        (b'{"error":5,"message":"m"}', "b", "b"),
        (b"\x1b[2J\x07", "b", "[2J"),
        (b" \r\n first \r\n second", None, "first"),
        (b"x" * MAX_REFUSAL, None, "x" * 200 + ".."),
    ],
)
def test_one_line_of_it(body: bytes, field: str | None, said: str) -> None:
    assert read_refusal(body, field) == said
