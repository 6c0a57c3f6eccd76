"""recorder/store/store.py: what goes in comes out, while it runs, afterwards, and from another process's view."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from obstore.store import MemoryStore

from k8sproxy.common.formats.asciicast import MAX_LINE
from recorder.model import End
from recorder.store import Store, StoreError
from recorder.store.blobs import FolderBlobs
from recorder.store.chunk import FRAME, count_feeds, cut_frames
from recorder.store.ledger import PROGRESS, PROGRESSING
from recorder.store.logs import ObjectLog
from recorder.store.objects import ObjectBlobs
from recorder.store.soundness import Soundness
from tests.recorder.store.storing import (
    HEADER,
    SOURCE,
    Told,
    cast_of,
    ids,
    kill,
    lines,
    run,
    settled,
    store_in,
    text_of,
    until,
)


def test_what_goes_in_comes_out(tmp_path: Path) -> None:
    async def main() -> None:
        body = lines(5000)
        async with store_in(tmp_path) as store:
            told = Told()
            store.observers.append(told)
            live = await store.begin(HEADER, SOURCE)
            live.write(body[:70_000])
            assert await live.wait_acked(len(HEADER) + 69_999) == len(HEADER) + 70_000
            running = await store.get(live.id)
            assert (running.end, running.size, running.pod) == (End.RUNNING, len(HEADER) + 70_000, "web-0")
            assert (await text_of(store, live.id)) == HEADER + body[:70_000]
            live.write(body[70_000:])
            done = await live.finish(End.CLEAN)
            assert (done.end, done.size, done.events) == (End.CLEAN, len(HEADER + body), 5000)
            assert done.duration == 4999 * 0.5 and not done.damaged and done.ended is not None
            assert await text_of(store, live.id) == HEADER + body
            await settled(store)
            assert not store.lives
            assert await store.get(live.id) == done
            assert await text_of(store, live.id) == HEADER + body == await cast_of(store, live.id)
            assert [what for what, _ in told.all if what != "progressed"] == ["began", "ended"]
            assert told.last[live.id] == done
        reading = Store(FolderBlobs(tmp_path), None)
        await reading.open()
        assert [recording async for recording in reading.recordings()] == [done]
        with pytest.raises(StoreError):
            await reading.begin(HEADER, SOURCE)
        await reading.aclose()

    run(main())


def test_chunks_can_be_read_with_zstd_alone(tmp_path: Path) -> None:
    async def main() -> str:
        async with store_in(tmp_path) as store:
            live = await store.begin(HEADER, SOURCE)
            live.write(lines(9000))
            await live.finish(End.CLEAN)
        return live.id

    identifier = asyncio.run(main())
    text = b""
    for path in sorted(tmp_path.glob(f"recordings/*/{identifier}/*.chunk")):
        with open(path, "rb") as file:
            text += zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True).read()
    assert text == HEADER + lines(9000)


def test_reading_from_a_time_reads_little(tmp_path: Path) -> None:
    class Counting(FolderBlobs):
        read = 0

        async def get_range(self, key: str, start: int, size: int) -> bytes:
            Counting.read += size
            return await super().get_range(key, start, size)

    async def main() -> None:
        body = lines(60_000, width=200)
        async with store_in(tmp_path, blobs=Counting(tmp_path)) as store:
            live = await store.begin(HEADER, SOURCE)
            live.write(body)
            await live.finish(End.CLEAN)
            await settled(store)
            Counting.read = 0
            pieces = store.cast(live.id, start=15_000.0)
            assert await anext(pieces) == HEADER
            first = await anext(pieces)
            await pieces.aclose()
            assert Counting.read < 600_000  # of 14 MB
            before = float(first[1:].split(b",")[0])
            assert 14_000 < before <= 15_000
            whole = await cast_of(store, live.id, start=15_000.0, end=15_100.0)
            assert b'[15000.0, "o"' in whole and b'[15100.0, "o"' in whole
            assert len(whole) < 3_000_000
            assert (HEADER + body).endswith((await cast_of(store, live.id, start=29_000.0))[len(HEADER) :])
            assert await cast_of(store, live.id, start=1e5) in (HEADER, await cast_of(store, live.id, start=1e6))

    run(main())


def test_following_from_a_time_reads_little(tmp_path: Path) -> None:
    async def main() -> None:
        body = lines(60_000, width=200)
        async with store_in(tmp_path) as store:
            live = await store.begin(HEADER, SOURCE)
            for number in range(0, 60_000, 1000):
                live.write(lines(1000, start=number, width=200))
                await live.wait_acked(live.given - 1)
            await until(lambda: live.text.framed > len(body) // 2)
            pieces = store.follow(live.id, start=12_000.0)
            assert await anext(pieces) == HEADER
            seen = await anext(pieces)
            assert 11_000 < float(seen[1:].split(b",")[0]) <= 12_000
            live.write(lines(10, start=60_000))
            await live.finish(End.CLEAN)
            async for piece in pieces:
                seen += piece
            assert (body + lines(10, start=60_000)).endswith(seen) and b'[12000.0, "o"' in seen

    run(main())


def test_following_a_running_recording(tmp_path: Path) -> None:
    async def main() -> None:
        async with store_in(tmp_path) as store:
            live = await store.begin(HEADER, SOURCE)
            got: list[bytes] = []
            first = asyncio.Event()

            async def watch() -> None:
                async for piece in store.follow(live.id):
                    assert piece.endswith(b"\n")
                    got.append(piece)
                    if len(b"".join(got)) > len(HEADER):
                        first.set()

            task = asyncio.create_task(watch())
            live.write(lines(3)[:-5])
            await first.wait()
            assert b"".join(got) == HEADER + lines(2)
            live.write(lines(3)[-5:])
            for number in range(3, 3000, 100):
                live.write(lines(100, start=number))
                if number % 500 == 3:
                    await live.wait_acked(live.given - 1)
            await live.finish(End.CLEAN)
            await task
            assert b"".join(got) == HEADER + lines(3003)

    run(main())


def test_a_half_line_at_the_end_is_kept_but_not_shown(tmp_path: Path) -> None:
    async def main() -> None:
        async with store_in(tmp_path) as store:
            cut, whole = await store.begin(HEADER, SOURCE), await store.begin(HEADER, SOURCE)
            cut.write(lines(2) + b'[7.0, "o", "ab')
            whole.write(lines(2) + b'[7.0, "o", "ab"]')
            await cut.finish(End.CUT)
            await whole.finish(End.CLEAN)
            for _ in range(2):
                assert await text_of(store, cut.id) == HEADER + lines(2) + b'[7.0, "o", "ab'
                assert await cast_of(store, cut.id) == HEADER + lines(2)
                assert await cast_of(store, whole.id) == HEADER + lines(2) + b'[7.0, "o", "ab"]\n'
                await settled(store)

    run(main())


def test_long_lines(tmp_path: Path) -> None:
    async def main() -> None:
        long = b'[5.0, "o", "' + b"x" * 700_000 + b'"]\n'
        body = lines(1000) + long + lines(3000, start=1000)
        async with store_in(tmp_path) as store:
            live = await store.begin(HEADER, SOURCE)
            live.write(body)
            done = await live.finish(End.CLEAN)
            assert not done.damaged and done.events == 4001
            await settled(store)
            assert await text_of(store, live.id) == HEADER + body == await cast_of(store, live.id)
            assert not (await store.get(live.id)).damaged
            assert (await store.get(live.id)).events == 4001
            late = await cast_of(store, live.id, start=700.0)
            assert body.endswith(late[len(HEADER) :]) and late[len(HEADER) :].startswith(b"[")

            other = await store.begin(HEADER, SOURCE)
            other.write(b'[0.1, "o", "')
            with pytest.raises(StoreError, match="a line of more than"):
                for _ in range(MAX_LINE // 65536 + 1):
                    other.write(b"x" * 65536)
            await other.finish(End.CUT)

    run(main())


@pytest.mark.parametrize(
    ("header", "why"),
    [
        (b"nothing\n", "not JSON"),
        (b"[1]\n", "header"),
        (b'{"version": 1}\n', "version 2"),
        (b'{"version": true}\n', "version 2"),
        (b'{"version": 2}', "no end"),
        (b'{"version": 2, "x": "' + b"y" * 70_000 + b'"}\n', "more than"),
        (b"[" * 60_000 + b"\n", "not JSON"),
        (b'{"version": 2, "x": ' + b"[" * 64 + b"]" * 64 + b"}\n", "64 levels"),
        (b'{"version": 2, "width": NaN}\n', "not JSON"),
        (b'{"version": 2, "width": 1e999}\n', "not JSON"),
    ],
)
def test_what_is_no_header_keeps_nothing(tmp_path: Path, header: bytes, why: str) -> None:
    async def main() -> None:
        async with store_in(tmp_path) as store:
            with pytest.raises(ValueError, match=why):
                await store.begin(header, SOURCE)
            assert not store.lives
            assert [recording async for recording in store.recordings()] == []

    run(main())


LONG = b"x" * 300_000  # more than a frame has, so that the line is in several


@pytest.mark.parametrize(
    "body",
    [
        b"nonsense\n",
        b'[1.0, "o", "\xff"]\n',
        lines(2) + b"\n" + lines(3),
        b'{"a": 1}\n',
        b'["x", "o", "y"]\n',
        b'[0.1,"o"]\n',
        b'[0.1,"o","x","y"]\n',
        b'[0.1,"o",5]\n',
        b'[0.1,"o",null]\n',
        b'[true,"o","x"]\n',
        b'[-0.5,"o","x"]\n',
        b'[2000000,"o","x"]\n',
        b'[1e999,"o","x"]\n',
        b'[0.1,"oo","x"]\n',
        b'[0.1,7,"x"]\n',
        b'[0.1,"r","wide"]\n',
        b'[[0.1,"o","x"]]\n',
        b"[]\n",
        b"[1,2,3]\n",
        b'[0.1,"o","a],\n["]\n',
        b'[1,"o","a"],[2,"o","b"]\n[3,"o","c]\n[d"]\n',  # as many values as lines, joined by commas
        lines(900) + b'[450.5,"o"]\n' + lines(900, start=901),
        b'[1.0,"o","' + LONG + b'"\n' + lines(1, start=9),
        b'[1.0,"o",' + LONG + b'"]\n',
        b'[1.0,"o","' + LONG + b'\\x"]\n',
        b'[1.0,"o","' + LONG + b'","y"]\n',
        lines(3) + b'[7.0, "o", "ab',  # a torn last line, though the session ended well
        lines(3) + b"[",
        lines(3) + b"   ",
        lines(3) + b'[7.0, "o"]',
        b'[1.0,"o","' + LONG,
    ],
)
def test_unreadable_lines_are_kept_and_marked(tmp_path: Path, body: bytes) -> None:
    async def main() -> None:
        async with store_in(tmp_path) as store:
            store.observers.append(told := Told())
            live = await store.begin(HEADER, SOURCE)
            live.write(body)
            await live.finish(End.CLEAN)
            await settled(store)
            assert (await store.get(live.id)).damaged
            assert told.last[live.id].damaged  # whoever was told of its end before hears of it too
            assert await text_of(store, live.id) == HEADER + body
            if body.endswith(b"\n"):
                assert await cast_of(store, live.id) == HEADER + body

    run(main())


@pytest.mark.parametrize(
    ("body", "end"),
    [
        (b"", End.CLEAN),
        (lines(3), End.CLEAN),
        (b'[1,"o",""]\n[1.5,"e","x"]\n[2,"i","typed"]\n[3,"m","a mark"]\n[4,"x","of the future"]\n', End.CLEAN),
        (b' [ 1.0 , "o" , "x" ] \r\n\t[2,"r","0x0"]\n[3,"r","100x30"]\n', End.CLEAN),  # of other senders
        (b'[2.0,"o","late"]\n[1.0,"o","a clock that goes back"]\n', End.CLEAN),
        (b'[0.001,"o","\\u001b[0m \xc3\xa9 \\ud83d\\ude00"]\n', End.CLEAN),
        (b'[1.0,"o","' + LONG + b'\\u00e9"]\n' + lines(3), End.CLEAN),
        (lines(3) + b'[7.0, "o", "no line feed"]', End.CLEAN),
        (b'[1.0,"o","' + LONG + b'"]', End.CLEAN),
        (lines(3) + b'[7.0, "o", "ab', End.CUT),  # that it was cut off is said already
    ],
)
def test_what_any_sender_may_send_is_not_damaged(tmp_path: Path, body: bytes, end: End) -> None:
    async def main() -> None:
        async with store_in(tmp_path) as store:
            store.observers.append(told := Told())
            live = await store.begin(HEADER, SOURCE)
            live.write(body)
            await live.finish(end)
            await settled(store)
            assert not (await store.get(live.id)).damaged
            assert not told.last[live.id].damaged and ("corrected", live.id) not in told.all

    run(main())


def test_recordings_come_newest_first_and_can_be_removed(tmp_path: Path) -> None:
    async def main() -> None:
        async with store_in(tmp_path) as store:
            told = Told()
            store.observers.append(told)
            made = []
            for _ in range(5):
                live = await store.begin(HEADER, SOURCE)
                made.append(live.id)
                await live.wait_acked(0)
                if len(made) != 3:
                    await live.finish(End.CLEAN)
            await settled(store)
            assert ids([one async for one in store.recordings()]) == sorted(made, reverse=True)
            with pytest.raises(StoreError, match="has not ended"):
                await store.remove(made[2])
            await store.remove(made[0])
            with pytest.raises(KeyError):
                await store.get(made[0])
            with pytest.raises(KeyError):
                await store.remove(made[0])
            assert made[0] not in ids([one async for one in store.recordings()])
            assert told.all[-1] == ("removed", made[0])
            for nonsense in ("", "..", "x" * 26, made[1] + "/", "01ARZ3NDEKTSV4RRFFQ69G5FAV"):
                with pytest.raises(KeyError):
                    await store.get(nonsense)

    run(main())


def test_the_words_of_what_is_removed_leave_the_journal_too(tmp_path: Path) -> None:
    """Though another recording, which still runs, has its own in the same segment."""

    def found() -> list[str]:
        return [path.name for path in tmp_path.rglob("*") if path.is_file() and b"secretword" in path.read_bytes()]

    async def main() -> None:
        async with store_in(tmp_path) as store:
            running = await store.begin(HEADER, SOURCE)
            running.write(lines(3))
            await running.wait_acked(len(HEADER))
            live = await store.begin(HEADER, SOURCE)
            live.write(b'[1.0,"o","secretword"]\n')
            await live.finish(End.CLEAN)
            while live.id in store.lives:
                await store.builder.drained()
            assert found()
            await store.remove(live.id)
            await until(lambda: not found())
            running.write(lines(3, start=3))
            await running.finish(End.CLEAN)
            await settled(store)
            assert await text_of(store, running.id) == HEADER + lines(6)
            assert [recording.id async for recording in store.recordings()] == [running.id]
        async with store_in(tmp_path) as store:
            assert [recording.id async for recording in store.recordings()] == [running.id]
            assert await text_of(store, running.id) == HEADER + lines(6)

    run(main())


def test_events(tmp_path: Path) -> None:
    async def main() -> None:
        async with store_in(tmp_path) as store:
            told = Told()
            store.observers.append(told)
            one = await store.add_event(b'{"type": "kubernetes-api-request", "n": 0}', SOURCE)
            many = await store.add_events([{"n": number} for number in range(1, 300)], SOURCE)
            assert [event.document["n"] for event in (one, *many)] == list(range(300))
            assert [event async for event in store.events()] == told.events == [one, *many]
            assert [event.id for event in told.events] == sorted({event.id for event in told.events})
            for nonsense in (b"", b"[1]", b"nothing", b"[" * 100_000, b'{"a": -Infinity}', b'{"a": -1e999}'):
                with pytest.raises(ValueError):
                    await store.add_event(nonsense, SOURCE)
        async with store_in(tmp_path) as store:
            more = await store.add_events([{"n": 300}], SOURCE)
            assert more[0].id > told.events[-1].id
            assert [event async for event in store.events()] == [*told.events, *more]
            assert (await anext(store.events())).source == SOURCE

    run(main())


def test_the_journal_is_trimmed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recorder.store.journal.SEGMENT", 200_000)

    async def main() -> None:
        async with store_in(tmp_path) as store:
            quiet = await store.begin(HEADER, SOURCE)
            quiet.write(lines(1))
            await quiet.wait_acked(len(HEADER))
            busy = await store.begin(HEADER, SOURCE)
            for number in range(0, 40_000, 2000):
                busy.write(lines(2000, start=number))
                await busy.wait_acked(busy.given - 1)
            await busy.finish(End.CLEAN)
            assert store.journal is not None and store.journal.segment > 5
            while len(store.journal.segments) > 6:  # the quiet one's bytes are put into a chunk for it
                store.builder.poke()
                await asyncio.sleep(0)
            await settled(store)
            assert quiet.text.durable > 0 and quiet.end is End.RUNNING
            assert await text_of(store, quiet.id) == HEADER + lines(1)
            await kill(store)
        async with store_in(tmp_path) as store:
            assert (await store.get(quiet.id)).end is End.CUT
            assert await text_of(store, quiet.id) == HEADER + lines(1)

    asyncio.run(main())


def test_an_object_store(tmp_path: Path) -> None:
    async def main() -> None:
        memory = MemoryStore()
        body = lines(20_000)

        def make() -> Store:
            blobs = ObjectBlobs(memory, "memory")
            return Store(blobs, ObjectLog(blobs, "main"))

        store = make()
        await store.open()
        live, left = await store.begin(HEADER, SOURCE), await store.begin(HEADER, SOURCE)
        live.write(body)
        left.write(body)
        done = await live.finish(End.CLEAN)
        await left.wait_acked(left.given - 1)
        events = await store.add_events([{"n": 1}], SOURCE)
        await settled(store)
        assert await text_of(store, live.id) == HEADER + body
        await kill(store)
        store = make()
        await store.open()
        assert await store.get(live.id) == done
        assert (await store.get(left.id)).end is End.CUT
        assert await text_of(store, left.id) == HEADER + body
        assert [event async for event in store.events()] == events
        assert ids([one async for one in store.recordings()]) == sorted([live.id, left.id], reverse=True)
        await settled(store)
        await store.remove(live.id)
        await store.aclose()
        reading = Store(ObjectBlobs(memory, "memory"), None)
        await reading.open()
        assert ids([one async for one in reading.recordings()]) == [left.id]
        await reading.aclose()

    run(main())


def test_two_recorders_share_an_object_store(tmp_path: Path) -> None:
    """Events that one has in its journal are not taken for kept because the other has put a newer chunk."""

    async def main() -> None:
        memory = MemoryStore()

        def make(instance: str) -> Store:
            blobs = ObjectBlobs(memory, "memory")
            return Store(blobs, ObjectLog(blobs, instance), instance=instance)

        one, other = make("one"), make("other")
        await one.open()
        await other.open()
        put = await one.add_events([{"n": 0}], SOURCE)
        await one.eventlog.drain()
        first = await one.add_events([{"n": 1}], SOURCE)
        running = await one.begin(HEADER, SOURCE)
        running.write(lines(10_000))
        await running.wait_acked(len(HEADER))
        one.builder.relieve()
        await until(lambda: bool(running.text.frames))
        one.builder.relieve()
        await until(lambda: bool(running.chunks.rows))
        assert (await other.get(running.id)).end is End.RUNNING  # and not cut, as if nobody had it
        theirs = await other.add_events([{"n": 2}], SOURCE)
        await other.eventlog.drain()
        # What is in memory is told, too, though the other's chunk is newer.
        assert {event.id for event in [event async for event in one.events()]} == {put[0].id, first[0].id, theirs[0].id}
        await kill(one)
        one = make("one")
        await one.open()
        await one.eventlog.drain()
        await one.aclose()
        await other.aclose()
        reading = Store(ObjectBlobs(memory, "memory"), None)
        await reading.open()
        kept = sorted([event async for event in reading.events()], key=lambda event: event.id)
        assert kept == [*put, *first, *theirs]
        await reading.aclose()

    run(main())


def test_a_second_recorder_with_the_same_journal_takes_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And neither writes over what the other has acknowledged."""

    async def main() -> None:
        memory = MemoryStore()

        def make() -> Store:
            blobs = ObjectBlobs(memory, "memory")
            return Store(blobs, ObjectLog(blobs, "main"))

        first, second = make(), make()
        await first.open()
        live = await first.begin(HEADER, SOURCE)
        await live.wait_acked(0)
        await second.open()
        taken = await second.begin(HEADER, SOURCE)
        await taken.wait_acked(0)
        assert first.journal is not None
        first.journal._current.born = -1e9  # it would begin the segment that the second one writes to
        live.write(lines(1))
        with pytest.raises(StoreError, match="taken over"):
            await live.finish(End.CLEAN)
        assert first.healthy is not None and "taken over" in first.healthy and second.healthy is None
        taken.write(lines(9))
        await taken.wait_acked(taken.given - 1)
        await kill(first)
        await kill(second)
        again = make()
        await again.open()
        assert await text_of(again, live.id) == HEADER and await text_of(again, taken.id) == HEADER + lines(9)
        monkeypatch.setattr("recorder.store.logs.LOOK", 0.0)
        last = make()
        await last.open()
        late = await again.begin(HEADER, SOURCE)
        with pytest.raises(StoreError, match="taken over"):
            await late.wait_acked(0)
        await last.aclose()
        await kill(again)

    run(main())


def test_a_newest_chunk_of_events_that_is_damaged_keeps_nobody_from_starting(tmp_path: Path) -> None:
    async def main() -> None:
        async with store_in(tmp_path) as store:
            await store.add_events([{"n": 0}], SOURCE)
        (chunk,) = (tmp_path / "events").rglob("*.chunk")
        chunk.write_bytes(chunk.read_bytes()[:-1])
        async with store_in(tmp_path) as store:
            (event,) = await store.add_events([{"n": 1}], SOURCE)
            assert event.id > chunk.stem
            await store.eventlog.drain()
            for chunk in (tmp_path / "events").rglob("*.chunk"):
                chunk.write_bytes(chunk.read_bytes()[:-1])
            rest = await store.add_events([{"n": 2}], SOURCE)
            assert [event async for event in store.events()] == rest

    run(main())


def test_only_one_writes_to_a_folder(tmp_path: Path) -> None:
    async def main() -> None:
        async with store_in(tmp_path):
            with pytest.raises(StoreError, match="another recorder"):
                async with store_in(tmp_path):
                    pass
        async with store_in(tmp_path):
            pass

    run(main())


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 40_000), max_size=12), st.integers(0, 3))
def test_any_pieces(tmp_path_factory: pytest.TempPathFactory, sizes: list[int], turns: int) -> None:
    async def main() -> None:
        body = lines(2500)
        async with store_in(tmp_path_factory.mktemp("store")) as store:
            live = await store.begin(HEADER, SOURCE)
            position = 0
            for size in sizes:
                live.write(body[position : position + size])
                position += size
                for _ in range(turns):
                    await asyncio.sleep(0)
            live.write(body[position:])
            await live.finish(End.CLEAN)
            assert await text_of(store, live.id) == HEADER + body
            await settled(store)
            assert await cast_of(store, live.id) == HEADER + body
            assert (await store.get(live.id)).events == 2500

    run(main())


def test_the_model_of_folders(tmp_path: Path) -> None:
    """Recordings are secrets: nobody else can read them."""

    async def main() -> None:
        async with store_in(tmp_path / "data" / "deep") as store:
            live = await store.begin(HEADER, SOURCE)
            await live.finish(End.CLEAN)

    run(main())
    found = subprocess.run(["find", tmp_path / "data", "-perm", "/077"], capture_output=True, text=True, check=True)
    assert found.stdout == ""


@given(st.lists(st.sampled_from([b"\n", b"]", b"[", b"]\n[", b"x" * 40, b"]\n["]), max_size=400), st.data())
def test_lines_are_counted_as_bytes_count_does(parts: list[bytes], data: st.DataObject) -> None:
    text = b"".join(parts)
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, len(text)))
    assert count_feeds(text, start, end) == text.count(b"\n", start, end)


def test_a_frame_smaller_than_a_line_is_cut_behind_the_line() -> None:
    text = HEADER + b"".join(b'[%d.0,"o","%b"]\n' % (number, b"x" * 60_000) for number in range(6))
    cuts, rest = cut_frames(text, Soundness(), offset=0, before=0.0, inside=False, final=False, size=40_000)
    assert b"".join(cut.text for cut in cuts) + rest == text
    assert len(cuts) == 7 and all(cut.text.endswith(b"\n") and not cut.inside and not cut.damaged for cut in cuts)
    # Of one whose end has not come yet nothing is cut, until it is longer than any frame.
    half = text[: len(HEADER) + 50_000]
    cuts, rest = cut_frames(half, Soundness(), offset=0, before=0.0, inside=False, final=False, size=40_000)
    assert [cut.text for cut in cuts] == [HEADER] and rest == half[len(HEADER) :]
    endless = b'[1.0,"o","' + b"x" * (FRAME + 10)
    cuts, rest = cut_frames(endless, Soundness(), offset=9, before=0.0, inside=False, final=False, size=40_000)
    assert [len(cut.text) for cut in cuts] == [40_000] and len(rest) < FRAME
    cuts, rest = cut_frames(half, Soundness(), offset=0, before=0.0, inside=False, final=True, size=40_000)
    assert b"".join(cut.text for cut in cuts) == half and not rest


def test_many_small_pieces_are_made_one(tmp_path: Path) -> None:
    async def main() -> None:
        async with store_in(tmp_path) as store:
            live = await store.begin(HEADER, SOURCE)
            for byte in lines(50):
                live.write(bytes((byte,)))
            assert await live.wait_acked(live.given - 1) == live.given
            assert len(live.text.tail) <= 2
            assert await text_of(store, live.id) == HEADER + lines(50)

    run(main())


def test_progress_is_told_less_often_of_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("recorder.store.ledger.time", clock)

    async def main() -> None:
        async with store_in(tmp_path) as store:
            told = Told()
            store.observers.append(told)
            lives = [await store.begin(HEADER, SOURCE) for _ in range(PROGRESSING * 2)]
            progress: list[int] = []
            for turn in range(6):
                clock.now += PROGRESS
                for live in lives:
                    live.write(lines(1, start=turn))
                await asyncio.gather(*(live.wait_acked(live.given - 1) for live in lives))
                progress.append(sum(what == "progressed" for what, _ in told.all))
            # The first look only begins to count the time.
            assert progress[-1] in (2 * len(lives), 3 * len(lives))

    run(main())


def test_how_much_comes_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("recorder.store.journal.time", clock)

    async def main() -> None:
        async with store_in(tmp_path) as store:
            live = await store.begin(HEADER, SOURCE)
            for turn in range(20):
                clock.now += 1.0
                live.write(lines(1000, start=1000 * turn))
                await live.wait_acked(live.given - 1)
            each = live.acked / 20
            assert 0.7 * each < store.arriving < 1.5 * each
            clock.now += 30.0
            assert store.arriving < each / 1000
        assert Store(FolderBlobs(tmp_path), None).arriving == 0.0

    run(main())


class Clock:
    """The module time, with a monotonic clock that only we advance."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return 1_780_000_000.0 + self.now
