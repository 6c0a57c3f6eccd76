"""A store that fails and comes back, and one that is killed: what was acked is there, and no more is claimed."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from recorder.model import End
from recorder.store import Store, StoreError
from recorder.store.builder import PUTS
from recorder.store.chunk import assemble
from recorder.store.logs import FolderLog
from recorder.store.manifest import chunk_key, manifest_key
from recorder.store.pressure import Pressure
from recorder.store.records import Kind, Reader
from tests.recorder.store.storing import (
    HEADER,
    SOURCE,
    FaultyBlobs,
    FaultyLog,
    Told,
    cast_of,
    kill,
    lines,
    run,
    settled,
    store_in,
    text_of,
    until,
)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("journal", "builder", "eventlog"):
        monkeypatch.setattr(f"recorder.store.{module}.RETRY", 0.01)


async def until_healthy(store: Store) -> None:
    assert store.journal is not None
    while store.healthy is not None:
        await store.journal.probe()
        await asyncio.sleep(0.005)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_full_disk_is_told_at_once_and_gets_well(tmp_path: Path, number: int, half: bool) -> None:
    async def main() -> None:
        log = FaultyLog(tmp_path)
        log.half = half
        async with store_in(tmp_path, log=log) as store:
            told = Told()
            store.observers.append(told)
            hit, quiet = await store.begin(HEADER, SOURCE), await store.begin(HEADER, SOURCE)
            for live in (hit, quiet):
                live.write(lines(100))
                await live.wait_acked(live.given - 1)
            acked = hit.acked
            log.fault = OSError(number, "no")
            hit.write(lines(50, start=100))
            with pytest.raises(StoreError, match="recorder"):
                await hit.wait_acked(acked)
            with pytest.raises(StoreError):
                hit.write(b"more")
            with pytest.raises(StoreError):
                await hit.finish(End.CLEAN)
            assert store.healthy is not None
            with pytest.raises(StoreError):
                await store.begin(HEADER, SOURCE)
            with pytest.raises(StoreError):
                await store.add_events([{"n": 1}], SOURCE)
            log.fault = None
            await until_healthy(store)
            # The one that had nothing to write meanwhile goes on as if nothing had been.
            quiet.write(lines(100, start=100))
            done = await quiet.finish(End.CLEAN)
            assert done.size == len(HEADER) + len(lines(200))
            await settled(store)
            assert await text_of(store, quiet.id) == HEADER + lines(200)
            found = await store.get(hit.id)
            assert (found.end, found.size) == (End.CUT, acked)
            assert await text_of(store, hit.id) == HEADER + lines(100)
            assert ("ended", hit.id) in told.all
        async with store_in(tmp_path) as store:
            assert not store.lives
            assert await text_of(store, quiet.id) == HEADER + lines(200)
            assert await text_of(store, hit.id) == HEADER + lines(100)

    run(main())


def copy_if_there(source: str, target: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        shutil.copy2(source, target)


def test_a_recording_that_could_not_begin_is_not_there(tmp_path: Path) -> None:
    async def main() -> None:
        log = FaultyLog(tmp_path)
        async with store_in(tmp_path, log=log) as store:
            told = Told()
            store.observers.append(told)
            log.fault = OSError(errno.ENOSPC, "no")
            live = await store.begin(HEADER, SOURCE)
            with pytest.raises(StoreError, match="full"):
                await live.wait_acked(0)
            with pytest.raises(StoreError, match="full"):
                await live.finish(End.CLEAN)
            assert not store.lives and not told.all
            assert store.ledger.pressure.held == store.ledger.pressure.queued == 0
            log.fault = None
            await until_healthy(store)
            assert [one async for one in store.recordings()] == []

    run(main())


def test_a_crash_while_the_disk_is_full(tmp_path: Path) -> None:
    async def main() -> None:
        log = FaultyLog(tmp_path)
        store = Store(FaultyBlobs(tmp_path), log, min_free=0)
        await store.open()
        live = await store.begin(HEADER, SOURCE)
        live.write(lines(100))
        await live.wait_acked(live.given - 1)
        log.fault, log.half = OSError(errno.ENOSPC, "no"), True
        live.write(lines(10, start=100))
        with pytest.raises(StoreError):
            await live.wait_acked(live.acked)
        await kill(store)
        async with store_in(tmp_path) as store:
            assert (await store.get(live.id)).end is End.CUT
            assert (HEADER + lines(110)).startswith(await text_of(store, live.id))
            assert (await text_of(store, live.id)).startswith(HEADER + lines(100))

    run(main())


def test_a_journal_that_is_closed_while_a_segment_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each descriptor is closed once, and the lock last: a thread goes on when nobody waits for it any more."""
    begins, go_on, sync = threading.Event(), threading.Event(), os.fsync

    def slow(descriptor: int) -> None:
        begins.set()
        go_on.wait()
        sync(descriptor)

    async def main() -> None:
        log = FolderLog(tmp_path)
        await log.open()
        await log.begin(1)
        monkeypatch.setattr(os, "fsync", slow)
        beginning = asyncio.create_task(log.begin(2))
        await asyncio.to_thread(begins.wait)
        beginning.cancel()
        closing = asyncio.create_task(log.aclose())
        await asyncio.sleep(0)
        other = FolderLog(tmp_path)
        try:
            with pytest.raises(StoreError, match="another recorder"):
                await other.open()
        finally:
            go_on.set()
        await closing
        await other.open()
        await other.aclose()
        assert [file for file in _open_files() if file.startswith(str(tmp_path))] == []

    run(main())


def _open_files() -> list[str]:
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the listing's own
            found.append(os.readlink(f"/proc/self/fd/{name}"))
    return found


def test_chunks_that_cannot_be_put_are_put_later(tmp_path: Path) -> None:
    async def main() -> None:
        blobs = FaultyBlobs(tmp_path)
        async with store_in(tmp_path, blobs=blobs) as store:
            live = await store.begin(HEADER, SOURCE)
            blobs.fault = "the recorder's store cannot be reached"
            live.write(lines(5000))
            done = await live.finish(End.CLEAN)  # the journal has it
            await settled(store)
            assert store.healthy == blobs.fault
            assert await cast_of(store, live.id) == HEADER + lines(5000)
            assert await store.get(live.id) == done
            blobs.fault = None
            await until(lambda: not store.lives)
            assert store.healthy is None
            assert await cast_of(store, live.id) == HEADER + lines(5000)

    run(main())


def test_a_put_that_fails_as_nobody_thought_of_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = 2

    def short_of_memory(*arguments: Any, **more: Any) -> Any:
        nonlocal times
        times -= 1
        if times >= 0:
            raise MemoryError
        return assemble(*arguments, **more)

    monkeypatch.setattr("recorder.store.builder.assemble", short_of_memory)

    async def main() -> None:
        async with store_in(tmp_path) as store:
            live = await store.begin(HEADER, SOURCE)
            await live.finish(End.CLEAN)
            await until(lambda: not store.lives)
            assert store.errors["chunks"] == 2 and (await store.get(live.id)).end is End.CLEAN

    run(main())


def test_a_store_closed_while_chunks_fail_has_all_at_the_next_start(tmp_path: Path) -> None:
    async def main() -> None:
        blobs = FaultyBlobs(tmp_path)
        async with store_in(tmp_path, blobs=blobs) as store:
            blobs.fault = "the recorder's store cannot be reached"
            live = await store.begin(HEADER, SOURCE)
            live.write(lines(5000))
            await live.finish(End.CLEAN)
            event = await store.add_event(b"{}", SOURCE)
        told = Told()
        store = Store(FaultyBlobs(tmp_path), FaultyLog(tmp_path), min_free=0)
        store.observers.append(told)
        await store.open()
        assert ("ended", live.id) in told.all and told.events == [event]
        assert (await store.get(live.id)).end is End.CLEAN
        await settled(store)
        assert await text_of(store, live.id) == HEADER + lines(5000)
        await store.aclose()

    run(main())


def test_backpressure(tmp_path: Path) -> None:
    async def main() -> None:
        log = FaultyLog(tmp_path)
        async with store_in(tmp_path, log=log) as store:
            live = await store.begin(HEADER, SOURCE)
            await live.wait_acked(0)
            log.hold = asyncio.Event()
            piece = lines(2000)
            while not live.blocked:
                live.write(piece)
            assert live.given < 8 << 20
            waiting = asyncio.create_task(live.ready())
            await asyncio.sleep(0)
            assert not waiting.done()
            log.hold.set()
            await waiting
            assert not live.blocked
            await live.finish(End.CLEAN)
            await settled(store)
            assert store.ledger.pressure.held == store.ledger.pressure.packed == 0

    run(main())


def test_one_user_can_not_hold_up_the_others(tmp_path: Path) -> None:
    """While the disk is slow, one user's sessions wait for it with less than all may have in memory."""

    def header(user: str) -> bytes:
        return json.dumps({"version": 2, "width": 80, "height": 24, "srcNodeUser": user}).encode() + b"\n"

    async def main() -> None:
        log = FaultyLog(tmp_path)
        async with store_in(tmp_path, log=log) as store:
            flood = [await store.begin(header("ana@example.com"), SOURCE) for _ in range(10)]
            other = await store.begin(header("ben@example.com"), SOURCE)
            await other.wait_acked(0)
            log.hold = asyncio.Event()
            piece = lines(2000)
            while not all(live.blocked for live in flood):
                for live in flood:
                    if not live.blocked:
                        live.write(piece)
            assert not store.crowded and not other.blocked
            other.write(lines(10))
            log.hold.set()
            log.hold = None
            for live in (*flood, other):
                await live.finish(End.CLEAN)
                assert not live.blocked
            await settled(store)
            pressure = store.ledger.pressure
            assert pressure.held == pressure.queued == 0
            assert not pressure._held_by and not pressure._queued_by

    run(main())


def test_killed_at_any_commit(tmp_path: Path) -> None:
    """The folder is copied after each append and each put; what had been acked by then is in every copy."""

    async def main() -> None:
        copies: list[tuple[Path, dict[str, int], dict[str, End]]] = []
        acked: dict[str, int] = {}
        ended: dict[str, End] = {}
        folder = tmp_path / "data"
        bodies: dict[str, bytes] = {}

        def copy() -> None:
            target = tmp_path / f"copy{len(copies)}"
            # What another put is just writing may be renamed meanwhile, and a segment be removed.
            shutil.copytree(folder, target, ignore=shutil.ignore_patterns(".*"), copy_function=copy_if_there)
            copies.append((target, dict(acked), dict(ended)))

        class Copying(FaultyLog):
            async def append(self, make: object) -> None:
                await super().append(make)  # type: ignore[arg-type]  # as it came
                copy()

        class CopyingBlobs(FaultyBlobs):
            async def put(self, key: str, data: bytes) -> None:
                await super().put(key, data)
                copy()

        async with store_in(folder, log=Copying(folder), blobs=CopyingBlobs(folder)) as store:
            for turn in range(4):
                lives = [await store.begin(HEADER, SOURCE) for _ in range(3)]
                for number, live in enumerate(lives):
                    body = lines(1500 * number, start=turn)
                    bodies[live.id] = HEADER + body
                    live.write(body[: len(body) // 2])
                    acked[live.id] = await live.wait_acked(live.given - 1)
                    live.write(body[len(body) // 2 :])
                    if number != turn % 3:
                        end = End.CLEAN if number else End.CUT
                        await live.finish(end)
                        acked[live.id], ended[live.id] = live.acked, end
        for target, sizes, ends in copies:
            async with store_in(target) as store:
                for identifier, size in sizes.items():
                    text = await text_of(store, identifier)
                    assert len(text) >= size and bodies[identifier].startswith(text)
                    found = await store.get(identifier)
                    assert found.size == len(text) and found.end is not End.RUNNING
                    if identifier in ends:
                        assert found.end is ends[identifier] and len(text) == size
                await settled(store)
                assert not store.lives

    run(main())


@pytest.mark.parametrize("lost", [1, 19, 20, 21, 500, 3000])
def test_a_torn_tail_is_ignored(tmp_path: Path, lost: int) -> None:
    async def main() -> None:
        store = Store(FaultyBlobs(tmp_path), FaultyLog(tmp_path), min_free=0)
        await store.open()
        live = await store.begin(HEADER, SOURCE)
        live.write(lines(100))
        size = await live.wait_acked(live.given - 1)
        live.write(lines(100, start=100))
        await live.wait_acked(size)
        await kill(store)
        (journal,) = (tmp_path / "journal").iterdir()
        journal.write_bytes(journal.read_bytes()[:-lost])
        async with store_in(tmp_path) as store:
            assert await text_of(store, live.id) == HEADER + lines(100)
            assert (await store.get(live.id)).end is End.CUT

    run(main())


def test_a_replay_that_is_killed_too(tmp_path: Path) -> None:
    async def main() -> None:
        store = Store(FaultyBlobs(tmp_path), FaultyLog(tmp_path), min_free=0)
        await store.open()
        live = await store.begin(HEADER, SOURCE)
        live.write(lines(30_000))
        await live.wait_acked(live.given - 1)
        events = await store.add_events([{"n": 1}, {"n": 2}], SOURCE)
        await kill(store)
        for _ in range(3):
            blobs = FaultyBlobs(tmp_path)
            blobs.hold = asyncio.Event()
            store = Store(blobs, FaultyLog(tmp_path), min_free=0)
            await store.open()
            assert (await store.get(live.id)).end is End.CUT
            assert [event async for event in store.events()] == events
            await kill(store)
        async with store_in(tmp_path) as store:
            assert await text_of(store, live.id) == HEADER + lines(30_000)
            assert [event async for event in store.events()] == events
            await settled(store)

    run(main())


@pytest.mark.parametrize("what", ["chunk", "journal"])
def test_what_was_damaged_before_a_replay_is_not_called_whole(
    tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recorder.store.builder.LAG", 0)

    async def main() -> None:
        blobs = FaultyBlobs(tmp_path)
        async with store_in(tmp_path, blobs=blobs) as store:
            live = await store.begin(HEADER, SOURCE)
            for number in range(3):
                live.write(lines(2000, start=2000 * number))
                await live.wait_acked(live.given - 1)
                if what == "chunk" and number < 2:
                    store.builder.relieve()
                    await until(lambda: live.text.durable == live.acked)
                    assert store.journal is not None
                    store.journal._current.born = -1e9  # what follows is in another segment
            assert store.journal is not None
            await store.journal.trim()
            assert len(live.chunks.rows) >= (2 if what == "chunk" else 0)
            blobs.fault = "away"  # the end stays in the journal
            await live.finish(End.CLEAN)
            await kill(store)
        if what == "chunk":
            path = tmp_path / chunk_key(live.id, 1)
            path.write_bytes(path.read_bytes()[:-1])
        else:
            (path,) = (tmp_path / "journal").glob("*.log")
            data = path.read_bytes()
            middle = data.index(b"%08d" % 3000)
            path.write_bytes(data[:middle] + b"9" + data[middle + 1 :])
            # What followed in the same segment is gone with it; the end stood in another one.
            reader = Reader()
            whole = list(reader.feed(data))
            end = data.rindex(b"RJ01")
            assert whole[-1][-1].kind is Kind.END
            path.with_name("0000000009.log").write_bytes(data[end:])
        async with store_in(tmp_path) as store:
            await settled(store)
            found = await store.get(live.id)
            assert found.end is End.CUT and 0 < found.size < live.acked

    asyncio.run(main())


def test_nothing_is_left_of_what_is_removed(tmp_path: Path) -> None:
    """Not even of a put that a crash has cut short."""

    async def main() -> None:
        async with store_in(tmp_path) as store:
            live, other = await store.begin(HEADER, SOURCE), await store.begin(HEADER, SOURCE)
            for one in (live, other):
                await one.finish(End.CLEAN)
            await settled(store)
            folder = tmp_path / manifest_key(live.id).rpartition("/")[0]
            (folder / ".00000000.chunk.4711").write_bytes(b"what was on the screen")
            (folder / ".recording.json.1").write_bytes(b"")
            await store.remove(live.id)
            assert not folder.exists() and await text_of(store, other.id) == HEADER

    run(main())


def test_a_changed_chunk_is_noticed(tmp_path: Path) -> None:
    async def main() -> None:
        async with store_in(tmp_path) as store:
            live = await store.begin(HEADER, SOURCE)
            live.write(lines(3000))
            await live.finish(End.CLEAN)
            await settled(store)
            (path,) = tmp_path.glob("recordings/*/*/00000000.chunk")
            data = bytearray(path.read_bytes())
            data[100] ^= 1
            path.write_bytes(data)
            with pytest.raises(StoreError, match="damaged"):
                await text_of(store, live.id)
            path.write_bytes(data[:-1])
            with pytest.raises(StoreError, match="cut"):
                await text_of(store, live.id)
            path.unlink()
            with pytest.raises(StoreError, match="missing"):
                await text_of(store, live.id)

    run(main())


def test_a_segment_without_its_first_batch_is_not_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs and has nothing to say must be known from each segment on, or a crash leaves it running for ever."""
    monkeypatch.setattr("recorder.store.builder.LAG", 0)  # all becomes chunks

    class Log(FolderLog):
        fault = False

        def _append(self, data: bytes | bytearray | memoryview) -> None:
            if self.fault:  # and the disk was good enough to cut it back
                raise OSError(errno.ENOSPC, "no")
            super()._append(data)

    async def main() -> None:
        log = Log(tmp_path)
        async with store_in(tmp_path, log=log) as store:
            assert store.journal is not None
            quiet = await store.begin(HEADER, SOURCE)
            await quiet.wait_acked(0)
            store.builder.relieve()
            await until(lambda: quiet.text.durable == quiet.acked)
            log.fault, store.journal._current.born = True, -1e9  # a new segment is due
            hit = await store.begin(HEADER, SOURCE)
            with pytest.raises(StoreError):
                await hit.wait_acked(0)
            log.fault = False
            await until_healthy(store)
            await (await store.begin(HEADER, SOURCE)).wait_acked(0)
            await store.journal.trim()
            await kill(store)
        async with store_in(tmp_path) as store:
            await settled(store)
            assert (await store.get(quiet.id)).ended is not None

    asyncio.run(main())


def test_a_task_that_ends_by_a_fault_of_ours_is_told_for_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody works at any more must not look well again at the next look at the disk."""
    monkeypatch.setattr("recorder.store.store.LOOK", 0.005)

    async def main() -> None:
        blobs = FaultyBlobs(tmp_path)
        async with store_in(tmp_path, blobs=blobs) as store:
            store._start("broken", _broken())
            await until(lambda: store.healthy is not None)
            looks, ask = 0, blobs.free

            async def free() -> int | None:
                nonlocal looks
                looks += 1
                return await ask()

            blobs.free = free  # type: ignore[method-assign]
            await until(lambda: looks >= 2)
            assert store.healthy is not None and "failed" in store.healthy
            with pytest.raises(StoreError, match="failed"):
                await store.begin(HEADER, SOURCE)

    run(main())


async def _broken() -> None:
    raise LookupError("broken")


def test_no_space_left_means_no_new_recordings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with store_in(tmp_path) as store:
            await until(lambda: store.free is not None)
            assert store.healthy is None
        store = Store(FaultyBlobs(tmp_path), FaultyLog(tmp_path), min_free=1 << 60)
        await store.open()
        await until(lambda: store.healthy is not None)
        assert (store.healthy or "").startswith("the recorder's disk is nearly full (")
        with pytest.raises(StoreError, match="nearly full"):
            await store.begin(HEADER, SOURCE)
        await store.aclose()

    run(main())


def test_the_journal_reader_stops_at_the_first_damage() -> None:
    from recorder.store.records import Kind, head, seal

    record = head(Kind.DATA, "0" * 26, 5, 3) + b"abc"
    whole = b"".join((seal(1, [record]), seal(2, [record, record]), seal(3, [record])))
    for damage in range(len(whole)):
        changed = bytearray(whole)
        changed[damage] ^= 0x40
        reader = Reader()
        batches = list(reader.feed(bytes(changed)))
        assert len(batches) == reader.number <= 2 and reader.damaged
        reader = Reader()
        assert sum(len(list(reader.feed(whole[i : i + 1]))) for i in range(damage)) == reader.number
    reader = Reader()
    assert [len(batch) for batch in reader.feed(whole)] == [1, 2, 1] and not reader.damaged


def test_more_short_recordings_in_the_journal_than_memory_should_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tails too short for a frame: there is nothing to wait for, and the start goes on."""

    async def main() -> None:
        store = Store(FaultyBlobs(tmp_path), FaultyLog(tmp_path), min_free=0)
        await store.open()
        lives = [await store.begin(HEADER, SOURCE) for _ in range(40)]
        for live in lives:
            live.write(lines(100))
            await live.wait_acked(live.given - 1)
        await kill(store)
        monkeypatch.setattr(Pressure, "MAX_HELD", 20_000)
        async with asyncio.timeout(30), store_in(tmp_path) as store:
            for live in lives:
                assert await text_of(store, live.id) == HEADER + lines(100)

    run(main())


@pytest.mark.parametrize("most", [1, 1 << 30])
def test_what_ends_together_is_put_together_within_a_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr("recorder.store.builder.PUTTING", most)

    async def main() -> None:
        blobs = FaultyBlobs(tmp_path)
        blobs.hold = asyncio.Event()
        async with store_in(tmp_path, blobs=blobs) as store:
            lives = [await store.begin(HEADER, SOURCE) for _ in range(PUTS + 4)]
            await asyncio.gather(*(live.finish(End.CLEAN) for live in lives))
            await until(lambda: sum(bool(live.text.frames) for live in lives) == len(lives))
            at_once = PUTS if most > 1 else 1
            await until(lambda: len(store.builder._puts) >= at_once)
            assert len(store.builder._puts) == at_once
            blobs.hold.set()
            await until(lambda: not store.lives)

    run(main())


def test_tails_that_are_too_short_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Together they are more than should be held, none is worth a frame, and nothing more comes while it is so."""
    monkeypatch.setattr("recorder.store.pressure.Pressure.MAX_HELD", 100_000)

    async def main() -> None:
        async with store_in(tmp_path) as store:
            lives = [await store.begin(HEADER, SOURCE) for _ in range(100)]
            body = b'[0.5,"o","' + b"x" * 2000  # of a line whose end is not there
            for turn in range(3):
                for live in lives:
                    async with asyncio.timeout(10):
                        await live.ready()
                    live.write(body if not turn else b"y" * 1000)
            for live in lives:
                live.write(b'"]\n')
                assert (await live.finish(End.CLEAN)).size == live.given
                await settled(store)
                assert await text_of(store, live.id) == HEADER + body + b"y" * 2000 + b'"]\n'
                assert not (await store.get(live.id)).damaged

    run(main())
