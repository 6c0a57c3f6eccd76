"""What has become of a session's recording."""

from __future__ import annotations

from typing import cast

from k8sproxy.recording.recording import Recording
from k8sproxy.sessions.keeping import ALL, LOST, NOTHING, PART, Keeping, Kept
from tests.lives import assert_documented


class Failing:
    """A recording that has left out some bytes."""

    lost: int = 17
    failed = False

    def fail(self) -> None:
        self.failed = True


def test_the_states() -> None:
    assert_documented(Kept)


def test_a_recording_that_is_cut_and_then_lost() -> None:
    recording, keeping = Failing(), Keeping()
    keeping.cut()
    keeping.lose()
    assert (keeping.kept, keeping.missing) == (NOTHING, 0)
    keeping.begin(cast(Recording, recording), "100.64.0.9:80")
    assert (keeping.kept, keeping.missing, keeping.recorder) == (ALL, 17, "100.64.0.9:80")
    keeping.cut()
    keeping.cut()
    assert [keeping.kept] == [PART]
    keeping.lose()
    keeping.lose()
    assert recording.failed and keeping.recording is None
    assert (keeping.kept, keeping.missing, keeping.recorder) == (LOST, 17, "100.64.0.9:80")
