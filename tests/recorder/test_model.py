"""recorder/model.py: ids, and what a sender says that it cut. Its other words are tested where they are taken in."""

from __future__ import annotations

from typing import Any

import pytest

from recorder.model import Recording, Source, id_day, id_time, is_id, new_id


def test_ids_sort_by_time_and_tell_it() -> None:
    early, late = new_id(1_800_000_000.123), new_id(1_800_000_000.124)
    assert early < late and id_time(early) == 1_800_000_000.123
    assert id_day(early) == "2027-01-15"


@pytest.mark.parametrize(
    "text", ["", "0" * 25, "0" * 27, "8" + "0" * 25, "0" * 25 + "U", "0" * 25 + "\n", "7" + "Z" * 25]
)
def test_what_is_no_id(text: str) -> None:
    """The last one is a ULID, of a year that no day has."""
    assert not is_id(text)
    with pytest.raises(ValueError, match="not an id"):
        id_day(text)


def test_the_last_id_has_a_day() -> None:
    assert id_day(new_id(253_402_300_799.999)) == "9999-12-31"


DIGEST = "ab" * 32


@pytest.mark.parametrize(
    ("told", "kept"),
    [
        (None, {}),
        ([], {}),
        ({"command": None, "a": 1, "b": {}, "c": {"bytes": 1}, "d": {"sha256": DIGEST}}, {}),
        ({"command": {"bytes": -1, "sha256": DIGEST}, "a": {"bytes": True, "sha256": DIGEST}}, {}),
        ({"command": {"bytes": 1, "sha256": "x"}, "<b>": {"bytes": 1, "sha256": DIGEST}}, {}),
        (
            {"kubernetes.Container": {"bytes": 9, "sha256": DIGEST, "more": 1}},
            {"kubernetes.Container": {"bytes": 9, "sha256": DIGEST}},
        ),
    ],
)
def test_what_a_sender_cut(told: Any, kept: dict[str, Any]) -> None:
    assert Recording("i", {"truncated": told}, Source("n", "a"), 1.0).truncated == kept


def test_what_a_sender_cut_is_bounded() -> None:
    many = {"a" * (number + 1): {"bytes": 1, "sha256": DIGEST} for number in range(60)}
    assert len(Recording("i", {"truncated": many}, Source("n", "a"), 1.0).truncated) == 32
