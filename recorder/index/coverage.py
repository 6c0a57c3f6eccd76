"""How much of the store the index has: an answer that may be short has to say so.

It is short while the index is compared with the store (after a start, a restore, a lost disk), while texts of sessions
that have ended are being made, where a session can't be read, and where the index can't be written. Sessions that run
are searched as they were when they were read last, by design (see `intake`); they are counted by themselves.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from k8sproxy.common.states import State, table


class Comparison(State):
    """How far the index is compared with the store.

    NEVER     not since the start                                                    -> GOING
    GOING     it is being compared, or that was broken off and will begin again      -> GOING, DONE
    DONE      it has what the store has                                              -> GOING
    """

    NEVER = "never"
    GOING = "going"
    DONE = "done"


table(
    {
        Comparison.NEVER: (Comparison.GOING,),
        Comparison.GOING: (Comparison.GOING, Comparison.DONE),
        Comparison.DONE: (Comparison.GOING,),
    }
)


@dataclass(slots=True)
class Standing:
    """What a comparison with the store has found. stored: sessions that the store had at its beginning. seen: how many
    of them it has gone through. unreadable: those that the store can't give."""

    stored: int = 0
    seen: int = 0
    unreadable: set[str] = field(default_factory=set)
    comparison: Comparison = Comparison.NEVER

    @property
    def compared(self) -> bool:
        """Whether it is done."""
        return self.comparison is Comparison.DONE

    def restart(self) -> None:
        """A comparison begins."""
        self._move(Comparison.GOING)
        self.seen = 0

    def finish(self, unreadable: set[str]) -> None:
        """It is done."""
        self._move(Comparison.DONE)
        self.unreadable = unreadable

    def _move(self, comparison: Comparison) -> None:
        self.comparison = self.comparison.to(comparison)


@dataclass(frozen=True, slots=True)
class Coverage:
    """complete: every session that has ended, and every API event, is in the index with all that is kept of its text.
    sessions: in the store. indexed: those of them that the index has whole. running: sessions that run, in the scope
    of whoever asks, of which something is not searched yet. unreadable: ids of sessions that the store can't give, or
    whose text it can't give: the answer stays short until they can be read again, or are removed."""

    complete: bool
    sessions: int
    indexed: int
    running: int = 0
    unreadable: tuple[str, ...] = ()

    @property
    def share(self) -> float:
        """Of all sessions, from 0 to 1; below 1 where it is not complete."""
        if self.complete or not self.sessions:
            return float(self.complete)
        return min(round(self.indexed / self.sessions, 3), 0.999)
