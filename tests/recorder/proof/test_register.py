"""The beginning of the first register, while sessions come in already."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from recorder.proof import found
from recorder.proof import register as module
from recorder.store.blobs import Blobs
from tests.recorder.proof.sealed import Stage, run, statuses


def test_what_ends_while_the_first_register_opens_is_not_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(tmp_path / "store")
    begun, there = asyncio.Event(), asyncio.Event()
    listed = found.recordings_of

    async def slowly(raw: Blobs) -> AsyncIterator[str]:
        # As in a large store: by the time that a recording of this process is listed, it has ended.
        if begun.is_set():
            await there.wait()
        async for identifier in listed(raw):
            yield identifier

    monkeypatch.setattr(module, "recordings_of", slowly)

    async def scenario() -> str:
        async with stage.store() as store:
            begun.set()
            identifier = await stage.record(store)
            while not (await store.get(identifier)).ended or (
                store.lives and not all(live.whole for live in store.lives.values())
            ):
                store.builder.poke()
                await asyncio.sleep(0)
            there.set()
            await stage.settled(store)
        return identifier

    identifier = run(scenario())
    run(stage.seal())
    assert statuses(run(stage.verify())) == {identifier: "ok"}
