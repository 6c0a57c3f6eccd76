"""What a session knows of its recording: which recorder has it, and how much of the session is in it."""

from __future__ import annotations

import asyncio

from k8sproxy.common.states import State, table
from k8sproxy.recording.recording import Recording


class Kept(State):
    """How much of a session's output is on its way to a recorder, or there.

    NOTHING   no recorder has accepted it, or none is wanted               -> ALL
    ALL       all of it so far                                             -> PART, LOST
    PART      what came before upstream's bytes could not be read          -> LOST
    LOST      nobody can say: the recorder failed                          -> (final)
    """

    NOTHING = "nothing"
    ALL = "all"
    PART = "part"
    LOST = "lost"


NOTHING, ALL, PART, LOST = Kept.NOTHING, Kept.ALL, Kept.PART, Kept.LOST
table({NOTHING: (ALL,), ALL: (PART, LOST), PART: (LOST,), LOST: ()})


class Keeping:
    """One session's. recording: from the recorder's word on; None again once it has failed. recorder: the address of
    the one that has it, or had it until it failed. settling: brings it to its end. lost_because: words for the user of
    a session that must not go on without it."""

    __slots__ = ("_missing", "kept", "lost_because", "recorder", "recording", "settling")

    def __init__(self) -> None:
        self.kept = NOTHING
        self.recording: Recording | None = None
        self.recorder = ""
        self.settling: asyncio.Task[None] | None = None
        self.lost_because = ""
        self._missing = 0

    @property
    def missing(self) -> int:
        """Bytes of output that are not in the recording."""
        return self.recording.lost if self.recording is not None else self._missing

    def begin(self, recording: Recording, recorder: str) -> None:
        """A recorder has accepted the session."""
        self.kept = self.kept.to(ALL)
        self.recording, self.recorder = recording, recorder

    def cut(self) -> None:
        """What comes from here on can't be recorded."""
        if self.kept is ALL:
            self.kept = self.kept.to(PART)

    def lose(self) -> None:
        """The recorder has failed."""
        recording, self.recording = self.recording, None
        if recording is not None:
            self.kept = self.kept.to(LOST)
            self._missing = recording.lost
            recording.fail()
