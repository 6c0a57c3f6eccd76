"""Which key may sign what: hand-overs, and what somebody with a retired key can still do (nothing)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recorder.proof import KeyFault, PublicKeys, Sealer, Signer
from recorder.proof.acts import NONE, Act, Kind, Subject, act_file, write_act
from recorder.proof.days import next_day
from recorder.proof.documents import (
    NOTHING,
    Entry,
    Manifest,
    Removal,
    entry_file,
    write_entry,
    write_manifest,
)
from recorder.proof.found import seal
from recorder.proof.handover import (
    ACTS,
    MANIFESTS,
    HandOver,
    KeyHistory,
    hand_over,
    handover_file,
    read_handover,
    write_handover,
)
from recorder.proof.keys import Anchor
from recorder.proof.register import Register
from recorder.proof.registers import all_heads, read_both
from recorder.proof.report import Report
from recorder.proof.signed import ForgedError, digest
from recorder.proof.witness import Witnesses
from recorder.store.blobs import FolderBlobs
from recorder.store.errors import StoreError
from tests.recorder.proof.sealed import DAY, Stage, run, statuses

OLD, NEW, OTHER = Signer.make(), Signer.make(), Signer.make()
KEYS = PublicKeys([OLD.public_key, NEW.public_key, OTHER.public_key])
ONE = HandOver(1, NOTHING, OLD.id, NEW.id, 1.0, {MANIFESTS: Anchor(7, "a" * 64), ACTS: Anchor(3, "b" * 64)})


def test_a_key_is_valid_up_to_its_last_number_in_each_chain_and_the_next_one_from_there() -> None:
    history = KeyHistory([ONE])
    assert [history.may_sign(OLD.id, MANIFESTS, number) for number in (1, 7, 8)] == [True, True, False]
    assert [history.may_sign(NEW.id, MANIFESTS, number) for number in (1, 7, 8, 900)] == [False, False, True, True]
    assert [history.may_sign(OLD.id, ACTS, number) for number in (3, 4)] == [True, False]
    # A chain that the old key has signed nothing of.
    assert not history.may_sign(OLD.id, "register main", 1) and history.may_sign(NEW.id, "register main", 1)
    assert not history.may_sign(OTHER.id, MANIFESTS, 1) and history.current == NEW.id


def test_what_the_first_key_is() -> None:
    assert KeyHistory(own=NEW.id).may_sign(NEW.id, ACTS, 1) and not KeyHistory(own=NEW.id).may_sign(OLD.id, ACTS, 1)
    history = KeyHistory()
    assert history.current == "" and history.signed(OLD.id, ACTS, 1)
    assert history.current == OLD.id and not history.signed(NEW.id, ACTS, 2)


def test_old_manifests_went_from_key_to_key_and_never_back() -> None:
    history = KeyHistory()
    assert all(history.old_manifest(OLD.id, number) for number in (1, 2))
    assert history.old_manifest(NEW.id, 3) and not history.old_manifest(OLD.id, 4)
    assert history.may_sign(OLD.id, MANIFESTS, 2) and not history.may_sign(OLD.id, MANIFESTS, 3)
    assert not history.may_sign(OLD.id, ACTS, 1) and history.may_sign(NEW.id, ACTS, 1)
    history.close()
    assert not history.old_manifest(OTHER.id, 5) and history.old_manifest(NEW.id, 5)


def test_old_manifests_before_a_hand_over() -> None:
    history = KeyHistory([ONE])
    assert history.old_manifest(OTHER.id, 1) and history.old_manifest(OLD.id, 2)
    assert not history.old_manifest(NEW.id, 3)  # it follows at 8
    assert not history.old_manifest(OTHER.id, 3)
    history.close()
    assert not history.fault and history.may_sign(OTHER.id, MANIFESTS, 1) and history.may_sign(OLD.id, MANIFESTS, 7)
    assert not history.may_sign(OLD.id, MANIFESTS, 1) and not history.may_sign(OLD.id, MANIFESTS, 8)
    wrong = KeyHistory([ONE])
    assert wrong.old_manifest(OTHER.id, 7)
    wrong.close()
    assert "was the current key" in wrong.fault


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_hand_over_is_signed_by_both_and_no_byte_of_it_can_be_changed(data: st.DataObject) -> None:
    text = write_handover(ONE, OLD, NEW)
    assert read_handover(text, KEYS) == ONE and text.count(b"\n") == 3
    place = data.draw(st.integers(0, len(text) - 1))
    changed = bytearray(text)
    changed[place] ^= data.draw(st.integers(1, 255))
    try:
        assert read_handover(bytes(changed), KEYS) == ONE
    except ForgedError:
        return
    assert place > text.index(b"\n")  # white space or an escape in a seal means the same


def test_hand_overs_that_are_not_believed() -> None:
    line, old, new = write_handover(ONE, OLD, NEW).splitlines(keepends=True)
    lost = HandOver(1, NOTHING, OLD.id, NEW.id, 1.0, {}, "the old key was lost")
    for text in (
        b"", line, line + old, line + new, line + new + old, line + old + new + new,
        write_handover(ONE, OLD, OTHER), write_handover(ONE, OTHER, NEW), write_handover(lost, OLD, NEW),
        write_handover(lost, None, OTHER), write_manifest(Manifest(1, "2026-11-22", NOTHING, 1.0), OLD),
    ):  # fmt: skip
        with pytest.raises(ForgedError):
            read_handover(text, KEYS)
    assert read_handover(write_handover(lost, None, NEW), KEYS) == lost
    with pytest.raises(ForgedError, match="not one of those given"):
        read_handover(line + old + new, PublicKeys([OLD.public_key]))
    with pytest.raises(ForgedError):
        read_handover(line.replace(b'"number":1,', b'"number":2,') + old + new, KEYS)


# -- a store whose key was changed


async def rotated(tmp_path: Path) -> tuple[Stage, Signer, PublicKeys]:
    """Sealed days by one key, and by the next."""
    stage = Stage(tmp_path / "store")
    await stage.fill(1)
    await stage.seal()
    old, stage.signer = stage.signer, Signer.make()
    both = PublicKeys([old.public_key, stage.signer.public_key])
    await stage.hand_over(old)
    stage.clock += DAY
    await stage.seal(keys=both)
    report = await stage.verify(both)
    assert report.well, report.faults
    return stage, old, both


def forge(stage: Stage, signer: Signer, **more: object) -> None:
    """The next manifest, by that key."""
    last = stage.manifests()[-1]
    value = json.loads(last.read_bytes().split(b"\n")[0])
    day = next_day(value["day"])
    manifest = Manifest(value["number"] + 1, day, digest(last.read_bytes()), stage.clock, **more)  # type: ignore[arg-type]
    (stage.root / f"proof/days/{day}.json").write_bytes(write_manifest(manifest, signer))
    stage.clock += DAY


def faulty(report: Report, words: str) -> bool:
    return not report.well and any(words in fault for fault in report.faults)


@pytest.mark.parametrize("registers", [None, {}])
def test_a_retired_key_signs_no_manifest_any_more(tmp_path: Path, registers: object) -> None:
    async def check() -> None:
        stage, old, both = await rotated(tmp_path)
        (added,) = await stage.fill(1)
        forge(stage, old, registers=registers)
        assert faulty(await stage.verify(both), f"the key {old.id}, which was not the current key then"), added
        stage.manifests()[-1].unlink()
        forge(stage, old, removals=(Removal(added, stage.clock, "retention", "old"),), registers=registers)
        assert faulty(await stage.verify(both), "not the current key then")

    run(check())


def test_a_manifest_of_the_new_key_cannot_be_signed_anew_by_the_old_one(tmp_path: Path) -> None:
    async def check() -> None:
        stage, old, both = await rotated(tmp_path)
        stage.manifests()[-1].unlink()
        forge(stage, old)
        assert faulty(await stage.verify(both), "not the current key then")
        # Without the hand-over, as if there had been none.
        (stage.root / handover_file(1)).unlink()
        assert faulty(await stage.verify(both.with_own(stage.signer.id)), f"the current key is {old.id}")
        with pytest.raises(KeyFault, match="has not handed over"):
            stage.clock += DAY
            await stage.seal(keys=both)

    run(check())


def test_a_hand_over_that_was_taken_away_or_exchanged(tmp_path: Path) -> None:
    async def check() -> None:
        stage, old, both = await rotated(tmp_path)
        path = stage.root / handover_file(1)
        kept = path.read_bytes()
        (stage.root / handover_file(2)).write_bytes(kept)
        assert faulty(await stage.verify(both), "does not follow")
        (stage.root / handover_file(2)).unlink()
        back = HandOver(2, digest(kept), stage.signer.id, old.id, 1.0, {}, "lost")
        (stage.root / handover_file(2)).write_bytes(write_handover(back, None, old))
        assert faulty(await stage.verify(both), "was retired before")
        (stage.root / handover_file(2)).unlink()
        with pytest.raises(KeyFault, match="cannot be used again"):
            stage.signer, new = old, stage.signer
            await stage.hand_over(new)

    run(check())


def test_an_old_store_that_changed_its_key_without_a_hand_over_is_still_believed(tmp_path: Path) -> None:
    async def check() -> None:
        stage = Stage(tmp_path / "store")
        old, new = await stage.age(), Signer.make()
        forge(stage, new)
        both = PublicKeys([old.public_key, new.public_key])
        report = await stage.verify(both)
        assert report.well, report.faults
        assert (await stage.verify(both.with_own(new.id))).well
        assert not (await stage.verify(both.with_own(old.id))).well
        forge(stage, old)
        assert faulty(await stage.verify(both), f"the key {old.id}, which was not the current key then")

    run(check())


# -- the hand-over of a recorder


def test_a_recorder_hands_over_at_its_start(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "store")

    async def check() -> None:
        ids = await stage.fill(1)
        await stage.seal()
        old, stage.signer = stage.signer, Signer.make()
        both = PublicKeys([old.public_key, stage.signer.public_key], stage.signer.id)
        for _ in range(2):  # the second start finds it done
            async with stage.store(both, previous=old) as store:
                ids.append(await stage.record(store))
                await stage.settled(store)
        assert [path.name for path in (stage.root / "proof/keys").glob("handover*")] == ["handover-0001.json"]
        report = await stage.verify(both)
        assert report.well and len(report.findings) == len(ids), report
        assert set(stage.witness.heads) == {"manifests", "register main", "hand-overs"}
        stage.clock += DAY
        await stage.seal(keys=both)
        assert set(statuses(await stage.verify(both)).values()) == {"ok"}

    run(check())


def test_without_the_key_in_force_nothing_is_signed_until_it_is_there(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "store")

    async def check() -> None:
        await stage.fill(1)
        old, stage.signer = stage.signer, Signer.make()
        both = PublicKeys([old.public_key, stage.signer.public_key], stage.signer.id)
        async with stage.store(both) as store:
            one = await stage.record(store)
            await stage.settled(store)
            assert isinstance(store.registrar, Register)
            assert "has not handed over" in (store.registrar.healthy or "")
        # The journal has it for the next start.
        async with stage.store(both, previous=old) as store:
            await stage.settled(store)
        stage.clock += DAY
        await stage.seal(keys=both)
        report = await stage.verify(both)
        assert report.well and statuses(report)[one] == "signed late"

    run(check())


@pytest.mark.parametrize("after", [False, True])
def test_a_crash_in_the_middle_of_a_hand_over(tmp_path: Path, after: bool) -> None:
    """Before or after the file is there."""
    stage = Stage(tmp_path / "store")

    class Dying(FolderBlobs):
        async def create(self, key: str, data: bytes) -> None:
            if "handover" in key:
                if after:
                    await super().create(key, data)
                raise StoreError("dead")
            await super().create(key, data)

    async def check() -> None:
        await stage.fill(1)
        old, stage.signer = stage.signer, Signer.make()
        both = PublicKeys([old.public_key, stage.signer.public_key], stage.signer.id)
        blobs = Dying(stage.root)
        register = Register(blobs, stage.signer, keys=both, witnesses=Witnesses([stage.witness]), previous=old)
        with pytest.raises(StoreError):
            await register.open()
        await blobs.aclose()
        async with stage.store(both, previous=old) as store:
            await stage.record(store)
            await stage.settled(store)
        assert len(list((stage.root / "proof/keys").glob("handover*"))) == 1
        report = await stage.verify(both)
        assert report.well, report.faults

    run(check())


def test_of_two_recorders_that_hand_over_at_once_one_does(tmp_path: Path) -> None:
    """The other one finds it done: a second file would be another one than the anchor remembers."""
    stage = Stage(tmp_path / "store")

    async def check() -> None:
        await stage.fill(1)
        old, stage.signer = stage.signer, Signer.make()
        both = PublicKeys([old.public_key, stage.signer.public_key], stage.signer.id)
        first, second = stage.blobs(), stage.blobs()
        chain, registers = await read_both(first, both)
        heads = await all_heads(first, both, chain, registers)
        await hand_over(first, chain.keys, old, stage.signer, heads, at=1.0)
        before = (stage.root / handover_file(1)).read_bytes()
        with pytest.raises(StoreError, match="another recorder is handing over"):
            await hand_over(second, chain.keys, old, stage.signer, heads, at=2.0)
        assert (stage.root / handover_file(1)).read_bytes() == before
        await first.aclose()
        await second.aclose()

    run(check())


def test_a_recorder_with_the_old_key_that_still_runs_signs_nothing_after_the_hand_over(tmp_path: Path) -> None:
    """Of two that share a store the other one was started with the new key first. What ends meanwhile is signed when
    this one has the new key, too; an entry by the old one would be a fault for ever."""
    stage = Stage(tmp_path / "store")

    async def check() -> None:
        await stage.fill(1)
        old, new = stage.signer, Signer.make()
        both = PublicKeys([old.public_key, new.public_key], new.id)
        async with stage.store() as store:
            await stage.settled(store)
            blobs = stage.blobs()
            other = Register(blobs, new, name="other", keys=both, witnesses=Witnesses([stage.witness]), previous=old)
            await other.open()
            await blobs.aclose()
            late = await stage.record(store)
            await stage.settled(store)
            own = store.registrar
            assert isinstance(own, Register) and f"the key {old.id} has handed over" in (own.fault or "")
        stage.signer = new
        async with stage.store(both) as store:
            await stage.settled(store)
        report = await stage.verify(both, witnesses=())
        assert report.well and statuses(report)[late] == "not sealed yet", report.faults

    run(check())


def test_rubbish_in_the_place_of_a_hand_over_does_not_stop_a_recorder(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "store")

    async def check() -> None:
        async with stage.store() as store:
            await stage.record(store)
            await stage.settled(store)
            (stage.root / handover_file(1)).write_bytes(b"rubbish")
            two = await stage.record(store)
            await stage.settled(store)
            assert isinstance(store.registrar, Register) and store.registrar.signed == 2
        assert faulty(await stage.verify(), "the hand-over 1 between keys is not trusted")
        assert statuses(await stage.verify())[two] == "not sealed yet"

    run(check())


def test_a_key_that_was_replaced_before_there_were_hand_overs_signs_no_acts(tmp_path: Path) -> None:
    """For whoever checks with all public keys, and does not know which one is in force."""

    async def check() -> None:
        stage = Stage(tmp_path / "store")
        old, new = await stage.age(), Signer.make()
        forge(stage, new)
        both = PublicKeys([old.public_key, new.public_key])
        (one,) = [path.name for path in (stage.root / "recordings").glob("*/*")]
        removal = Act(1, NOTHING, NONE, Kind.REMOVAL, 1.0, "retention", "", (Subject(one, "old"),))
        path = stage.root / act_file(1)
        path.parent.mkdir(parents=True)
        path.write_bytes(write_act(removal, old))
        shutil.rmtree(stage.place(one))
        report = await stage.verify(both)
        assert faulty(report, "act 1 is not trusted") and statuses(report)[one] == "missing"
        path.write_bytes(write_act(removal, new))
        assert statuses(await stage.verify(both))[one] == "removed"

    run(check())


def test_a_retired_key_adds_nothing_to_a_register(tmp_path: Path) -> None:
    async def check() -> None:
        stage, old, both = await rotated(tmp_path)
        (added,) = await stage.plant()
        blobs = stage.blobs()
        _, registers = await read_both(blobs, both)
        sealed = await seal(blobs, added, "")
        assert sealed is not None
        last = registers.states["main"].last
        entry = Entry("main", last.number + 1, last.sha256, stage.clock, (sealed,))
        await blobs.put(entry_file("main", entry.number), write_entry(entry, old))
        await blobs.aclose()
        assert faulty(await stage.verify(both), "not the current key then")
        assert statuses(await stage.verify(both))[added] == "unknown"

    run(check())


def test_after_a_change_of_the_key_the_anchor_is_still_there(tmp_path: Path) -> None:
    """The end of the chain was cut off between two starts: recordings, and the last manifests."""

    async def check() -> None:
        stage, old, both = await rotated(tmp_path)
        await stage.fill(2)
        stage.clock += 3 * DAY
        await stage.seal(keys=both)
        new, stage.signer = stage.signer, Signer.make()
        three = PublicKeys([old.public_key, new.public_key, stage.signer.public_key], stage.signer.id)
        for path in stage.manifests()[-3:]:
            path.unlink()
        async with stage.store(three, previous=new) as store:
            await stage.record(store)
            await stage.settled(store)
            assert isinstance(store.registrar, Register) and "the end of the chain was removed" in (
                store.registrar.healthy or ""
            )
            with pytest.raises(KeyFault, match="the end of the chain was removed"):
                await Sealer(store, stage.signer, keys=three, clock=lambda: stage.clock).seal_due()
        assert faulty(await stage.verify(three), "the end of the chain was removed")
        # The ends that a hand-over would name are not the ends.
        assert not (stage.root / handover_file(2)).exists()

    run(check())
