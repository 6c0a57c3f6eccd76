"""recorder/assembly.py: what looks at the store, and gets well with it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from recorder.assembly import Finding, Life
from recorder.index import IndexFailure
from recorder.model import End, Recording
from recorder.store import StoreError
from tests.lives import assert_documented
from tests.recorder.store.storing import HEADER, SOURCE, settled, store_in, until


def test_the_table_of_states() -> None:
    assert_documented(Life)


def test_an_index_whose_database_is_away_is_opened_again_and_one_that_will_not_do_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recorder.assembly._RETRY", 0.001)
    errors = [IndexFailure("the database is away"), IndexFailure("another schema", passing=False)]
    tries: list[str | None] = []

    async def main() -> None:
        async with store_in(tmp_path) as store:
            finding = Finding(f"sqlite:{tmp_path}/index.db")

            async def refuse() -> None:
                tries.append(finding.fault)
                raise errors.pop(0)

            monkeypatch.setattr(finding.index, "open", refuse)
            await finding.run(store)
            assert tries == ["the index is not open yet", "the database is away"]
            assert finding.life is Life.REFUSED and finding.fault == "another schema" and finding.errors == 2
            await finding.aclose()

    asyncio.run(main())


@pytest.mark.parametrize("error", [StoreError("the store is away"), IndexFailure("the database is away")])
def test_an_index_that_could_not_catch_up_tries_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """What came while the recorder was down, or was in its journal, must get into the index before the next start."""
    monkeypatch.setattr("recorder.assembly._RETRY", 0.001)

    async def main() -> None:
        async with store_in(tmp_path) as store:
            live = await store.begin(HEADER, SOURCE)
            await live.finish(End.CLEAN)
            await settled(store)
            finding = Finding(f"sqlite:{tmp_path}/index.db")
            faults: list[str | None] = []
            recordings = store.recordings

            async def away() -> AsyncGenerator[Recording, None]:
                faults.append(finding.fault)
                if len(faults) < 3:
                    raise error
                async for recording in recordings():
                    yield recording

            monkeypatch.setattr(store, "recordings", away)
            task = asyncio.create_task(finding.run(store))
            await until(task.done)
            await task
            assert (
                "compared with 0 of 1 sessions" in str(faults[0])
                and "away" in str(faults[1])
                and "away" in str(faults[2])
            )
            assert finding.fault is None and finding.life is Life.CURRENT
            await finding.index.settled()
            assert await finding.index.database.fetch("SELECT id FROM recordings") == [(live.id,)]
            await finding.aclose()

    asyncio.run(main())
