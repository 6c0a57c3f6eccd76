"""What holds, whatever becomes of a hold's file and of its acts."""

from __future__ import annotations

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from recorder.crypt import Keyring
from recorder.model import new_id
from recorder.proof import KeyFault, PublicKeys
from recorder.proof.actlog import ActLog
from recorder.proof.acts import act_file
from recorder.proof.witness import Witnesses
from recorder.retention.holds import Hold, Holds, Match, Standing
from recorder.retention.pruner import Pruner
from recorder.retention.rules import Rules
from recorder.store.blobs import Blobs
from recorder.store.errors import StoreError
from tests.lives import assert_documented
from tests.recorder.proof.sealed import DAY, Stage, run, statuses


def test_the_docstring_has_the_table_of_a_hold() -> None:
    assert_documented(Standing)


def holds_of(stage: Stage, blobs: Blobs, signer: bool = True) -> Holds:
    keys = PublicKeys([stage.signer.public_key])
    return Holds(blobs, ActLog(blobs, keys, stage.signer if signer else None, witnesses=Witnesses([stage.witness])))


async def place(stage: Stage, hold: Hold) -> Hold:
    blobs = stage.blobs()
    placed = await holds_of(stage, blobs).add(hold)
    await blobs.aclose()
    return placed


async def listed(stage: Stage) -> list[tuple[str, bool]]:
    blobs = stage.blobs()
    try:
        return [(hold.id, hold.signed) for hold in await holds_of(stage, blobs).all()]
    finally:
        await blobs.aclose()


async def prune(stage: Stage) -> list[str]:
    async with stage.store() as store:
        it = Pruner(store, Rules(max_age=DAY), signer=stage.signer, clock=lambda: stage.clock)
        return [doomed.subject for doomed in await it.prune(await it.plan())]


def hold_on(recording: str) -> Hold:
    return Hold(new_id(), 1.0, "ana", "case 7", None, recording)


@pytest.mark.parametrize("keyring", [None, Keyring([b"k" * 32])])
@pytest.mark.parametrize("tamper", ["gone", "changed", "turned", "exchanged", "act", "cut"])
def test_a_signed_hold_cannot_be_taken_away(tmp_path: Path, tamper: str, keyring: Keyring | None) -> None:
    """By whoever can write to the store and has no key: nothing goes any more, and verify says why."""
    stage = Stage(tmp_path / "store", keyring=keyring)
    one, other = run(stage.fill(2))
    run(stage.seal())
    hold = run(place(stage, hold_on(one)))
    second = run(place(stage, hold_on(other)))
    assert hold.signed and run(listed(stage)) == [(hold.id, True), (second.id, True)]
    assert run(prune(stage)) == [] and run(stage.verify()).well
    file, act = stage.root / f"holds/{hold.id}.json", stage.root / act_file(1)
    if tamper == "gone":
        file.unlink()
    elif tamper == "changed":
        file.write_bytes(file.read_bytes()[:-1] + b" ")
    elif tamper == "turned":  # to another session; what is in an envelope can't be
        file.write_bytes(file.read_bytes().replace(one.encode(), new_id().encode()) + b" ")
    elif tamper == "exchanged":
        file.write_bytes((stage.root / f"holds/{second.id}.json").read_bytes())
    else:
        file.unlink()
        act.unlink()
        if tamper == "cut":
            (stage.root / f"holds/{second.id}.json").unlink()
            (stage.root / act_file(2)).unlink()
    with pytest.raises((StoreError, KeyFault)):
        run(prune(stage))
    assert stage.place(one).exists() and stage.place(other).exists()
    report = run(stage.verify())
    assert not report.well and report.faults


def test_a_release_is_for_good(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "store")
    (one,) = run(stage.fill(1))
    run(stage.seal())
    hold = run(place(stage, hold_on(one)))
    file = stage.root / f"holds/{hold.id}.json"
    kept = file.read_bytes()

    async def release(identifier: str, signer: bool = True) -> Hold:
        blobs = stage.blobs()
        try:
            return await holds_of(stage, blobs, signer).release(identifier, by="eve", why="closed")
        finally:
            await blobs.aclose()

    with pytest.raises(KeyFault, match="the hold is signed"):
        run(release(hold.id, signer=False))
    assert file.exists()
    assert run(release(hold.id)).reason == "case 7" and not file.exists()
    for identifier in (hold.id, one, new_id(), "../x"):
        with pytest.raises(KeyError):
            run(release(identifier))
    # As a crash leaves it, or somebody puts it back: it holds nothing, and verify has nothing to say.
    file.parent.mkdir()
    file.write_bytes(kept)
    assert run(listed(stage)) == [] and run(stage.verify()).well
    with pytest.raises(KeyError):
        run(release(hold.id))
    assert not file.exists()
    # Something else in its place is somebody's unsigned hold.
    file.parent.mkdir()
    file.write_bytes(kept.replace(b"case 7", b"case 8"))
    assert run(listed(stage)) == [(hold.id, False)] and run(prune(stage)) == []
    assert run(stage.verify()).acts.unsigned == 1


def test_unsigned_holds_of_before_hold(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "store")
    one, _ = run(stage.fill(2))
    (stage.root / "holds").mkdir()
    (stage.root / f"holds/{one}.json").write_text(
        f'{{"version": 1, "id": "{one}", "at": 1.0, "by": "root@vm", "reason": "case", "match": null}}'
    )
    assert run(listed(stage)) == [(one, False)]
    with capture_logs() as told:
        gone = run(prune(stage))
    assert one not in gone and len(gone) == 1
    assert [(line["hold"], line["by"]) for line in told if line["event"] == "hold_not_signed"] == [(one, "root@vm")]
    report = run(stage.verify())
    assert report.well and (report.acts.holds, report.acts.unsigned) == (0, 1)

    async def release() -> None:
        blobs = stage.blobs()
        holds = holds_of(stage, blobs)
        (hold,) = await holds.all()
        assert hold.held == one
        file = stage.root / f"holds/{one}.json"
        kept = file.read_bytes()
        await holds.release(one, by="ana")
        file.parent.mkdir()
        file.write_bytes(kept)
        assert await holds.all() == [] and await holds.now() == []
        await blobs.aclose()

    run(release())
    assert statuses(run(stage.verify()))[one] == "not sealed yet"


def test_one_file_is_one_hold(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "store")
    stage.root.mkdir()
    hold = run(place(stage, hold_on(new_id())))
    with pytest.raises(StoreError, match="a hold"):
        run(place(stage, hold))
    for text in ('{"recording":"../x"}', "[]", "1"):
        (stage.root / f"holds/{new_id()}.json").write_text(text)
        with pytest.raises(StoreError, match="cannot be read"):
            run(listed(stage))


def test_holds_that_are_placed_while_others_ask(tmp_path: Path) -> None:
    """`now` reads acts only where files say that something is new, and must not miss either of them."""
    stage = Stage(tmp_path / "store")
    stage.root.mkdir()

    async def check() -> None:
        blobs, others = stage.blobs(), stage.blobs()
        holds, elsewhere = holds_of(stage, blobs), holds_of(stage, others)
        assert await holds.now() == []
        one = await elsewhere.add(hold_on(new_id()))
        assert [hold.id for hold in await holds.now()] == [one.id]
        two = await elsewhere.add(Hold(new_id(), 2.0, "ana", "case", Match(users=("*",))))
        assert [hold.id for hold in await holds.now()] == [one.id, two.id]
        await elsewhere.release(one.id, by="ana")
        assert [hold.id for hold in await holds.now()] == [two.id]
        await elsewhere.release(two.id, by="ana")
        assert await holds.now() == []
        await blobs.aclose()
        await others.aclose()

    run(check())
