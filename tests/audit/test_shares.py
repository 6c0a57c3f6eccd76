"""What one owner may have of what all have, and whose turn it is."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from k8sproxy.audit.shares import SHARE, Pot, Rows

OWNERS = st.sampled_from(["ana", "ben", "", "ci"])


@given(st.lists(st.tuples(OWNERS, st.integers(0, 60))))
def test_nobody_has_more_than_a_share(wanted: list[tuple[str, int]]) -> None:
    pot = Pot(100)
    taken: list[tuple[str, int]] = []
    for owner, size in wanted:
        had = pot.of(owner)
        if pot.take(owner, size):
            taken.append((owner, size))
            assert not owner or not had or pot.of(owner) <= 100 // SHARE
        assert 0 <= pot.left <= 100 and pot.used == sum(size for _, size in taken)
    for owner, size in taken:
        pot.give(owner, size)
    assert pot.left == 100 and not pot._taken


def test_one_large_thing_is_taken_by_who_has_nothing() -> None:
    pot = Pot(100)
    assert pot.take("ana", 80) and not pot.take("ana", 1)
    assert not pot.take("ben", 30) and pot.take("ben", 20)
    pot.give("ana", 80)
    assert pot.take("ana", 25) and pot.of("ana") == 25


def test_a_limit_that_changes() -> None:
    pot = Pot(4)
    assert pot.take("ana", 1) and not pot.take("ana", 1)
    pot.set_limit(8)
    assert pot.take("ana", 1) and not pot.take("ana", 1)
    pot.set_limit(1)
    assert not pot.fits("ben", 1) and pot.left == -1


@given(st.lists(OWNERS, max_size=40))
def test_owners_take_turns(owners: list[str]) -> None:
    rows: Rows[tuple[str, int]] = Rows()
    for number, owner in enumerate(owners):
        rows.append(owner, (owner, number))
    came = [rows.popleft() for _ in range(len(owners))]
    assert len(rows) == 0 and sorted(came) == sorted((owner, number) for number, owner in enumerate(owners))
    for owner in set(owners):
        own = [number for name, number in came if name == owner]
        assert own == sorted(own), "in order"
        for behind, (name, _) in enumerate(came):
            if name == owner:
                assert behind < len(set(owners)), "the first of each comes in the first round"
                break
