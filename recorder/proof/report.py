"""What a check of a store answers: what became of each recording and chunk, and what is wrong with the chains."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from recorder.proof.keys import Anchor


class Status(enum.Enum):
    """What became of a recording, or of a chunk of events or looks."""

    OK = "ok"
    OPEN = "open"
    LATE = "signed late"
    UNSEALED = "not sealed yet"
    CHANGED = "changed"
    CUT = "cut"
    REMOVED = "removed"
    MISSING = "missing"
    UNKNOWN = "unknown"


# Those that are as they should be.
WELL = frozenset({Status.OK, Status.LATE, Status.OPEN, Status.UNSEALED, Status.REMOVED})


# What can be said of a recording by the signed lists alone.
SIGNED = (Status.OPEN, Status.OK, Status.UNSEALED, Status.LATE, Status.UNKNOWN)


@dataclass(frozen=True, slots=True)
class Finding:
    """One recording ("events/DAY/NAME" for a chunk of events, "looks/DAY/NAME" for one of looks). detail: which part,
    or who removed it. day: that of the manifest which lists it, "" if none does."""

    id: str
    status: Status
    detail: str = ""
    day: str = ""

    def values(self) -> dict[str, Any]:
        """As JSON values."""
        return {"id": self.id, "status": self.status.value, "detail": self.detail, "day": self.day}


@dataclass(slots=True)
class ActsReport:
    """What the acts are. count: how many; last: the last one. holds: those that are in force and signed; unsigned:
    those that nobody has signed. releases, removals, reversals: how many things were released, removed, taken back."""

    count: int = 0
    last: Anchor | None = None
    holds: int = 0
    unsigned: int = 0
    releases: int = 0
    removals: int = 0
    reversals: int = 0

    def values(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "count": self.count,
            "last": {"number": self.last.number, "sha256": self.last.sha256} if self.last else None,
            "holds": self.holds,
            "unsignedHolds": self.unsigned,
            "releases": self.releases,
            "removals": self.removals,
            "reversals": self.reversals,
        }


@dataclass(slots=True)
class Report:
    """The answer. faults: of the manifests, the registers and the acts, a sentence each. notes: what is not a fault,
    and whoever checks should know for ever. anchors: with what anchor the store was compared, or was not. manifests:
    how many are there; last: the last one."""

    findings: list[Finding] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    anchors: list[str] = field(default_factory=list)
    manifests: int = 0
    first_day: str = ""
    last_day: str = ""
    last: Anchor | None = None
    acts: ActsReport = field(default_factory=ActsReport)

    @property
    def well(self) -> bool:
        """Whether there is nothing to complain of."""
        return not self.faults and all(finding.status in WELL for finding in self.findings)

    def counts(self) -> dict[str, int]:
        """How many of each status."""
        counts = dict.fromkeys((status.value for status in Status), 0)
        for finding in self.findings:
            counts[finding.status.value] += 1
        return counts

    def values(self) -> dict[str, Any]:
        """As JSON values."""
        last = {"number": self.last.number, "sha256": self.last.sha256} if self.last else None
        return {
            "well": self.well,
            "faults": self.faults,
            "notes": self.notes,
            "anchors": self.anchors,
            "manifests": {
                "count": self.manifests,
                "firstDay": self.first_day,
                "lastDay": self.last_day,
                "last": last,
            },
            "acts": self.acts.values(),
            "counts": self.counts(),
            "findings": [finding.values() for finding in self.findings],
        }


# Told how many of how many are done.
Progress = Callable[[int, int], None]
