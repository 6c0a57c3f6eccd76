"""What is not as it was sealed, from pass to pass."""

from __future__ import annotations

from recorder.retention.mismatches import Mismatches


def test_what_a_whole_pass_does_not_find_any_more_is_forgotten() -> None:
    found = Mismatches()
    assert found.told is None
    found.begin()
    found.add("a", "x is missing")
    found.end()
    assert found.told == "a differs from what was sealed and is not removed: x is missing"
    found.begin()
    found.add("b", "y is missing")
    # Until the pass is over, what the one before has found counts.
    assert found.all == {"a": "x is missing", "b": "y is missing"} and (found.told or "").endswith(", and 1 more")
    found.end()
    assert found.all == {"b": "y is missing"}
