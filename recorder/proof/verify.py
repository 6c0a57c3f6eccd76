"""Is everything there, as it was sealed? Reads manifests, then every byte that they speak of.

Nothing but the public keys is trusted: what recording.json says of a sealed recording does not count, only whether its
bytes are those of the manifest. Of what is not sealed yet it is told whether it hangs together by itself, which finds
accidents and proves nothing. Needs no running recorder and, for what is encrypted, no key.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Sequence

from recorder.crypt import stored
from recorder.model import id_day, id_time, is_id
from recorder.proof.acts import HOLDS, Acts, Kind, compare, read_acts
from recorder.proof.chain import Chain
from recorder.proof.days import day_end, day_of, is_day
from recorder.proof.documents import CHUNKS, UNSIGNED, Part, Sealed, chunks
from recorder.proof.handover import KeyHistory
from recorder.proof.keys import KeyFault, PublicKeys
from recorder.proof.parts import Looked, hash_of, look
from recorder.proof.registers import Registers, holder, read_both
from recorder.proof.removal import Removed, old_removals, removals, removals_of
from recorder.proof.report import ActsReport, Finding, Progress, Report, Status
from recorder.proof.sealer import DELAY
from recorder.proof.signed import digest
from recorder.proof.standing import ORIGINS, SIGNING, lateness, listed, unlisted
from recorder.proof.witness import Heads, Witness, missing
from recorder.store.blobs import Blobs
from recorder.store.manifest import MANIFEST, folder

# Recordings looked at together: a request to an object store waits most of its time.
_TOGETHER = 4
# Seconds after which a day that is over should be sealed: the sealer's delay, and a day in which it may be down.
_OVERDUE = DELAY + 86400


# Seconds after its day from which on a manifest was sealed late, and that is told: the recorder was down, or somebody
# with the key has sealed the day anew.
_LATE = 7 * 86400.0
# Seconds that the signature of a chunk of events may take, from its first event on: it waits for some thousand.
_PUTTING = 86400.0


class Verifier:
    """One check. blobs: with their decryption, if there is one. witnesses: what the store must have, by their memory.
    now: unix seconds."""

    def __init__(
        self, blobs: Blobs, keys: PublicKeys, *, witnesses: Sequence[Witness] = (), now: float | None = None
    ) -> None:
        self._blobs = blobs
        self._raw = stored(blobs)
        self._keys = keys
        self._witnesses = tuple(witnesses)
        self._now = time.time() if now is None else now
        self._registers = Registers()
        self._history = KeyHistory()
        self._sealed: dict[str, tuple[Sealed, str]] = {}
        self._chunks: dict[str, tuple[Part, str]] = {}  # by their keys in the store
        self._removals: dict[str, Removed] = {}
        self._details: dict[str, str] = {}
        self._unsigned: set[str] = set()

    async def run(
        self, *, day: str = "", identifier: str = "", progress: Progress = lambda done, total: None
    ) -> Report:
        """All, or what the manifest of a day lists or has not listed, or one recording. Raises StoreError, and
        KeyError for a recording of which nothing is known."""
        # Before the store is read: what is signed meanwhile is no fault.
        remembered = [(witness, await _recall(witness)) for witness in self._witnesses]
        chain, self._registers = await read_both(self._raw, self._keys)
        self._history = chain.keys
        report = Report(
            faults=[*chain.faults, *self._registers.faults],
            manifests=len(chain.hashes),
            first_day=chain.first_day,
            last_day=chain.last_day,
            last=chain.last,
        )
        report.notes += _notes(chain, self._registers)
        acts = await read_acts(self._raw, self._keys, history=chain.keys)
        await self._compare(remembered, chain, acts, report)
        self._remember(chain, report)
        await self._look_at_acts(acts, chain, report)
        wanted = [identifier] if identifier else await self._identifiers(chain, day)
        events = [] if identifier else await self._chunk_names(day)
        total, done = len(wanted) + len(events), 0
        progress(0, total)
        for start in range(0, total, _TOGETHER):
            names = (wanted + events)[start : start + _TOGETHER]
            found = await asyncio.gather(*(self._judge(name, chain) for name in names))
            report.findings += [finding for finding in found if finding is not None]
            done += len(names)
            progress(done, total)
        if identifier and not report.findings:
            raise KeyError(identifier)
        self._complain_of_gap(chain, report)
        return report

    async def _compare(
        self, remembered: Sequence[tuple[Witness, Heads | str]], chain: Chain, acts: Acts, report: Report
    ) -> None:
        holds = holder(chain, self._registers, acts.has)
        if not self._witnesses:
            report.anchors.append("not compared with an anchor: a chain whose end was cut off is not noticed")
        sealed = {one.number: (one.sealed, chain.hashes[one.number]) for one in chain.manifests}
        for one, heads in remembered:
            witness = one.name
            wrong, reach = await one.examine(sealed)
            report.faults += wrong
            if isinstance(heads, str):
                report.anchors.append(f"not compared with {witness}: {heads}")
                report.faults.append(f"the anchor cannot be read: {heads}")
                continue
            if not heads:
                report.anchors.append(f"not compared with {witness}: it remembers nothing")
                if chain.hashes or (self._registers.there and not one.only):
                    report.faults.append(f"the anchor is empty, and the store has signed chains: {witness}")
                continue
            faults = [missing(name, head) for name, head in sorted(heads.items()) if not holds(name, head)]
            told = ", ".join(f"{name} {head.number}" for name, head in sorted(heads.items()))
            report.anchors.append(f"{'does not match' if faults else 'compared with'} {witness}: {told}{reach}")
            report.faults += faults

    def _remember(self, chain: Chain, report: Report) -> None:
        for manifest in chain.manifests:
            for sealed in manifest.recordings:
                if sealed.id in self._sealed:
                    report.faults.append(f"{sealed.id} is sealed twice, the second time on {manifest.day}")
                else:
                    self._sealed[sealed.id] = (sealed, manifest.day)
                    if detail := lateness(sealed, manifest):
                        self._details[sealed.id] = detail
            self._unsigned |= set(manifest.unsigned)
            for name, part in chunks(manifest):
                self._chunks.setdefault(name, (part, manifest.day))
        for sealed in self._registers.recordings.values():
            self._sealed.setdefault(sealed.id, (sealed, ""))
        for name, part in self._registers.chunks.items():
            self._chunks.setdefault(name, (part, ""))

    async def _look_at_acts(self, acts: Acts, chain: Chain, report: Report) -> None:
        self._removals = removals(chain, acts)
        report.faults += [*acts.faults, *compare(acts, chain.manifests, chain.hashes), *old_removals(chain, acts)[1]]
        told = report.acts = ActsReport(count=len(acts.hashes), last=acts.last if acts.last.number else None)
        for act in acts.believed:
            told.releases += act.kind is Kind.RELEASE
            told.removals += len(act.subjects) if act.kind is Kind.REMOVAL else 0
            told.reversals += len(act.subjects) if act.kind is Kind.REVERSAL else 0
        await self._look_at_holds(acts, report)

    async def _look_at_holds(self, acts: Acts, report: Report) -> None:
        names = {name.removesuffix(".json") async for name, _ in self._raw.names(HOLDS)}
        for name, act in sorted(acts.held.items()):
            who = f"the hold {name} by {act.by} of {day_of(act.at)}"
            try:
                data = await self._raw.get(f"{HOLDS}/{name}.json")
            except KeyError:
                # Released since this check began, perhaps.
                if name in (await read_acts(self._raw, self._keys, history=self._history)).held:
                    report.faults.append(f"{who} was signed, and its file is missing")
                continue
            report.acts.holds += 1
            if digest(data) != act.body:
                report.faults.append(f"{who} is not what was signed")
        for name in names - set(acts.held):
            placed, release = acts.released.get(name, (None, None))
            body = placed.body if placed is not None else release.body if release is not None else ""
            try:
                report.acts.unsigned += digest(await self._raw.get(f"{HOLDS}/{name}.json")) != body
            except (KeyError, ValueError):
                continue

    async def _identifiers(self, chain: Chain, day: str) -> list[str]:
        found = {
            name
            for name, (_, its) in self._sealed.items()
            if not day or its == day or (not its and id_day(name) <= day)
        }
        # Those of sessions that never were sealed, too.
        found |= {name for name in self._removals if is_id(name) and (not day or id_day(name) == day)}
        async for name in self._folders("recordings"):
            if is_id(name) and name not in self._sealed and (not day or id_day(name) <= day):
                found.add(name)
        return sorted(found)

    async def _chunk_names(self, day: str) -> list[str]:
        found = {
            name
            for name, (_, its) in self._chunks.items()
            if not day or its == day or (not its and name.split("/")[1] == day)
        }
        # Nobody knows which chunks a day had that went before it was sealed.
        days = {name.rpartition("/")[0] for name in self._chunks}
        removed = (name.replace(" ", "/") for name in self._removals if not is_id(name))
        found |= {f"{its}/" for its in removed if its not in days and (not day or its == f"events/{day}")}
        for top in CHUNKS:
            for its_day in [name.rstrip("/") async for name, _ in self._raw.names(top)]:
                if is_day(its_day) and (not day or its_day == day):
                    found |= {f"{top}/{its_day}/{name}" async for name, _ in self._raw.names(f"{top}/{its_day}")}
        return sorted(found)

    async def _folders(self, top: str) -> AsyncIterator[str]:
        for day in [name.rstrip("/") async for name, _ in self._raw.names(top)]:
            if not is_day(day):
                continue
            async for name, _ in self._raw.names(f"{top}/{day}"):
                # One that stands under another day than its own is nowhere, for whoever reads by id.
                if not is_id(name.rstrip("/")) or id_day(name.rstrip("/")) == day:
                    yield name.rstrip("/")

    # -- one thing

    async def _judge(self, name: str, chain: Chain) -> Finding | None:
        if "/" in name:
            return await self._judge_chunk(name, chain)
        known = self._sealed.get(name)
        if known is not None:
            status, detail = await self._judge_sealed(known[0])
            if status is Status.OK:
                detail = self._details.get(name, ORIGINS.get(known[0].origin, ""))
                status = listed(known[0].origin, known[1], detail)
            return Finding(name, status, detail, known[1])
        if name in self._removals:
            return Finding(name, *await self._judge_removed(name, self._removals[name]))
        looked = await look(self._blobs, name)
        if not looked.parts and not looked.fault:
            return None
        return Finding(name, *self._judge_unsealed(name, looked, chain))

    async def _judge_removed(self, name: str, removed: Removed) -> tuple[Status, str]:
        """One that no manifest and no register lists. recording.json goes first: one that is there is of a removal that
        is not begun, or was put there after it."""
        left = [left async for left, _ in self._raw.names(folder(name))]
        if MANIFEST in left and not removed.fault:
            looked = await look(self._blobs, name)
            content = next((part.sha256 for part in looked.parts if part.name == MANIFEST), "")
            if looked.fault or content != removed.content:
                return (
                    Status.UNKNOWN,
                    f"{_removed(removed, False)}; but the files that are there differ from those that were removed",
                )
        return Status.REMOVED, _removed(removed, bool(left))

    async def _judge_sealed(self, sealed: Sealed) -> tuple[Status, str]:
        prefix = folder(sealed.id)
        there = {name: size async for name, size in self._raw.names(prefix)}
        removal = self._removals.get(sealed.id)
        if not there and removal is None:  # since this check began, perhaps
            removal = removals_of(await read_acts(self._raw, self._keys, history=self._history)).get(sealed.id)
        if not there or (removal is not None and MANIFEST not in there):
            if removal is not None and not _is_of(removal, sealed):
                return (
                    Status.MISSING,
                    f"{_removed(removal, bool(there))}; but the files that were removed differ from those that were "
                    "sealed",
                )
            if removal is not None:
                return Status.REMOVED, _removed(removal, bool(there))
            return Status.MISSING, f"sealed with {len(sealed.parts)} parts"
        parts = {part.name: part for part in sealed.parts}
        missing = [part.name for part in sealed.parts if part.name not in there]
        short = [part.name for part in sealed.parts if there.get(part.name, part.size) < part.size]
        changed = [name for name in parts if name in there and name not in short and not await self._same(sealed, name)]
        extra = sorted(set(there) - set(parts))
        if changed:
            return Status.CHANGED, _name(changed[0], "is not what was sealed", len(changed) - 1)
        if missing and not _are_last(missing, sealed.parts):
            return Status.CHANGED, _name(missing[0], "is missing", len(missing) - 1)
        if missing:
            return Status.CUT, _name(missing[0], "is missing", len(missing) - 1)
        if short:
            return Status.CUT, _name(short[0], "is shorter than before", len(short) - 1)
        if extra:
            return Status.CHANGED, _name(extra[0], "was not there when it was sealed", len(extra) - 1)
        if sealed.fault:
            cut = "missing" in sealed.fault or "torn" in sealed.fault
            return (Status.CUT if cut else Status.CHANGED), f"already when it was sealed: {sealed.fault}"
        if removal is not None:
            return Status.REMOVED, _removed(removal, True)
        return Status.OK, ""

    async def _same(self, sealed: Sealed, name: str) -> bool:
        wanted = next(part for part in sealed.parts if part.name == name)
        try:
            data = await self._raw.get(f"{folder(sealed.id)}/{name}")
        except KeyError:
            return False
        return len(data) == wanted.size and await hash_of(data) == wanted.sha256

    def _judge_unsealed(self, name: str, looked: Looked, chain: Chain) -> tuple[Status, str]:
        if looked.fault:
            return (Status.CUT if looked.cut else Status.CHANGED), f"not sealed yet; {looked.fault}"
        recording = looked.recording
        if recording is None or recording.ended is None:
            if looked.readable and not any(part.name == MANIFEST for part in looked.parts):
                return Status.OPEN, ""
            if not looked.readable and self._registers.there and self._now - id_time(name) > SIGNING:
                over = any(part.name == MANIFEST for part in looked.parts)
                return (Status.UNKNOWN, ORIGINS[UNSIGNED]) if over else (Status.OPEN, "")
            # Encrypted, and the key is not here: by its id alone it is at least as old as this.
            late = id_day(name) < chain.last_day
            return Status.UNSEALED, "encrypted, so it may belong to a sealed day" if late else ""
        signs = self._registers.there
        return unlisted(name, recording.ended, last_day=chain.last_day, signs=signs, now=self._now)

    async def _judge_chunk(self, name: str, chain: Chain) -> Finding | None:
        top, day, file = name.split("/", 2)
        removal = self._removals.get(f"{top} {day}")
        known = self._chunks.get(name)
        if known is None and not name.endswith("/") and not is_id(file.removesuffix(".chunk")):
            return Finding(ascii(name).strip("'"), Status.UNKNOWN, "it is not one of the recorder's files")
        if name.endswith("/"):
            left = [left async for left, _ in self._raw.names(name.removesuffix("/"))]
            if removal is None or left:
                return None  # its chunks are told one by one
            return Finding(name.removesuffix("/"), Status.REMOVED, _removed(removal, False))
        try:
            data = await self._raw.get(name)
        except KeyError:
            if removal is not None:
                return Finding(name, Status.REMOVED, _removed(removal, False), known[1] if known else "")
            return Finding(name, Status.MISSING, "", known[1]) if known else None
        if known is None:
            if removal is not None:
                return Finding(name, Status.REMOVED, _removed(removal, True))
            if chain.last_day and day <= chain.last_day:
                return Finding(name, Status.UNKNOWN, "its day is sealed without it")
            patience = _PUTTING if top == "events" else SIGNING
            if self._registers.there and self._now - id_time(file.removesuffix(".chunk")) > patience:
                return Finding(name, Status.UNKNOWN, ORIGINS[UNSIGNED])
            return Finding(name, Status.UNSEALED)
        part, its_day = known
        if len(data) < part.size:
            return Finding(name, Status.CUT, "it is shorter than before", its_day)
        if await hash_of(data) != part.sha256:
            return Finding(name, Status.CHANGED, "it is not what was sealed", its_day)
        if name in self._unsigned:
            return Finding(name, Status.UNKNOWN, ORIGINS[UNSIGNED], its_day)
        return Finding(name, Status.OK if its_day else Status.UNSEALED, "", its_day)

    def _complain_of_gap(self, chain: Chain, report: Report) -> None:
        """The end of the chain may be missing as well, which no manifest tells."""
        if not any(finding.status is Status.UNSEALED for finding in report.findings):
            return
        overdue = day_of(self._now - _OVERDUE - 86400)
        oldest = min(_day(finding.id) for finding in report.findings if finding.status is Status.UNSEALED)
        after = chain.last_day or ""
        if max(after, oldest) < overdue:
            since = f"since {after}" if after else "at all"
            report.faults.append(f"no day was sealed {since}: manifests are missing, or no recorder seals")


async def _recall(witness: Witness) -> Heads | str:
    """What it remembers, or why it cannot tell."""
    try:
        return await witness.recall()
    except KeyFault as error:
        return str(error)


def _notes(chain: Chain, registers: Registers) -> list[str]:
    """What operators have accepted, for whoever checks."""
    notes = [
        f"on {day_of(one.at)} the key {one.new} took over from {one.old} without its signature: {one.reason}"
        for one in chain.keys.handovers
        if one.reason
    ]
    late = [one for one in chain.manifests if one.sealed - day_end(one.day) > _LATE]
    if late:
        days = late[0].day if len(late) == 1 else f"{late[0].day} to {late[-1].day} ({len(late)} of them)"
        notes.append(
            f"the manifests of {days} were sealed more than a week later, the last on {day_of(late[-1].sealed)}"
        )
    every = [accepted for manifest in chain.manifests for accepted in manifest.accepted]
    for accepted in [*every, *(one for one in registers.accepted if one not in every)]:
        lost = ", ".join(f"{name} up to {head.number}" for name, head in sorted(accepted.lost.items()))
        what = f"without what the anchor remembered ({lost})" if lost else "as it was, without an anchor"
        notes.append(f"on {day_of(accepted.at)} {accepted.by} accepted the store {what}: {accepted.reason}")
    return notes


def _day(name: str) -> str:
    return name.split("/")[1] if "/" in name else id_day(name)


def _are_last(missing: Iterable[str], parts: tuple[Part, ...]) -> bool:
    """Whether they are the last chunks, and nothing else."""
    chunks = sorted(part.name for part in parts if part.name.endswith(".chunk"))
    gone = sorted(missing)
    return MANIFEST not in gone and gone == chunks[len(chunks) - len(gone) :]


def _name(part: str, what: str, others: int) -> str:
    known = part.removesuffix(".chunk")
    # A name that is none of ours was made up by somebody.
    name = f"chunk {int(known)}" if known.isascii() and known.isdigit() and part != known else ascii(part).strip("'")
    return f"{name} {what}" + (f", and {others} more" if others else "")


def _is_of(removed: Removed, sealed: Sealed) -> bool:
    """Whether a removal says that it is of what was sealed, or says openly that it is not."""
    content = next((part.sha256 for part in sealed.parts if part.name == MANIFEST), "")
    return removed.content in ("", content) or bool(removed.fault)


def _removed(removed: Removed, left: bool) -> str:
    removal = removed.removal
    text = f"{day_of(removal.at)} by {removal.by}: {removal.why}"
    if removed.fault:
        text += f"; it differed from what was sealed, which was known: {removed.fault}"
    return text + "; not all of its files are removed yet" if left else text


__all__ = ["Verifier"]
