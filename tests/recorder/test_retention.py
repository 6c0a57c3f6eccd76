"""What goes, what stays, and what a crash in between leaves."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from obstore.store import MemoryStore

from recorder.crypt import Keyring
from recorder.holds import Hold, Holds, Match
from recorder.model import new_id
from recorder.proof import PublicKeys
from recorder.proof.documents import Removal
from recorder.retention import Doomed, Pruner, Rule, Rules
from recorder.store.blobs import FolderBlobs
from recorder.store.errors import StoreError
from recorder.store.logs import ObjectLog
from recorder.store.objects import ObjectBlobs
from recorder.store.store import Store
from tests.recorder.proof.stage import DAY, PROXY, Stage, header, run, statuses

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
        async def put(self, key: str, data: bytes) -> None:
            await super().put(key, data)
            if key.startswith("proof/removals"):
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
    assert report.well and statuses(report)[other] == ("ok" if sealed_before else "not sealed yet")
    if sealed_before:
        assert statuses(report)[one] == "removed"
    stage.clock += DAY
    run(stage.seal())
    assert list((stage.root / "proof").glob("removals/*")) == []
    report = run(stage.verify())
    assert report.well and statuses(report)[other] == "ok"
    listed = [json.loads(path.read_bytes().split(b"\n")[0])["removals"] for path in stage.manifests()]
    assert [[removal["subject"] for removal in removals] for removals in listed if removals] == [[one]]


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


def test_removals_are_only_believed_when_signed(tmp_path: Path) -> None:
    from recorder.proof import Signer
    from recorder.proof.documents import write_removal

    stage = Stage(tmp_path / "store")
    one, _ = run(two(stage))
    (stage.root / "proof/removals").mkdir(parents=True)
    forged = write_removal(Removal(one, 1.0, "x", "y"), Signer.make())
    (stage.root / f"proof/removals/{one}.json").write_bytes(forged)

    async def restart() -> int:
        async with stage.store() as store:
            return await pruner(stage, store, Rules()).repair()

    assert run(restart()) == 0
    assert stage.place(one).exists()


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
            while not live.frames:  # noqa: ASYNC110 - it has no event of its own
                await asyncio.sleep(0.002)
            one.builder.relieve()
            while not live.chunks:  # noqa: ASYNC110
                await asyncio.sleep(0.002)
        with pytest.raises(StoreError, match="not over yet"):
            await Pruner(other, Rules()).remove(Doomed(live.id, "by hand", await other.get(live.id)))
        assert live.id in [recording.id async for recording in other.recordings()]
        for store in stores:
            await store.aclose()

    run(check())
