"""What retention has found to be not as it was sealed: it stays, and somebody has to look at it."""

from __future__ import annotations

import structlog

_log = structlog.get_logger(__name__)


class Mismatches:
    """all: what the last whole pass has found, and what was found since, by subject."""

    def __init__(self) -> None:
        self.all: dict[str, str] = {}
        self._found: dict[str, str] = {}  # in this pass
        self._told: dict[str, str] = {}  # what is in the log

    def begin(self) -> None:
        """A pass begins."""
        self._found = {}

    def end(self) -> None:
        """It has gone through everything: what it has not found is as it was sealed again."""
        self.all = self._found

    def add(self, subject: str, what: str) -> None:
        """It is not as it was sealed, in what."""
        self._found[subject] = self.all[subject] = what
        if self._told.get(subject) != what:
            self._told[subject] = what
            _log.error("proof_mismatch", subject=subject, what=what, meaning="it is not removed; run recorder verify")

    @property
    def told(self) -> str | None:
        """All of it in a sentence, None where there is none."""
        if not self.all:
            return None
        subject, what = next(iter(self.all.items()))
        more = f", and {len(self.all) - 1} more" if len(self.all) > 1 else ""
        return f"{subject} differs from what was sealed and is not removed: {what}{more}"
