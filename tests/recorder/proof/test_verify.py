"""What verify says of a store that was tampered with, in each way there is."""

from __future__ import annotations

import base64
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recorder.crypt import Keyring
from recorder.model import id_day
from recorder.proof import PublicKeys, Signer
from recorder.proof.acts import NONE, Act, Kind, Subject, act_file, write_act
from recorder.proof.chain import stored_keys
from recorder.proof.documents import NOTHING, Manifest, write_manifest
from recorder.proof.report import Finding, Report, Status
from recorder.proof.verify import Verifier
from recorder.proof.witness import missing
from recorder.retention.plan import Doomed
from recorder.retention.pruner import Pruner
from recorder.retention.rules import Rules
from tests.recorder.proof.sealed import DAY, PROXY, Stage, run, statuses


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Stage, list[str]]:
    """Three recordings of four chunks each, sealed, with an empty day behind them."""
    stage = Stage(tmp_path_factory.mktemp("sealed") / "store")

    async def make() -> list[str]:
        ids = await stage.fill(3, chunks=3)
        await stage.seal()
        stage.clock += DAY
        await stage.seal()
        return ids

    return stage, run(make())


def tampered(sealed: tuple[Stage, list[str]], where: Path) -> tuple[Stage, list[str]]:
    return sealed[0].copy(where / "copy"), sealed[1]


def finding(report: Report, identifier: str) -> Finding:
    return next(finding for finding in report.findings if finding.id == identifier)


def test_a_store_that_nobody_touched_is_well(sealed: tuple[Stage, list[str]]) -> None:
    stage, ids = sealed
    report = run(stage.verify())
    assert report.well and report.faults == []
    assert statuses(report) == dict.fromkeys(ids, "ok")
    assert report.manifests >= 2 and report.last is not None


def test_progress_goes_to_the_end(sealed: tuple[Stage, list[str]]) -> None:
    told: list[tuple[int, int]] = []
    run(sealed[0].verify(progress=lambda done, total: told.append((done, total))))
    assert told[0] == (0, 3) and told[-1] == (3, 3)


@pytest.mark.parametrize("name", ["00000000.chunk", "00000001.chunk", "00000002.chunk", "recording.json"])
@pytest.mark.parametrize("where", [0.0, 0.3, 0.6, 0.97, 1.0])
def test_a_flipped_bit_anywhere_is_a_change(
    sealed: tuple[Stage, list[str]], tmp_path: Path, name: str, where: float
) -> None:
    stage, ids = tampered(sealed, tmp_path)
    path = stage.place(ids[1]) / name
    data = bytearray(path.read_bytes())
    data[min(len(data) - 1, int(where * len(data)))] ^= 1
    path.write_bytes(data)
    report = run(stage.verify())
    assert not report.well
    assert statuses(report) == {ids[0]: "ok", ids[1]: "changed", ids[2]: "ok"}
    part = "recording.json" if name == "recording.json" else f"chunk {int(name[:8])}"
    assert finding(report, ids[1]).detail == f"{part} is not what was sealed"


@pytest.mark.parametrize(
    ("gone", "status", "detail"),
    [
        (["00000003.chunk"], "cut", "chunk 3 is missing"),
        (["00000002.chunk", "00000003.chunk"], "cut", "chunk 2 is missing, and 1 more"),
        (["00000001.chunk"], "changed", "chunk 1 is missing"),
        (["00000000.chunk"], "changed", "chunk 0 is missing"),
        (["recording.json"], "changed", "recording.json is missing"),
    ],
)
def test_a_dropped_part(
    sealed: tuple[Stage, list[str]], tmp_path: Path, gone: list[str], status: str, detail: str
) -> None:
    stage, ids = tampered(sealed, tmp_path)
    for name in gone:
        (stage.place(ids[0]) / name).unlink()
    found = finding(run(stage.verify()), ids[0])
    assert (found.status.value, found.detail) == (status, detail)


def test_a_torn_chunk_is_cut(sealed: tuple[Stage, list[str]], tmp_path: Path) -> None:
    stage, ids = tampered(sealed, tmp_path)
    path = stage.place(ids[0]) / "00000003.chunk"
    path.write_bytes(path.read_bytes()[:-100])
    found = finding(run(stage.verify()), ids[0])
    assert (found.status, found.detail) == (Status.CUT, "chunk 3 is shorter than before")


def test_chunks_of_two_recordings_swapped(sealed: tuple[Stage, list[str]], tmp_path: Path) -> None:
    stage, ids = tampered(sealed, tmp_path)
    one, two = stage.place(ids[0]) / "00000001.chunk", stage.place(ids[1]) / "00000001.chunk"
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)
    assert set(statuses(run(stage.verify())).values()) == {"changed", "cut", "ok"} or statuses(run(stage.verify())) == {
        ids[0]: "changed",
        ids[1]: "changed",
        ids[2]: "ok",
    }


def test_whole_recordings_swapped(sealed: tuple[Stage, list[str]], tmp_path: Path) -> None:
    stage, ids = tampered(sealed, tmp_path)
    one, two = stage.place(ids[0]), stage.place(ids[1])
    one.rename(tmp_path / "aside")
    two.rename(one)
    (tmp_path / "aside").rename(two)
    report = run(stage.verify())
    assert finding(report, ids[0]).status in (Status.CHANGED, Status.CUT)
    assert finding(report, ids[1]).status in (Status.CHANGED, Status.CUT)


def test_a_chunk_too_many(sealed: tuple[Stage, list[str]], tmp_path: Path) -> None:
    stage, ids = tampered(sealed, tmp_path)
    (stage.place(ids[0]) / "00000004.chunk").write_bytes(b"x")
    found = finding(run(stage.verify()), ids[0])
    assert (found.status, found.detail) == (Status.CHANGED, "chunk 4 was not there when it was sealed")


def test_a_recording_that_is_gone(sealed: tuple[Stage, list[str]], tmp_path: Path) -> None:
    stage, ids = tampered(sealed, tmp_path)
    for path in stage.place(ids[2]).iterdir():
        path.unlink()
    stage.place(ids[2]).rmdir()
    report = run(stage.verify())
    assert finding(report, ids[2]).status is Status.MISSING and not report.well


def test_a_recording_put_in_later(sealed: tuple[Stage, list[str]], tmp_path: Path) -> None:
    stage, _ = tampered(sealed, tmp_path)
    # It is over by the clock of those days, which are sealed without it.
    (added,) = run(stage.plant())
    report = run(stage.verify())
    assert finding(report, added).status is Status.UNKNOWN
    assert not report.well


def test_a_manifest_is_changed(sealed: tuple[Stage, list[str]], tmp_path: Path) -> None:
    stage, _ = tampered(sealed, tmp_path)
    path = stage.manifests()[0]
    data = path.read_bytes()
    for at in range(0, len(data), max(1, len(data) // 40)):
        broken = bytearray(data)
        broken[at] ^= 1
        path.write_bytes(broken)
        report = run(stage.verify())
        assert not report.well, at
        assert any("the chain is broken" in fault for fault in report.faults), at
    path.write_bytes(data)
    assert run(stage.verify()).well


def test_a_manifest_forged_with_another_key(sealed: tuple[Stage, list[str]], tmp_path: Path) -> None:
    stage, _ = tampered(sealed, tmp_path)
    path = stage.manifests()[-1]
    value = json.loads(path.read_bytes().split(b"\n")[0])
    forged = write_manifest(
        Manifest(value["number"], value["day"], value["previous"], value["sealed"]), other := Signer.make()
    )
    path.write_bytes(forged)
    report = run(stage.verify(witnesses=()))
    assert report.faults == [
        f"the manifest of {value['day']} is not trusted: it is signed with the key '{other.id}', "
        "which is not one of those given"
    ]
    # Said to be by the right key, which has not made this signature.
    seal = json.dumps({"key": stage.signer.id, "signature": base64.b64encode(bytes(64)).decode()})
    path.write_bytes(forged.split(b"\n")[0] + b"\n" + seal.encode() + b"\n")
    assert "its signature is wrong" in run(stage.verify()).faults[0]


def test_manifests_dropped(sealed: tuple[Stage, list[str]], tmp_path: Path) -> None:
    stage, _ = tampered(sealed, tmp_path)
    stage.clock += DAY
    run(stage.seal())
    first, second, *_ = stage.manifests()
    kept = second.read_bytes()
    second.unlink()
    report = run(stage.verify())
    assert f"the manifest of {second.stem} is missing" in report.faults
    assert any("expected" in fault for fault in report.faults)
    second.write_bytes(kept)
    first.unlink()
    report = run(stage.verify())
    assert any("a manifest before it is missing" in fault for fault in report.faults)
    assert set(statuses(report).values()) == {"unknown"}


def test_the_last_manifest_dropped_needs_an_anchor(sealed: tuple[Stage, list[str]], tmp_path: Path) -> None:
    stage, _ = tampered(sealed, tmp_path)
    last = run(stage.verify()).last
    assert last is not None
    stage.manifests()[-1].unlink()

    report = run(stage.verify())
    assert report.faults == [missing("manifests", last)]
    assert report.anchors == [f"does not match memory: manifests {last.number}, register main 3"]
    without = run(stage.verify(witnesses=()))
    assert without.well and without.anchors == [
        "not compared with an anchor: a chain whose end was cut off is not noticed"
    ]


def test_all_manifests_dropped(sealed: tuple[Stage, list[str]], tmp_path: Path) -> None:
    stage, ids = tampered(sealed, tmp_path)
    for path in stage.manifests():
        path.unlink()
    report = run(stage.verify(witnesses=()))
    assert statuses(report) == dict.fromkeys(ids, "not sealed yet")
    stage.clock += DAY
    report = run(stage.verify(witnesses=()))
    assert report.faults == ["no day was sealed at all: manifests are missing, or no recorder seals"]


def test_a_removal_that_nobody_signed(sealed: tuple[Stage, list[str]], tmp_path: Path) -> None:
    stage, ids = tampered(sealed, tmp_path)
    for path in stage.place(ids[0]).iterdir():
        path.unlink()
    place = stage.root / act_file(1)
    place.parent.mkdir()
    act = Act(1, NOTHING, NONE, Kind.REMOVAL, stage.clock, "retention", "", (Subject(ids[0], "old"),))
    place.write_bytes(write_act(act, Signer.make()))
    report = run(stage.verify())
    assert finding(report, ids[0]).status is Status.MISSING
    assert "is not trusted" in report.faults[0]
    last = run(stage.verify()).last
    assert last is not None
    place.write_bytes(write_act(replace(act, manifest=last), stage.signer))
    report = run(stage.verify())
    assert finding(report, ids[0]).status is Status.REMOVED and report.well
    # It was made before the days that were sealed without it, so it says.
    place.write_bytes(write_act(act, stage.signer))
    assert run(stage.verify()).faults == [
        f"act 1 is newer than the manifest of {manifest.stem}, and says that it is older"
        for manifest in stage.manifests()[1:]
    ]


def test_a_manifest_cannot_stand_for_a_removal(sealed: tuple[Stage, list[str]], tmp_path: Path) -> None:
    stage, ids = tampered(sealed, tmp_path)
    place = stage.root / "proof/removals"
    place.mkdir()
    (place / f"{ids[0]}.json").write_bytes(stage.manifests()[0].read_bytes())
    assert "is signed, but it is not a recorder removal" in run(stage.verify()).faults[0]


def test_removals_of_sessions_that_never_were_sealed_are_told(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "store")
    one, other = run(stage.fill(2))

    async def remove() -> None:
        async with stage.store() as store:
            assert await Pruner(store, Rules(), signer=stage.signer).remove(
                Doomed(one, "privacy", await store.get(one))
            )
            await store.add_event(b"{}", PROXY)
            await store.eventlog.drain()
            day = id_day(other)
            assert await Pruner(store, Rules(), signer=stage.signer).remove(Doomed(f"events {day}", "privacy"))

    run(remove())
    report = run(stage.verify())
    found = statuses(report)
    (chunk,) = (name for name in found if name.startswith(f"events/{id_day(other)}/"))
    assert found == {one: "removed", other: "not sealed yet", chunk: "removed"} and report.well
    assert report.acts.removals == 2 and report.values()["acts"]["count"] == 2
    assert statuses(run(stage.verify(identifier=one))) == {one: "removed"}
    assert statuses(run(stage.verify(day=id_day(other)))) == statuses(report)


def test_what_is_put_in_the_place_of_a_removed_session_is_no_removed_one(tmp_path: Path) -> None:
    """Of one that was never signed: no manifest has its hashes, and the act of its removal has."""
    stage = Stage(tmp_path / "store")

    async def check() -> None:
        (one,) = await stage.fill(1)
        (two,) = await stage.plant()
        async with stage.store() as store:
            assert await Pruner(store, Rules(), signer=stage.signer).remove(Doomed(two, "put in", await store.get(two)))
        shutil.copytree(stage.place(one), stage.place(two))
        (stage.place(two) / "recording.json").write_bytes(
            (stage.place(one) / "recording.json").read_bytes().replace(one.encode(), two.encode())
        )
        report = await stage.verify()
        assert statuses(report)[two] == "unknown" and not report.well
        (stage.place(two) / "recording.json").unlink()
        assert statuses(await stage.verify())[two] == "removed"

    run(check())


def test_manifests_that_were_sealed_late_are_told(tmp_path: Path) -> None:
    """Whoever has the key can seal all days anew, but not say when without lying to the time stamps."""
    stage = Stage(tmp_path / "store")

    async def check() -> None:
        await stage.fill(1)
        await stage.seal()
        assert (await stage.verify()).notes == []
        stage.clock += 30 * DAY
        await stage.seal()
        (note,) = (await stage.verify()).notes
        assert "(23 of them) were sealed more than a week later" in note

    run(check())


def test_one_recording_and_one_day(sealed: tuple[Stage, list[str]]) -> None:
    stage, ids = sealed
    assert statuses(run(stage.verify(identifier=ids[1]))) == {ids[1]: "ok"}
    day = stage.manifests()[0].stem
    assert set(statuses(run(stage.verify(day=day)))) == set(ids)
    assert statuses(run(stage.verify(day=stage.manifests()[1].stem))) == {}
    with pytest.raises(KeyError):
        run(stage.verify(identifier="0" * 26))


def test_what_is_not_sealed_is_checked_by_itself(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "store")
    one, two, three, four = run(stage.fill(4, chunks=2))
    (stage.place(two) / "00000002.chunk").unlink()
    path = stage.place(three) / "00000000.chunk"
    path.write_bytes(path.read_bytes()[:-1] + b"X")
    (stage.place(four) / "recording.json").unlink()
    assert statuses(run(stage.verify())) == {one: "not sealed yet", two: "cut", three: "changed", four: "changed"}


def test_encrypted_recordings_are_checked_without_the_key(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "store", keyring=Keyring([b"k" * 32]))
    ids = run(stage.fill(2, chunks=2))
    assert set(statuses(run(stage.verify(key=False))).values()) == {"not sealed yet"}
    run(stage.seal())
    assert set(statuses(run(stage.verify(key=False))).values()) == {"ok"}
    assert run(stage.verify(key=True)).well
    manifest = stage.manifests()[0].read_bytes()
    assert b"bash" not in manifest and b'"head":""' in manifest
    path = stage.place(ids[0]) / "00000001.chunk"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert statuses(run(stage.verify(key=False)))[ids[0]] == "changed"


def test_names_that_only_an_object_store_can_hold() -> None:
    import obstore

    from recorder.store.objects import open_objects

    identifier = "01M81TJ1N6V9Y7QQPADHDTDJP5"
    objects = open_objects("memory://", {})
    strange = (
        "recordings/$x/y", "recordings/2026-11-22/$y/z", f"recordings/{id_day(identifier)}/{identifier}/$z.chunk",
        "proof/days/$.json", "proof/removals/$.json", "proof/keys/$.pem", "events/$/x", "events/2026-11-22/$",
    )  # fmt: skip
    for name in strange:
        obstore.put(objects._store, name, b"x")

    async def check() -> Report:
        await stored_keys(objects)
        return await Verifier(objects, PublicKeys([Signer.make().public_key])).run()

    report = run(check())
    assert len(report.faults) == 2 and all("not one of the recorder's files" in fault for fault in report.faults)
    assert statuses(report) == {identifier: "changed", "events/2026-11-22/$": "unknown"}


OPERATIONS = ("flip", "cut", "grow", "delete", "empty", "exchange", "put in")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_whatever_is_done_to_whatever_is_sealed_is_found(sealed: tuple[Stage, list[str]], data: st.DataObject) -> None:
    stage, _ = sealed
    files = sorted(path for top in ("recordings", "proof/days") for path in (stage.root / top).rglob("*.*"))
    path = data.draw(st.sampled_from(files))
    operation = data.draw(st.sampled_from(OPERATIONS))
    place = data.draw(st.integers(0, 1 << 20))
    before = path.read_bytes()
    other = data.draw(st.sampled_from([file for file in files if file.read_bytes() != before]))
    kept = other.read_bytes()
    extra = path.parent / ("00000099.chunk" if path.suffix == ".chunk" else "recording.json.chunk")

    try:
        match operation:
            case "flip":
                place %= len(before)
                path.write_bytes(before[:place] + bytes([before[place] ^ 1]) + before[place + 1 :])
            case "cut":
                path.write_bytes(before[: place % len(before)])
            case "grow":
                path.write_bytes(before + b"x")
            case "empty":
                path.write_bytes(b"")
            case "exchange":
                path.write_bytes(kept)
                other.write_bytes(before)
            case "put in":
                extra.write_bytes(kept)
            case "delete":
                path.unlink()
        assert not run(stage.verify()).well, (operation, path)
    finally:
        path.write_bytes(before)
        other.write_bytes(kept)
        extra.unlink(missing_ok=True)
    assert run(stage.verify()).well
