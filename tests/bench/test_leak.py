"""What counts as a leak."""

from __future__ import annotations

from bench.leak import LIMIT, SLACK, growth


def test_what_fills_at_first_is_no_leak() -> None:
    assert growth([10 << 20, 60 << 20, *[60 << 20] * 8], 1_000_000) == 0
    assert growth([10 << 20, 60 << 20, *[60 << 20] * 7, (60 << 20) + SLACK], 1_000_000) == 0


def test_an_object_a_request_is_one() -> None:
    memory = [(60 << 20) + 16 * 100_000 * part for part in range(10)]
    assert LIMIT < growth(memory, 1_000_000) < 16
