"""When a segment is followed by another one, and the rate at which bytes come in."""

from __future__ import annotations

import pytest

from recorder.store import journal as module
from recorder.store.journal import Rate, Segment


def test_a_segment_is_full_by_its_size_by_its_age_and_when_it_is_to_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.monotonic", lambda: 1000.0)
    assert not Segment(1, size=module.SEGMENT - 1, born=1000.0 - module.SEGMENT_AGE).full
    assert Segment(1, size=module.SEGMENT, born=1000.0).full
    assert Segment(1, born=999.0 - module.SEGMENT_AGE).full
    assert Segment(1, born=1000.0, follow=True).full


def test_bytes_count_for_less_the_longer_ago_they_came() -> None:
    rate = Rate()
    assert rate.at(5.0) == 0.0
    for tick in range(200):
        rate.add(100, tick / 10)
    assert 900 < rate.at(19.9) < 1100
    assert rate.at(40.0) < 1.0
