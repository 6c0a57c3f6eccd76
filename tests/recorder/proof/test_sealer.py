"""When days are sealed, what stands in their manifests, and what a sealer does after whatever happened to it."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recorder.model import End, new_id
from recorder.proof import KeyFault, PublicKeys, Sealer, Signer
from recorder.proof import sealer as sealer_module
from recorder.proof.actlog import ActLog
from recorder.proof.acts import Kind, Subject, act_file
from recorder.proof.days import day_end, day_of
from recorder.proof.documents import NOTHING
from recorder.proof.keys import Anchor
from recorder.proof.register import Register
from recorder.proof.signed import digest
from recorder.proof.verify import Verifier
from recorder.proof.witness import Witnesses
from recorder.store.blobs import FolderBlobs
from recorder.store.errors import StoreError
from recorder.store.manifest import folder
from tests.recorder.proof.sealed import DAY, PROXY, Stage, header, run, statuses


async def until(there: Callable[[], bool]) -> None:
    """Wait for what nobody tells of."""
    while not there():  # noqa: ASYNC110
        await asyncio.sleep(0)


def manifest(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_bytes().split(b"\n")[0])
    return value


def test_what_a_manifest_says(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "store")

    async def check() -> None:
        async with stage.store() as store:
            await store.add_event(b'{"type":"kubernetes-api-request"}', PROXY)
        (identifier,) = await stage.fill(1, chunks=2)
        first, *more = await stage.seal()
        value = manifest(stage.manifests()[0])
        assert (value["number"], value["previous"], value["day"]) == (1, NOTHING, first)
        (recording,) = value["recordings"]
        place = stage.place(identifier)
        assert recording["parts"] == {
            path.name: [path.stat().st_size, digest(path.read_bytes())] for path in sorted(place.iterdir())
        }
        kept = json.loads((place / "recording.json").read_bytes())
        assert recording["head"] == kept["head"] == kept["chunks"][-1]["sha256"]
        assert recording["chunks"] == len(kept["chunks"]) and recording["size"] == kept["size"]
        assert recording["header"] == digest(kept["header"].encode())
        (event,) = value["events"]
        assert event.startswith(first) and value["removals"] == []
        # Each names the one before; days without anything are there too.
        assert more and manifest(stage.manifests()[1])["previous"] == digest(stage.manifests()[0].read_bytes())
        assert manifest(stage.manifests()[1])["recordings"] == []

    run(check())


def test_a_day_is_sealed_once_and_not_before_it_is_over(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "store")

    async def check() -> None:
        await stage.fill(1)
        stage.clock = time.time()
        assert await stage.seal() == []
        end = day_end(day_of(stage.clock))
        stage.clock = end + sealer_module.DELAY - 1
        assert await stage.seal() == []
        stage.clock = end + sealer_module.DELAY
        assert len(await stage.seal()) == 1
        before = stage.manifests()[0].read_bytes()
        assert await stage.seal() == []
        assert stage.manifests()[0].read_bytes() == before

    run(check())


def test_each_day_of_a_downtime_gets_its_manifest(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "store")

    async def check() -> None:
        await stage.fill(1)
        stage.clock += 10 * DAY
        days = await stage.seal()
        assert len(days) >= 10 and days == sorted(days)
        assert (await stage.verify()).well

    run(check())


def test_a_clock_that_ran_ahead_when_a_day_was_sealed_is_told(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "store")

    async def check() -> None:
        await stage.fill(1)
        now, stage.clock = time.time(), time.time() + 400 * DAY
        last = (await stage.seal())[-1]
        stage.clock = now
        with pytest.raises(StoreError, match=f"{last} is sealed, but by this clock"):
            await stage.seal()
        stage.clock = day_end(last) + sealer_module.DELAY + DAY
        assert len(await stage.seal()) == 1

    run(check())


def test_an_empty_store_has_nothing_to_seal(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "store")
    assert run(stage.seal()) == []
    assert not (stage.root / "proof/days").exists()


def test_what_runs_is_sealed_on_the_day_in_which_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(tmp_path / "store")

    async def check() -> None:
        async with stage.store() as store:
            over = await stage.record(store)
            writer = await store.begin(header(), PROXY)
            await writer.wait_acked(0)
            await stage.settled(store)
            sealer = Sealer(store, stage.signer, clock=lambda: stage.clock)
            days = await sealer.seal_due()
            now = time.time()
            monkeypatch.setattr(time, "time", lambda: now + len(days) * DAY)
            await writer.finish(End.CLEAN)
            await stage.settled(store)
            stage.clock += 2 * DAY
            await sealer.seal_due()
            monkeypatch.undo()
        manifests = [manifest(path) for path in stage.manifests()]
        sealed = {recording["id"]: value["day"] for value in manifests for recording in value["recordings"]}
        assert sealed == {over: day_of(now), writer.recording.id: day_of(now + len(days) * DAY)}
        assert (await stage.verify()).well

    run(check())


def test_what_came_late_is_in_the_next_one(tmp_path: Path) -> None:
    """By the clock of its recorder it ended on a day that is sealed: the clock was set back, or the seal came early."""
    stage = Stage(tmp_path / "store")

    async def check() -> None:
        (one,) = await stage.fill(1)
        await stage.seal()
        (two,) = await stage.fill(1)
        assert statuses(await stage.verify()) == {one: "ok", two: "not sealed yet"}
        stage.clock += 30 * DAY
        await stage.seal()
        report = await stage.verify()
        assert report.well and statuses(report) == {one: "ok", two: "ok"}

    run(check())


@pytest.mark.parametrize("sealed", [True, False])
def test_what_was_put_in_by_somebody_else_is_told_for_ever(tmp_path: Path, sealed: bool) -> None:
    """On a day that is sealed, and on one that is not."""
    stage = Stage(tmp_path / "store")

    async def check() -> None:
        (one,) = await stage.fill(1)
        if sealed:
            await stage.seal()
        (two,) = await stage.plant()
        for _ in range(3):
            report = await stage.verify()
            assert statuses(report)[two] == "unknown" and not report.well
            await stage.seal()
            stage.clock += DAY
        found = next(finding for finding in report.findings if finding.id == two)
        assert "it was not signed when it ended" in found.detail
        stage.clock += 30 * DAY
        await stage.seal()
        (three,) = await stage.plant()
        stage.clock += DAY
        await stage.seal()
        assert statuses(await stage.verify()) == {one: "ok", two: "unknown", three: "unknown"}

    run(check())


def test_chunks_of_events_that_were_put_in_are_told_for_ever(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "store")

    async def events() -> None:
        async with stage.store() as store:
            await store.add_event(b"{}", PROXY)

    async def check() -> None:
        await events()
        (path,) = (stage.root / "events").rglob("*.chunk")
        shutil.copy(path, path.with_name(f"{new_id()}.chunk"))
        for _ in range(3):
            await stage.seal()
            report = await stage.verify()
            assert sorted(statuses(report).values()) == ["ok", "unknown"] and not report.well
            stage.clock += DAY

    run(check())


def test_what_is_taken_away_before_its_day_is_sealed_is_missing(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "store")

    async def check() -> None:
        one, two = await stage.fill(2)
        shutil.rmtree(stage.place(one))
        shutil.rmtree(stage.root / "journal")
        for _ in range(2):
            assert statuses(await stage.verify())[one] == "missing"
            await stage.seal()
            stage.clock += DAY
        assert statuses(await stage.verify()) == {one: "missing", two: "ok"}

    run(check())


def test_what_is_not_in_the_store_yet_holds_a_day_up(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "store")

    class Away(FolderBlobs):
        away = True

        async def put(self, key: str, data: bytes) -> None:
            if self.away and key.startswith("recordings"):
                raise StoreError("away")
            await super().put(key, data)

    blobs = Away(stage.root)
    stage.blobs = lambda: blobs  # type: ignore[method-assign]  # a test's own

    async def check() -> None:
        async with stage.store() as store:
            await stage.record(store)
            sealer = Sealer(store, stage.signer, clock=lambda: stage.clock)
            with pytest.raises(StoreError, match="not all recordings that ended"):
                await sealer.seal_due()
            blobs.away = False
            await stage.settled(store)
            assert await sealer.seal_due() != []

    run(check())


def test_events_are_put_before_their_day_is_sealed(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "store")

    async def check() -> None:
        async with stage.store() as store:
            for _ in range(3):
                await store.add_event(b"{}", PROXY)
            await Sealer(store, stage.signer, clock=lambda: stage.clock).seal_due()
            assert len(manifest(stage.manifests()[0])["events"]) == 1
        assert (await stage.verify()).well

    run(check())


def test_what_was_faulty_already_is_sealed_with_its_fault(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "store")

    async def check() -> None:
        one, two = await stage.fill(2, chunks=2)
        (stage.place(one) / "00000002.chunk").unlink()
        path = stage.place(two) / "00000001.chunk"
        path.write_bytes(path.read_bytes()[::-1])
        await stage.seal()
        report = await stage.verify()
        assert statuses(report) == {one: "cut", two: "changed"}

    run(check())


class Dying(FolderBlobs):
    """Dies before or after the n-th put."""

    left = 0
    after = False

    async def put(self, key: str, data: bytes) -> None:
        self.left -= 1
        if self.left < 0 and not self.after:
            raise StoreError("dead")
        await super().put(key, data)
        if self.left < 0:
            raise StoreError("dead")


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("puts", range(4))
def test_a_crash_at_any_put(tmp_path: Path, puts: int, after: bool) -> None:
    stage = Stage(tmp_path / "store")

    async def check() -> None:
        ids = await stage.fill(2)
        async with stage.store() as store:
            kept, dying = store.blobs, Dying(stage.root)
            dying.left, dying.after = puts, after
            store.blobs = dying
            try:
                await Sealer(store, stage.signer, clock=lambda: stage.clock).seal_due()
            except StoreError:
                pass
            finally:
                store.blobs = kept
                await dying.aclose()
        await stage.seal()
        report = await stage.verify()
        assert report.well and statuses(report) == dict.fromkeys(ids, "ok")

    run(check())


def test_another_key_goes_on_with_the_chain(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "store")

    async def check() -> None:
        ids = await stage.fill(1)
        await stage.seal()
        old, stage.signer = stage.signer, Signer.make()
        both = PublicKeys([old.public_key, stage.signer.public_key])
        ids += await stage.fill(1)
        stage.clock += DAY
        with pytest.raises(KeyFault, match="not among the public keys"):
            await stage.seal()
        with pytest.raises(KeyFault, match="has not handed over"):
            await stage.seal(keys=both)
        await stage.hand_over(old)
        await stage.seal(keys=both)
        report = await stage.verify(both)
        assert report.well, report.faults
        assert statuses(report) == dict(zip(ids, ["ok", "signed late"], strict=True))
        assert not (await stage.verify(PublicKeys([stage.signer.public_key]))).well
        assert {path.stem for path in (stage.root / "proof/keys").glob("*.pem")} == {old.id, stage.signer.id}

    run(check())


def test_two_sealers_do_not_write_over_each_other(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "store")

    class Slow(FolderBlobs):
        other: Sealer | None = None

        async def get(self, key: str) -> bytes:
            if self.other is not None and key.endswith(".chunk"):
                other, self.other = self.other, None
                await other.seal_due()
            return await super().get(key)

    async def check() -> None:
        await stage.fill(1)
        async with stage.store() as store:
            other = Sealer(store, stage.signer, clock=lambda: stage.clock)
            kept, slow = store.blobs, Slow(stage.root)
            store.blobs, slow.other = slow, other
            with pytest.raises(StoreError, match="another recorder"):
                await Sealer(store, stage.signer, clock=lambda: stage.clock).seal_due()
            store.blobs = kept
            await slow.aclose()
        assert (await stage.verify()).well

    run(check())


def test_in_an_object_store_in_envelopes(tmp_path: Path) -> None:
    from recorder.crypt import EncryptedBlobs, EncryptedLog, Keyring
    from recorder.store.logs import ObjectLog
    from recorder.store.objects import open_objects
    from recorder.store.store import Store

    async def check() -> None:
        objects, keyring, signer = open_objects("memory://", {}), Keyring([b"k" * 32]), Signer.make()
        blobs = EncryptedBlobs(objects, keyring)
        store = Store(blobs, EncryptedLog(ObjectLog(objects, "main"), keyring), min_free=0)
        register = Register(blobs, signer)
        store.registrar = register
        register.start()
        await store.open()
        stage = Stage(tmp_path)
        one = await stage.record(store)
        await store.add_event(b"{}", PROXY)
        await stage.settled(store)
        await Sealer(store, signer, clock=lambda: stage.clock).seal_due()
        keys = PublicKeys([signer.public_key])
        found = statuses(await Verifier(objects, keys).run())
        assert found.pop(one) == "ok" and list(found.values()) == ["ok"]
        data = await objects.get(f"{folder(one)}/00000000.chunk")
        await objects.put(f"{folder(one)}/00000000.chunk", data[:-1])
        assert statuses(await Verifier(objects, keys).run())[one] == "cut"
        await store.remove(one)
        assert statuses(await Verifier(blobs, keys).run())[one] == "missing"
        await store.aclose()

    run(check())


def test_manifests_that_were_made_away_with_are_not_sealed_over(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "store")

    async def check() -> None:
        await stage.fill(1)
        await stage.seal()
        before = tmp_path / "before"
        shutil.copytree(stage.root / "proof", before)
        stage.clock += DAY
        await stage.seal()
        assert (await stage.verify()).well
        shutil.rmtree(stage.root / "proof")
        shutil.copytree(before, stage.root / "proof")
        stage.clock += DAY
        with pytest.raises(KeyFault, match="the end of the chain was removed"):
            await stage.seal()
        report = await stage.verify()
        assert not report.well

    run(check())


def test_a_manifest_names_the_last_act_and_is_not_sealed_over_a_cut_chain(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "store")
    keys = PublicKeys([stage.signer.public_key])

    async def add() -> Anchor:
        blobs = stage.blobs()
        log = ActLog(blobs, keys, stage.signer, witnesses=Witnesses([stage.witness]))
        await log.add(Kind.HOLD, [Subject(new_id())], by="ana", body="1" * 64)
        last = (await log.read()).last
        await blobs.aclose()
        return last

    async def check() -> None:
        await stage.fill(1)
        await stage.seal()
        assert manifest(stage.manifests()[-1])["acts"] == {"number": 0, "sha256": NOTHING}
        await add()
        last = await add()
        stage.clock += DAY
        await stage.seal()
        assert manifest(stage.manifests()[-1])["acts"] == {"number": 2, "sha256": last.sha256}
        (stage.root / act_file(2)).unlink()
        stage.clock += DAY
        with pytest.raises(KeyFault, match="no number 2 of the acts"):
            await stage.seal()

    run(check())


@pytest.mark.parametrize("longer", [False, True])
def test_acts_that_are_cut_off_while_a_recorder_runs_are_not_sealed_over(tmp_path: Path, longer: bool) -> None:
    """Its register has compared all at the start. longer: somebody with a copy of the store's past goes on with it."""
    stage = Stage(tmp_path / "store")
    keys = PublicKeys([stage.signer.public_key])

    async def check() -> None:
        async with stage.store() as store:
            await stage.record(store)
            await stage.settled(store)
            own = store.registrar
            assert isinstance(own, Register)
            log = ActLog(store.blobs, keys, stage.signer, witnesses=own.witnesses)
            await log.add(Kind.HOLD, [Subject(new_id())], by="ana", body="1" * 64)
            (stage.root / act_file(1)).unlink()
            if longer:
                other = ActLog(store.blobs, keys, stage.signer)
                for _ in range(2):
                    await other.add(Kind.REMOVAL, [Subject(new_id())], by="x")
            with pytest.raises(KeyFault, match="no number 1 of the acts"):
                await Sealer(store, stage.signer, clock=lambda: stage.clock).seal_due()
        assert not (stage.root / "proof/days").exists()

    run(check())


def test_run_goes_on_after_failures_and_ends_when_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(tmp_path / "store")
    monkeypatch.setattr(sealer_module, "LOOK", 0.001)

    async def check() -> None:
        await stage.fill(1)
        async with stage.store() as store:
            kept, dying = store.blobs, Dying(stage.root)
            store.blobs = dying
            sealer = Sealer(store, stage.signer, clock=lambda: stage.clock)
            task = asyncio.create_task(sealer.run())
            await until(lambda: sealer.fault is not None)
            assert sealer.fault == "dead"
            dying.left = 1000
            await until(lambda: sealer.fault is None and sealer.sealed > 0)
            task.cancel()
            await asyncio.wait([task])
            store.blobs = kept
            await dying.aclose()

    run(check())
    assert run(stage.verify()).well


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_somebody_else_can_check_a_manifest(tmp_path: Path) -> None:
    """As docs/recorder-proof.md says it."""
    import base64

    stage = Stage(tmp_path / "store")
    stage.signer = Signer.make_file(tmp_path / "seal.pem")
    run(stage.fill(1))
    run(stage.seal())
    line, seal = stage.manifests()[0].read_bytes().splitlines(keepends=True)
    (tmp_path / "line").write_bytes(line)
    (tmp_path / "signature").write_bytes(base64.b64decode(json.loads(seal)["signature"]))
    check = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", "seal.pem.pub", "-rawin", "-in", "line"]
    done = subprocess.run([*check, "-sigfile", "signature"], cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    (tmp_path / "line").write_bytes(line.replace(b"a", b"b", 1))
    assert subprocess.run([*check, "-sigfile", "signature"], cwd=tmp_path, capture_output=True, check=False).returncode
