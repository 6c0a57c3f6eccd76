"""The chain of acts: what is taken, and that nothing in it can be left out, moved, put in again or told otherwise."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from obstore.store import MemoryStore

from recorder.model import new_id
from recorder.proof import KeyFault, PublicKeys, Signer
from recorder.proof.actlog import ActLog
from recorder.proof.acts import NONE, Act, Acts, Kind, Subject, act_file, compare, read_act, read_acts, write_act
from recorder.proof.chain import read_chain
from recorder.proof.documents import NOTHING, Manifest, write_manifest
from recorder.proof.handover import ACTS as CHAIN
from recorder.proof.handover import KeyHistory, hand_over
from recorder.proof.keys import Anchor
from recorder.proof.register import Register
from recorder.proof.signed import ForgedError, digest, sign_document
from recorder.proof.witness import MemoryWitness, Witnesses
from recorder.store.blobs import Blobs, FolderBlobs
from recorder.store.objects import ObjectBlobs
from tests.recorder.proof.sealed import Stage, run

SIGNER = Signer.make()
KEYS = PublicKeys([SIGNER.public_key])
ONE, TWO, THREE = new_id(), new_id(), new_id()
HASH = "1" * 64

texts = st.text(max_size=20)
names = st.sampled_from([ONE, TWO, "events 2026-11-22"])
anchors = st.builds(Anchor, st.integers(0, 1 << 30), st.just(HASH))
removals = st.builds(
    Act,
    *(st.integers(1, 1 << 30), st.just(HASH), anchors, st.just(Kind.REMOVAL), st.floats(0, 1e10), texts, texts),
    st.lists(st.builds(Subject, names, texts, texts, texts), max_size=3).map(tuple),
)
holds = st.builds(
    Act,
    *(st.integers(1, 1 << 30), st.just(HASH), anchors, st.just(Kind.HOLD), st.floats(0, 1e10), texts, texts),
    st.just((Subject(ONE),)),
    st.just(0),
    st.just(HASH),
)


@settings(max_examples=60, deadline=None)
@given(removals | holds)
def test_acts_round_trip(act: Act) -> None:
    data = write_act(act, SIGNER)
    read = read_act(data, KEYS)
    assert data.count(b"\n") == 2 and read == act and read.key == SIGNER.id


ACT = write_act(Act(1, NOTHING, NONE, Kind.HOLD, 1.0, "ana", "", (Subject(ONE),), 0, HASH), SIGNER)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(ACT) - 1), st.integers(1, 255))
def test_no_byte_can_be_changed_but_those_that_mean_nothing(place: int, flip: int) -> None:
    data = bytearray(ACT)
    data[place] ^= flip
    try:
        assert read_act(bytes(data), KEYS) == read_act(ACT, KEYS)
    except ForgedError:
        return
    assert place > ACT.index(b"\n")


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_nonsense_is_forged(data: bytes) -> None:
    for text in (data, data + b"\n" + ACT.split(b"\n")[1] + b"\n", ACT[: len(data)]):
        with pytest.raises(ForgedError):
            read_act(text, KEYS)


def test_signed_nonsense_is_forged_too() -> None:
    good = json.loads(ACT.split(b"\n")[0])
    wrong: list[dict[str, object]] = [
        {"number": -1}, {"previous": "x"}, {"manifest": None}, {"act": "x"}, {"at": "x"}, {"by": 1}, {"why": None},
        {"subjects": []}, {"subjects": [{}]}, {"subjects": [{"name": "../x"}]}, {"subjects": [1]}, {"body": "x"},
        {"subjects": [{"name": "events 2026-11-22"}]}, {"subjects": [{"name": ONE}, {"name": TWO}]},
        {"act": "release"}, {"act": "release", "of": 1}, {"act": "removal"}, {"version": 2}, {"type": "x"},
        {"subjects": [{"name": ONE, "why": 1}]}, {"at": 10**400}, {"at": float("nan")}, {"at": "1"},
    ]  # fmt: skip
    for change in wrong:
        with pytest.raises(ForgedError):
            read_act(sign_document(good | change, SIGNER), KEYS)
    del good["body"]
    with pytest.raises(ForgedError):
        read_act(sign_document(good, SIGNER), KEYS)
    with pytest.raises(ForgedError):
        read_act(ACT, PublicKeys([]))
    manifest = write_manifest(Manifest(1, "2026-11-22", NOTHING, 1.0), SIGNER)
    with pytest.raises(ForgedError, match="not a recorder act"):
        read_act(manifest, KEYS)


class Chain:
    """A folder with acts, and hands that tamper with it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir()

    def files(self) -> list[Path]:
        return sorted((self.root / "proof/acts").iterdir())

    def read(self, keys: PublicKeys = KEYS) -> Acts:
        async def read() -> Acts:
            blobs = FolderBlobs(self.root)
            try:
                return await read_acts(blobs, keys)
            finally:
                await blobs.aclose()

        return run(read())

    def fill(self) -> None:
        """A hold that was released, a removal of two, one of which was taken back, and a hold."""

        async def fill() -> None:
            blobs = FolderBlobs(self.root)
            log = ActLog(blobs, KEYS, SIGNER)
            hold = await log.add(Kind.HOLD, [Subject(ONE)], by="ana", body=HASH)
            await log.add(Kind.RELEASE, [Subject(ONE)], by="ana", of=hold.number)
            removal = await log.add(Kind.REMOVAL, [Subject(TWO, "old"), Subject(THREE, "old")], by="retention")
            await log.add(Kind.REVERSAL, [Subject(TWO)], by="retention", of=removal.number)
            await log.add(Kind.HOLD, [Subject(TWO)], by="ana", body=HASH)
            await blobs.aclose()

        run(fill())


@pytest.fixture
def chain(tmp_path: Path) -> Chain:
    chain = Chain(tmp_path / "store")
    chain.fill()
    return chain


def test_what_acts_amount_to(chain: Chain) -> None:
    acts = chain.read()
    assert acts.faults == [] and [act.number for act in acts.believed] == [1, 2, 3, 4, 5]
    assert list(acts.held) == [TWO] and list(acts.released) == [ONE] and list(acts.removed) == [THREE]
    assert acts.last.number == 5 and acts.has(acts.last) and acts.has(NONE) and not acts.has(Anchor(6, HASH))


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_one_that_is_left_out(chain: Chain, number: int) -> None:
    kept = chain.files()[number - 1].read_bytes()
    chain.files()[number - 1].unlink()
    assert f"act {number} is missing" in chain.read().faults
    # Nor can those behind it take its place.
    files = chain.files()[number - 1 :]
    for place, path in enumerate(files, number):
        path.rename(chain.root / act_file(place))
    faults = chain.read().faults
    assert f"the file of act {number} holds act {number + 1}" in faults
    (chain.root / act_file(6)).write_bytes(kept)
    assert f"the file of act 6 holds act {number}" in " ".join(chain.read().faults) or number == 1


def test_two_that_change_places(chain: Chain) -> None:
    third, fourth = chain.files()[2:4]
    kept = third.read_bytes()
    third.write_bytes(fourth.read_bytes())
    fourth.write_bytes(kept)
    assert "the file of act 3 holds act 4" in chain.read().faults


def test_one_that_is_exchanged_for_another_of_its_number(chain: Chain, tmp_path: Path) -> None:
    other = Chain(tmp_path / "other")
    other.fill()
    for number in (1, 3):
        copy = Chain.__new__(Chain)
        copy.root = tmp_path / f"copy{number}"
        shutil.copytree(chain.root, copy.root)
        copy.files()[number - 1].write_bytes(other.files()[number - 1].read_bytes())
        assert any("the chain of acts is broken" in fault for fault in copy.read().faults)


def test_one_that_was_taken_back_is_not_played_again(chain: Chain) -> None:
    """The removal of TWO, cut out of the chain as it was then and put behind it."""
    removal = chain.files()[2].read_bytes()
    (chain.root / act_file(6)).write_bytes(removal)
    acts = chain.read()
    assert TWO not in acts.removed and acts.faults == ["the file of act 6 holds act 3"]
    # With the end of the chain cut off it counts again, and what remembers the end tells.
    for path in chain.files()[3:]:
        path.unlink()
    acts = chain.read()
    assert TWO in acts.removed and not acts.has(Anchor(5, HASH))


def test_forged_and_strange_files(chain: Chain) -> None:
    act = chain.read().believed[2]
    chain.files()[2].write_bytes(write_act(act, Signer.make()))
    acts = chain.read()
    assert any("act 3 is not trusted: it is signed with the key" in fault for fault in acts.faults)
    assert any("the chain of acts is broken at act 4" in fault for fault in acts.faults) and THREE not in acts.removed
    (chain.root / "proof/acts/x.json").write_bytes(b"")
    (chain.root / "proof/acts/6.json").write_bytes(b"")
    (chain.root / "proof/acts/00000000.json").write_bytes(b"")
    assert sum("is not one of the recorder's files" in fault for fault in chain.read().faults) == 3


def test_releases_and_reversals_of_nothing(tmp_path: Path) -> None:
    chain = Chain(tmp_path / "store")

    async def fill() -> None:
        blobs = FolderBlobs(chain.root)
        log = ActLog(blobs, KEYS, SIGNER)
        await log.add(Kind.RELEASE, [Subject(ONE)], by="ana", of=7)
        await log.add(Kind.REVERSAL, [Subject(ONE)], by="ana", of=7)
        await log.add(Kind.RELEASE, [Subject(TWO)], by="ana", body=HASH)  # of an unsigned hold
        await blobs.aclose()

    run(fill())
    assert chain.read().faults == [
        "act 1 releases a hold that does not exist",
        "act 2 reverses a removal that does not exist",
    ]


def test_two_who_end_the_same_do_no_harm(tmp_path: Path) -> None:
    """A recorder and a command beside it may both find that something is held after all, or release it."""
    chain = Chain(tmp_path / "store")

    async def fill() -> None:
        blobs = FolderBlobs(chain.root)
        log = ActLog(blobs, KEYS, SIGNER)
        first = await log.add(Kind.REMOVAL, [Subject(ONE), Subject(TWO)], by="recorder")
        second = await log.add(Kind.REMOVAL, [Subject(ONE)], by="ana")
        for of in (first.number, second.number, second.number, first.number):
            await log.add(Kind.REVERSAL, [Subject(ONE)], by="x", of=of)
        hold = await log.add(Kind.HOLD, [Subject(THREE)], by="ana", body=HASH)
        await log.add(Kind.RELEASE, [Subject(THREE)], by="x", body=HASH)  # by whoever saw it before it was signed
        assert list((await log.read()).held) == [THREE]
        for _ in range(2):
            await log.add(Kind.RELEASE, [Subject(THREE)], by="x", of=hold.number)
        await blobs.aclose()

    run(fill())
    acts = chain.read()
    assert acts.faults == [] and list(acts.removed) == [TWO] and acts.held == {}


def test_what_the_manifests_say() -> None:
    def act(number: int, manifest: int) -> Act:
        sha256 = str(manifest) * 64 if manifest else NOTHING
        return Act(number, HASH, Anchor(manifest, sha256), Kind.REMOVAL, 1.0, "a", "", ())

    def manifest(number: int, head: Anchor | None) -> Manifest:
        return Manifest(number, f"2026-11-0{number}", NOTHING, 1.0, acts=head)

    hashes = {number: str(number) * 64 for number in (1, 2, 3)}
    acts = Acts([act(1, 0), act(2, 1), act(3, 1)], last=Anchor(3, "c" * 64), hashes={1: "a" * 64, 2: "b" * 64})
    acts.hashes[3] = "c" * 64
    first, second = manifest(1, Anchor(1, "a" * 64)), manifest(2, Anchor(2, "b" * 64))
    assert compare(acts, [manifest(1, None)], hashes) == []
    assert compare(acts, [first, second], hashes) == []  # act 3 was signed while day 2 was being sealed
    assert "act 4, the last one when 2026-11-02 was sealed, is missing or was replaced" in compare(
        acts, [manifest(2, Anchor(4, HASH))], hashes
    )
    assert "act 2, the last one when 2026-11-02 was sealed, is missing or was replaced" in compare(
        acts, [manifest(2, Anchor(2, HASH))], hashes
    )
    assert compare(acts, [manifest(1, Anchor(2, "b" * 64))], hashes) == [
        "act 2 is older than the manifest of 2026-11-01, and says that it is newer"
    ]
    assert compare(acts, [first, second, manifest(3, Anchor(2, "b" * 64))], hashes) == [
        "act 3 is newer than the manifest of 2026-11-03, and says that it is older"
    ]
    assert compare(acts, [], {1: "2" * 64}) == [
        f"act {number} was made after manifest 1, which is missing or was replaced" for number in (2, 3)
    ]


@pytest.mark.parametrize("objects", [False, True])
def test_several_who_sign_at_once(tmp_path: Path, objects: bool) -> None:
    async def check() -> None:
        def blobs() -> Blobs:
            return ObjectBlobs(memory, "memory") if objects else FolderBlobs(tmp_path)

        memory = MemoryStore()
        several = [blobs() for _ in range(3)]
        logs = [ActLog(one, KEYS, SIGNER) for one in several]
        made = await asyncio.gather(*(log.add(Kind.HOLD, [Subject(new_id())], by="x", body=HASH) for log in logs * 4))
        assert sorted(act.number for act in made) == list(range(1, 13))
        for log in logs:
            acts = await log.read()
            assert acts.faults == [] and len(acts.held) == 12
        for one in several:
            await one.aclose()

    run(check())


def test_a_log_remembers_what_it_has_read_and_signed(tmp_path: Path) -> None:
    signer, witness = Signer.make(), MemoryWitness()
    keys = PublicKeys([signer.public_key])

    async def check() -> None:
        blobs = FolderBlobs(tmp_path)
        log = ActLog(blobs, keys, signer, witnesses=Witnesses([witness]))
        for number in (1, 2, 3):
            await log.add(Kind.HOLD, [Subject(new_id())], by="x", body=HASH)
            assert witness.heads[CHAIN] == (await log.read()).last and (await log.read()).last.number == number
        kept = (tmp_path / act_file(3)).read_bytes()
        (tmp_path / act_file(3)).unlink()
        # In memory, by the anchor, and by both after a restart.
        assert (await log.read()).faults == ["act 3 existed before and is missing now"]
        assert (await ActLog(blobs, keys, signer, witnesses=Witnesses([witness])).read()).faults == [
            "act 3, which the anchor remembers, is missing or was replaced"
        ]
        # What is signed then does not take the place of the memory.
        await ActLog(blobs, keys, signer, witnesses=Witnesses([witness])).add(
            Kind.HOLD, [Subject(ONE)], by="x", body=HASH
        )
        assert witness.heads[CHAIN] == Anchor(3, digest(kept))
        (tmp_path / act_file(3)).write_bytes(kept)
        (tmp_path / act_file(2)).unlink()
        fresh = ActLog(blobs, keys, signer)
        assert "act 2 is missing" in (await fresh.read()).faults
        (tmp_path / act_file(2)).write_bytes(kept)
        assert "act 2 was added after the acts that follow it" in (await fresh.read()).faults
        with pytest.raises(KeyFault, match="no key to sign with"):
            await ActLog(blobs, keys).add(Kind.HOLD, [Subject(ONE)], by="x", body=HASH)
        await blobs.aclose()

    run(check())


def test_an_act_names_the_last_manifest(tmp_path: Path) -> None:
    async def check() -> None:
        blobs = FolderBlobs(tmp_path)
        log = ActLog(blobs, KEYS, SIGNER)
        assert (await log.add(Kind.HOLD, [Subject(ONE)], by="x", body=HASH)).manifest == NONE
        await blobs.put("proof/days/2026-11-01.json", write_manifest(Manifest(1, "2026-11-01", NOTHING, 1.0), SIGNER))
        await blobs.put("proof/days/2026-11-02.json", b"nonsense")
        act = await log.add(Kind.HOLD, [Subject(TWO)], by="x", body=HASH)
        assert act.manifest == Anchor(1, (await read_chain(blobs, KEYS)).hashes[1])
        await blobs.aclose()

    run(check())


def test_a_key_that_has_handed_over_signs_no_more_acts(tmp_path: Path) -> None:
    """It signs what it has signed, up to the hand-over, and the new one all that follows."""
    new = Signer.make()
    keys = PublicKeys([SIGNER.public_key, new.public_key], new.id)

    async def check() -> None:
        blobs = FolderBlobs(tmp_path)
        await ActLog(blobs, KEYS, SIGNER).add(Kind.REMOVAL, [Subject(ONE)], by="x")
        head = (await ActLog(blobs, KEYS, SIGNER).read()).last
        history = KeyHistory()
        history.signed(SIGNER.id, "acts", 1)
        await hand_over(blobs, history, SIGNER, new, {"acts": head}, at=1.0)
        await ActLog(blobs, keys, new).add(Kind.REMOVAL, [Subject(TWO)], by="x")
        acts = await ActLog(blobs, keys).read()
        assert acts.faults == [] and set(acts.removed) == {ONE, TWO}
        # By mistake it signs nothing, whatever keys whoever has it knows; with intent it does, and that does not count.
        for known in ([SIGNER.public_key, new.public_key], [SIGNER.public_key]):
            with pytest.raises(KeyFault):
                await ActLog(blobs, PublicKeys(known), SIGNER).add(Kind.REMOVAL, [Subject(THREE)], by="x")
        forged = Act(3, acts.last.sha256, NONE, Kind.REMOVAL, 1.0, "x", "", (Subject(THREE),))
        await blobs.put(act_file(3), write_act(forged, SIGNER))
        acts = await ActLog(blobs, keys).read()
        assert THREE not in acts.removed
        assert acts.faults == [
            f"act 3 is not trusted: it is signed with the key {SIGNER.id}, which was not the current key then"
        ]
        await blobs.aclose()

    run(check())


def test_acts_behind_a_chain_that_was_cut_do_not_become_the_anchor(tmp_path: Path) -> None:
    """The memory of what is gone is the evidence of it, also when the new chain has grown longer than the old one."""
    witness = MemoryWitness()

    async def check() -> None:
        blobs = FolderBlobs(tmp_path)
        log = ActLog(blobs, KEYS, SIGNER, witnesses=Witnesses([witness]))
        for name in (ONE, TWO):
            await log.add(Kind.REMOVAL, [Subject(name)], by="x")
        before = dict(witness.heads)
        (tmp_path / act_file(2)).unlink()
        log = ActLog(blobs, KEYS, SIGNER, witnesses=Witnesses([witness]))
        for _ in range(3):
            await log.add(Kind.REMOVAL, [Subject(THREE)], by="x")
        assert witness.heads == before
        assert "act 2, which the anchor remembers, is missing or was replaced" in (await log.read()).faults
        await blobs.aclose()

    run(check())


@pytest.mark.parametrize("signed", ["manifests", "register", "acts"])
def test_the_next_key_signs_no_act_before_the_hand_over(tmp_path: Path, signed: str) -> None:
    """The configuration has it already, and the recorder has not started with it or cannot hand over. An act by it
    would be one of before it was in force, a fault for ever."""
    stage = Stage(tmp_path / "store")

    async def check() -> None:
        if signed == "acts":
            stage.root.mkdir()
            blobs = stage.blobs()
            await ActLog(blobs, PublicKeys([stage.signer.public_key]), stage.signer).add(
                Kind.REMOVAL, [Subject(ONE)], by="x"
            )
        else:
            await stage.fill(1)
            blobs = stage.blobs()
        if signed == "manifests":
            await stage.seal()
        old, stage.signer = stage.signer, Signer.make()
        both = PublicKeys([old.public_key, stage.signer.public_key], stage.signer.id)
        for keys in (both, PublicKeys([stage.signer.public_key], stage.signer.id)):
            with pytest.raises(KeyFault, match=r"not the current key|not among those given"):
                await ActLog(blobs, keys, stage.signer).add(Kind.REMOVAL, [Subject(TWO)], by="x")
        async with stage.store(both, previous=old) as store:
            await stage.record(store)
            await stage.settled(store)
        await ActLog(blobs, both, stage.signer).add(Kind.REMOVAL, [Subject(TWO)], by="x")
        report = await stage.verify(both)
        assert report.well, report.faults
        await blobs.aclose()

    run(check())


def test_acts_that_were_read_before_the_hand_over_are_judged_anew_after_it(tmp_path: Path) -> None:
    """A recorder that starts with the next key reads holds while it hands over."""
    new = Signer.make()
    keys = PublicKeys([SIGNER.public_key, new.public_key], new.id)

    async def check() -> None:
        blobs = FolderBlobs(tmp_path)
        await ActLog(blobs, KEYS, SIGNER).add(Kind.HOLD, [Subject(ONE)], by="x", body=HASH)
        log = ActLog(blobs, keys, new)
        assert (await log.read()).faults
        await Register(blobs, new, keys=keys, previous=SIGNER).open()
        acts = await log.read()
        assert acts.faults == [] and list(acts.held) == [ONE]
        # What was read before is not forgotten for that.
        third = Signer.make()
        all_keys = PublicKeys([SIGNER.public_key, new.public_key, third.public_key], third.id)
        log = ActLog(blobs, all_keys, third)
        await log.read()
        await Register(blobs, third, keys=all_keys, previous=new).open()
        (tmp_path / act_file(1)).unlink()
        assert "act 1 existed before and is missing now" in (await log.read()).faults
        await blobs.aclose()

    run(check())


def test_a_key_that_has_signed_nothing_but_acts_hands_over_too(tmp_path: Path) -> None:
    """As in a new store, where somebody has placed a hold and nobody has recorded anything."""
    new = Signer.make()
    keys = PublicKeys([SIGNER.public_key, new.public_key])

    async def check() -> None:
        blobs = FolderBlobs(tmp_path)
        await ActLog(blobs, KEYS, SIGNER).add(Kind.HOLD, [Subject(ONE)], by="x", body=HASH)
        with pytest.raises(KeyFault, match="has not handed over"):
            await Register(blobs, new, keys=keys).open()
        await Register(blobs, new, keys=keys, previous=SIGNER).open()
        log = ActLog(blobs, keys.with_own(new.id), new)
        hold = await log.read()
        assert hold.faults == [] and list(hold.held) == [ONE]
        await log.add(Kind.RELEASE, [Subject(ONE)], by="x", of=1)
        acts = await log.read()
        assert acts.faults == [] and acts.held == {}
        await blobs.aclose()

    run(check())
