"""Days of API events: which of them a hold keeps, and what becomes of those that are not as they were sealed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from recorder.crypt import Keyring
from recorder.model import End, new_id
from recorder.retention.holds import Hold, Holds, Match
from recorder.retention.pruner import Pruner
from recorder.retention.rules import Rules
from tests.recorder.proof.sealed import DAY, PROXY, Stage, header, run, statuses
from tests.recorder.store.storing import Told

RULES = Rules(events_max_age=2 * DAY)
ANA = {"source": {"node": "ana.ts.net.", "nodeUser": "ana@example.com"}}


def event(**more: Any) -> bytes:
    return json.dumps(ANA | more).encode()


async def made(stage: Stage, *events: bytes, head: bytes | None = None) -> tuple[str, str]:
    """Events, a session of ana's beside them, sealed and five days old: its id, the day."""
    async with stage.store() as store:
        writer = await store.begin(head or header(), PROXY)
        writer.write(b'[1.0,"o","hello"]\n')
        for document in events:
            last = await store.add_event(document, PROXY)
        await store.eventlog.drain()
        await stage.settled(store)
        recording = await writer.finish(End.CLEAN)
        await stage.settled(store)
    await stage.seal()
    stage.clock += 5 * DAY
    await stage.seal()
    (day,) = [path.name for path in (stage.root / "events").iterdir()]
    assert last
    return recording.id, day


async def gone(stage: Stage, *holds: Hold) -> list[str]:
    async with stage.store() as store:
        it = Pruner(store, RULES, signer=stage.signer, clock=lambda: stage.clock)
        for hold in holds:
            await it.holds.add(hold)
        return [doomed.subject for doomed in await it.prune(await it.plan())]


def matching(**globs: tuple[str, ...]) -> Hold:
    return Hold(new_id(), 1.0, "eve", "case 7", Match(**globs))


@pytest.mark.parametrize(
    ("hold", "held"),
    [
        (matching(), True),
        (matching(users=("ana@*",)), True),
        (matching(users=("bob@*",)), False),
        (matching(users=("ana@*",), session_types=("ssh",)), True),
        (matching(clusters=("prod",)), True),  # these events do not say of which cluster they are
        (matching(namespaces=("shop",)), True),
        (matching(namespaces=("bank",)), False),
        (matching(users=("ana@*",), namespaces=("bank",)), False),
    ],
)
def test_events_of_whom_a_hold_names_stay(tmp_path: Path, hold: Hold, held: bool) -> None:
    stage = Stage(tmp_path / "store")
    other = {"source": {"nodeUser": "carol@example.com"}}
    _, day = run(made(stage, event(**other), event(kubernetes={"Namespace": "shop"}), event(**other)))
    assert run(gone(stage, hold)) == ([] if held else [f"events {day}"])
    report = run(stage.verify())
    assert report.well and set(statuses(report).values()) == ({"ok"} if held else {"ok", "removed"})


def test_an_event_that_names_its_cluster_is_held_by_that(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "store")
    _, day = run(made(stage, event(kubernetes={"Cluster": "test"})))
    assert run(gone(stage, matching(clusters=("prod",)))) == [f"events {day}"]


@pytest.mark.parametrize(
    ("document", "head", "held"),
    [
        (event(), header(srcNode="other.ts.net."), False),
        (event(), header(srcNode="ana.ts.net."), True),
        (event(source={"nodeUser": "x"}, sessionID="s1"), header(sessionID="s1"), True),
        (event(source={"nodeUser": "x"}, sessionID="s2"), header(sessionID="s1"), False),
        (event(source={"nodeUser": "x"}), header(), False),
        (event(source={"node": "ana.ts.net", "nodeUser": "bob"}), header(srcNode="ana.ts.net."), False),
        (
            event(source={"node": "ci.ts.net", "nodeTags": ["tag:ci"]}),
            header(srcNode="ci.ts.net.", srcNodeUser="", srcNodeTags=["tag:ci"]),
            True,
        ),
    ],
)
def test_events_of_a_held_session_stay(tmp_path: Path, document: bytes, head: bytes, held: bool) -> None:
    stage = Stage(tmp_path / "store", keyring=Keyring([b"k" * 32]))
    session, day = run(made(stage, document, head=head))
    assert run(gone(stage, Hold(new_id(), 1.0, "eve", "case 7", None, session))) == ([] if held else [f"events {day}"])


def test_events_of_a_released_hold_go(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "store")
    _, day = run(made(stage, event()))
    hold = matching(users=("ana@*",))
    assert run(gone(stage, hold)) == []

    async def release() -> None:
        async with stage.store() as store:
            it = Pruner(store, RULES, signer=stage.signer, clock=lambda: stage.clock)
            told = Told()
            store.observers.append(told)
            await it.holds.release(hold.id, by="eve", why="closed")
            assert [doomed.subject for doomed in await it.prune(await it.plan())] == [f"events {day}"]
            assert told.all == [("removed", f"events {day}")]  # so that they go from the index, too

    run(release())


@pytest.mark.parametrize("tamper", ["changed", "gone", "added"])
def test_events_that_are_not_as_they_were_sealed_stay(tmp_path: Path, tamper: str) -> None:
    stage = Stage(tmp_path / "store")
    _, day = run(made(stage, event()))
    for _ in range(10):
        stage.clock += DAY
        run(stage.seal())
    (chunk,) = (stage.root / "events" / day).iterdir()
    if tamper == "changed":
        chunk.write_bytes(chunk.read_bytes() + b"x")
    elif tamper == "gone":
        (chunk.parent / f"{new_id()}.chunk").write_bytes(chunk.read_bytes())
        chunk.unlink()
    else:
        (chunk.parent / f"{new_id()}.chunk").write_bytes(chunk.read_bytes())

    async def check() -> None:
        async with stage.store() as store:
            it = Pruner(store, RULES, signer=stage.signer, clock=lambda: stage.clock)
            await it.step()
            assert list(it.mismatches) == [f"events {day}"] and it.fault is not None and it.removed == 0
        assert not (await stage.verify()).well
        # Whoever has looked may remove it, but not while something is held: it may be of that.
        async with stage.store() as store:
            it = Pruner(store, RULES, signer=stage.signer, despite=True, clock=lambda: stage.clock)
            hold = await it.holds.add(matching(users=("bob@*",)))
            assert await it.prune(await it.plan()) == []
            await it.holds.release(hold.id)
            assert [doomed.subject for doomed in await it.prune(await it.plan())] == [f"events {day}"]
        report = await stage.verify()
        told = {finding.detail.partition("known: ")[2] for finding in report.findings if "events" in finding.id}
        assert told == set(it.mismatches.values()) and not (stage.root / "events" / day).exists()

    run(check())


def test_what_cannot_be_told_stays(tmp_path: Path) -> None:
    """Events of a held session that was changed or is gone; a chunk that cannot be read."""
    stage = Stage(tmp_path / "store")
    session, day = run(made(stage, event(), head=header(srcNode="ana.ts.net.")))
    hold = Hold(new_id(), 1.0, "eve", "case 7", None, session)
    path = stage.place(session) / "recording.json"
    path.write_text(path.read_text().replace("ana@example.com", "bob@example.com"))
    assert run(gone(stage, hold)) == []
    shutil.rmtree(stage.place(session))
    assert run(gone(stage)) == []
    # Nothing is sealed here: then a chunk is what it is.
    (chunk,) = (stage.root / "events" / day).iterdir()
    chunk.write_bytes(b"nonsense")

    async def check() -> None:
        async with stage.store() as store:
            await Holds(store.blobs).add(matching(users=("nobody",)))
            it = Pruner(store, RULES, clock=lambda: stage.clock)
            assert [hold.held for _, hold in (await it.plan()).held] == [session]

    shutil.rmtree(stage.root / "proof")
    run(check())
    next((stage.root / "holds").glob(f"{hold.id}*")).unlink()

    async def again() -> None:
        async with stage.store() as store:
            it = Pruner(store, RULES, clock=lambda: stage.clock)
            plan = await it.plan()
            assert [hold.match for _, hold in plan.held] == [Match(users=("nobody",))] and plan.doomed == []

    run(again())


def test_a_hold_that_is_placed_while_the_removal_is_signed_counts(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "store")
    _, day = run(made(stage, event()))

    async def check() -> None:
        async with stage.store() as store:
            it = Pruner(store, RULES, signer=stage.signer, clock=lambda: stage.clock)
            plan = await it.plan()
            assert [doomed.subject for doomed in plan.doomed] == [f"events {day}"]
            await it.order(plan)
            await it.holds.add(matching(users=("ana@*",)))
            assert await it.repair() == 1
            assert (stage.root / "events" / day).exists()
            assert await it.repair() == 0

    run(check())
    assert run(stage.verify()).well
