"""The known floods of HTTP/2, each on a connection that was admitted: it is ended, and others don't notice. And all of
them before a connection is admitted, where HTTP/2 must not see a byte of them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hpack import Encoder
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from recorder.ingest.budgets import FRAMES, OF_A_SENDER
from standins.tailscaled import tagged_whois
from tests.recorder.ingest.ingesting import ingest
from tests.recorder.ingest.senders import H2Sender, read_all
from tests.recorder.store.storing import HEADER, run, until

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SettingsFrame(0).serialize()
FIELDS = [(":method", "POST"), (":path", "/v2/record"), (":scheme", "http"), (":authority", "x")]
BLOCK = Encoder().encode(FIELDS)


def frame(kind: type[Frame], stream: int, *, flags: tuple[str, ...] = (), **fields: object) -> bytes:
    made = kind(stream, flags=flags)
    for name, value in fields.items():
        setattr(made, name, value)
    data: bytes = made.serialize()
    return data


def raw(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def request(stream: int, block: bytes = BLOCK, *, end: bool = True) -> bytes:
    return frame(HeadersFrame, stream, flags=("END_HEADERS",) if end else (), data=block)


def continuations(size: int, count: int) -> bytes:
    return request(1, end=False) + frame(ContinuationFrame, 1, data=bytes(size)) * count


def resets(count: int, between: bytes = b"") -> bytes:
    pieces = []
    for stream in range(1, 2 * count, 2):
        pieces += [request(stream)]
        pieces += [frame(DataFrame, stream, data=between)] if between else []
        pieces += [frame(RstStreamFrame, stream, error_code=8)]
    return b"".join(pieces)


def settings(count: int) -> bytes:
    return raw(0x4, 0, 0, b"".join((number + 100).to_bytes(2, "big") + b"\0\0\0\1" for number in range(count)))


def bomb() -> bytes:
    """A field of 4,000 bytes in the dynamic table, and 2,000 times a byte that stands for it."""
    block = BLOCK + b"\x40\x01x\x7f\xa1\x1e" + b"y" * 4000 + b"\xbe" * 2000
    return request(1, block)


def priority(stream: int, on: int) -> bytes:
    return frame(PriorityFrame, stream, depends_on=on, stream_weight=1)


def long_list(fields: int) -> bytes:
    """A list of fields that unpacks to far more than it takes: 35 bytes each count for 3 on the wire."""
    return request(1, BLOCK + b"\x00\x01a\x00" * fields)


FLOODS: dict[str, Callable[[], bytes]] = {
    "continuation": lambda: continuations(1000, 60),
    "continuation without a byte": lambda: continuations(0, 5000),
    "one overlong head": lambda: request(1, bytes(100_000)),
    "the beginning of an overlong head": lambda: request(1, bytes(100_000))[:20],
    "the beginning of an overlong continuation": lambda: continuations(10_000, 2)[:10_060],
    "resets": lambda: resets(3000),
    "resets, each after a byte": lambda: resets(3000, b"{"),
    "requests": lambda: b"".join(request(stream) for stream in range(1, 6000, 2)),
    "requests for what is not there": lambda: b"".join(
        request(stream, Encoder().encode([*FIELDS[:1], (":path", "/"), *FIELDS[2:]])) for stream in range(1, 6000, 2)
    ),
    "settings": lambda: frame(SettingsFrame, 0) * 100,
    "settings that change windows": lambda: b"".join(
        frame(SettingsFrame, 0, settings={4: 1000 + number % 2}) for number in range(100)
    ),
    "settings of every number": lambda: settings(10_000),
    "the beginning of settings of every number": lambda: settings(10_000)[:20],
    "confirmed settings": lambda: frame(SettingsFrame, 0, flags=("ACK",)) * 5000,
    "pings": lambda: frame(PingFrame, 0, opaque_data=b"12345678") * 5000,
    "pongs": lambda: frame(PingFrame, 0, flags=("ACK",), opaque_data=b"12345678") * 5000,
    "empty data": lambda: request(1) + frame(DataFrame, 1) * 5000,
    "nothing but padding": lambda: request(1) + frame(DataFrame, 1, flags=("PADDED",), pad_length=9) * 5000,
    "a byte and padding": lambda: request(1) + frame(DataFrame, 1, flags=("PADDED",), pad_length=9, data=b"x") * 5000,
    "windows": lambda: frame(WindowUpdateFrame, 0, window_increment=1) * 5000,
    "windows of a stream": lambda: request(1) + frame(WindowUpdateFrame, 1, window_increment=1) * 5000,
    "priorities": lambda: priority(1, 3) * 5000,
    "priorities in a circle": lambda: (priority(1, 3) + priority(3, 5) + priority(5, 1)) * 2000,
    "priorities of many streams": lambda: b"".join(priority(stream, stream + 2) for stream in range(1, 10_000, 2)),
    "a priority of oneself": lambda: priority(1, 1),
    "a bomb of fields": bomb,
    "a long list of fields": lambda: long_list(2000),
    "what is not known": lambda: raw(0xFA, 0, 0, b"") * 5000,
    "much that is not known": lambda: raw(0xFA, 0, 0, bytes(100_000)),
}


@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_ends_its_connection_and_no_other(tmp_path: Path, name: str) -> None:
    data = FLOODS[name]()

    async def main() -> None:
        async with ingest(tmp_path) as running:
            good, number = await H2Sender.in_session(running.port)
            reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
            writer.write(PREFACE + data)
            await read_all(reader)
            writer.close()
            await until(lambda: running.site.counts.connections == 1 and running.site.counts.open == 1)
            await good.send(number, b"", end=True)
            await good.until_ended(number)
            assert good.acked(number) == len(HEADER)
            await good.close()

    run(main())


@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_before_its_sender_is_known_is_not_read(tmp_path: Path, name: str) -> None:
    """HTTP/2 has not seen a byte while WhoIs is asked, and never does where the answer is no."""
    data = FLOODS[name]()

    async def main() -> None:
        who = tagged_whois("laptop", ["tag:other"], "100.64.0.5")
        async with ingest(tmp_path, who=who, allow=("tag:proxy",), insecure=False) as running:
            running.daemon.faults["whois"] = "hold"
            reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
            writer.write(PREFACE + data)
            await until(lambda: running.daemon.asked["whois"] == 1)
            assert not running.server._h2 and not running.server._doors
            running.daemon.release()
            await read_all(reader)
            writer.close()
            assert not running.server._h2 and running.site.counts.open == 0
            assert running.site.counts.refused == {"not_a_sender": 1}

    run(main())


def test_a_sender_with_many_connections_has_one_budget_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each connection stays below what a connection may spend, and a new one brings nothing new with it."""
    monkeypatch.setattr("recorder.ingest.budgets.FRAMES_A_SECOND", 0.0)
    pings = frame(PingFrame, 0, opaque_data=b"12345678")

    async def answered(port: int) -> int:
        """How many of 1,900 pings on a connection of their own."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(PREFACE + pings * 1900 + frame(PingFrame, 0, opaque_data=b"the last"))
        answer = b""
        async with asyncio.timeout(60):
            with contextlib.suppress(ConnectionResetError):
                while b"the last" not in answer and (piece := await reader.read(1 << 16)):
                    answer += piece
        writer.close()
        return answer.count(b"12345678")

    async def main() -> None:
        async with ingest(tmp_path) as running:
            assert [await answered(running.port) for _ in range(OF_A_SENDER)] == [1900] * OF_A_SENDER
            assert not running.site.counts.refused
            assert await answered(running.port) < 1900 and await answered(running.port) == 0
            assert running.site.counts.refused == {"http2": 2}
            await until(lambda: running.site.counts.connections == 0)
            assert running.site.budgets.of("another", 0.0).spend(OF_A_SENDER * FRAMES, 0.0)

    run(main())


def test_a_head_that_does_not_end_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recorder.ingest.h2c.HEAD_TIMEOUT", 0.05)

    async def main() -> None:
        async with ingest(tmp_path) as running:
            reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
            # A session is open, so that the connection is not an idle one.
            writer.write(PREFACE + request(1) + request(3, end=False))
            await read_all(reader)
            writer.close()
            await until(lambda: running.site.counts.open == 0)
            assert running.site.counts.refused == {"http2": 1}

    run(main())


def test_a_flood_leaves_the_loop_to_others_between_its_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However much comes at once, no turn of the loop handles more than TURN allows."""
    monkeypatch.setattr("recorder.ingest.frames.TURN", 1000)
    monkeypatch.setattr("recorder.ingest.frames.DEAR", 100)
    done: list[int] = []

    async def main() -> None:
        async with ingest(tmp_path) as running:
            sender, number = await H2Sender.in_session(running.port)
            (protocol,) = running.server._h2
            receive = protocol._h2.receive_data

            def counted(data: bytes) -> object:
                done[-1] += 1
                return receive(data)

            monkeypatch.setattr(protocol._h2, "receive_data", counted)
            take = protocol._take

            def turn(data: bytes) -> None:
                done.append(0)
                take(data)

            monkeypatch.setattr(protocol, "_take", turn)
            assert sender.transport is not None
            text = b'[1, "o", "x"]\n' * 10
            sender.transport.write(
                frame(PingFrame, 0, opaque_data=b"12345678") * 95 + frame(DataFrame, number, data=text)
            )
            await sender.until_acked(number, len(HEADER + text))
            assert max(done) == 10 and sum(done) == 95  # the turn in which it is spent may be gone over by one frame
            await sender.close()

    run(main())
