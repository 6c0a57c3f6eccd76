"""What is remembered outside of the store, and what happens where it does not fit."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from recorder.proof import KeyFault, PublicKeys, Sealer, Signer
from recorder.proof import register as register_module
from recorder.proof.documents import NOTHING, Entry, entry_file, write_entry
from recorder.proof.keys import Anchor
from recorder.proof.register import Register
from recorder.proof.witness import FolderWitness, MemoryWitness, Witness, Witnesses, read_anchor
from recorder.store.builder import PUTS
from tests.recorder.proof.sealed import DAY, Stage, run, statuses

ONE, TWO = Anchor(7, "a" * 64), Anchor(9, "b" * 64)


def test_a_folder_remembers_each_chain_in_a_file(tmp_path: Path) -> None:
    witness = FolderWitness(tmp_path / "deep" / "anchor")

    async def check() -> None:
        assert await witness.recall() == {}
        await witness.remember("manifests", ONE)
        await witness.remember("register main", TWO)
        assert await witness.recall() == {"manifests": ONE, "register main": TWO}

    run(check())
    assert read_anchor(tmp_path / "deep/anchor/manifests") == ONE
    (tmp_path / "deep/anchor/manifests").write_text("nonsense")
    with pytest.raises(KeyFault, match="is not an anchor"):
        run(witness.recall())
    (tmp_path / "deep/anchor/manifests").unlink()
    (tmp_path / "deep/anchor/manifests").mkdir()
    with pytest.raises(KeyFault, match="cannot be"):
        run(witness.remember("manifests", ONE))


def test_an_anchor_of_an_older_recorder_counts_whatever_its_key_was_called(tmp_path: Path) -> None:
    (tmp_path / "2025.pem.anchor").write_text(f"{ONE.number} {ONE.sha256}\n")
    (tmp_path / "2026.pem.anchor").write_text(f"{TWO.number} {TWO.sha256}\n")
    witness = FolderWitness(tmp_path / "anchor", old=tmp_path)
    assert run(witness.recall()) == {"manifests": TWO}
    run(witness.begin("manifests", ONE))
    assert run(witness.recall()) == {"manifests": ONE}


def test_several_count_by_the_highest_and_must_not_disagree() -> None:
    first, second = MemoryWitness({"acts": ONE}), MemoryWitness({"acts": TWO})
    assert run(Witnesses([first, second]).recall()) == {"acts": TWO}
    second.heads["acts"] = Anchor(ONE.number, TWO.sha256)
    with pytest.raises(KeyFault, match="differ in number"):
        run(Witnesses([first, second]).recall())


class Away(MemoryWitness):
    """Cannot be reached while `away`."""

    away = True

    async def recall(self) -> dict[str, Anchor]:
        if self.away:
            raise KeyFault("it is away")
        return await super().recall()

    async def remember(self, chain: str, head: Anchor) -> None:
        if self.away:
            raise KeyFault("it is away")
        await super().remember(chain, head)


def test_while_the_anchor_is_away_all_is_signed_and_no_day_is_sealed(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "store")

    async def check() -> None:
        (one,) = await stage.fill(1)
        away = Away(stage.witness.heads)
        stage.witness = away
        async with stage.store() as store:
            two = await stage.record(store)
            await stage.settled(store)
            register = store.registrar
            assert isinstance(register, Register) and register.healthy == "it is away"
            sealer = Sealer(store, stage.signer, clock=lambda: stage.clock)
            with pytest.raises(KeyFault, match="away"):
                await sealer.seal_due()
            report = await stage.verify()
            assert report.anchors == ["not compared with memory: it is away"] and not report.well
            away.away = False
            await register.anchoring.compare_again()
            assert register.healthy is None
            await sealer.seal_due()
        report = await stage.verify()
        assert report.well and statuses(report) == {one: "ok", two: "ok"}, report.faults
        assert report.anchors == ["compared with memory: manifests 2, register main 2"]

    run(check())


def test_a_store_that_was_taken_back_within_a_day_is_found(tmp_path: Path) -> None:
    """Snapshot of the volume, two sessions more, the snapshot again: whatever was signed then is gone too."""
    stage = Stage(tmp_path / "store")

    async def check() -> None:
        await stage.fill(1)
        shutil.copytree(stage.root, tmp_path / "snapshot")
        await stage.fill(2)
        shutil.rmtree(stage.root)
        shutil.copytree(tmp_path / "snapshot", stage.root)
        report = await stage.verify()
        assert not report.well and "restored to an earlier state" in report.faults[0]
        # The next start tells it too, goes on signing, and destroys no memory.
        before = dict(stage.witness.heads)
        await stage.fill(2)
        with pytest.raises(KeyFault, match="earlier state"):
            await stage.seal()
        assert stage.witness.heads == before
        assert not (await stage.verify()).well

    run(check())


def test_an_empty_anchor_is_not_filled_from_a_store_that_has_something(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "store")

    async def check() -> None:
        await stage.fill(1)
        await stage.seal()
        stage.witness = MemoryWitness()
        stage.clock += DAY
        with pytest.raises(KeyFault, match="the anchor is empty"):
            await stage.seal()
        assert stage.witness.heads == {}
        assert not (await stage.verify()).well

    run(check())


@pytest.mark.parametrize("known", [True, False])
def test_a_place_that_can_keep_only_manifests_does_not_make_up_for_the_anchor(tmp_path: Path, known: bool) -> None:
    """Time stamps beside a folder that has been emptied."""
    stage = Stage(tmp_path / "store")

    async def check() -> None:
        await stage.fill(1)
        await stage.seal()
        head = stage.witness.heads["manifests"]
        stamps = MemoryWitness({"manifests": head} if known else {})
        stamps.only = "manifests"
        witnesses = Witnesses([MemoryWitness(), stamps])
        store = stage.blobs()
        register = Register(store, stage.signer, witnesses=witnesses, clock=lambda: stage.clock)
        await register.open()
        assert register.healthy is not None and "the anchor is empty" in register.healthy
        assert not witnesses.compared
        await store.aclose()

    run(check())


def test_a_place_that_is_new_is_told_at_the_start_what_the_others_remember(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "store")

    async def check() -> None:
        await stage.fill(1)
        await stage.seal()
        before = dict(stage.witness.heads)
        new, stamps = MemoryWitness(), MemoryWitness()
        stamps.only = "manifests"
        blobs = stage.blobs()
        witnesses = Witnesses([stage.witness, new, stamps])
        register = Register(blobs, stage.signer, witnesses=witnesses, clock=lambda: stage.clock)
        register.start()
        await register.open()
        await register.aclose()
        assert stage.witness.heads == new.heads == before
        assert stamps.heads["manifests"] == before["manifests"]
        await blobs.aclose()

    run(check())


def test_a_number_never_becomes_smaller_but_on_an_operators_word(tmp_path: Path) -> None:
    """Of two who sign acts the one that was later may tell of it earlier."""
    witnesses: list[Witness] = [FolderWitness(tmp_path / "anchor"), MemoryWitness()]

    async def check() -> None:
        for witness in witnesses:
            await witness.remember("acts", TWO)
            await witness.remember("acts", ONE)
            assert await witness.recall() == {"acts": TWO}
            await witness.begin("acts", ONE)
            assert await witness.recall() == {"acts": ONE}

    run(check())


async def accept(stage: Stage, keys: PublicKeys | None = None) -> list[str]:
    blobs = stage.blobs()
    try:
        register = Register(
            blobs, stage.signer, keys=keys, witnesses=Witnesses([stage.witness]), clock=lambda: stage.clock
        )
        return await register.accept("ana@host", "restored from the backup of Monday")
    finally:
        await blobs.aclose()


def test_what_an_operator_accepts_is_told_for_ever(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "store")

    async def check() -> None:
        await stage.fill(1)
        await stage.seal()
        shutil.copytree(stage.root, tmp_path / "snapshot")
        with pytest.raises(KeyFault, match="nothing to accept"):
            await accept(stage)
        await stage.fill(1)
        stage.clock += DAY
        await stage.seal()
        shutil.rmtree(stage.root)
        shutil.copytree(tmp_path / "snapshot", stage.root)
        (done,) = await accept(stage)
        assert done.startswith("the store goes on without number 3 of the manifests")
        await stage.fill(1)
        for _ in range(3):
            stage.clock += DAY
            await stage.seal()
            report = await stage.verify()
            assert report.well, report.faults
            assert "ana@host accepted the store without what the anchor remembered" in report.notes[0]
            assert "manifests up to 3" in report.notes[0] and "backup of Monday" in report.notes[0]

    run(check())


def test_a_key_that_is_lost_is_followed_on_an_operators_word(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "store")

    async def check() -> None:
        await stage.fill(1)
        await stage.seal()
        old, stage.signer = stage.signer, Signer.make()
        both = PublicKeys([old.public_key, stage.signer.public_key], stage.signer.id)
        (done,) = await accept(stage, both)
        assert "without its signature" in done
        stage.clock += DAY
        await stage.seal(keys=both)
        report = await stage.verify(both)
        assert report.well and "without its signature: restored" in report.notes[0]
        # And never back to the lost one.
        stage.signer = old
        with pytest.raises(KeyFault, match="cannot be used again"):
            await accept(stage, both)
        assert NOTHING not in {head.sha256 for head in stage.witness.heads.values()}

    run(check())


# -- what somebody who can write the store tries against the register itself


def test_a_register_that_was_wiped_away_signs_nothing_that_was_put_in(tmp_path: Path) -> None:
    """Made away with all that is signed, something put in, and a start: a new register would sign what it finds."""
    stage = Stage(tmp_path / "store")

    async def check() -> None:
        await stage.fill(1)
        shutil.rmtree(stage.root / "proof")
        (added,) = await stage.plant()
        (own,) = await stage.fill(1)
        report = await stage.verify()
        assert statuses(report)[added] == "unknown" and statuses(report)[own] == "not sealed yet" and not report.well
        await accept(stage)
        await stage.seal()
        assert statuses(await stage.verify())[added] == "unknown"

    run(check())


def test_a_recorder_that_joins_others_signs_nothing_that_it_finds(tmp_path: Path) -> None:
    """What was put in is `unknown`, and stays so when another recorder begins a register on the same store."""
    stage = Stage(tmp_path / "store")

    async def check() -> None:
        await stage.fill(1)
        (added,) = await stage.plant()
        blobs = stage.blobs()
        register = Register(blobs, stage.signer, name="second", witnesses=Witnesses([stage.witness]))
        await register.open()
        await blobs.aclose()
        report = await stage.verify()
        assert statuses(report)[added] == "unknown" and not report.faults

    run(check())


def test_a_new_register_waits_for_its_anchor(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "store")

    async def check() -> None:
        away = Away()
        stage.witness = away
        async with stage.store() as store:
            await stage.record(store)
            await stage.settled(store)
            register = store.registrar
            assert isinstance(register, Register) and register.healthy == "it is away" and register.signed == 0
        away.away = False
        async with stage.store() as store:
            await stage.settled(store)
        assert (await stage.verify()).well

    run(check())


@pytest.mark.parametrize("signed", [False, True])
def test_numbers_that_somebody_has_taken_do_not_stop_the_register(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signed: bool
) -> None:
    """While it runs, and before its start; nonsense, and files that a key of somebody's has signed."""
    stage = Stage(tmp_path / "store")
    monkeypatch.setattr(register_module, "RETRY", 0.01)
    data = write_entry(Entry("main", 2, "0" * 64, 1.0), Signer.make()) if signed else b"nonsense"

    async def check() -> None:
        await stage.fill(1)
        await stage.seal()
        async with stage.store() as store:
            await stage.record(store)
            await stage.settled(store)
            (last,) = [int(path.stem) for path in (stage.root / "proof/register/main").iterdir()]
            (stage.root / entry_file("main", last + 1)).write_bytes(data)
            (stage.root / entry_file("main", last + 2)).write_bytes(data)
            await stage.record(store)
            async with asyncio.timeout(20):
                while store.lives:  # noqa: ASYNC110 - `settled` would end at the fault
                    await asyncio.sleep(0.01)
        (stage.root / "proof/register/other").mkdir()
        (stage.root / entry_file("other", 1)).write_bytes(data)
        await stage.fill(1)
        report = await stage.verify()
        assert not report.well and all(status in ("ok", "not sealed yet") for status in statuses(report).values())
        assert any(f"entry {last + 1} of the register main is not trusted" in fault for fault in report.faults)

    run(check())


def test_an_anchor_whose_folder_has_gone_is_not_made_anew(tmp_path: Path) -> None:
    """A volume that was unmounted: what is written below it would be forgotten."""
    witness = FolderWitness(tmp_path / "anchor")

    async def check() -> None:
        await witness.recall()
        await witness.remember("acts", ONE)
        shutil.rmtree(tmp_path / "anchor")
        with pytest.raises(KeyFault, match="cannot be written"):
            await witness.remember("acts", TWO)

    run(check())


def test_signatures_that_do_not_come_hold_up_nobodys_chunks(tmp_path: Path) -> None:
    """More recordings than are put at once wait for the anchor's register; those behind them get into the store."""
    stage = Stage(tmp_path / "store")
    stage.witness = Away()  # of a register that is new, so it waits

    async def check() -> None:
        async with stage.store() as store:
            async with asyncio.timeout(60):
                ids = await asyncio.gather(*(stage.record(store) for _ in range(PUTS + 4)))
                await stage.settled(store)
            assert all(store.lives[one].whole and stage.place(one).exists() for one in ids)

    run(check())
