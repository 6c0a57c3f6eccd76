from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k8sproxy.common.config.units import duration_between, number_between, parse_duration, parse_size, size_between


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("10s", 10),
        ("500ms", 0.5),
        ("1h30m", 5400),
        ("1.5s", 1.5),
        (".5s", 0.5),
        ("250us", 0.00025),
        ("1d12h", 129600),
        ("0s", 0),
    ],
)
def test_durations_are_seconds(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "value", ["", "10", 10, 1.5, True, None, "s", "10 s", "-1s", "1s\n", "1w", "1s2", "١s", "1" * 50 + "s"]
)
def test_what_is_no_duration(value: object) -> None:
    with pytest.raises(ValueError, match="must be a duration"):
        parse_duration(value)


@pytest.mark.parametrize(
    ("value", "size"),
    [("64KiB", 65536), ("1MiB", 1 << 20), ("2GiB", 2 << 30), ("3TiB", 3 << 40), ("7B", 7), ("7", 7), (7, 7)],
)
def test_sizes_are_bytes(value: object, size: int) -> None:
    assert parse_size(value) == size


@pytest.mark.parametrize("value", ["", "KiB", "1.5MiB", "1KB", "1k", -1, True, 1.0, None, "1KiB\n", "9" * 20])
def test_what_is_no_size(value: object) -> None:
    with pytest.raises(ValueError, match="must be a size"):
        parse_size(value)


def test_bounds_are_allowed_and_nothing_beyond() -> None:
    duration, size, number = duration_between("1s", "1m"), size_between("1KiB", "2KiB"), number_between(1, 3)
    assert [duration("1s"), duration("60s"), size(1024), size("2KiB"), number(1), number(3)] == [
        1, 60, 1024, 2048, 1, 3,
    ]  # fmt: skip
    with pytest.raises(ValueError, match="from 1s to 1m"):
        duration("61s")
    with pytest.raises(ValueError, match="from 1s to 1m"):
        duration("999ms")
    with pytest.raises(ValueError, match="from 1KiB to 2KiB"):
        size("2049")
    for value in (0, 4, True, "2", 2.0):
        with pytest.raises(ValueError, match="from 1 to 3"):
            number(value)


@given(st.one_of(st.text(), st.integers(), st.floats(), st.none(), st.booleans()))
def test_anything_is_a_value_or_a_value_error(value: object) -> None:
    for parse in (parse_duration, parse_size):
        with contextlib.suppress(ValueError):
            assert parse(value) >= 0
