"""The states of a recording. What it writes is seen through sessions (tests/sessions/test_session.py)."""

from __future__ import annotations

from k8sproxy.recording.recording import State
from tests.lives import assert_documented


def test_the_states() -> None:
    assert_documented(State)
