"""The life of a live recording: its table, and moves that only a failing journal brings about."""

from __future__ import annotations

from pathlib import Path

import pytest

from k8sproxy.common.states import ImpossibleMove
from recorder.model import End
from recorder.store.errors import StoreError
from recorder.store.live import Life
from recorder.store.records import Kind
from tests.lives import assert_documented
from tests.recorder.store.storing import HEADER, SOURCE, Told, lines, run, store_in, until


def test_the_docstring_has_the_table() -> None:
    assert_documented(Life)


def test_a_recording_goes_through_its_life_and_leaves_the_ledger(tmp_path: Path) -> None:
    async def main() -> None:
        async with store_in(tmp_path) as store:
            live = await store.begin(HEADER, SOURCE)
            states = [live.life]
            assert list(store.ledger.lives) == [live.id]
            live.end_as(End.CLEAN)
            states.append(live.life)
            assert states == [Life.RUNNING, Life.ENDING]
            with pytest.raises(StoreError, match="the recording has ended"):
                live.write(lines(1))
            live.end_as(End.CUT)
            recording = await live.finish(End.CUT)
            assert recording.end is End.CLEAN and live.over
            await until(lambda: live.life is Life.RELEASED)
            assert not store.ledger.lives and not store.ledger.ripe
            with pytest.raises(ImpossibleMove):
                live.release()

    run(main())


@pytest.mark.parametrize("kept", [True, False])
def test_a_write_that_fails_keeps_what_was_safe_or_nothing(tmp_path: Path, kept: bool) -> None:
    async def main() -> None:
        async with store_in(tmp_path) as store:
            store.observers.append(told := Told())
            live = await store.begin(HEADER, SOURCE)
            if kept:
                await live.wait_acked(0)
            live.settled([], 1, StoreError("the recorder's disk failed"))
            assert live.life is (Life.FAILED if kept else Life.DROPPED)
            assert (live.id in store.ledger.lives) is kept
            with pytest.raises(StoreError, match="disk failed"):
                live.write(lines(1))
            live.end_as(End.CLEAN)
            if kept:
                await until(lambda: live.over)
                assert live.recording.end is End.CUT and live.recording.size == len(HEADER)
            else:
                # The journal is well again, and asks what there is to be written: no beginning without a header.
                assert live.take() == []
                live.settled([], 1, None)
                assert told.all == [] and live.life is Life.DROPPED
            assert all(item.kind is not Kind.BEGIN for item in live.take())

    run(main())
