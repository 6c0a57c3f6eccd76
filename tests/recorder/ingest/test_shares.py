"""recorder/ingest/shares.py: what one sender or one user takes, others still have."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path

import pytest

from k8sproxy.common.errors import Refusal
from recorder.ingest.shares import Limit, Shares
from recorder.ingest.site import body_limit, session_limit, user_limit
from tests.recorder.ingest.ingesting import ingest
from tests.recorder.ingest.senders import H2Sender, chunked, exchange
from tests.recorder.ingest.test_gate import ALLOW, by_port, connect
from tests.recorder.store.storing import HEADER, FaultyLog, lines, run, until

RECORD = b"POST /record HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n"


def header(user: str, size: int = 0) -> bytes:
    fields = {"version": 2, "width": 80, "height": 24, "srcNode": "laptop.", "srcNodeUser": user, "pad": "x" * size}
    return json.dumps(fields).encode() + b"\n"


def test_they_count_and_name_the_limit() -> None:
    limit = Limit(10, 4, "all.of", "each.of", "things", "thief", "too_many")
    shares, random_ = Shares(limit), random.Random(1)
    held = {"a": 0, "b": 0, "c": 0}
    for _ in range(1000):
        who = random_.choice("abc")
        amount = random_.randint(1, 3)
        if random_.random() < 0.6:
            if held[who] + amount > 4:
                with pytest.raises(Refusal) as caught:
                    shares.take(who, amount)
                assert caught.value.message == "the recorder takes at most 4 things of one thief at once (each.of)"
                assert (caught.value.status, caught.value.cause) == (429, "too_many")
            elif sum(held.values()) + amount > 10:
                with pytest.raises(Refusal) as caught:
                    shares.take(who, amount)
                assert caught.value.message == "the recorder takes at most 10 things at once (all.of)"
                assert caught.value.status == 503
            else:
                shares.take(who, amount)
                held[who] += amount
        elif held[who] >= amount:
            shares.give_back(who, amount)
            held[who] -= amount
        assert shares.taken == sum(held.values()) and shares.largest == max(held.values())
        assert set(shares.by_holder) == {one for one, count in held.items() if count}


def test_a_user_has_its_share_of_the_sessions(tmp_path: Path) -> None:
    async def main() -> None:
        async with ingest(tmp_path, users=user_limit(100, 3)) as running:
            sender = await H2Sender.connect(running.port)
            idle = [sender.request() for _ in range(3)]
            for number in idle:
                await sender.send(number, header("ana@example.com"))
                await sender.until_acked(number, 1)
            late = sender.request()
            await sender.send(late, header("ana@example.com"))
            await sender.until_ended(late)
            why = "the recorder takes at most 3 sessions of one user at once (ingest.sessionsPerUser)"
            assert sender.error(late) == why
            status, _, body = await exchange(running.port, RECORD + chunked(header("ana@example.com")))
            assert status == 100  # v1 learns it behind its header line
            assert running.site.counts.refused["user_sessions"] == 1 or body == b""
            await until(lambda: running.site.counts.refused["user_sessions"] == 2)
            other = sender.request()
            await sender.send(other, header("ben@example.com"), end=True)
            await sender.until_ended(other)
            assert sender.acked(other) and not sender.error(other)
            await sender.send(idle[0], b"", end=True)
            await sender.until_ended(idle[0])
            again = sender.request()
            await sender.send(again, header("ana@example.com"), end=True)
            await sender.until_ended(again)
            assert sender.acked(again) and not sender.error(again)
            await sender.close()
            await until(lambda: not running.site.users.by_holder and not running.site.sessions.by_holder)

    run(main())


def test_a_sender_has_its_share_of_the_sessions(tmp_path: Path) -> None:
    others: set[int] = set()

    async def main() -> None:
        async with ingest(tmp_path, insecure=False, allow=ALLOW, sessions=session_limit(4, 3)) as running:
            by_port(running, others)
            sender = await H2Sender.connect(running.port)
            idle = [sender.request() for _ in range(3)]  # without a header line: their user is nobody's yet
            for number in idle:
                await sender.until_head(number)
            late = sender.request()
            await sender.until_ended(late)
            why = "the recorder takes at most 3 sessions of one sender at once (ingest.sessionsPerSender)"
            assert sender.heads[late][":status"] == "429" and sender.said[late] == [{"error": why}]
            status, _, body = await exchange(running.port, RECORD)
            assert (status, json.loads(body)) == (429, {"error": why})
            other = await connect(running, others)
            await other.begin()
            two = other.request()
            await other.until_ended(two)
            assert other.said[two] == [{"error": "the recorder takes at most 4 sessions at once (ingest.sessions)"}]
            await sender.close()
            await other.close()
            await until(lambda: running.site.sessions.taken == 0)

    run(main())


def test_header_lines_that_do_not_end_have_a_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = Limit(200_000, 100_000, "all", "each", "bytes of unfinished header lines", "sender", "sender_headers")

    async def main() -> None:
        async with ingest(tmp_path) as running:
            running.site.early.limit = limit
            sender = await H2Sender.connect(running.port)
            unfinished = [sender.request() for _ in range(4)]
            for number in unfinished[:3]:
                await sender.send(number, header("ana@example.com", 30_000)[:-1])
            await until(lambda: running.site.early.taken > 90_000)
            await sender.send(unfinished[3], header("ana@example.com", 30_000)[:-1])
            await sender.until_ended(unfinished[3])
            assert "bytes of unfinished header lines of one sender" in sender.error(unfinished[3])
            whole = sender.request()
            await sender.send(whole, header("ana@example.com", 30_000), end=True)
            await sender.until_ended(whole)
            assert sender.acked(whole) and not sender.error(whole)
            for number in unfinished[:3]:
                await sender.send(number, b"\n", end=True)
                await sender.until_ended(number)
                assert sender.acked(number)
            assert running.site.early.taken == 0
            await sender.close()

    run(main())


def post(size: int) -> bytes:
    return f"POST /v2/event HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n".encode()


def test_bodies_of_events_have_a_share_and_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is announced and never comes takes nothing; what has come takes the sender's share alone, for a while."""
    monkeypatch.setattr("recorder.ingest.http1.EVENTS_TIMEOUT", 0.3)
    others: set[int] = set()

    async def main() -> None:
        bodies = body_limit(1000, 600)
        async with ingest(tmp_path, insecure=False, allow=ALLOW, bodies=bodies) as running:
            by_port(running, others)
            unfinished = [await asyncio.open_connection("127.0.0.1", running.port) for _ in range(5)]
            for _, writer in unfinished:
                writer.write(post(5000) + b"[" + b" " * 199)
            await until(lambda: running.site.counts.refused["sender_events"] == 2)
            refused = [reader for reader, _ in unfinished if reader._buffer]  # type: ignore[attr-defined]
            assert len(refused) == 2
            why = b"the recorder takes at most 600 bytes of events of one sender at once (ingest.eventBytesPerSender)"
            for reader in refused:
                assert (await reader.readline()).split()[1] == b"429" and why in await reader.read()
            sock_reader, sock_writer = await other_connection(running.port, others)
            event = b'{"type":"kubernetes-api-request"}'
            sock_writer.write(post(len(event)) + event)
            assert (await sock_reader.readline()).split()[1] == b"200"
            sock_writer.close()
            for reader, _ in unfinished:
                if reader not in refused:
                    assert (await reader.readline()).split()[1] == b"408"
            await until(lambda: running.site.bodies.taken == 0)
            for _, writer in unfinished:
                writer.transport.abort()

    run(main())


async def other_connection(port: int, others: set[int]) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    import socket

    sock = socket.socket()
    sock.setblocking(False)
    sock.bind(("127.0.0.1", 0))
    others.add(sock.getsockname()[1])
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
    return await asyncio.open_connection(sock=sock)


def test_a_reload_changes_shares_for_what_comes(tmp_path: Path) -> None:
    async def main() -> None:
        async with ingest(tmp_path, sessions=session_limit(4, 1)) as running:
            sender = await H2Sender.connect(running.port)
            one, two = sender.request(), sender.request()
            await sender.until_ended(two)
            running.site.sessions.limit = session_limit(4, 2)
            three = sender.request()
            for number in (one, three):
                await sender.send(number, HEADER + lines(1), end=True)
                await sender.until_ended(number)
                assert sender.acked(number) == len(HEADER + lines(1))
            await sender.close()

    run(main())


def test_a_user_who_floods_a_slow_disk_is_not_read_and_others_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recorder.store.pressure.Pressure.MAX_QUEUED", 2_000_000)

    async def main() -> None:
        async with ingest(tmp_path, faulty=True) as running:
            assert isinstance(running.log, FaultyLog)
            flood, other = await H2Sender.connect(running.port), await H2Sender.connect(running.port)
            numbers = [flood.request() for _ in range(8)]
            for number in numbers:
                await flood.send(number, header("ana@example.com"))
                await flood.until_acked(number, 1)
            quiet = other.request()
            await other.send(quiet, header("ben@example.com"))
            await other.until_acked(quiet, 1)
            running.log.hold = asyncio.Event()
            body = lines(20_000, width=80)
            sending = [asyncio.create_task(flood.send(number, body, end=True)) for number in numbers]
            await until(lambda: any(one._unread for one in running.server._h2))
            before = running.site.counts.bytes
            await other.send(quiet, lines(3))
            await until(lambda: running.site.counts.bytes >= before + len(lines(3)))
            assert not running.store.crowded
            running.log.hold.set()
            running.log.hold = None
            await other.send(quiet, b"", end=True)
            await other.until_ended(quiet)
            assert other.acked(quiet) == len(header("ben@example.com") + lines(3))
            for number in numbers:
                await flood.until_ended(number)
                assert flood.acked(number) == len(header("ana@example.com") + body)
            await asyncio.gather(*sending)
            await flood.close()
            await other.close()

    run(main())
