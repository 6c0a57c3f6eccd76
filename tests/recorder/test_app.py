"""recorder/app.py as a process: it serves, drains, reloads, and is killed at any moment without losing what it acked.

RECORDER_CRASHES=50 RECORDER_SENDERS=100 make the test of crashes the long one.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import random
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from recorder.access import ANYWHERE
from recorder.index import Filter, Index
from recorder.model import End
from recorder.proof import PublicKeys, Sealer, Signer
from recorder.proof.verify import Verifier
from recorder.store import Store
from recorder.store.blobs import FolderBlobs
from recorder.store.logs import FolderLog
from standins.tailscaled import FakeTailscaled
from tests.recorder.ingest.senders import H2Sender, exchange
from tests.recorder.serving import Process, free_port, recorder, serving, write_config
from tests.recorder.store.storing import HEADER, lines, text_of

CRASHES = int(os.environ.get("RECORDER_CRASHES", "3"))
SENDERS = int(os.environ.get("RECORDER_SENDERS", "20"))


@functools.cache
def some_lines(count: int) -> bytes:
    return lines(count)


def test_serve_drain_and_reload(tmp_path: Path) -> None:
    async def main() -> None:
        async with recorder(tmp_path) as running:
            assert (await running.get("/healthz")) == (200, "ok\n")
            sender = await H2Sender.connect(running.port)
            number = sender.request()
            await sender.send(number, HEADER + lines(3))
            await sender.until_acked(number, len(HEADER + lines(3)))
            status, metrics = await running.get("/metrics")
            assert status == 200 and "recorder_sessions_open 1.0" in metrics
            assert 'recorder_build_info{compiled="' in metrics
            assert 'recorder_sessions_total{wire="v2"} 1.0' in metrics
            assert 'recorder_ack_seconds_bucket{le="+Inf"} ' in metrics
            assert 'recorder_ack_seconds_bucket{le="+Inf"} 0.0' not in metrics
            assert 'recorder_store_errors_total{part="journal"} 0.0' in metrics
            table = (Path(__file__).parents[2] / "docs" / "recorder.md").read_text()
            for name in re.findall("^# TYPE (recorder_[a-z_]+) ", metrics, re.MULTILINE):
                assert f"`{name}`" in table

            write_config(running.config, running.port, running.admin, ingest={"listen": "nonsense"})
            running.process.send_signal(signal.SIGHUP)
            refused = await running.logged("reload_refused")
            assert "ingest.listen" in str(refused["faults"])
            ingest = {"listen": [f"127.0.0.1:{running.port}"], "allow": ["tag:proxy"]}
            write_config(running.config, running.port, running.admin, ingest=ingest)
            running.process.send_signal(signal.SIGHUP)
            assert (await running.logged("reloaded"))["needs_restart"] == []
            late = sender.request("HEAD", end=True)
            await sender.until_head(late)
            assert sender.heads[late][":status"] == "503"  # nobody is there to be asked who that is
            assert (await running.get("/metrics"))[0] == 503  # nor here

            running.process.send_signal(signal.SIGTERM)
            await running.logged("draining")
            await sender.send(number, lines(3, start=3), end=True)
            await sender.until_ended(number)
            assert sender.acked(number) == len(HEADER + lines(6))
            assert (await running.logged("stopped"))["cut"] == 0
            assert await running.process.wait() == 0
            await sender.close()
        store = Store(FolderBlobs(tmp_path / "data"), None)
        await store.open()
        (found,) = [one async for one in store.recordings()]
        assert found.end is End.CLEAN
        await store.aclose()

    asyncio.run(main())


def test_a_reload_says_what_needs_a_restart(tmp_path: Path) -> None:
    async def main() -> None:
        index = {"url": "sqlite:index.db"}
        web = {"listen": [f"127.0.0.1:{free_port()}"], "insecureAllow": ["127.0.0.1"], "hosts": ["recorder.test"]}
        async with recorder(tmp_path, index=index, web=web) as running:
            changes = {
                "index": index,
                "web": web | {"title": "Another"},
                "tailnet": {"socket": "other.sock", "capabilityDomain": "example.com"},
                "retention": {"maxAge": "90d"},
            }
            write_config(running.config, running.port, running.admin, **changes)
            running.process.send_signal(signal.SIGHUP)
            reloaded = await running.logged("reloaded")
            # Who may look still goes by the old domain.
            assert reloaded["needs_restart"] == ["tailnet.capabilityDomain", "tailnet.socket", "web"]
            # What was changed before waits still, though the next reload changes something else.
            del changes["tailnet"]
            write_config(running.config, running.port, running.admin, **changes | {"log": {"level": "debug"}})
            running.process.send_signal(signal.SIGHUP)
            assert (await running.logged("reloaded"))["needs_restart"] == ["web"]
            running.process.send_signal(signal.SIGHUP)
            assert (await running.logged("reloaded"))["needs_restart"] == ["web"]

    asyncio.run(main())


SESSIONS = 34


def test_an_index_that_is_lost_says_so_until_it_is_made_again(tmp_path: Path) -> None:
    async def main() -> None:
        port = free_port()
        web = {"listen": [f"127.0.0.1:{port}"], "insecureAllow": ["127.0.0.1"], "hosts": ["recorder.test"]}

        async def asked(path: str) -> Any:
            request = f"GET /api/v1/{path} HTTP/1.1\r\nHost: recorder.test\r\n\r\n"
            status, _, body = await exchange(port, request.encode())
            while status == 503:  # it takes sessions before its index is open
                status, _, body = await exchange(port, request.encode())
            assert status == 200, body
            return json.loads(body)

        async def whole(running: Process) -> list[int]:
            """How many were found, again and again, until it is said that there are no more."""
            counts: list[int] = []
            async with asyncio.timeout(60):
                while True:
                    answer = await asked("sessions?q=needle&limit=100")
                    counts.append(len(answer["items"]))
                    assert answer["index"]["complete"] is (answer["index"]["share"] == 1)
                    if answer["index"]["complete"]:
                        return counts
                    assert (await running.get("/metrics"))[0] == 200

        async with recorder(tmp_path, index={"url": "sqlite:index.db"}, web=web) as running:
            for number in range(SESSIONS):
                sender = await H2Sender.connect(running.port)
                request = sender.request()
                await sender.send(
                    request, HEADER + lines(200) + b'[%d,"o","\\r\\nneedle"]\n' % (100 + number), end=True
                )
                await sender.until_ended(request)
                await sender.close()
            assert (await whole(running))[-1] == SESSIONS
            running.process.send_signal(signal.SIGTERM)
            await running.process.wait()
        for path in tmp_path.glob("index.db*"):
            path.unlink()
        async with recorder(tmp_path, index={"url": "sqlite:index.db"}, web=web) as running:
            counts = await whole(running)
            assert counts[-1] == SESSIONS and counts == sorted(counts)
            assert "recorder_index_healthy 1.0" in (await running.get("/metrics"))[1]

    asyncio.run(main())


def test_the_site_is_reached_under_the_names_that_people_type(tmp_path: Path) -> None:
    async def main() -> None:
        port = free_port()
        web = {"listen": [f"127.0.0.1:{port}"], "insecureAllow": ["127.0.0.1"]}
        async with (
            FakeTailscaled(tmp_path / "daemon.sock") as daemon,
            recorder(tmp_path, tailnet={"socket": "daemon.sock"}, index={"enabled": True}, web=web),
        ):
            node = daemon.name.removesuffix(".")
            short = node.partition(".")[0]
            for host, expected in (
                (node, 200),
                (short, 200),
                (f"{short.upper()}:{port}", 200),
                ("127.0.0.1", 200),
                (f"{short}.evil.example", 421),
                ("localhost", 421),
                ("", 421),
            ):
                status, _, _ = await exchange(port, f"GET /about HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
                assert (host, status) == (host, expected)

    asyncio.run(main())


def test_killed_while_they_send(tmp_path: Path) -> None:
    """kill -9 at a random moment; all that was acked is there afterwards, every recording has an end, the index has
    them all as they are, and they can be sealed and verified."""

    async def main() -> None:
        chance = random.Random(5)
        acked: dict[str, tuple[int, bool]] = {}
        for crash in range(CRASHES + 1):
            async with recorder(tmp_path, index={"enabled": True}) as running:
                if crash == CRASHES:
                    await indexed(tmp_path / "data")
                    running.process.send_signal(signal.SIGTERM)
                    assert await running.process.wait() == 0
                    break
                senders = [await H2Sender.connect(running.port) for _ in range(4)]
                sessions = [asyncio.create_task(session(senders[n % 4], crash * SENDERS + n)) for n in range(SENDERS)]
                enough = chance.randrange(1, 60) * 10_000
                for sender in senders:
                    await sender.until_acked_in_all(enough)
                running.process.kill()
                for sender in senders:
                    await sender.until_lost()
                for task in sessions:
                    task.cancel()
                for done in await asyncio.gather(*sessions, return_exceptions=True):
                    assert isinstance(done, asyncio.CancelledError | None), done
                for sender in senders:
                    for number, name in sender.names.items():
                        acked[name] = (sender.acked(number), number in sender.ended)
        store = Store(FolderBlobs(tmp_path / "data"), None)
        await store.open()
        found: dict[str, str] = {}
        async for one in store.recordings():
            found[one.session_id] = one.id
            assert one.end is not End.RUNNING
        for name, (size, ended) in acked.items():
            if size:
                text = await text_of(store, found[name])
                assert len(text) >= size and body(name).startswith(text)
                if ended:
                    assert (await store.get(found[name])).end is End.CLEAN and text == body(name)
        await store.aclose()
        assert sum(size for size, _ in acked.values()) > 100_000
        await verified(tmp_path / "data", len(found))

    async def indexed(folder: Path) -> None:
        """Wait until the index has what the store has."""
        store = Store(FolderBlobs(folder), None)
        await store.open()
        index = Index(f"sqlite:{folder / 'index.db'}")
        await index.open()
        async with asyncio.timeout(60):
            while True:
                stored = {one.id: (one.end, one.size, one.events, one.duration) async for one in store.recordings()}
                found: dict[str, tuple[End, int, int, float]] = {}
                cursor: str | None = None
                while True:
                    page = await index.recordings(Filter(), (ANYWHERE,), limit=500, cursor=cursor)
                    for row in page.items:
                        one = row.recording
                        found[one.id] = (one.end, one.size, one.events, one.duration)
                    if (cursor := page.cursor) is None:
                        break
                if found == stored:
                    break
                await asyncio.sleep(0.5)
        assert End.RUNNING not in {end for end, *_ in stored.values()}
        await index.aclose()
        await store.aclose()

    async def verified(folder: Path, count: int) -> None:
        """Seal it all, as if the days were over, and verify it."""
        store = Store(FolderBlobs(folder), FolderLog(folder), min_free=0)
        await store.open()
        signer, later = Signer.make(), time.time() + 2 * 86400
        await Sealer(store, signer, clock=lambda: later).seal_due()
        await store.aclose()
        report = await Verifier(FolderBlobs(folder), PublicKeys([signer.public_key]), now=later).run()
        assert report.well and {finding.status.value for finding in report.findings} == {"signed late"}
        assert len(report.findings) == count

    def body(name: str) -> bytes:
        header = json.loads(HEADER) | {"sessionID": name}
        return json.dumps(header).encode() + b"\n" + some_lines(int(name) % 7 * 3000 + 500)

    async def session(sender: H2Sender, number: int) -> None:
        while not sender.lost:
            name = str(number)
            stream = sender.request()
            sender.names[stream] = name
            await sender.send(stream, body(name), end=True, frame=9000)
            await sender.until_ended(stream)
            number += 1_000_000

    asyncio.run(main())


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"store": {"folder": "recorder.yaml/data"}}, "store: Not a directory"),
        ({"ingest": {"listen": ["192.0.2.1:9"], "insecureAllow": ["127.0.0.1"]}}, "cannot listen on 192.0.2.1:9"),
    ],
)
def test_what_cannot_start_says_why(tmp_path: Path, changes: dict[str, object], why: str) -> None:
    async def main() -> None:
        config = tmp_path / "recorder.yaml"
        write_config(config, 0, 0, **changes)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", "from recorder.cli import main; main()", "serve", "--config", str(config),
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        _, log = await process.communicate()
        assert process.returncode == 1
        said = [json.loads(line) for line in log.splitlines()]
        failed = [value for value in said if value["event"] == "start_failed"]
        assert [why in value["error"] for value in failed] == [True]
        assert "task_failed" not in [value["event"] for value in said]

    asyncio.run(main())


def test_it_waits_for_tailscaled(tmp_path: Path) -> None:
    """As the proxy does: a machine's daemons start in any order, and tailscaled takes its time to be connected."""

    async def main() -> None:
        port, admin = free_port(), free_port()
        tailnet, ingest = {"socket": "daemon.sock"}, {"listen": [f"tailnet:{port}"]}
        async with serving(tmp_path, 0, admin, tailnet=tailnet, ingest=ingest) as running:
            text = ""
            while f"[-]starting cannot listen on tailnet:{port}: " not in text:
                text = await running.readiness(503)
            async with FakeTailscaled(tmp_path / "daemon.sock") as daemon:
                daemon.backend_state, daemon.tun = "NeedsLogin", False
                while "tailscaled is NeedsLogin" not in text:
                    text = await running.readiness(503)
                daemon.backend_state = "Running"
                await running.ready()
                daemon.peers = lambda ip, port: None  # whoever asks here is nobody of the tailnet
                assert (await exchange(port, b"HEAD /v2/event HTTP/1.1\r\nHost: x\r\n\r\n"))[0] == 403
            assert (await running.logged("start_waits"))["level"] == "warning"

    asyncio.run(main())


def test_it_can_be_stopped_while_it_waits(tmp_path: Path) -> None:
    async def main() -> None:
        admin = free_port()
        async with serving(tmp_path, 0, admin, ingest={"listen": ["100.64.0.1:80"]}) as running:
            why, text = "it is not an address of this machine; does tailscaled run in userspace mode?", ""
            while f"[-]starting cannot listen on 100.64.0.1:80: {why}" not in text:
                text = await running.readiness(503)
            running.process.terminate()
            assert await running.process.wait() == 0

    asyncio.run(main())


def test_a_second_one_in_the_same_folder_does_not_start(tmp_path: Path) -> None:
    async def main() -> None:
        async with recorder(tmp_path):
            other = tmp_path / "other.yaml"
            write_config(other, 0, 0, store={"folder": str(tmp_path / "data")})
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", "from recorder.cli import main; main()", "serve", "--config", str(other),
                stderr=asyncio.subprocess.PIPE,
            )  # fmt: skip
            _, log = await process.communicate()
            assert process.returncode == 1 and b"another recorder is using this folder" in log

    asyncio.run(main())
