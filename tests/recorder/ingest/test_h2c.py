"""recorder/ingest/h2c.py: version 2 of the wire, from a sender's side."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path

import h2.config
import h2.connection
import pytest

from k8sproxy.common.formats.asciicast import MAX_HEADER_LINE, CastHeader
from recorder.ingest.admission import Door
from recorder.ingest.h2c import STREAM_WINDOW
from recorder.model import End, Source
from standins.tailscaled import tagged_whois, user_whois
from tests.recorder.ingest.ingesting import Running, ingest
from tests.recorder.ingest.senders import H2Sender
from tests.recorder.store.storing import HEADER, FaultyLog, Told, ids, lines, run, text_of, until


async def recorded(running: Running) -> list[str]:
    return ids([one async for one in running.store.recordings()])


def test_a_session(tmp_path: Path) -> None:
    async def main() -> None:
        async with ingest(tmp_path) as running:
            sender = await H2Sender.connect(running.port)
            probe = sender.request("HEAD", end=True)
            await sender.until_ended(probe)
            assert sender.heads[probe] == {":status": "200", "asciicast-event-codes": "o, e, r, m"}
            number = sender.request()
            await sender.until(lambda: number in sender.heads)
            assert sender.heads[number][":status"] == "200"
            assert sender.heads[number]["asciicast-event-codes"] == "o, e, r, m"
            await sender.send(number, HEADER + lines(10))
            size = len(HEADER + lines(10))
            await sender.until(lambda: sender.acked(number) == size)
            await sender.send(number, lines(5000, start=10), end=True)
            await sender.until_ended(number)
            assert number not in sender.reset
            assert sender.acked(number) == len(HEADER + lines(5010))
            (identifier,) = await recorded(running)
            found = await running.store.get(identifier)
            assert (found.end, found.source.address) == (End.CLEAN, "127.0.0.1")
            assert await text_of(running.store, identifier) == HEADER + lines(5010)
            await sender.close()

    run(main())


def test_a_few_acks_do_not_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody may be waiting for each to see what a key has done."""
    monkeypatch.setattr("recorder.ingest.acks.ACK_SECONDS", 1000.0)
    monkeypatch.setattr("recorder.ingest.acks.MAX_ACK_SECONDS", 1000.0)
    monkeypatch.setattr("recorder.store.journal.PACE", 1000.0)

    async def main() -> None:
        async with ingest(tmp_path) as running:
            sender = await H2Sender.connect(running.port)
            number = sender.request()
            size = len(HEADER)
            await sender.send(number, HEADER)
            async with asyncio.timeout(60):
                for key in range(3):
                    await sender.until_acked(number, size)
                    await sender.send(number, lines(1, start=key))
                    size += len(lines(1, start=key))
            await sender.close()

    run(main())


def test_many_sessions_on_one_connection_in_small_pieces(tmp_path: Path) -> None:
    async def main() -> None:
        async with ingest(tmp_path) as running:
            sender = await H2Sender.connect(running.port)
            numbers = [sender.request() for _ in range(20)]

            async def session(number: int) -> None:
                body = HEADER + lines(number * 20)
                await sender.send(number, body, frame=number * 17 + 1)
                await sender.send(number, b"", end=True)
                await sender.until_ended(number)
                assert sender.acked(number) == len(body) and not sender.error(number)

            await asyncio.gather(*map(session, numbers))
            sizes = sorted([(await running.store.get(one)).size for one in await recorded(running)])
            assert sizes == sorted(len(HEADER + lines(number * 20)) for number in numbers)
            assert running.site.counts.open == 0
            await sender.close()

    run(main())


def test_more_than_the_windows_hold(tmp_path: Path) -> None:
    async def main() -> None:
        async with ingest(tmp_path) as running:
            sender = await H2Sender.connect(running.port)
            body = HEADER + lines(200_000, width=100)
            number = sender.request()
            await sender.send(number, body, end=True)
            await sender.until_ended(number)
            assert sender.acked(number) == len(body) > 24_000_000
            (identifier,) = await recorded(running)
            assert await text_of(running.store, identifier) == body
            await sender.close()

    run(main())


@pytest.mark.parametrize("character", ["x", "\x01", "\U0001f600"])
def test_whatever_a_proxy_has_to_say_of_a_session_fits_into_its_header(tmp_path: Path, character: str) -> None:
    much = character * 50_000
    header = CastHeader(
        timestamp=1, src_node=much, src_node_id=much, command=much, src_node_tags=(much[:400],) * 300, pod_name=much,
        namespace=much, container=much, cluster=much, impersonated_user=much, impersonated_groups=(much[:400],) * 300,
        user_agent=much, session_id=much,
    )  # fmt: skip

    async def main() -> None:
        async with ingest(tmp_path) as running:
            sender = await H2Sender.connect(running.port)
            number = sender.request()
            body = header.line(80, 24) + lines(3)
            await sender.send(number, body, end=True)
            await sender.until_ended(number)
            assert (sender.error(number), sender.acked(number)) == ("", len(body))
            (identifier,) = await recorded(running)
            found = await running.store.get(identifier)
            assert found.truncated["command"]["bytes"] == len(much.encode())
            assert "bytes left out" in found.command
            await sender.close()

    run(main())


@pytest.mark.parametrize("how", ["reset", "lost"])
def test_a_sender_that_vanishes_leaves_a_cut_recording(tmp_path: Path, how: str) -> None:
    async def main() -> None:
        async with ingest(tmp_path) as running:
            told = Told()
            running.store.observers.append(told)
            sender = await H2Sender.connect(running.port)
            number = sender.request()
            await sender.send(number, HEADER + lines(10))
            await sender.until(lambda: sender.acked(number) > len(HEADER))
            if how == "reset":
                sender.h2.reset_stream(number)
                sender._flush()
            else:
                await sender.close()
            (identifier,) = running.store.lives
            await until(lambda: ("ended", identifier) in told.all)
            assert (await running.store.get(identifier)).end is End.CUT
            assert await text_of(running.store, identifier) == HEADER + lines(10)
            await sender.close()

    run(main())


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "header line is missing"),
        (b'{"version": 2}', "header line is missing"),
        (b"hello\n", "not JSON"),
        (b'{"version": 3}\n' + lines(3), "version 2"),
        (b"x" * (MAX_HEADER_LINE + 2), "more than"),
    ],
)
def test_what_is_no_cast_keeps_nothing(tmp_path: Path, body: bytes, why: str) -> None:
    async def main() -> None:
        async with ingest(tmp_path) as running:
            sender = await H2Sender.connect(running.port)
            number = sender.request()
            await sender.send(number, body)
            if number not in sender.reset and "more than" not in why:
                await sender.send(number, b"", end=True)
            await sender.until_ended(number)
            assert why in sender.error(number)
            assert await recorded(running) == [] and not running.store.lives
            # The connection is as good as before.
            other = sender.request()
            await sender.send(other, HEADER, end=True)
            await sender.until_ended(other)
            assert sender.acked(other) == len(HEADER)
            await sender.close()

    run(main())


def test_a_reset_before_any_byte_keeps_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        async with ingest(tmp_path) as running:
            sender = await H2Sender.connect(running.port)
            number = sender.request()
            await sender.until(lambda: number in sender.heads)
            sender.h2.reset_stream(number)
            sender._flush()
            await until(lambda: running.site.counts.open == 0)
            assert await recorded(running) == []
            await sender.close()

    run(main())


def test_all_sessions_that_a_drain_cuts_hear_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many acks wait for their time, but there is no other time than this one."""
    monkeypatch.setattr("recorder.ingest.acks.ACK_SECONDS", 1000.0)
    monkeypatch.setattr("recorder.ingest.acks.MAX_ACK_SECONDS", 1000.0)

    async def main() -> None:
        async with ingest(tmp_path) as running:
            sender = await H2Sender.connect(running.port)
            numbers = [await sender.begin() for _ in range(20)]
            assert await running.server.drain(0.0) == 20
            await sender.until_lost()
            assert {sender.error(number) for number in numbers} == {"the recorder is stopping"}

    run(main())


def test_a_failing_store_is_told_on_every_stream(tmp_path: Path) -> None:
    async def main() -> None:
        async with ingest(tmp_path, faulty=True) as running:
            assert isinstance(running.log, FaultyLog)
            sender = await H2Sender.connect(running.port)
            numbers = [sender.request() for _ in range(3)]
            for number in numbers:
                await sender.send(number, HEADER + lines(5))
                await sender.until_acked(number, 1)
            running.log.fault = OSError(28, "No space left on device")
            for number in numbers:
                await sender.send(number, lines(5, start=5))
                await sender.until_ended(number)
                assert sender.error(number) == "the recorder's disk is full"
            late = sender.request()
            await sender.until_ended(late)
            assert sender.heads[late][":status"] == "503"
            probe = sender.request("HEAD", end=True)
            await sender.until_ended(probe)
            assert sender.heads[probe][":status"] == "503"
            running.log.fault = None
            await until(lambda: running.store.healthy is None)
            again = sender.request()
            await sender.send(again, HEADER, end=True)
            await sender.until_ended(again)
            assert sender.acked(again) == len(HEADER)
            await sender.close()

    run(main())


def test_who_may_send(tmp_path: Path) -> None:
    grant = "example.com/cap/recorder"
    proxy, person = ["tag:proxy"], "ana@example.com"
    cases = [
        (tagged_whois("proxy", proxy, "100.64.0.5"), ("tag:proxy",), "200"),
        (tagged_whois("proxy", proxy, "100.64.0.5"), (person, "tag:other"), "403"),
        (tagged_whois("proxy", proxy, "100.64.0.5", {grant: [{"send": True}]}), (), "200"),
        (tagged_whois("proxy", proxy, "100.64.0.5", {grant: [{"send": False}, {"view": True}]}), (), "403"),
        (tagged_whois("proxy", proxy, "100.64.0.5", {grant: [{"send": True}, "nonsense"]}), (), "403"),
        (tagged_whois("proxy", proxy, "100.64.0.5", {grant: [{"send": "yes"}]}), ("tag:proxy",), "403"),
        (tagged_whois("proxy", proxy, "100.64.0.5", {grant: [{"send": True, "users": "*"}]}), ("tag:proxy",), "403"),
        (tagged_whois("proxy", proxy, "100.64.0.5", {grant: [{"send": True}, {"clusters": [1]}]}), (), "403"),
        (tagged_whois("proxy", proxy, "100.64.0.5", {grant: [{"Send": True}]}), (), "200"),
        (tagged_whois("proxy", proxy, "100.64.0.5", {"tailscale.com/cap/recorder": [{"send": True}]}), (), "403"),
        (user_whois(person, "laptop", "100.64.0.9"), (person,), "200"),
        (user_whois(person, "laptop", "100.64.0.9"), (), "403"),
        (None, ("tag:proxy", person), "403"),
    ]

    async def main() -> None:
        for turn, (who, allow, status) in enumerate(cases):
            folder = tmp_path / str(turn)
            folder.mkdir()
            async with ingest(folder, who=who, allow=allow, insecure=False) as running:
                for method in ("HEAD", "POST"):
                    sender = await H2Sender.connect(running.port)
                    number = sender.request(method, end=method == "HEAD")
                    await sender.until_head(number)
                    assert sender.heads[number][":status"] == status, (turn, method)
                    assert (sender.heads[number].get("recorder-error") is None) is (status == "200")
                    if method == "HEAD" or status != "200":
                        await sender.close()
                if status == "200":
                    await sender.send(number, HEADER, end=True)
                    await sender.until_ended(number)
                    (identifier,) = await recorded(running)
                    source = (await running.store.get(identifier)).source
                    assert source.node.endswith(".tail1234.ts.net") and source.address.startswith("100.64.0.")
                    assert source.user == ("" if source.tags else person)
                    await sender.close()
                else:
                    assert await recorded(running) == []

    run(main())


def test_a_daemon_that_cannot_be_asked_admits_nobody(tmp_path: Path) -> None:
    async def main() -> None:
        async with ingest(tmp_path, allow=("tag:proxy",), insecure=False) as running:
            running.daemon.faults["whois"] = "failing"
            sender = await H2Sender.connect(running.port)
            number = sender.request()
            await sender.send(number, HEADER)  # what comes early is not kept
            await sender.until_ended(number)
            assert sender.heads[number][":status"] == "503"
            assert await recorded(running) == []
            await sender.close()

    run(main())


def test_other_paths_and_methods(tmp_path: Path) -> None:
    async def main() -> None:
        async with ingest(tmp_path) as running:
            sender = await H2Sender.connect(running.port)
            for method, path in (("GET", "/v2/record"), ("POST", "/record"), ("POST", "/"), ("POST", "/v2/event")):
                number = sender.request(method, path, end=True)
                await sender.until_ended(number)
                assert sender.heads[number][":status"] == "404"
            await sender.close()

    run(main())


def test_draining(tmp_path: Path) -> None:
    async def main() -> None:
        async with ingest(tmp_path) as running:
            told = Told()
            running.store.observers.append(told)
            sender, idle = await H2Sender.connect(running.port), await H2Sender.connect(running.port)
            one, two = sender.request(), sender.request()
            for number in (one, two):
                await sender.send(number, HEADER)
                await sender.until_acked(number, 1)
            drain = asyncio.create_task(running.server.drain(30.0))
            await idle.until(lambda: idle.lost and idle.goaway)
            late = sender.request()
            await sender.until_head(late)
            assert sender.heads[late][":status"] == "503"
            await sender.send(one, lines(3), end=True)
            await sender.until_ended(one)
            assert sender.acked(one) == len(HEADER + lines(3))
            drain.cancel()
            await asyncio.wait((drain,))
            assert await running.server.drain(0.0) == 1
            await sender.until_ended(two)
            assert sender.error(two) == "the recorder is stopping"
            await sender.until(lambda: sender.lost)
            await until(lambda: len([one for one in told.all if one[0] == "ended"]) == 2)
            ends = sorted(recording.end.value for recording in told.last.values())
            assert ends == ["clean", "cut"]

    run(main())


@pytest.mark.parametrize(
    "junk",
    [
        b"\x00\x00\x00\x00\x00\x00\x00\x00\x01",  # DATA on an idle stream
        b"\xff\xff\xff\x00\x00\x00\x00\x00\x01" + bytes(200_000),  # a frame that is too long
        b"\x00\x00\x04\x01\x04\x00\x00\x00\x01\xff\xff\xff\xff",  # a header block that is none
        b"\x00\x00\x04\x08\x00\x00\x00\x00\x00\x00\x00\x00\x00",  # a window of nothing
    ],
)
def test_what_is_no_http2_ends_the_connection_and_nothing_else(tmp_path: Path, junk: bytes) -> None:
    async def main() -> None:
        async with ingest(tmp_path) as running:
            bad, good = await H2Sender.connect(running.port), await H2Sender.connect(running.port)
            assert bad.transport is not None
            bad.transport.write(junk)
            await bad.until(lambda: bad.lost)
            number = good.request()
            await good.send(number, HEADER, end=True)
            await good.until_ended(number)
            assert good.acked(number) == len(HEADER)
            await good.close()

    run(main())


def test_frames_without_data_end_the_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recorder.ingest.budgets.FRAMES", 50)

    async def main() -> None:
        async with ingest(tmp_path) as running:
            sender = await H2Sender.connect(running.port)
            number = sender.request()
            await sender.send(number, HEADER)
            assert sender.transport is not None
            for _ in range(200):
                sender.transport.write(b"\x00\x00\x00\x00\x00" + number.to_bytes(4, "big"))
            await sender.until(lambda: sender.lost)
            await until(lambda: running.site.counts.open == 0)

    run(main())


def test_requests_that_are_reset_end_the_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flood of them (CVE-2023-44487), with a byte before each reset, which earns next to nothing."""
    monkeypatch.setattr("recorder.ingest.budgets.FRAMES", 50)

    async def main() -> None:
        async with ingest(tmp_path) as running:
            sender = await H2Sender.connect(running.port)
            for _ in range(200):
                number = sender.request()
                sender.h2.send_data(number, b"{")
                sender.h2.reset_stream(number)
                sender._flush()
                if sender.lost:
                    break
            await sender.until_lost()
            await until(lambda: running.site.counts.open == 0)

    run(main())


def test_pings_over_days_do_not_end_a_silent_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recorder.ingest.budgets.FRAMES", 20)
    monkeypatch.setattr("recorder.ingest.budgets.FRAMES_A_SECOND", 1e9)

    async def main() -> None:
        async with ingest(tmp_path) as running:
            sender, number = await H2Sender.in_session(running.port)
            for _ in range(50):
                sender.h2.ping(b"12345678")
                sender._flush()
            await sender.send(number, lines(1), end=True)
            await sender.until_ended(number)
            assert sender.acked(number) == len(HEADER + lines(1)) and not sender.lost
            await sender.close()

    run(main())


def test_answers_that_nobody_reads_end_the_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recorder.ingest.h2c.MAX_UNREAD", 200_000)
    monkeypatch.setattr("recorder.ingest.budgets.FRAMES_A_SECOND", 1e9)
    monkeypatch.setattr("recorder.ingest.budgets.FRAMES", 1e9)

    async def main() -> None:
        async with ingest(tmp_path) as running:
            sender = await H2Sender.connect(running.port, receive=4096)
            number = await sender.begin()
            assert sender.transport is not None
            sender.transport.pause_reading()
            (server,) = running.server._doors
            server.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            event = number.to_bytes(4, "big") + lines(1)
            piece = b"\x00\x00\x08\x06\x00\x00\x00\x00\x0012345678" * 500
            piece += (len(event) - 4).to_bytes(3, "big") + b"\x00\x00" + event
            for _ in range(200):  # 1.7 MB of pongs, were they kept
                sender.transport.write(piece)
                await asyncio.sleep(0)
            await until(lambda: not running.server._doors)
            sender.transport.resume_reading()
            await sender.until_lost()

    run(main())


def test_what_comes_before_its_sender_is_admitted_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon may take seconds to say who it is now, and whoever it is may send as fast as it can meanwhile."""
    asked, answer = asyncio.Event(), asyncio.Event()
    times = iter(range(10))

    async def admit(door: Door) -> Source:
        door.holder = "proxy"
        if not next(times):  # at the gate
            return Source("proxy", "100.64.0.5")
        asked.set()
        await answer.wait()
        return Source("proxy", "100.64.0.5")

    monkeypatch.setattr(Door, "admit", admit)
    body = HEADER + lines(60_000)
    assert len(body) > 3 * STREAM_WINDOW

    async def main() -> None:
        async with ingest(tmp_path) as running:
            sender = await H2Sender.connect(running.port)
            number = sender.request()
            sending = asyncio.create_task(sender.send(number, body, end=True))
            await asked.wait()
            await until(lambda: running.site.counts.bytes >= STREAM_WINDOW)
            sender._changed.clear()
            sender.h2.ping(b"12345678")  # what the answer comes behind is there
            sender._flush()
            await sender._changed.wait()
            assert sender.h2.local_flow_control_window(number) == 0
            assert running.site.counts.bytes == STREAM_WINDOW
            answer.set()
            await sending
            await sender.until_ended(number)
            assert sender.acked(number) == len(body)
            await sender.close()

    run(main())


def data_frame(number: int, data: bytes, flags: int = 0) -> bytes:
    return len(data).to_bytes(3, "big") + bytes((0, flags)) + number.to_bytes(4, "big") + data


def pieces(data: bytes, sizes: Iterator[int]) -> Iterator[bytes]:
    while data:
        size = next(sizes)
        yield data[:size]
        data = data[size:]


@pytest.mark.parametrize("sizes", [(1,), (7, 1, 300), (9,), (10_000,)])
def test_frames_however_they_are_cut(tmp_path: Path, sizes: tuple[int, ...]) -> None:
    """Plain, empty, padded and last frames, with others between, in reads of any size."""
    body = HEADER + lines(40)

    async def main() -> None:
        async with ingest(tmp_path) as running:
            other = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
            other.initiate_connection()
            script = other.data_to_send()
            fields = [(":method", "POST"), (":path", "/v2/record"), (":scheme", "http"), (":authority", "recorder")]
            other.send_headers(1, fields)
            other.send_headers(3, fields)
            script += other.data_to_send()
            for number in (1, 3):
                script += data_frame(number, body[:500]) + data_frame(0x80000000 | number, body[500:700])
                script += b"\0\0\x08\x06\0\0\0\0\0" + bytes(8)  # PING
                script += data_frame(number, b"") + data_frame(number, b"\x04" + body[700:900] + bytes(4), 0x8)
            for number in (3, 1):
                script += data_frame(number, body[900:1000]) + data_frame(number, body[1000:], 0x1)
            raw = await asyncio.open_connection("127.0.0.1", running.port)
            rounds = iter(sizes * len(script))
            for piece in pieces(script, rounds):
                raw[1].write(piece)
                await asyncio.sleep(0)
            answer = b""
            while answer.count(b'{"ack":%d}' % len(body)) < 2:
                read = await raw[0].read(65536)
                assert read
                answer += read
            raw[1].close()
            await until(lambda: running.site.counts.open == 0)
            found = await recorded(running)
            assert len(found) == 2
            for identifier in found:
                assert await text_of(running.store, identifier) == body
                assert (await running.store.get(identifier)).end is End.CLEAN

    run(main())


@pytest.mark.parametrize("announced", [None, 0, 1, -1])
def test_a_body_of_an_announced_length(tmp_path: Path, announced: int | None) -> None:
    """One that is not what it said it would be is no clean recording."""
    body = HEADER + lines(5)

    async def main() -> None:
        async with ingest(tmp_path) as running:
            sender = await H2Sender.connect(running.port)
            number = sender.h2.get_next_available_stream_id()
            fields = [(":method", "POST"), (":path", "/v2/record"), (":scheme", "http"), (":authority", "recorder")]
            if announced is not None:
                fields.append(("content-length", str(len(body) + announced)))
            sender.h2.send_headers(number, fields)
            await sender.send(number, body, frame=100)
            assert sender.transport is not None
            sender.transport.write(data_frame(number, b"", 0x1))
            await sender.until_ended(number)
            told = [await running.store.get(one) for one in await recorded(running)]
            if announced:
                assert sender.lost and all(one.end is End.CUT for one in told)
            else:
                assert not sender.lost and [(one.end, one.size) for one in told] == [(End.CLEAN, len(body))]
                await sender.close()

    run(main())


def test_more_than_a_window_ends_the_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recorder.ingest.h2c.STREAM_WINDOW", 1000)

    async def main() -> None:
        async with ingest(tmp_path) as running:
            sender, number = await H2Sender.in_session(running.port)
            assert sender.transport is not None
            sender.transport.write(data_frame(number, b"x" * 1001))
            await sender.until(lambda: sender.lost)
            await until(lambda: running.site.counts.open == 0)
            (identifier,) = await recorded(running)
            assert await text_of(running.store, identifier) == HEADER

    run(main())


def test_nothing_comes_between_the_frames_of_a_head(tmp_path: Path) -> None:
    async def main() -> None:
        async with ingest(tmp_path) as running:
            sender, number = await H2Sender.in_session(running.port)
            assert sender.transport is not None
            head = b"\0\0\x01\x01\0" + (number + 2).to_bytes(4, "big") + b"\x83"  # HEADERS without END_HEADERS
            sender.transport.write(head + data_frame(number, lines(1)))
            await sender.until(lambda: sender.lost)
            await until(lambda: running.site.counts.open == 0)
            (identifier,) = await recorded(running)
            assert await text_of(running.store, identifier) == HEADER

    run(main())


def test_a_crowded_store_is_not_read_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What all senders may send together is more than the store holds: the rest stays where it is, and comes later."""
    monkeypatch.setattr("recorder.store.pressure.Pressure.MAX_QUEUED", 300_000)
    body = HEADER + lines(6_000, width=100)

    async def main() -> None:
        async with ingest(tmp_path, faulty=True) as running:
            assert isinstance(running.log, FaultyLog)
            senders = [await H2Sender.connect(running.port) for _ in range(10)]
            numbers = [sender.request() for sender in senders]
            for sender, number in zip(senders, numbers, strict=True):
                await sender.send(number, HEADER)
                await sender.until_acked(number, len(HEADER))
            running.log.hold = asyncio.Event()
            sent = [
                asyncio.create_task(sender.send(number, body[len(HEADER) :], end=True))
                for sender, number in zip(senders, numbers, strict=True)
            ]
            before = -1
            while running.store.held != before:  # until nothing more comes in
                before = running.store.held
                await asyncio.sleep(0.1)
            # Each connection had one read more, of 256 KiB at most; the windows would let in 700 KB each.
            assert 300_000 < running.store.held < 300_000 + 10 * 262_144 < 10 * len(body)
            running.log.hold.set()
            running.log.hold = None
            for sender, number in zip(senders, numbers, strict=True):
                await sender.until_ended(number)
                assert sender.acked(number) == len(body)
                await sender.close()
            await asyncio.gather(*sent)

    run(main())
