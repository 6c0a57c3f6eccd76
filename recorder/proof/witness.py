"""Witnesses: a memory, outside of the store, of how far each signed chain had come. Together they are the anchor.

What is signed proves that nothing in it was changed. That the end of a chain was cut off, or that the whole store was
taken back to yesterday, is told by nothing in the store itself. So after each signature the number and hash of the last
one go to a place that whoever writes the store cannot write: a folder on another volume, a ConfigMap, a time stamp
service. The anchor depends on no key: a new key finds it as the old one left it.

    compare     at the start: everything that the witnesses remember must be in the store
    remember    after each signature, as long as the chain is what was remembered: else the memory would be lost

A number never becomes smaller. Chains: "manifests", "acts", "register NAME" (recorder/proof/handover.py).
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import structlog

from recorder.proof.handover import MANIFESTS
from recorder.proof.keys import Anchor, KeyFault, write_file
from recorder.store.blobs import make_folder

_log = structlog.get_logger(__name__)

_ANCHOR = re.compile(r"(\d{1,12}) ([0-9a-f]{64})\n?\Z", re.ASCII)
_FILE = re.compile(r"[a-z0-9][a-z0-9.-]{0,80}\Z")
# Bytes of a file: one of ours has 78.
_MAX_FILE = 4096

Heads = dict[str, Anchor]  # by chain


class Witness(Protocol):
    """One place. name: for people, "folder /var/lib/anchor". pause: seconds between two things that it is told while a
    register grows; what comes meanwhile is told with the next. only: the one chain that it can keep, "" for all."""

    name: str
    pause: float
    only: str

    async def recall(self) -> Heads:
        """What is remembered; nothing where nothing was. Raises KeyFault where that cannot be told."""

    async def remember(self, chain: str, head: Anchor) -> None:
        """Keep it for good, unless a higher number is kept: somebody else may have told that meanwhile. Raises
        KeyFault."""

    async def begin(self, chain: str, head: Anchor) -> None:
        """Keep it in place of whatever is kept, on an operator's word. Raises KeyFault."""

    async def examine(self, manifests: Mapping[int, tuple[float, str]]) -> tuple[list[str], str]:
        """What it knows against the manifests of a store besides their end: a sentence each, and what whoever checks
        should know of how far that reaches, "" for nothing. manifests: when each says that it was sealed (unix
        seconds), and the hash of its file, by number."""

    async def aclose(self) -> None:
        """Let go of connections."""


def write_anchor(anchor: Anchor) -> str:
    """An anchor as text: its number, a space, its hash, a line feed."""
    return f"{anchor.number} {anchor.sha256}\n"


def parse_anchor(text: str, name: str) -> Anchor:
    """The same back. name: for the message. Raises KeyFault."""
    match = _ANCHOR.match(text)
    if match is None:
        raise KeyFault(f"{name}: is not an anchor")
    return Anchor(int(match[1]), match[2])


def file_name(chain: str) -> str:
    """What a chain is called where a name has no spaces."""
    return chain.replace(" ", ".")


def chain_name(name: str) -> str:
    """The same back."""
    return name.replace(".", " ", 1)


class FolderWitness:
    """A folder with a file for each chain, which is made where it is not there. old: a folder where recorders of before
    kept the anchor beside their key, as KEY.anchor; what stands there counts as long as nothing newer does."""

    def __init__(self, path: Path, old: Path | None = None) -> None:
        self.only = ""
        self.pause = 0.0
        self.path = path
        self.name = f"folder {path}"
        self._old = old
        self._made = False

    async def recall(self) -> Heads:
        """See Witness."""
        return await asyncio.to_thread(self._recall)

    def _recall(self) -> Heads:
        heads: Heads = {}
        try:
            self._made = self.path.is_dir()
            for entry in sorted(os.listdir(self.path)) if self._made else []:
                if _FILE.match(entry):
                    heads[chain_name(entry)] = read_anchor(self.path / entry)
        except OSError as error:
            raise KeyFault(f"{self.path}: cannot be read: {error.strerror}") from None
        if MANIFESTS not in heads and self._old is not None and (old := read_old_anchor(self._old)) is not None:
            heads[MANIFESTS] = old
        return heads

    async def remember(self, chain: str, head: Anchor) -> None:
        """See Witness."""
        await asyncio.to_thread(self._remember, chain, head)

    def _remember(self, chain: str, head: Anchor) -> None:
        path = self.path / file_name(chain)
        if not os.path.exists(path) or read_anchor(path).number < head.number:
            self._write(chain, head)

    async def begin(self, chain: str, head: Anchor) -> None:
        """See Witness."""
        await asyncio.to_thread(self._write, chain, head)

    def _write(self, chain: str, head: Anchor) -> None:
        try:
            if not self._made:  # one that is gone by now was a mount: its place must not be filled instead
                make_folder(self.path)
                self._made = True
            write_file(self.path / file_name(chain), write_anchor(head).encode(), 0o644)
        except OSError as error:
            raise KeyFault(f"{self.path}: cannot be written: {error.strerror}") from None

    async def examine(self, manifests: Mapping[int, tuple[float, str]]) -> tuple[list[str], str]:
        """See Witness."""
        return [], ""

    async def aclose(self) -> None:
        """See Witness."""


def read_anchor(path: Path) -> Anchor:
    """An anchor's file. Raises KeyFault."""
    try:
        with open(path, "rb") as file:
            text = file.read(_MAX_FILE).decode("ascii", "replace")
    except OSError as error:
        raise KeyFault(f"{path}: cannot be read: {error.strerror}") from None
    return parse_anchor(text, str(path))


def read_old_anchor(folder: Path) -> Anchor | None:
    """The highest anchor of those that older recorders have left beside their keys, None without any. Raises
    KeyFault."""
    try:
        paths = sorted(folder.glob("*.anchor"))
    except OSError as error:
        raise KeyFault(f"{folder}: cannot be read: {error.strerror}") from None
    return max((read_anchor(path) for path in paths if path.is_file()), key=lambda one: one.number, default=None)


class Witnesses:
    """All of them. compared: whether the store was held against what they remember. faults: of each witness that has
    one now, by its name. empty: whether none of those that can keep all chains remembers anything. behind: what some
    remember and others, that can keep it too, do not: a place that is new, or was away."""

    def __init__(self, witnesses: Sequence[Witness] = ()) -> None:
        self.all = tuple(witnesses)
        self.compared = False
        self.faults: dict[str, str] = {}
        self.empty = False
        self.behind: Heads = {}
        self.pause = max((witness.pause for witness in self.all), default=0.0)
        self._heads: Heads | None = None

    @property
    def recalled(self) -> bool:
        """Whether all of them could be asked."""
        return self._heads is not None

    async def recall(self) -> Heads:
        """The highest of each chain that any of them remembers. Raises KeyFault, also where two disagree."""
        heads: Heads = {}
        self._heads = None
        answers = [(witness, await self._ask(witness)) for witness in self.all]
        for witness, answer in answers:
            for chain, head in answer.items():
                known = heads.get(chain)
                if known is not None and known.number == head.number and known.sha256 != head.sha256:
                    raise KeyFault(f"two anchors differ in number {head.number} of the {chain}: {witness.name}")
                if known is None or head.number > known.number:
                    heads[chain] = head
        self._heads = heads
        self.empty = not any(answer for witness, answer in answers if not witness.only)
        self.behind = {
            chain: head
            for chain, head in heads.items()
            if any(
                witness.only in ("", chain) and (chain not in answer or answer[chain].number < head.number)
                for witness, answer in answers
            )
        }
        return dict(heads)

    async def _ask(self, witness: Witness) -> Heads:
        try:
            heads = await witness.recall()
        except KeyFault as error:
            self._failed(witness, error)
            raise
        self.faults.pop(witness.name, None)
        return heads

    def _failed(self, witness: Witness, error: KeyFault) -> None:
        if witness.name not in self.faults:
            _log.error("anchor_fault", anchor=witness.name, fault=str(error))
        self.faults[witness.name] = str(error)

    async def known(self, chain: str) -> Anchor | None:
        """What is remembered of one chain; asked once. Raises KeyFault."""
        heads = self._heads if self._heads is not None else await self.recall()
        return heads.get(chain)

    def compare(self, heads: Heads, holds: Callable[[str, Anchor], bool]) -> None:
        """Hold the store against what was recalled before the store was read: what is signed meanwhile is no fault.
        holds: whether the store has that number of a chain with that hash. Raises KeyFault where it has not."""
        self.compared = False
        for chain, head in sorted(heads.items()):
            if not holds(chain, head):
                raise KeyFault(missing(chain, head))
        self.compared = True

    async def remember(self, chain: str, head: Anchor) -> None:
        """Tell all of them. Raises KeyFault where one cannot keep it; the others have kept it then."""
        known = await self.known(chain)
        if known is not None and head.number < known.number:
            return  # somebody beside this process was further
        if self._heads is not None:
            self._heads[chain] = head
        fault: KeyFault | None = None
        for witness in self.all:
            try:
                await witness.remember(chain, head)
            except KeyFault as error:
                fault = error
                self._failed(witness, error)
            else:
                self.faults.pop(witness.name, None)
        if fault is not None:
            raise fault

    async def begin(self, heads: Heads) -> None:
        """Let all of them remember that in place of what they do, on an operator's word. Raises KeyFault."""
        for witness in self.all:
            for chain, head in heads.items():
                await witness.begin(chain, head)
        self._heads = dict(heads)

    async def aclose(self) -> None:
        """Let go of all."""
        for witness in self.all:
            await witness.aclose()


def missing(chain: str, head: Anchor) -> str:
    """The sentence for a chain that has not got what is remembered of it."""
    return (
        f"the store has no number {head.number} of the {chain} as the anchor remembers it: the end of the chain was "
        "removed, the store was restored to an earlier state, or it is another store"
    )


class MemoryWitness:
    """For tests and for a store that is looked at alone: what is given, kept in memory."""

    def __init__(self, heads: Mapping[str, Anchor] | None = None, name: str = "memory") -> None:
        self.name = name
        self.only = ""
        self.pause = 0.0
        self.heads: Heads = dict(heads or {})

    async def recall(self) -> Heads:
        """See Witness."""
        return dict(self.heads)

    async def remember(self, chain: str, head: Anchor) -> None:
        """See Witness."""
        if chain not in self.heads or self.heads[chain].number < head.number:
            self.heads[chain] = head

    async def begin(self, chain: str, head: Anchor) -> None:
        """See Witness."""
        self.heads[chain] = head

    async def examine(self, manifests: Mapping[int, tuple[float, str]]) -> tuple[list[str], str]:
        """See Witness."""
        return [], ""

    async def aclose(self) -> None:
        """See Witness."""
