"""recorder/ingest/gate.py: who is let in, who is not, and what somebody without a word can take from others."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from k8sproxy.common.errors import Refusal
from recorder.ingest.gate import Step, connections
from standins.tailscaled import Answer, tagged_whois, user_whois
from tests.lives import assert_documented
from tests.recorder.ingest.ingesting import Running, ingest
from tests.recorder.ingest.senders import H2Sender, exchange
from tests.recorder.store.storing import HEADER, run, until

PROBE = b"HEAD /v2/event HTTP/1.1\r\nHost: x\r\n\r\n"
ALLOW = ("tag:one", "tag:other")


@asynccontextmanager
async def silence(port: int, count: int) -> AsyncIterator[list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]:
    """So many connections that say nothing."""
    opened = [await asyncio.open_connection("127.0.0.1", port) for _ in range(count)]
    try:
        yield opened
    finally:
        for _, writer in opened:
            writer.transport.abort()


async def ended(reader: asyncio.StreamReader) -> None:
    async with asyncio.timeout(20):
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read(1) == b""


def by_port(running: Running, others: set[int]) -> None:
    """Whoever comes from one of these ports is one node, and everybody else another one."""

    def who(ip: str, port: int) -> Answer:
        name = "other" if port in others else "one"
        return tagged_whois(name, [f"tag:{name}"], "100.64.0.9" if port in others else "100.64.0.5")

    running.daemon.peers = who


async def connect(running: Running, others: set[int]) -> H2Sender:
    """A sender from another node than everybody else."""
    sock = socket.socket()
    sock.setblocking(False)
    sock.bind(("127.0.0.1", 0))
    others.add(sock.getsockname()[1])
    loop = asyncio.get_running_loop()
    await loop.sock_connect(sock, ("127.0.0.1", running.port))
    _, protocol = await loop.create_connection(H2Sender, sock=sock)
    return protocol


def test_the_table() -> None:
    assert_documented(Step)


def test_silence_keeps_nobody_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where places outside are taken, those go first that have been silent for longest."""
    monkeypatch.setattr("recorder.ingest.gate.MAX_OUTSIDE", 20)

    async def main() -> None:
        async with ingest(tmp_path) as running, silence(running.port, 20) as silent:
            await until(lambda: running.server.gate.outside == 20)
            sender = await H2Sender.connect(running.port)
            number = sender.request()
            await sender.send(number, HEADER, end=True)
            await sender.until_ended(number)
            assert sender.acked(number) == len(HEADER)
            await ended(silent[0][0])
            assert running.server.gate.outside == 19 and running.server.gate.ended == 1
            await sender.close()

    run(main())


def test_silence_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recorder.ingest.gate.FIRST_BYTE", 0.02)

    async def main() -> None:
        async with ingest(tmp_path, insecure=False) as running, silence(running.port, 3) as silent:
            for reader, _ in silent:
                await ended(reader)
            assert running.server.gate.outside == 0 and running.daemon.asked["whois"] == 0

    run(main())


def test_one_address_of_the_tailnet_has_its_share_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recorder.ingest.gate.MAX_OUTSIDE_OF_ONE", 3)

    async def main() -> None:
        async with ingest(tmp_path, insecure=False) as running:
            door = running.site.admission.door
            addresses = iter([("100.64.0.9", 1)] + [("100.64.0.5", 1)] * 10)
            monkeypatch.setattr(running.server.gate, "_door", lambda name: door(next(addresses)))
            async with silence(running.port, 1) as other, silence(running.port, 10) as silent:
                for reader, _ in silent[:7]:
                    await ended(reader)
                assert running.server.gate.outside == 4
                assert not other[0][0].at_eof() and running.daemon.asked["whois"] == 0

    run(main())


def test_behind_a_userspace_daemon_a_silent_peer_has_its_share_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All connections come from loopback there: they are asked about once they have been silent for a moment."""
    monkeypatch.setattr("recorder.ingest.gate.MAX_OUTSIDE_OF_ONE", 3)
    monkeypatch.setattr("recorder.ingest.gate.SILENCE", 0.01)
    monkeypatch.setattr("recorder.ingest.gate.FIRST_BYTE", 30.0)
    others: set[int] = set()

    async def main() -> None:
        async with ingest(tmp_path, insecure=False, allow=ALLOW) as running:
            by_port(running, others)
            async with silence(running.port, 2) as other:
                others.update(writer.get_extra_info("sockname")[1] for _, writer in other)
                async with silence(running.port, 10):
                    await until(lambda: running.daemon.asked["whois"] == 12 and running.server.gate.outside == 5)
                    assert not any(reader.at_eof() for reader, _ in other)
                    other[0][1].write(PROBE)  # and one that speaks after all is served
                    assert (await other[0][0].readline()).split()[1] == b"200"

    run(main())


def test_idle_connections_of_one_sender_make_room_for_its_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recorder.ingest.gate.MAX_IDLE_OF_ONE", 2)

    async def main() -> None:
        async with ingest(tmp_path) as running:
            busy, number = await H2Sender.in_session(running.port)
            idle = []
            for _ in range(5):
                sender = await H2Sender.connect(running.port)
                probe = sender.request("HEAD", end=True)
                await sender.until_head(probe)
                idle.append(sender)
            for sender in idle[:3]:
                await sender.until_lost()
            assert not any(sender.lost for sender in (*idle[3:], busy))
            await busy.send(number, b"", end=True)
            await busy.until_ended(number)
            assert busy.acked(number) == len(HEADER)
            for sender in (*idle[3:], busy):
                await sender.close()
            await until(lambda: running.server.inside.shares.taken == 0)

    run(main())


def test_a_sender_has_its_share_of_the_places_inside(tmp_path: Path) -> None:
    others: set[int] = set()

    async def main() -> None:
        async with ingest(tmp_path, insecure=False, allow=ALLOW, places=connections(4, 3)) as running:
            by_port(running, others)
            senders = [await H2Sender.connect(running.port) for _ in range(3)]
            for sender in senders:
                number = await sender.begin()
            late = await H2Sender.connect(running.port)
            number = late.request()
            await late.until_head(number)
            why = "the recorder takes at most 3 connections of one sender at once (ingest.connectionsPerSender)"
            assert (late.heads[number][":status"], late.heads[number]["recorder-error"]) == ("429", why)
            assert running.site.counts.refused == {"sender_connections": 1}
            other = await connect(running, others)
            number = other.request()
            await other.send(number, HEADER, end=True)
            await other.until_ended(number)
            assert other.acked(number) == len(HEADER)
            for sender in (*senders, late, other):
                await sender.close()
            await until(lambda: running.server.inside.shares.taken == 0)
            again = await H2Sender.connect(running.port)
            number = again.request("HEAD", end=True)
            await again.until_head(number)
            assert again.heads[number][":status"] == "200"
            await again.close()

    run(main())


def test_idle_connections_make_room_for_others(tmp_path: Path) -> None:
    """Where all places are taken, the idle ones of whoever has most of them are ended."""
    others: set[int] = set()

    async def main() -> None:
        async with ingest(tmp_path, insecure=False, allow=ALLOW, places=connections(3, 3)) as running:
            by_port(running, others)
            senders = [await H2Sender.connect(running.port) for _ in range(3)]
            for sender in senders:
                await sender.until_head(sender.request("HEAD", end=True))
            other = await connect(running, others)
            number = other.request()
            await other.send(number, HEADER, end=True)
            await other.until_ended(number)
            assert other.acked(number) == len(HEADER)
            await senders[0].until_lost()
            for sender in (*senders, other):
                await sender.close()

    run(main())


@pytest.mark.parametrize("reset", [False, True])
def test_whoever_goes_before_it_is_known_who_it_was(tmp_path: Path, reset: bool) -> None:
    async def main() -> None:
        async with ingest(tmp_path, insecure=False) as running:
            running.daemon.faults["whois"] = "hold"
            _, writer = await asyncio.open_connection("127.0.0.1", running.port)
            writer.write(PROBE)
            await until(lambda: running.daemon.asked["whois"] == 1)
            if reset:
                writer.transport.abort()
            else:
                writer.close()
            await asyncio.sleep(0)
            running.daemon.release()
            await until(lambda: running.server.gate.outside == 0)
            await until(lambda: not running.server.gate._tasks)
            assert running.server.inside.shares.taken == 0

    run(main())


def test_the_end_does_not_wait_for_answers_about_who_is_outside(tmp_path: Path) -> None:
    async def main() -> None:
        async with ingest(tmp_path, insecure=False) as running, silence(running.port, 3) as silent:
            running.daemon.faults["whois"] = "hang"
            reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
            writer.write(PROBE)
            await until(lambda: running.daemon.asked["whois"] == 1 and running.server.gate.outside == 4)
            await running.server.aclose()
            assert not running.server.gate._tasks
            await ended(reader)
            await ended(silent[0][0])
            writer.close()

    run(main())


def test_no_more_files_is_a_pause_and_not_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recorder.ingest.gate._PAUSE", 0.01)

    class Scarce(socket.socket):
        scarce = 2

        def accept(self) -> Any:
            if self.scarce:
                self.scarce -= 1
                raise OSError(errno.EMFILE, "too many open files")
            return super().accept()

    async def main() -> None:
        async with ingest(tmp_path) as running:
            listener = Scarce()
            listener.bind(("127.0.0.1", 0))
            listener.listen(10)
            await running.server.listen(listener)
            assert (await exchange(listener.getsockname()[1], PROBE))[0] == 200
            assert listener.scarce == 0

    run(main())


def test_the_log_says_who_was_refused_and_what_would_admit_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[tuple[str, dict[str, object]]] = []
    monkeypatch.setattr("recorder.ingest.site._log.warning", lambda event, **more: said.append((event, more)))

    async def main() -> None:
        who = user_whois("ana@example.com", "laptop", "100.64.0.9")
        async with ingest(tmp_path, who=who, insecure=False) as running:
            for _ in range(3):  # a warning once: whoever is refused can try it for ever
                status, fields, body = await exchange(running.port, b"POST /record HTTP/1.1\r\nHost: x\r\n\r\n")
            why = (
                "this recorder accepts no recordings from laptop.tail1234.ts.net (ana@example.com): it needs a grant "
                '{"send": true} under example.com/cap/recorder, or a place in ingest.allow'
            )
            assert (status, fields["recorder-error"]) == (403, why) and why.encode() in body.replace(b"\\", b"")
            (event, more) = said[0]
            assert event == "refused" and len(said) == 1
            assert more["peer"] == "100.64.0.9" and more["node"] == "laptop.tail1234.ts.net"
            assert more["user"] == "ana@example.com" and more["tags"] == [] and more["why"] == why
            assert running.site.counts.refused == {"not_a_sender": 3}

    run(main())


def test_a_fault_of_ours_lets_nobody_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(door: object) -> None:
        raise RuntimeError("boom")

    async def main() -> None:
        async with ingest(tmp_path) as running:
            monkeypatch.setattr(running.server.gate, "_admit", broken)
            reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
            writer.write(PROBE)
            await ended(reader)
            writer.close()
            await until(lambda: running.server.gate.outside == 0)
            assert running.server.inside.shares.taken == 0

    run(main())


def test_only_so_many_are_told_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recorder.ingest.gate.MAX_TURNED", 1)

    async def refuse(door: object) -> None:
        raise Refusal(403, "not_a_sender", "no")

    async def main() -> None:
        async with ingest(tmp_path) as running:
            monkeypatch.setattr(running.server.gate, "_admit", refuse)
            first, one = await asyncio.open_connection("127.0.0.1", running.port)
            one.write(PROBE)
            assert (await first.readline()).split()[1] == b"403"
            second, two = await asyncio.open_connection("127.0.0.1", running.port)
            two.write(PROBE)
            await ended(second)
            one.close()
            two.close()

    run(main())
