"""recorder/ingest/http1.py and server.py: version 1 of the wire, API events, and what is neither."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path

import pytest

from recorder.model import End
from tests.recorder.ingest.ingesting import ingest
from tests.recorder.ingest.senders import chunked, exchange
from tests.recorder.store.storing import HEADER, FaultyLog, Told, ids, lines, run, text_of, until

RECORD = b"POST /record HTTP/1.1\r\nHost: recorder\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n"


def post(path: str, value: object) -> bytes:
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def test_a_session(tmp_path: Path) -> None:
    async def main() -> None:
        async with ingest(tmp_path) as running:
            reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
            writer.write(RECORD)
            assert (
                await reader.readuntil(b"\r\n\r\n")
                == b"HTTP/1.1 100 Continue\r\nAsciicast-Event-Codes: o, e, r, m\r\n\r\n"
            )
            writer.write(chunked(HEADER + lines(3000)))
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 ") and b"Asciicast-Event-Codes: o, e, r, m\r\n" in head
            (identifier,) = ids([one async for one in running.store.recordings()])
            assert (await running.store.get(identifier)).end is End.CLEAN
            assert await text_of(running.store, identifier) == HEADER + lines(3000)
            writer.close()
            await writer.wait_closed()

    run(main())


def test_a_sender_that_vanishes_leaves_a_cut_recording(tmp_path: Path) -> None:
    async def main() -> None:
        async with ingest(tmp_path) as running:
            told = Told()
            running.store.observers.append(told)
            reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
            writer.write(RECORD)
            await reader.readuntil(b"\r\n\r\n")
            writer.write(chunked(HEADER + lines(10))[:-5])
            await until(lambda: len(running.store.lives) == 1)
            (live,) = running.store.lives.values()
            await live.wait_acked(len(HEADER + lines(10)) - 1)
            writer.close()
            await writer.wait_closed()
            await until(lambda: ("ended", live.id) in told.all)
            assert told.last[live.id].end is End.CUT
            await until(lambda: running.site.counts.open == 0)

    run(main())


@pytest.mark.parametrize(("body", "status"), [(b"", 400), (b"junk\n", 400), (b'{"version": 1}\n', 400)])
def test_what_is_no_cast(tmp_path: Path, body: bytes, status: int) -> None:
    async def main() -> None:
        async with ingest(tmp_path) as running:
            request = RECORD.replace(b"Expect: 100-continue\r\n", b"") + chunked(body)
            found, _, text = await exchange(running.port, request)
            assert found == status and b"error" in text
            assert [one async for one in running.store.recordings()] == []

    run(main())


def test_no_hundred_where_nothing_can_be_kept(tmp_path: Path) -> None:
    async def main() -> None:
        async with ingest(tmp_path, faulty=True) as running:
            assert isinstance(running.log, FaultyLog) and running.store.journal is not None
            running.log.fault = OSError(28, "No space left on device")
            running.store.journal.fault = "the recorder's disk is full"
            status, _, text = await exchange(running.port, RECORD)
            assert status == 503 and b"full" in text
            running.log.fault = None
            journal = running.store.journal
            await until(lambda: journal.fault is None)  # it tries by itself
            reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
            writer.write(RECORD)
            await reader.readuntil(b"\r\n\r\n")
            writer.write(chunked(HEADER)[:-5])
            await until(lambda: len(running.store.lives) == 1)
            (live,) = running.store.lives.values()
            await live.wait_acked(0)
            running.log.fault = OSError(28, "No space left on device")
            writer.write(chunked(lines(1))[:-5])
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 503 ")
            assert b"full" in await reader.read()
            writer.close()
            await writer.wait_closed()
            running.log.fault = None

    run(main())


def test_events(tmp_path: Path) -> None:
    async def main() -> None:
        async with ingest(tmp_path) as running:
            status, fields, _ = await exchange(running.port, b"HEAD /v2/event HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (status, fields["event-batch"]) == (200, "1000")
            assert (await exchange(running.port, post("/v2/event", {"n": 0})))[0] == 200
            assert (await exchange(running.port, post("/v2/event", [{"n": 1}, {"n": 2}])))[0] == 200
            assert (await exchange(running.port, post("/v2/event", [])))[0] == 200
            assert [event.document["n"] async for event in running.store.events()] == [0, 1, 2]
            for value, status in (([1], 400), ("x", 400), ([{}] * 1001, 413), ([[{}]], 400)):
                assert (await exchange(running.port, post("/v2/event", value)))[0] == status
            junk = b"POST /v2/event HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n{{{{"
            assert (await exchange(running.port, junk))[0] == 400
            for depth in (65, 970, 980, 990, 1000, 100_000):  # some of these Python can read and not write
                assert (await exchange(running.port, post("/v2/event", b'{"a":' * depth + b"1" + b"}" * depth)))[
                    0
                ] == 400
            assert running.site.counts.events == 3

    run(main())


@pytest.mark.parametrize(
    "request_line", ["HEAD /v2/record", "POST /v2/record", "GET /record", "GET /v2/event", "GET /", "POST /record/"]
)
def test_other_paths_and_methods(tmp_path: Path, request_line: str) -> None:
    async def main() -> None:
        async with ingest(tmp_path) as running:
            request = f"{request_line} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode()
            assert (await exchange(running.port, request))[0] == 404

    run(main())


def test_strangers_are_refused(tmp_path: Path) -> None:
    async def main() -> None:
        async with ingest(tmp_path, insecure=False) as running:
            for request in (RECORD, post("/v2/event", {}), b"HEAD /v2/event HTTP/1.1\r\nHost: x\r\n\r\n"):
                assert (await exchange(running.port, request))[0] == 403
            assert [event async for event in running.store.events()] == []
            assert running.site.counts.refused == {"peer_unknown": 3}

    run(main())


def test_silence_and_slow_heads_are_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("k8sproxy.common.heads.HEAD_TIMEOUT", 0.05)
    monkeypatch.setattr("recorder.ingest.gate.FIRST_BYTE", 0.05)

    async def main() -> None:
        async with ingest(tmp_path) as running:
            for first in (b"", b"P", b"PRI * HTTP/2", b"POST /record HTTP/1.1\r\nHost: "):
                reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
                writer.write(first)
                with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
                    await reader.readexactly(1)
                writer.close()
                with contextlib.suppress(ConnectionResetError):
                    await writer.wait_closed()

    run(main())


def test_a_probe_for_events_says_that_it_is_stopping(tmp_path: Path) -> None:
    """What would be refused must not be probed well; a sender's connection may be older than the drain."""

    async def main() -> None:
        async with ingest(tmp_path) as running:
            reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
            for status in (b"200", b"503"):
                writer.write(b"HEAD /v2/event HTTP/1.1\r\nHost: x\r\n\r\n")
                assert (await reader.readuntil(b"\r\n\r\n")).split()[1] == status
                running.site.draining = True
            writer.close()
            await writer.wait_closed()

    run(main())
