"""Whether one recording is signed: what is told of it alone is what `verify` tells, as long as its bytes are sound."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from recorder.model import End, Recording, Source, new_id
from recorder.proof import PublicKeys, Signer
from recorder.proof import standing as module
from recorder.proof.report import Finding, Status
from recorder.proof.standing import Standings
from recorder.store import Store
from tests.recorder.proof.sealed import DAY, Stage, run


async def told(stage: Stage, *ids: str, keys: PublicKeys | None = None) -> dict[str, Finding | None]:
    """What is told of each, twice: the second time out of memory."""
    store = Store(stage.blobs(), None)
    await store.open()
    try:
        keys = keys or PublicKeys([stage.signer.public_key])
        standings = Standings(store.blobs, keys, clock=lambda: stage.clock)
        found = {one: await standings.of(await store.get(one)) for one in ids}
        assert found == {one: await standings.of(await store.get(one)) for one in ids}
        return found
    finally:
        await store.aclose()


async def same_as_verify(stage: Stage, *ids: str) -> dict[str, str]:
    """Statuses by id, which are those of `verify`, with the same words."""
    findings = {finding.id: finding for finding in (await stage.verify()).findings}
    found = await told(stage, *ids)
    assert found == {one: findings[one] for one in ids}
    return {one: finding.status.value for one, finding in found.items() if finding is not None}


def test_what_is_signed_at_its_end(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "data")
    one, two = run(stage.fill(2))
    assert run(same_as_verify(stage, one, two)) == dict.fromkeys((one, two), "not sealed yet")
    run(stage.seal())
    assert run(same_as_verify(stage, one, two)) == dict.fromkeys((one, two), "ok")
    (found,) = run(told(stage, one)).values()
    assert found is not None and found.day and found.detail == ""


def test_what_somebody_put_there_is_unknown_before_its_day_is_sealed_and_after(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "data")
    (one,) = run(stage.fill(1))
    (planted,) = run(stage.plant())
    assert run(same_as_verify(stage, one, planted)) == {one: "not sealed yet", planted: "unknown"}
    run(stage.seal())
    assert run(same_as_verify(stage, one, planted)) == {one: "ok", planted: "unknown"}
    (later,) = run(stage.plant())
    assert run(same_as_verify(stage, later)) == {later: "unknown"}


def test_what_was_there_before_the_register_is_late(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "data")
    stage.signs = False
    (found,) = run(stage.fill(1))
    stage.signs = True

    run(stage.fill(1))
    run(stage.seal())
    assert run(same_as_verify(stage, found)) == {found: "signed late"}


def test_a_store_from_before_the_registers(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "data")
    run(stage.age())
    (one,) = [path.name for path in (stage.root / "recordings").glob("*/*")]
    assert run(same_as_verify(stage, one)) == {one: "ok"}


def test_one_that_runs_and_one_that_ended_just_now(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "data")
    run(stage.fill(1))

    async def of(recording: Recording) -> Finding | None:
        blobs = stage.blobs()
        try:
            keys = PublicKeys([stage.signer.public_key])
            return await Standings(blobs, keys, clock=lambda: stage.clock).of(recording)
        finally:
            await blobs.aclose()

    running = Recording(new_id(stage.clock), {}, Source("", ""), stage.clock)
    found = run(of(running))
    assert found is not None and found.status is Status.OPEN
    ended = Recording(running.id, {}, Source("", ""), stage.clock, stage.clock - 1, End.CLEAN)
    found = run(of(ended))
    assert found is not None and found.status is Status.UNSEALED and "just now" in found.detail
    stage.clock += DAY
    found = run(of(ended))
    assert found is not None and found.status is Status.UNKNOWN


def test_what_is_not_to_be_believed_tells_nothing(tmp_path: Path) -> None:
    """A list by another key, or one that was changed, makes nothing signed."""
    stage = Stage(tmp_path / "data")
    (one,) = run(stage.fill(1))
    other = PublicKeys([Signer.make().public_key])
    (found,) = run(told(stage, one, keys=other)).values()
    assert found is not None and found.status is not Status.OK and found.day == ""
    run(stage.seal())
    assert run(told(stage, one, keys=other)) == {one: None}
    manifest, _ = stage.manifests()
    other_id = one[:-1] + ("1" if one[-1] == "0" else "0")
    manifest.write_bytes(manifest.read_bytes().replace(one.encode(), other_id.encode()))
    assert run(told(stage, one)) == {one: None}


def test_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MANIFESTS", 1)
    monkeypatch.setattr(module, "_FAR", 1)
    stage = Stage(tmp_path / "data")
    (one,) = run(stage.fill(1))
    run(stage.seal())
    stage.clock += 2 * DAY
    run(stage.seal())
    assert len(stage.manifests()) > 2

    async def check() -> None:
        blobs = stage.blobs()
        standings = Standings(blobs, PublicKeys([stage.signer.public_key]), clock=lambda: stage.clock)
        unlisted = Recording(new_id(), {}, Source("", ""), 0.0, 1.0, End.CLEAN)
        assert await standings.of(unlisted) is None  # too many manifests may have it
        assert len(standings._days) == 1
        found = await asyncio.gather(*(standings._of(one, 1.0) for _ in range(2)))
        assert [finding.status for finding in found if finding is not None] == [Status.OK] * 2
        await blobs.aclose()

    run(check())
