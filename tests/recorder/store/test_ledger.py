"""The ledger: what it pins, what is ripe in it, and that nobody is told anything before the store is open."""

from __future__ import annotations

from pathlib import Path

import pytest

from recorder.model import End
from recorder.store import ledger as module
from recorder.store.chunk import FRAME
from recorder.store.ledger import Ledger
from recorder.store.live import Live
from recorder.store.store import Life
from tests.lives import assert_documented
from tests.recorder.store.storing import HEADER, SOURCE, Told, lines, run, store_in, until


def test_the_docstring_of_the_store_has_its_table() -> None:
    assert_documented(Life)


def test_a_segment_is_pinned_by_what_is_nowhere_else() -> None:
    class Behind:
        behind = True

    ledger = Ledger[Live]()
    assert ledger.pins() == []
    ledger.events, ledger.removing["x"], ledger.replayed = 7, 5, 3
    assert sorted(ledger.pins()) == [5, 7]  # nobody signs: what a replay has found needs nobody
    ledger.registrar = registrar = Behind()  # type: ignore[assignment]  # only `behind` is asked for
    assert sorted(ledger.pins()) == [3, 5, 7]
    registrar.behind = False
    assert sorted(ledger.pins()) == [5, 7] and ledger.replayed == 0


def test_with_more_recordings_less_is_ripe(monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger[Live]()
    assert ledger.ripe_size == FRAME
    monkeypatch.setattr(module, "TAILS", 3 * module.MIN_FRAME)
    assert ledger.ripe_size == 3 * module.MIN_FRAME
    monkeypatch.setattr(module, "TAILS", 0)
    assert ledger.ripe_size == module.MIN_FRAME


def test_nobody_is_told_before_the_store_is_open(tmp_path: Path) -> None:
    async def main() -> None:
        async with store_in(tmp_path) as store:
            store.observers.append(told := Told())
            store.ledger.opened = False
            live = await store.begin(HEADER, SOURCE)
            live.write(lines(1))
            await live.finish(End.CLEAN)
            assert told.all == []
            store.ledger.opened = True
            await until(lambda: not store.lives)
            await store.remove(live.id)
            assert told.all == [("removed", live.id)]

    run(main())


def test_an_observer_that_fails_keeps_nobody_else_from_being_told(tmp_path: Path) -> None:
    class Failing(Told):
        def removed(self, identifier: str) -> None:
            raise RuntimeError("a bug")

    async def main() -> None:
        async with store_in(tmp_path) as store:
            store.observers.extend((Failing(), told := Told()))
            live = await store.begin(HEADER, SOURCE)
            await live.finish(End.CLEAN)
            await until(lambda: not store.lives)
            await store.remove(live.id)
            assert told.all == [("began", live.id), ("ended", live.id), ("removed", live.id)]

    run(main())
