"""What goes, what stays, and what a crash in between leaves."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from obstore.store import MemoryStore

from recorder.crypt import Keyring
from recorder.model import new_id
from recorder.proof import PublicKeys, Signer
from recorder.proof.acts import NONE, Act, Kind, Subject, act_file, read_act, write_act
from recorder.proof.documents import NOTHING, Removal, write_removal
from recorder.proof.keys import Anchor
from recorder.proof.signed import digest
from recorder.proof.witness import missing
from recorder.retention import pruner as retention
from recorder.retention.holds import Hold, Holds, Match
from recorder.retention.plan import Doomed, Plan
from recorder.retention.pruner import Pruner
from recorder.retention.rules import Rule, Rules
from recorder.store.blobs import FolderBlobs
from recorder.store.errors import StoreError
from recorder.store.logs import FolderLog, ObjectLog
from recorder.store.objects import ObjectBlobs
from recorder.store.store import Store
from tests.recorder.proof.sealed import DAY, PROXY, Stage, header, run, statuses
from tests.recorder.store.storing import kill

PROD = Match(clusters=("prod",))


async def two(stage: Stage) -> tuple[str, str]:
    """One of cluster prod by ana, one of cluster test by bob."""
    async with stage.store() as store:
        one = await stage.record(store, head=_header("prod", "ana@example.com"))
        other = await stage.record(store, head=_header("test", "bob@example.com"))
        await stage.settled(store)
    return one, other


def _header(cluster: str, user: str) -> bytes:
    return header(kubernetes={"Cluster": cluster, "Namespace": "shop", "SessionType": "exec"}, srcNodeUser=user)


def pruner(stage: Stage, store: Store, rules: Rules) -> Pruner:
    return Pruner(store, rules, signer=stage.signer, clock=lambda: stage.clock)


async def subjects(stage: Stage, rules: Rules) -> list[str]:
    async with stage.store() as store:
        return [doomed.subject for doomed in (await pruner(stage, store, rules).plan()).doomed]


async def prune(stage: Stage, rules: Rules) -> list[str]:
    async with stage.store() as store:
        it = pruner(stage, store, rules)
        return [doomed.subject for doomed in await it.prune(await it.plan())]


def test_nothing_goes_without_rules(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "store")
    run(two(stage))
    assert run(subjects(stage, Rules())) == [] and Rules().nothing


def test_age_counts_from_the_end(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "store")
    one, other = run(two(stage))
    assert run(subjects(stage, Rules(max_age=3 * DAY))) == []
    assert run(subjects(stage, Rules(max_age=DAY))) == [one, other]


def test_a_rule_is_a_promise_in_both_directions(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "store")
    one, other = run(two(stage))
    longer = Rules(max_age=DAY, max_bytes=0, rules=[Rule(PROD, 90 * DAY)])
    assert run(subjects(stage, longer)) == [other]
    for_ever = Rules(max_age=DAY, rules=[Rule(PROD, None)])
    assert run(subjects(stage, for_ever)) == [other]
    shorter = Rules(max_age=90 * DAY, rules=[Rule(Match(users=("bob@*",)), DAY)])
    assert run(subjects(stage, shorter)) == [other]
    first = Rules(rules=[Rule(PROD, 90 * DAY), Rule(Match(), DAY)])
    assert run(subjects(stage, first)) == [other]
    assert one


def test_the_oldest_go_until_the_rest_fits(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "store")
    one, other = run(two(stage))
    size = sum(path.stat().st_size for path in stage.place(other).iterdir())
    assert run(subjects(stage, Rules(max_bytes=size))) == [one]
    assert run(subjects(stage, Rules(max_bytes=10 * size))) == []
    assert run(subjects(stage, Rules(max_bytes=0))) == [one, other]


def test_what_runs_stays(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "store")

    async def check() -> None:
        async with stage.store() as store:
            writer = await store.begin(header(), PROXY)
            await writer.wait_acked(0)
            plan = await pruner(stage, store, Rules(max_age=0.0, max_bytes=0)).plan()
            assert plan.doomed == [] and plan.over == 0

    run(check())


def test_a_hold_wins_over_everything(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "store")
    one, other = run(two(stage))
    rules = Rules(max_age=DAY, max_bytes=0)

    async def check() -> None:
        async with stage.store() as store:
            holds = Holds(store.blobs)
            await holds.add(Hold(one, 1.0, "ana", "case 7"))
            await holds.add(Hold(new_id(), 2.0, "ana", "case 8", Match(users=("bob@*",))))
        async with stage.store() as store:
            it = pruner(stage, store, rules)
            plan = await it.plan()
            assert plan.doomed == [] and plan.over > 0
            assert [(doomed.subject, hold.reason) for doomed, hold in plan.held] == [(one, "case 7"), (other, "case 8")]
            assert await it.prune(plan) == []
            holds = Holds(store.blobs)
            assert (await holds.release(one)).reason == "case 7"
            with pytest.raises(KeyError):
                await holds.release(one)
            assert [doomed.subject for doomed in (await it.plan()).doomed] == [one]

    run(check())


def test_a_hold_placed_after_the_plan_counts(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "store")
    one, other = run(two(stage))

    async def check() -> None:
        async with stage.store() as store:
            it = pruner(stage, store, Rules(max_age=DAY))
            plan = await it.plan()
            await Holds(store.blobs).add(Hold(one, 1.0, "ana", "case 7"))
            assert [doomed.subject for doomed in await it.prune(plan)] == [other]

    run(check())


@pytest.mark.parametrize("crash", [False, True])
def test_a_hold_placed_while_its_removal_is_written_down_counts(tmp_path: Path, crash: bool) -> None:
    """Right then, or after a crash before the first byte went; and the removal stands for nobody's later one."""
    stage = Stage(tmp_path / "store")
    (one,) = run(stage.fill(1))
    run(stage.seal())

    class Slow(FolderBlobs):
        async def create(self, key: str, data: bytes) -> None:
            await super().create(key, data)
            if key.startswith("proof/acts") and b'"removal"' in data:
                if crash:
                    raise StoreError("dead")
                await Holds(self).add(Hold(one, 1.0, "ana", "case 7"))

    async def check() -> None:
        async with stage.store() as store:
            kept, store.blobs = store.blobs, Slow(stage.root)
            try:
                it = pruner(stage, store, Rules(max_age=DAY))
                plan = await it.plan()
                assert [doomed.subject for doomed in plan.doomed] == [one]
                if crash:
                    with pytest.raises(StoreError, match="dead"):
                        await it.prune(plan)
                else:
                    assert await it.prune(plan) == []
            finally:
                await store.blobs.aclose()
                store.blobs = kept
            if crash:
                await Holds(store.blobs).add(Hold(one, 1.0, "ana", "case 7"))
                await pruner(stage, store, Rules(max_age=DAY)).repair()

    run(check())
    assert statuses(run(stage.verify()))[one] == "ok"
    shutil.rmtree(stage.place(one))
    assert statuses(run(stage.verify()))[one] == "missing"


def test_a_hold_that_cannot_be_read_holds_everything(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "store")
    run(two(stage))
    (stage.root / "holds").mkdir()
    for text in ("{", "{}", '{"version":1}', json.dumps({"version": 1, "id": "x", "match": None})):
        (stage.root / "holds" / f"{new_id()}.json").write_text(text)
        with pytest.raises(StoreError, match="cannot be read"):
            run(subjects(stage, Rules(max_age=DAY)))


def test_what_cannot_be_judged_stays(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "store")
    one, other = run(two(stage))
    (stage.place(one) / "recording.json").write_text("{}")
    assert run(subjects(stage, Rules(max_age=DAY, max_bytes=0))) == [other]


@pytest.mark.parametrize("sealed_before", [True, False])
def test_a_removal_is_in_the_chain(tmp_path: Path, sealed_before: bool) -> None:
    stage = Stage(tmp_path / "store")
    one, other = run(two(stage))
    if sealed_before:
        run(stage.seal())
    assert run(prune(stage, Rules(rules=[Rule(PROD, DAY)]))) == [one]
    assert not stage.place(one).exists() and stage.place(other).exists()
    report = run(stage.verify())
    assert report.well
    assert statuses(report) == {one: "removed", other: "ok" if sealed_before else "not sealed yet"}
    stage.clock += DAY
    run(stage.seal())
    report = run(stage.verify())
    assert report.well and statuses(report) == {one: "removed", other: "ok"}
    manifests = [json.loads(path.read_bytes().split(b"\n")[0]) for path in stage.manifests()]
    (act,) = (stage.root / "proof/acts").iterdir()
    assert manifests[-1]["acts"] == {"number": 1, "sha256": digest(act.read_bytes())}
    value = json.loads(act.read_bytes().split(b"\n")[0])
    assert [(subject["name"], subject["why"]) for subject in value["subjects"]] == [(one, "a rule keeps it for 1 days")]


def test_events_go_by_days(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "store")

    async def check() -> None:
        async with stage.store() as store:
            await store.add_event(b'{"type":"kubernetes-api-request"}', PROXY)
        await stage.seal()
        rules = Rules(events_max_age=2 * DAY)
        assert await prune(stage, rules) == []
        stage.clock += DAY
        (gone,) = await prune(stage, rules)
        assert gone.startswith("events 20")
        async with stage.store() as store:
            assert [event async for event in store.events()] == []
        report = await stage.verify()
        assert report.well and list(statuses(report).values()) == ["removed"]

    run(check())


class Broken(FolderBlobs):
    """Dies at the n-th change to the store, for good."""

    left = 0

    def _die(self) -> None:
        if self.left <= 0:
            raise StoreError("dead")
        self.left -= 1

    async def put(self, key: str, data: bytes) -> None:
        self._die()
        await super().put(key, data)

    async def create(self, key: str, data: bytes) -> None:
        self._die()
        await super().create(key, data)

    async def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._die()
            await super().delete([key])


@pytest.mark.parametrize("steps", range(8))
def test_a_crash_at_any_step_is_made_up_for(tmp_path: Path, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(tmp_path / "store")
    (one,) = run(stage.fill(1, chunks=3))  # four chunks, recording.json
    run(stage.seal())

    async def crash() -> bool:
        async with stage.store() as store:
            broken = Broken(stage.root)
            broken.left = steps
            kept, store.blobs = store.blobs, broken
            try:
                await pruner(stage, store, Rules(max_age=DAY)).remove(Doomed(one, "old", await store.get(one)))
            except StoreError:
                return True
            finally:
                store.blobs = kept
                await broken.aclose()
        return False

    crashed = run(crash())
    assert crashed is (steps < 6)
    # Whatever it left: what is gone has been written down before.
    report = run(stage.verify())
    assert report.well, report
    assert statuses(report)[one] == ("ok" if steps == 0 else "removed")

    async def restart() -> int:
        async with stage.store() as store:
            it = Pruner(store, Rules(), keys=PublicKeys([stage.signer.public_key]))
            await it.repair()
            return await it.repair()

    assert run(restart()) == 0
    assert stage.place(one).exists() is (steps == 0)


@pytest.mark.parametrize("old_form", [False, True])
def test_removals_are_only_believed_when_signed(tmp_path: Path, old_form: bool) -> None:
    stage = Stage(tmp_path / "store")
    one, _ = run(two(stage))
    if old_form:
        path, data = f"proof/removals/{one}.json", write_removal(Removal(one, 1.0, "x", "y"), Signer.make())
    else:
        act = Act(1, NOTHING, NONE, Kind.REMOVAL, 1.0, "x", "y", (Subject(one),))
        path, data = act_file(1), write_act(act, Signer.make())
    (stage.root / path).parent.mkdir(parents=True)
    (stage.root / path).write_bytes(data)

    async def restart() -> None:
        async with stage.store() as store:
            with pytest.raises(StoreError, match="is not trusted"):
                await pruner(stage, store, Rules()).repair()

    run(restart())
    assert stage.place(one).exists()


# -- whoever can write to the store, and has no key


def edit(stage: Stage, identifier: str, old: str, new: str) -> None:
    """One field of recording.json, so that it says something else and is still whole."""
    path = stage.place(identifier) / "recording.json"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


SHORT = Rules(max_age=3650 * DAY, rules=[Rule(Match(clusters=("test",)), DAY)])
EDITS = [
    ('\\"Cluster\\": \\"prod\\"', '\\"Cluster\\": \\"test\\"', SHORT),
    ("ana@example.com", "bob@example.com", Rules(rules=[Rule(Match(users=("bob@*",)), DAY)])),
    ("ana@example.com", "bob@example.com", Rules(max_bytes=0, rules=[Rule(Match(users=("ana@*",)), None)])),
]


@pytest.mark.parametrize(("old", "new", "rules"), EDITS)
def test_what_a_rule_is_judged_by_is_what_was_sealed(tmp_path: Path, old: str, new: str, rules: Rules) -> None:
    stage = Stage(tmp_path / "store")

    async def check() -> None:
        async with stage.store() as store:
            one = await stage.record(store, head=_header("prod", "ana@example.com"))
            await stage.settled(store)
        await stage.seal()
        assert await subjects(stage, rules) == []
        edit(stage, one, old, new)
        async with stage.store() as store:
            it = pruner(stage, store, rules)
            await it.step()
            assert it.mismatches == {one: "recording.json is not what was sealed"}
            assert (
                it.fault
                == f"{one} differs from what was sealed and is not removed: recording.json is not what was sealed"
            )
        assert (stage.place(one) / "recording.json").exists()
        report = await stage.verify()
        assert statuses(report)[one] == "changed" and not report.well
        edit(stage, one, new, old)
        async with stage.store() as store:
            await it.step()

    run(check())


@pytest.mark.parametrize("tamper", ["changed", "gone", "added", "torn"])
def test_nothing_sealed_goes_before_all_of_it_was_compared(tmp_path: Path, tamper: str) -> None:
    """A removal would explain whatever somebody has done to it before."""
    stage = Stage(tmp_path / "store")
    one, other = run(stage.fill(2, chunks=2))
    run(stage.seal())
    chunk = stage.place(one) / "00000001.chunk"
    data = chunk.read_bytes()
    if tamper == "changed":
        chunk.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif tamper == "torn":
        chunk.write_bytes(data[:-1])
    elif tamper == "gone":
        chunk.unlink()
    else:
        (stage.place(one) / "00000009.chunk").write_bytes(data)

    async def check() -> None:
        async with stage.store() as store:
            it = pruner(stage, store, Rules(max_age=DAY))
            await it.step()
            assert list(it.mismatches) == [one] and it.removed == 1
            await it.step()
            assert list(it.mismatches) == [one] and it.fault is not None
        report = await stage.verify()
        assert statuses(report)[other] == "removed" and statuses(report)[one] in ("changed", "cut")

    run(check())


def test_what_nobody_has_signed_waits_for_the_seal(tmp_path: Path) -> None:
    """Until then anybody who can write to the store says who it was and when it ended."""
    stage = Stage(tmp_path / "store")
    run(stage.fill(1))
    run(stage.seal())
    now, stage.clock = stage.clock, stage.clock - 2 * DAY

    async def check() -> None:
        async with stage.store() as store:
            it = Pruner(store, Rules(max_age=0.0), signer=stage.signer, clock=lambda: now)
            (late,) = await stage.plant()
            signed = await stage.record(store)
            await stage.settled(store)
            await it.step()
            assert it.removed == 2 and not stage.place(signed).exists()
            assert stage.place(late).exists() and it.fault is None
            # By hand it may go at once, for whoever asks for that has looked.
            assert await it.remove(Doomed(late, "privacy", await store.get(late)))
            assert await it.repair() == 0

    run(check())


def test_what_nobody_has_signed_is_not_removed_by_a_rule(tmp_path: Path) -> None:
    """A seal says that it was there by then. Were it removed, what was put in would look like what had been there."""
    stage = Stage(tmp_path / "store")

    async def check() -> None:
        async with stage.store() as store:
            await store.add_event(b"{}", PROXY)
            await stage.record(store)
            await stage.settled(store)
        (added,) = await stage.plant()
        (path,) = (stage.root / "events").rglob("*.chunk")
        shutil.copy(path, path.with_name(f"{new_id()}.chunk"))
        await stage.seal()
        stage.clock += 3 * DAY
        async with stage.store() as store:
            it = pruner(stage, store, Rules(max_age=DAY, events_max_age=DAY))
            await it.step()
            assert it.removed == 1 and sorted(it.mismatches) == [added, f"events {path.parent.name}"]
            assert "was not signed when it arrived" in it.mismatches[added] and it.fault is not None
            assert statuses(await stage.verify())[added] == "unknown"
            # By hand, by somebody who has looked.
            assert await it.remove(Doomed(added, "put in", await store.get(added)))
            await Pruner(store, it.rules, signer=stage.signer, clock=lambda: stage.clock, despite=True).step()
        report = await stage.verify()
        assert set(statuses(report).values()) == {"removed"} and report.well

    run(check())


def test_what_the_journal_says_of_what_was_signed_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A journal that somebody has written, of a recording whose files are taken away: it says bob in place of ana."""
    stage, other = Stage(tmp_path / "store"), Stage(tmp_path / "other")

    async def check() -> None:
        async with stage.store() as store:
            one = await stage.record(store, head=_header("prod", "ana@example.com"))
            await stage.settled(store)
        monkeypatch.setattr("recorder.store.store.new_id", lambda now: one)
        other.signs = False
        other.root.mkdir()
        forging = Store(other.blobs(), FolderLog(other.root), min_free=0)
        await forging.open()
        writer = await forging.begin(_header("prod", "bob@example.com"), PROXY)
        await writer.wait_acked(0)
        await kill(forging)
        shutil.rmtree(stage.place(one))
        shutil.rmtree(stage.root / "journal")
        shutil.copytree(other.root / "journal", stage.root / "journal")
        async with stage.store() as store:
            await stage.settled(store)
            assert (await store.get(one)).user == "bob@example.com"
        async with stage.store() as store:
            it = pruner(stage, store, Rules(rules=[Rule(Match(users=("bob@*",)), DAY)]))
            await it.step()
            assert it.removed == 0 and it.fault is not None and "signed twice" in it.fault
        report = await stage.verify()
        assert statuses(report)[one] in ("changed", "cut") and "signed twice" in " ".join(report.faults)

    run(check())


def test_a_large_file_makes_nobody_elses_recordings_go(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "store")
    one, other = run(two(stage))
    run(stage.seal())
    size = sum(path.stat().st_size for name in (one, other) for path in stage.place(name).iterdir())
    assert run(subjects(stage, Rules(max_bytes=size))) == []
    for place in (stage.place(other), stage.place(new_id())):
        place.mkdir(exist_ok=True)
        with open(place / "00000007.chunk", "wb") as file:
            file.truncate(1 << 40)
    assert run(subjects(stage, Rules(max_bytes=size))) == []
    assert run(subjects(stage, Rules(max_bytes=size - 1))) == [one]


def test_what_is_put_in_after_the_seal_is_not_removed(tmp_path: Path) -> None:
    """Its removal would make something that nobody can vouch for look like something that was there."""
    stage = Stage(tmp_path / "store")
    run(stage.fill(1))
    for _ in range(12):
        stage.clock += DAY
        run(stage.seal())
    (late,) = run(stage.plant())

    async def check() -> None:
        async with stage.store() as store:
            it = pruner(stage, store, Rules(max_age=DAY))
            await it.step()
            assert "and that day is sealed without it" in it.mismatches[late] and it.removed == 1
        assert statuses(await stage.verify())[late] == "unknown"

    run(check())


def test_nothing_goes_while_manifests_or_acts_have_a_fault(tmp_path: Path) -> None:
    """Without the manifest that lists it, a recording would be judged as one that never was sealed."""
    stage = Stage(tmp_path / "store")
    one, other = run(two(stage))
    run(stage.seal())
    run(prune(stage, Rules(rules=[Rule(PROD, DAY)])))
    stage.clock += DAY
    run(stage.seal())
    for number, tamper in enumerate(("first", "last", "act", "forged")):
        copy = stage.copy(tmp_path / str(number))
        edit(copy, other, "bob@example.com", "eve@example.com")
        if tamper == "act":
            (copy.root / act_file(1)).unlink()
        elif tamper == "forged":
            data = copy.manifests()[0].read_bytes()
            copy.manifests()[0].write_bytes(data.replace(b'"clean"', b'"cut"'))
        else:
            copy.manifests()[0 if tamper == "first" else -1].unlink()
        with pytest.raises(StoreError, match="nothing is removed, because the proof has a fault"):
            run(prune(copy, Rules(rules=[Rule(Match(users=("eve@*",)), DAY)])))
        assert (copy.place(other).exists() and not run(copy.verify()).well) or tamper == "last"
    assert one


def test_a_removal_that_was_taken_back_cannot_be_played_again(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "store")
    (one,) = run(stage.fill(1))
    run(stage.seal())
    signed: dict[Path, bytes] = {}

    class Slow(FolderBlobs):
        async def _hold(self, key: str, data: bytes) -> None:
            if b"removal" in data and not (stage.root / "holds").exists():
                signed[stage.root / key] = data
                await Holds(FolderBlobs(stage.root)).add(Hold(new_id(), 1.0, "ana", "case 7", None, one))

        async def put(self, key: str, data: bytes) -> None:
            await super().put(key, data)
            await self._hold(key, data)

        async def create(self, key: str, data: bytes) -> None:
            await super().create(key, data)
            await self._hold(key, data)

    async def check() -> None:
        async with stage.store() as store:
            kept, store.blobs = store.blobs, Slow(stage.root)
            it = pruner(stage, store, Rules(max_age=DAY))
            assert await it.prune(await it.plan()) == []
            await store.blobs.aclose()
            store.blobs = kept
        (act, reversal) = sorted((stage.root / "proof/acts").iterdir())
        signed_last = reversal.read_bytes()
        assert b'"act":"reversal"' in reversal.read_bytes() and b"case 7" not in reversal.read_bytes()
        assert (await stage.verify()).well
        shutil.rmtree(stage.place(one))
        places = [*signed, stage.root / act_file(3), stage.root / f"proof/removals/{one}.json"]
        for path in places:
            for data in (*signed.values(), write_removal(Removal(one, 1.0, "a", "b"), stage.signer)):
                kept_bytes = path.read_bytes() if path.exists() else None
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(data)
                report = await stage.verify()
                assert statuses(report)[one] == "missing" and not report.well
                if path.parent == act.parent and path != act:
                    assert report.faults, path
                if kept_bytes is None:
                    path.unlink()
                else:
                    path.write_bytes(kept_bytes)
        # With the reversal cut off, too: by whoever remembers how far the acts went.
        reversal.unlink()
        report = await stage.verify()
        assert report.faults == [missing("acts", Anchor(2, digest(signed_last)))]

    run(check())


def test_a_removal_says_what_it_has_removed(tmp_path: Path) -> None:
    """So it does not explain that something else is gone, which stood in that place before."""
    stage = Stage(tmp_path / "store")
    (one,) = run(stage.fill(1))
    run(stage.seal())
    run(prune(stage, Rules(max_age=DAY)))
    act = read_act((stage.root / act_file(1)).read_bytes(), PublicKeys([stage.signer.public_key]))
    (subject,) = act.subjects
    assert statuses(run(stage.verify())) == {one: "removed"}
    other = replace(act, subjects=(replace(subject, content="1" * 64),))
    (stage.root / act_file(1)).write_bytes(write_act(other, stage.signer))
    assert statuses(run(stage.verify())) == {one: "missing"}


def test_removals_of_before_there_were_acts(tmp_path: Path) -> None:
    """Those that stand as files when the first act is signed are taken over, and no other counts after it."""
    stage = Stage(tmp_path / "store")
    one, other = run(two(stage))
    place = stage.root / "proof/removals"
    place.mkdir(parents=True)
    shutil.rmtree(stage.place(one))
    old = write_removal(Removal(one, 1.0, "retention", "old"), stage.signer)
    (place / f"{one}.json").write_bytes(old)
    assert statuses(run(stage.verify())) == {one: "removed", other: "not sealed yet"}

    async def restart() -> None:
        async with stage.store() as store:
            await pruner(stage, store, Rules()).repair()

    run(restart())
    assert not place.exists()
    report = run(stage.verify())
    assert report.well and statuses(report)[one] == "removed"
    (finding,) = [finding for finding in report.findings if finding.id == one]
    assert "old (retention, 1970-01-01)" in finding.detail
    place.mkdir()
    (place / f"{other}.json").write_bytes(write_removal(Removal(other, 1.0, "retention", "old"), stage.signer))
    (place / f"{one}.json").write_bytes(old)  # left over, as a crash does it
    assert run(stage.verify()).faults == [
        f"the removal of {other} is a file of before there were acts, and counts no more"
    ]


def test_a_retired_key_signs_no_removal_of_before_there_were_acts(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "store")
    old = run(stage.age())
    (one,) = [path.name for path in (stage.root / "recordings").glob("*/*")]
    shutil.rmtree(stage.place(one))
    (stage.root / "proof/removals").mkdir()
    path = stage.root / f"proof/removals/{one}.json"
    path.write_bytes(write_removal(Removal(one, 1.0, "x", "y"), old))
    assert statuses(run(stage.verify())) == {one: "removed"}
    retired = Signer.make()
    path.write_bytes(write_removal(Removal(one, 1.0, "x", "y"), retired))
    report = run(stage.verify(PublicKeys([old.public_key, retired.public_key], old.id)))
    assert statuses(report) == {one: "missing"} and "which is not the current key" in report.faults[0]

    async def restart() -> None:
        async with stage.store() as store:
            keys = PublicKeys([old.public_key, retired.public_key])
            with pytest.raises(StoreError, match="which is not the current key"):
                await Pruner(store, Rules(), signer=old, keys=keys).repair()

    run(restart())
    assert not (stage.root / "proof/acts").exists()


def test_whoever_has_looked_may_remove_what_is_not_as_it_was_sealed(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "store")
    one, other = run(two(stage))
    run(stage.seal())
    edit(stage, one, "ana@example.com", "eve@example.com")

    async def check() -> None:
        async with stage.store() as store:
            doomed = Doomed(one, "a bad disk", await store.get(one))
            assert not await pruner(stage, store, Rules()).remove(doomed)
            it = Pruner(store, Rules(), signer=stage.signer, by="ana", despite=True, clock=lambda: stage.clock)
            # It says that it is eve's, and may have been of whom this hold is.
            hold = await it.holds.add(Hold(new_id(), 1.0, "ana", "case 7", Match(users=("ana@*",))))
            assert not await it.remove(doomed) and "a hold may be for it" in it.mismatches[one]
            await it.holds.release(hold.id)
            assert await it.remove(doomed)
        report = await stage.verify()
        assert report.well and statuses(report) == {one: "removed", other: "ok"}
        (finding,) = [finding for finding in report.findings if finding.id == one]
        assert "by ana: a bad disk; it differed from what was sealed, which was known" in finding.detail

    run(check())


def test_a_recorder_removes_what_cannot_be_read_as_somebody_wanted(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "store")
    one, other = run(two(stage))
    run(stage.seal())
    (stage.place(one) / "recording.json").write_text("{")

    async def check() -> None:
        async with stage.store() as store:
            doomed = Doomed(one, "a bad disk", fault="it cannot be read")
            assert not await pruner(stage, store, Rules()).remove(doomed)
            by_hand = Pruner(store, Rules(), signer=stage.signer, by="ana", despite=True, clock=lambda: stage.clock)
            assert await by_hand.order(Plan([doomed])) and stage.place(one).exists()
            # What is placed meanwhile may be of it, and takes the removal back.
            hold = await by_hand.holds.add(Hold(new_id(), 1.0, "ana", "case 7", Match(users=("ana@*",))))
            assert await pruner(stage, store, Rules()).repair() == 1
            assert stage.place(one).exists()
            await by_hand.holds.release(hold.id)
            assert await by_hand.order(Plan([doomed]))
            assert await pruner(stage, store, Rules()).repair() == 1
            assert not stage.place(one).exists()
        report = await stage.verify()
        assert report.well and statuses(report) == {one: "removed", other: "ok"}

    run(check())


@pytest.mark.parametrize(
    ("match", "holds"),
    [
        (Match(), True),
        (Match(clusters=("pr*",)), True),
        (Match(clusters=("PROD",)), False),
        (Match(namespaces=("a", "sho?")), True),
        (Match(users=("[a]na@example.com",)), False),
        (Match(users=("*@example.com",), session_types=("ssh",)), False),
        (Match(session_types=("exec",)), True),
    ],
)
def test_matches(tmp_path: Path, match: Match, holds: bool) -> None:
    from recorder.model import Recording

    value: dict[str, Any] = json.loads(_header("prod", "ana@example.com"))
    assert match.holds_for(Recording("x", value, PROXY, 1.0)) is holds
    assert Match.of(match.values()) == match


def test_in_envelopes_too(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "store", keyring=Keyring([b"k" * 32]))
    one, other = run(two(stage))

    async def check() -> None:
        await stage.seal()
        async with stage.store() as store:
            await Holds(store.blobs).add(Hold(one, 1.0, "ana", "a secret case"))
        assert await prune(stage, Rules(max_age=DAY)) == [other]
        found = statuses(await stage.verify(key=False))
        assert found == {one: "ok", other: "removed"}

    run(check())
    assert all(b"secret" not in path.read_bytes() for path in stage.root.rglob("*") if path.is_file())


def test_what_runs_at_another_recorder_is_not_removed_by_hand() -> None:
    """As `recorder prune ID` on an object store: what runs is in the journal and the memory of somebody else."""

    async def check() -> None:
        memory = MemoryStore()
        stores = []
        for instance in ("main", "prune"):
            blobs = ObjectBlobs(memory, "memory")
            stores.append(Store(blobs, ObjectLog(blobs, instance), instance=instance))
            await stores[-1].open()
        one, other = stores
        live = await one.begin(header(), PROXY)
        live.write(b"".join(b'[%d.0,"o","line"]\n' % number for number in range(20_000)))
        await live.wait_acked(live.given - 1)
        one.builder.relieve()
        async with asyncio.timeout(30):
            while not live.text.frames:  # noqa: ASYNC110 - it has no event of its own
                await asyncio.sleep(0.002)
            one.builder.relieve()
            while not live.chunks.rows:  # noqa: ASYNC110
                await asyncio.sleep(0.002)
        with pytest.raises(StoreError, match="not ended yet"):
            await Pruner(other, Rules()).remove(Doomed(live.id, "by hand", await other.get(live.id)))
        assert live.id in [recording.id async for recording in other.recordings()]
        for store in stores:
            await store.aclose()

    run(check())


def test_a_running_recorder_carries_out_what_a_command_has_signed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "LOOK", 0.01)
    stage = Stage(tmp_path / "store")
    one, other = run(stage.fill(2))

    async def check() -> None:
        async with stage.store() as store:
            task = asyncio.create_task(pruner(stage, store, Rules()).run())
            ordering = Pruner(store, Rules(), signer=stage.signer, by="ana", clock=lambda: stage.clock)
            assert len(await ordering.order(Plan([Doomed(one, "privacy", await store.get(one))]))) == 1
            async with asyncio.timeout(30):
                while stage.place(one).exists():  # noqa: ASYNC110 - it tells nobody
                    await asyncio.sleep(0.005)
            assert not task.done() and stage.place(other).exists()
            task.cancel()
            await asyncio.wait([task])

    run(check())
