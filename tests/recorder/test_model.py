"""recorder/model.py: ids. What is a sender's word is tested where it is taken in."""

from __future__ import annotations

import pytest

from recorder.model import id_day, id_time, is_id, new_id


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
