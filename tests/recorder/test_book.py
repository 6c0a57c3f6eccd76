"""The book of looks in the store: kept before anything is shown, signed, found again where the index has lost it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import zstandard

from recorder.book import Book
from recorder.crypt import Keyring
from recorder.index import Index
from recorder.index.rows import Look
from recorder.model import new_id
from recorder.proof import PublicKeys
from recorder.proof.keys import read_public_key
from recorder.proof.verify import Verifier
from recorder.proof.witness import FolderWitness
from recorder.store.blobs import FolderBlobs
from recorder.store.errors import StoreError
from tests.recorder.ingest.senders import exchange
from tests.recorder.proof.sealed import DAY, Stage, run, statuses
from tests.recorder.serving import free_port, recorder
from tests.recorder.web.visited import EVERYTHING, person


def unpacked(data: bytes) -> bytes:
    return zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True).read()


def look(detail: str = "") -> Look:
    return Look(new_id(), 1.5, "view", new_id(), "ana@example.com", "ana.ts.net", ("tag:x",), "100.64.0.7", detail)


async def written(stage: Stage, *looks: Look) -> None:
    async with stage.store() as store:
        book = Book(store)
        await asyncio.gather(*map(book.add, looks))


@pytest.mark.parametrize("keyring", [None, Keyring([b"k" * 32])])
def test_looks_are_kept_signed_and_sealed(tmp_path: Path, keyring: Keyring | None) -> None:
    stage = Stage(tmp_path / "store", keyring=keyring)
    looks = [look("DROP TABLE"), look('"\u2603'), look()]

    async def check() -> None:
        await written(stage, *looks)
        for status in ("not sealed yet", "ok"):
            report = await stage.verify()
            assert report.well and set(statuses(report).values()) == {status}
            await stage.seal()
            stage.clock += DAY
        async with stage.store() as store:
            found = [one async for one in Book(store).looks()]
        assert sorted(found, key=lambda one: one.id) == sorted(looks, key=lambda one: one.id)
        # Those that came at once share files.
        paths = list((stage.root / "looks").rglob("*.chunk"))
        assert 1 <= len(paths) <= 2
        assert keyring is None or all(b"ana@" not in path.read_bytes() for path in paths)

    run(check())


@pytest.mark.parametrize("seal", [False, True])
@pytest.mark.parametrize("tamper", ["flip", "gone", "put in"])
def test_a_look_cannot_be_changed_taken_away_or_put_in(tmp_path: Path, tamper: str, seal: bool) -> None:
    stage = Stage(tmp_path / "store")

    async def check() -> None:
        await written(stage, look())
        if seal:
            await stage.seal()
        (path,) = (stage.root / "looks").rglob("*.chunk")
        expected = {
            "flip": {"changed"},
            "gone": {"missing"},
            "put in": {"unknown"} | {"ok" if seal else "not sealed yet"},
        }
        if tamper == "flip":
            path.write_bytes(path.read_bytes()[:-1] + b"x")
        elif tamper == "gone":
            path.unlink()
        else:
            path.with_name(f"{new_id()}.chunk").write_bytes(path.read_bytes())
        report = await stage.verify()
        assert not report.well and set(statuses(report).values()) == expected[tamper]
        stage.clock += DAY
        await stage.seal()
        assert not (await stage.verify()).well

    run(check())


def test_nothing_is_shown_where_the_look_cannot_be_kept(tmp_path: Path) -> None:
    """And whoever waits with it is told as well; one that has gone is not in the way."""
    stage = Stage(tmp_path / "store")

    class Away(FolderBlobs):
        gate = asyncio.Event()

        async def put(self, key: str, data: bytes) -> None:
            if key.startswith("looks"):
                await self.gate.wait()
                raise StoreError("away")
            await super().put(key, data)

    async def check() -> None:
        async with stage.store() as store:
            kept, store.blobs = store.blobs, Away(stage.root)
            book = Book(store)
            tasks = [asyncio.create_task(book.add(look())) for _ in range(4)]
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            tasks[3].cancel()
            Away.gate.set()
            found = await asyncio.gather(*tasks, return_exceptions=True)
            assert [type(error) for error in found] == [StoreError] * 3 + [asyncio.CancelledError]
            await store.blobs.aclose()
            store.blobs = kept
            await book.add(one := look())
            assert [again.id async for again in book.looks()] == [one.id]

    run(check())


def test_the_one_that_writes_for_others_is_cancelled(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "store")

    class Slow(FolderBlobs):
        gate = asyncio.Event()
        inside = asyncio.Event()

        async def put(self, key: str, data: bytes) -> None:
            if key.startswith("looks"):
                self.inside.set()
                await self.gate.wait()
            await super().put(key, data)

    async def check() -> None:
        async with stage.store() as store:
            kept, store.blobs = store.blobs, Slow(stage.root)
            book, one, two = Book(store), look(), look()
            first = asyncio.create_task(book.add(one))
            await Slow.inside.wait()
            second = asyncio.create_task(book.add(two))
            await asyncio.sleep(0)
            first.cancel()
            Slow.gate.set()
            await asyncio.wait([first, second])
            assert first.cancelled() and second.exception() is None
            assert two.id in [again.id async for again in book.looks()]
            await store.blobs.aclose()
            store.blobs = kept

    run(check())


def test_an_index_that_has_lost_its_looks_gets_them_back(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "store")

    async def check() -> None:
        async with stage.store() as store:
            book = Book(store)
            index = Index(f"sqlite:{tmp_path / 'one.db'}")
            index.book = book.add
            await index.open()
            kept = await index.add_look(person("root@example.com", EVERYTHING), "search", "", 5.0, detail="heron")
            assert await index.restore_looks(book.looks()) == 0
            await index.aclose()
            fresh = Index(f"sqlite:{tmp_path / 'two.db'}")
            await fresh.open()
            assert not await fresh.has_looks()
            assert await fresh.restore_looks(book.looks()) == 1 and await fresh.has_looks()
            assert [again async for again in book.looks()] == [kept]
            # A chunk that cannot be read is left out.
            (path,) = (stage.root / "looks").rglob("*.chunk")
            for data in (b"", b"x" * 100, path.read_bytes()[:-1]):
                path.with_name(f"{new_id()}.chunk").write_bytes(data)
            assert [again async for again in book.looks()] == [kept]
            await fresh.aclose()

    run(check())


def test_a_running_recorder_keeps_looks_in_its_store(tmp_path: Path) -> None:
    port = free_port()
    web = {"listen": [f"127.0.0.1:{port}"], "insecureAllow": ["127.0.0.1"], "hosts": ["recorder.test"]}

    async def main() -> None:
        async with recorder(tmp_path, index={"enabled": True}, web=web, proof={"key": "seal.pem"}) as running:
            request = b"GET /api/v1/sessions?q=heron HTTP/1.1\r\nHost: recorder.test\r\nConnection: close\r\n\r\n"
            while "recorder_index_healthy 1.0" not in (await running.get("/metrics"))[1]:  # noqa: ASYNC110 - no event
                await asyncio.sleep(0.02)
            status, _, body = await exchange(port, request)
            assert status == 200, body
            running.process.terminate()
            assert await running.process.wait() == 0
        blobs = FolderBlobs(tmp_path / "data")
        keys = PublicKeys([read_public_key(tmp_path / "seal.pem.pub")])
        report = await Verifier(blobs, keys, witnesses=[FolderWitness(tmp_path / "anchor")]).run()
        assert report.well and set(statuses(report).values()) == {"not sealed yet"}
        (name,) = statuses(report)
        assert name.startswith("looks/") and b"heron" in unpacked(await blobs.get(name))
        await blobs.aclose()

    asyncio.run(main())
