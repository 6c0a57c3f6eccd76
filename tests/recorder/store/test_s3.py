"""The store on a real S3-compatible server: kept there, killed, and while the server is away."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from recorder.model import End, id_day, new_id
from recorder.proof import PublicKeys, Signer
from recorder.proof.actlog import ActLog
from recorder.proof.register import Register
from recorder.proof.verify import Verifier
from recorder.retention.holds import Hold, Holds
from recorder.retention.pruner import Pruner
from recorder.retention.rules import Rules
from recorder.store import Store, StoreError
from recorder.store.logs import ObjectLog
from recorder.store.objects import ObjectBlobs, open_objects
from tests.recorder.ingest.senders import H2Sender, exchange
from tests.recorder.serving import recorder
from tests.recorder.store import s3
from tests.recorder.store.storing import HEADER, SOURCE, cast_of, kill, lines, run, settled, text_of, until

pytestmark = pytest.mark.bed

_prefixes = (f"test{number}" for number in itertools.count(1))


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[s3.Server]:
    with s3.running(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def server(started: s3.Server) -> Iterator[s3.Server]:
    """It runs, and does again after a test that has stopped it."""
    yield started
    started.stop()
    started.start()


@pytest.fixture
def prefix() -> str:
    """Where nothing is yet."""
    return next(_prefixes)


def blobs_at(server: s3.Server, prefix: str) -> ObjectBlobs:
    return open_objects(server.url(prefix), server.options)


def store_at(server: s3.Server, prefix: str) -> Store:
    blobs = blobs_at(server, prefix)
    return Store(blobs, ObjectLog(blobs), min_free=0)


def test_blobs(server: s3.Server, prefix: str) -> None:
    async def main() -> None:
        blobs = blobs_at(server, prefix)
        await blobs.put("a/b/one", b"0123456789")
        await blobs.put("a/b/one", b"abcdefghij")
        await blobs.put("a/two", b"")
        assert await blobs.get("a/b/one") == b"abcdefghij"
        assert await blobs.get_range("a/b/one", 3, 4) == b"defg"
        assert (await blobs.size("a/b/one"), await blobs.size("a/two")) == (10, 0)
        assert [name async for name in blobs.names("a")] == [("b/", 0), ("two", 0)]
        assert [name async for name in blobs.names("a/b")] == [("one", 10)]
        assert [name async for name in blobs.names("nowhere")] == []
        for missing in (blobs.get("a/b"), blobs.get_range("a/none", 0, 5), blobs.size("none")):
            with pytest.raises(KeyError):
                await missing
        with pytest.raises(FileExistsError):
            await blobs.create("a/two", b"other")
        await blobs.create("a/three", b"3")
        others = [blobs_at(server, prefix) for _ in range(4)]
        made = await asyncio.gather(
            *(other.create("a/four", b"%d" % n) for n, other in enumerate(others)), return_exceptions=True
        )
        assert [error for error in made if error is None] == [None]
        assert await blobs.get("a/two") == b"" and await blobs.get("a/four") == b"%d" % made.index(None)
        await blobs.delete(["a/b/one", "a/none", "a/two", "a/three", "a/four"])
        assert [name async for name in blobs.names("a")] == []

    run(main())


def test_credentials_and_buckets_that_are_none(server: s3.Server, prefix: str) -> None:
    async def main() -> None:
        blobs = open_objects(server.url(prefix), server.options | {"secret_access_key": "wrong"})
        with pytest.raises(
            StoreError,
            match=r"^the recorder's store refuses its credentials or its permissions "
            r"\(HTTP 403, SignatureDoesNotMatch\)$",
        ):
            await blobs.put("a", b"b")
        blobs = open_objects(f"s3://nowhere/{prefix}", server.options)
        with pytest.raises(StoreError, match=r"^the recorder's store has no such bucket$"):
            await blobs.put("a", b"b")

    run(main())


def test_sessions_and_events_are_kept_there(server: s3.Server, prefix: str) -> None:
    async def main() -> None:
        store = store_at(server, prefix)
        await store.open()
        large, small = await store.begin(HEADER, SOURCE), await store.begin(HEADER, SOURCE)
        for start in range(0, 20_000, 1000):
            large.write(lines(1000, start=start, width=200))
            if large.blocked:
                await large.ready()
        small.write(lines(3))
        for live in (large, small):
            await live.finish(End.CLEAN)
        event = await store.add_event(b'{"n": 1}', SOURCE)
        await settled(store)
        await store.aclose()

        store = store_at(server, prefix)
        await store.open()
        assert await text_of(store, large.id) == HEADER + lines(20_000, width=200)
        assert await cast_of(store, small.id) == HEADER + lines(3)
        late = await cast_of(store, large.id, start=9_000.0)
        assert b'[9500.0, "o"' in late and len(late) < 2_000_000
        assert {found.id async for found in store.recordings()} == {small.id, large.id}
        assert [found.id async for found in store.events()] == [event.id]
        await store.remove(large.id)
        with pytest.raises(KeyError):
            await store.get(large.id)
        await store.aclose()
        names = {path.name for path in server.files(f"{prefix}/recordings")}
        assert names == {"00000000.chunk", "recording.json"}

    run(main())


def test_killed_in_the_middle(server: s3.Server, prefix: str) -> None:
    async def main() -> None:
        store = store_at(server, prefix)
        await store.open()
        live, over = await store.begin(HEADER, SOURCE), await store.begin(HEADER, SOURCE)
        live.write(lines(5000))
        over.write(lines(10))
        await over.finish(End.CLEAN)
        acked = await live.wait_acked(len(HEADER))
        await kill(store)
        store = store_at(server, prefix)
        await store.open()
        found = await store.get(live.id)
        assert (found.end, found.size >= acked) == (End.CUT, True)
        text = await text_of(store, live.id)
        assert len(text) == found.size and (HEADER + lines(5000)).startswith(text)
        assert (await store.get(over.id)).end is End.CLEAN
        assert await text_of(store, over.id) == HEADER + lines(10)
        await settled(store)
        await store.aclose()
        assert server.files(f"{prefix}/journal/main/0000000001") == []  # all of it is in chunks

    run(main())


# -- the process


def test_the_server_goes_away_and_comes_back(server: s3.Server, prefix: str, tmp_path: Path) -> None:
    """Running sessions get an error, new ones are refused, readiness is off; what had been acked is there later."""

    async def main() -> None:
        settings = {"url": server.url(prefix), "options": server.options}
        async with recorder(tmp_path, store=settings) as running:
            sender = await H2Sender.connect(running.port)
            hit = sender.request()
            await sender.send(hit, HEADER + lines(100))
            await sender.until_acked(hit, len(HEADER + lines(100)))
            server.stop()
            await sender.send(hit, lines(100, start=100))
            await sender.until_ended(hit)  # senders wait for 30 s
            assert "the recorder's store cannot be reached" in sender.error(hit)
            assert sender.acked(hit) == len(HEADER + lines(100))
            assert "the recorder's store cannot be reached" in await running.readiness(503)
            assert (await running.get("/healthz"))[0] == 200
            for method in ("HEAD", "POST"):
                refused = sender.request(method, end=method == "HEAD")
                await sender.until_head(refused)
                assert sender.heads[refused][":status"] == "503"
            event = b"POST /v2/event HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"
            assert (await exchange(running.port, event))[0] == 503

            server.start()
            await running.readiness(200)
            after = sender.request()
            await sender.send(after, HEADER + lines(7), end=True)
            await sender.until_ended(after)
            assert sender.acked(after) == len(HEADER + lines(7)) and not sender.error(after)
            assert (await exchange(running.port, event))[0] == 200
            await sender.close()
            running.process.kill()
            await running.process.wait()
        store = store_at(server, prefix)
        await store.open()
        second, first = [found async for found in store.recordings()]
        assert (first.end, second.end) == (End.CUT, End.CLEAN)
        text = await text_of(store, first.id)
        assert text.startswith(HEADER + lines(100)) and (HEADER + lines(200)).startswith(text)
        assert await text_of(store, second.id) == HEADER + lines(7)
        assert len([found async for found in store.events()]) in (1, 2)  # the one that was refused may have come
        await store.aclose()

    asyncio.run(main())


def test_a_server_that_is_away_at_the_start_is_said(server: s3.Server, prefix: str, tmp_path: Path) -> None:
    async def main() -> None:
        server.stop()
        store = store_at(server, prefix)
        with pytest.raises(StoreError, match="cannot be reached"):
            await store.open()
        server.start()
        await store.open()
        live = await store.begin(HEADER, SOURCE)
        await live.finish(End.CLEAN)
        await until(lambda: not store.lives)
        await store.aclose()

    run(main())


def test_holds_and_what_was_changed_stay_there_too(server: s3.Server, prefix: str) -> None:
    """Acts are signed by two at once, as by a recorder and a command beside it; what is edited is not removed."""
    signer = Signer.make()
    keys = PublicKeys([signer.public_key], signer.id)

    async def main() -> None:
        store = store_at(server, prefix)
        store.registrar = register = Register(store.blobs, signer)
        register.start()
        await store.open()
        ids = []
        for _ in range(3):
            writer = await store.begin(HEADER, SOURCE)
            writer.write(lines(10))
            ids.append((await writer.finish(End.CLEAN)).id)
        while store.lives:
            store.builder.poke()
            await asyncio.sleep(0.002)
        held, edited, old = ids
        beside = Holds(blobs_at(server, prefix), ActLog(blobs_at(server, prefix), keys, signer))
        pruner = Pruner(store, Rules(max_age=-1.0), signer=signer)
        await asyncio.gather(
            *(one.add(Hold(new_id(), 1.0, "ana", "case", None, held)) for one in (beside, pruner.holds, beside))
        )
        key = f"recordings/{id_day(edited)}/{edited}/recording.json"
        await store.blobs.put(key, (await store.blobs.get(key)).replace(b"web-0", b"web-1"))
        await pruner.step()
        assert pruner.removed == 1 and pruner.mismatches == {edited: "recording.json is not what was sealed"}
        report = await Verifier(store.blobs, keys).run()
        found = {finding.id: finding.status.value for finding in report.findings}
        assert found == {held: "not sealed yet", edited: "changed", old: "removed"}
        assert (report.acts.count, report.acts.holds) == (4, 3) and report.faults == []
        await store.aclose()

    run(main())
