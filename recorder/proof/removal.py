"""A removal: written down and signed before the bytes go, so that nobody can say afterwards that it was one.

    1  an act of removal is signed (acts.py); it may name many
    2  the bytes go, one after the other
    3  what was held meanwhile, and is still whole, is not removed: an act of reversal names it

A crash behind 1 leaves a removal whose bytes are still there: `unfinished` finds those, and whoever removes goes on
with them first. Without a key nothing is written down, and there is only step 2.

Before there were acts, a removal was a file proof/removals/SUBJECT.json, which the next manifest listed. A file could
be put back after its removal had been taken back, and so it counts only in a store that has not been told of acts yet:
one without acts, and without a manifest that names one. `take_over` makes one act of all that count.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from recorder.crypt import stored
from recorder.model import id_day
from recorder.proof.actlog import ActLog
from recorder.proof.acts import Acts, Kind, Subject
from recorder.proof.chain import Chain
from recorder.proof.days import day_of, is_day
from recorder.proof.documents import Removal, removal_file
from recorder.store.blobs import Blobs
from recorder.store.manifest import MANIFEST, folder
from recorder.store.store import Store


@dataclass(frozen=True, slots=True)
class Removed:
    """A removal that counts. number: of its act, 0 where it is from before there were acts. content, fault: see
    Subject."""

    removal: Removal
    number: int = 0
    content: str = ""
    fault: str = ""


def removals(chain: Chain, acts: Acts) -> dict[str, Removed]:
    """All that count, by subject."""
    found = {removal.subject: Removed(removal) for manifest in chain.manifests for removal in manifest.removals}
    found |= {subject: Removed(removal) for subject, removal in old_removals(chain, acts)[0].items()}
    return found | removals_of(acts)


def removals_of(acts: Acts) -> dict[str, Removed]:
    """Those of acts."""
    return {
        name: Removed(Removal(name, act.at, act.by, subject.why), act.number, subject.content, subject.fault)
        for name, (act, subject) in acts.removed.items()
    }


def old_removals(chain: Chain, acts: Acts) -> tuple[dict[str, Removal], list[str]]:
    """The files of before that count, and what is wrong with others. One that a manifest or an act has taken over is
    merely left over."""
    listed = {removal.subject for manifest in chain.manifests for removal in manifest.removals}
    listed |= {subject.name for act in acts.believed if act.kind is Kind.REMOVAL for subject in act.subjects}
    files = {subject: removal for subject, removal in chain.removals.items() if subject not in listed}
    if acts.last.number == 0 and all(manifest.acts is None for manifest in chain.manifests):
        return files, []
    return {}, [
        f"the removal of {subject} is a file of before there were acts, and counts no more" for subject in files
    ]


async def take_over(store: Store, log: ActLog, chain: Chain, acts: Acts) -> bool:
    """Make an act of the removals of before that count, and let go of their files. Whether there were any. Raises
    StoreError, KeyFault."""
    files, faults = old_removals(chain, acts)
    if files:
        subjects = [
            Subject(removal.subject, f"{removal.why} ({removal.by}, {day_of(removal.at)})")
            for removal in files.values()
        ]
        await log.add(Kind.REMOVAL, subjects, by="recorder", why="signed before there were acts")
    if chain.removals and not faults:
        await stored(store.blobs).delete([removal_file(subject) for subject in chain.removals])
    return bool(files)


async def finish(store: Store, subject: str) -> None:
    """Remove the bytes of a removal that is written down. Raises StoreError."""
    prefix = subject_folder(subject)
    if not subject.startswith("events "):
        try:
            # The store's own way: its journal must not bring it back, and its observers are told.
            await store.remove(subject)
        except KeyError:  # a crash left only parts of it, which are no recording any more
            for observer in store.observers:
                observer.removed(subject)
    raw = stored(store.blobs)
    names = [name async for name, _ in raw.names(prefix) if not name.endswith("/")]
    names.sort(key=lambda name: name != MANIFEST)
    await raw.delete([f"{prefix}/{name}" for name in names])
    if subject.startswith("events "):
        for observer in store.observers:
            observer.removed(subject)


async def unfinished(blobs: Blobs, removed: Mapping[str, Removed], known: set[str]) -> list[Removed]:
    """Those whose bytes are there. known: subjects that were found to be gone before, and are not looked for; those
    found to be gone now are added. Raises StoreError."""
    raw = stored(blobs)
    wanted = [subject for subject in removed if subject not in known]
    days: dict[str, set[str]] = {}
    for day in {id_day(subject) for subject in wanted if " " not in subject}:
        days[day] = {name.rstrip("/") async for name, _ in raw.names(f"recordings/{day}")}
    event_days = {name.rstrip("/") async for name, _ in raw.names("events")} if wanted else set()
    found = []
    for subject in wanted:
        day = subject.removeprefix("events ")
        if (day in event_days) if " " in subject else (subject in days[id_day(subject)]):
            found.append(removed[subject])
        else:
            known.add(subject)
    return found


async def has_bytes(raw: Blobs, subject: str) -> bool:
    """Whether something of it is there. Raises StoreError, ValueError for no subject."""
    return bool([name async for name, _ in raw.names(subject_folder(subject))])


def subject_folder(subject: str) -> str:
    """Where the bytes of a removal's subject are. Raises ValueError for what is none."""
    kind, _, day = subject.partition(" ")
    if kind == "events" and is_day(day):
        return f"events/{day}"
    return folder(subject)


def bare(subjects: Iterable[Subject]) -> list[Subject]:
    """The same by name alone, as a reversal has them."""
    return [replace(subject, why="", content="", fault="") for subject in subjects]
