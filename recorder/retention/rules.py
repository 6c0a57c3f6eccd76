"""The rules of retention, as values: what they say of one recording. The pruner (pruner.py) acts on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from recorder.model import Recording
from recorder.retention.holds import Match


@dataclass(frozen=True, slots=True)
class Rule:
    """keep: seconds after its end; None for ever."""

    match: Match
    keep: float | None


@dataclass(frozen=True, slots=True)
class Rules:
    """See recorder/retention/pruner.py. max_age, events_max_age: seconds; max_bytes: as stored. None: without limit."""

    max_age: float | None = None
    max_bytes: int | None = None
    rules: Sequence[Rule] = ()
    events_max_age: float | None = None

    @property
    def nothing(self) -> bool:
        """Whether they never remove anything."""
        return (
            self.max_age is None
            and self.max_bytes is None
            and self.events_max_age is None
            and all(rule.keep is None for rule in self.rules)
        )

    def rule_of(self, recording: Recording) -> Rule | None:
        """The first that matches."""
        return next((rule for rule in self.rules if rule.match.holds_for(recording)), None)

    def too_old(self, recording: Recording, now: float) -> str:
        """Why it is to go by its age at `now`, "" where it isn't."""
        if recording.ended is None:
            return ""
        rule = self.rule_of(recording)
        keep = rule.keep if rule is not None else self.max_age
        if keep is None or now - recording.ended <= keep:
            return ""
        return f"{'a rule keeps it' if rule is not None else 'kept'} for {keep / 86400:g} days"

    @property
    def shortest(self) -> float | None:
        """The shortest time that anything is kept by age; None where nothing goes by age."""
        times = [self.max_age, *(rule.keep for rule in self.rules)]
        return min((seconds for seconds in times if seconds is not None), default=None)
