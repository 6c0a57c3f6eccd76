"""How far upstream's bytes may go, and where the client stands then."""

from __future__ import annotations

from k8sproxy.sessions.passage import Passage


def test_what_goes_and_what_waits() -> None:
    passage = Passage()
    assert passage.stands and not passage.held
    passage.show(10, 0, 0)
    assert passage.go(passage.read) == 10 and passage.stands
    passage.show(10, 4, 6)  # the last four are of a message that is not whole
    assert passage.border == 16
    seen = [(passage.go(limit), passage.stands, passage.rest, passage.held) for limit in (16, 18, 10)]
    assert seen == [(6, True, 0, 4), (2, False, 8, 2), (0, False, 8, 2)], "nothing is taken back"
    passage.show(6, 0, 0)
    assert passage.rest == 8, "what the client is missing does not depend on what is read"
    assert passage.go(passage.read) == 8 and passage.stands and not passage.rest


def test_promises_are_kept_in_their_order() -> None:
    passage = Passage()
    passage.show(100, 0, 0)
    passage.promise(40, 400)
    passage.promise(30, 500)  # less than was promised says nothing
    passage.promise(100, 1000)
    for stored, confirmed in ((0, 0), (399, 0), (400, 40), (999, 40), (1000, 100), (5000, 100)):
        passage.confirm(stored)
        assert passage.confirmed == confirmed
    passage.show(50, 50, 70)
    passage.promise(130, 1200)  # within a message as large as all that may wait
    passage.confirm(1200)
    assert passage.go(passage.confirmed) == 130 and not passage.stands and passage.rest == 90
    passage.show(100, 30, 5)  # it has ended, and another has begun
    passage.promise(220, 1300)
    passage.confirm(1300)
    assert passage.go(passage.confirmed) == 90 and passage.stands and not passage.rest
    passage = Passage()
    passage.show(50, 50, 70)
    passage.promise(50, 200)
    passage.show(100, 30, 5)
    passage.confirm(200)
    assert passage.go(passage.confirmed) == 50 and not passage.stands and passage.rest == 70


def test_the_end_and_the_first_output_are_borders() -> None:
    for name in ("end", "first"):
        passage = Passage()
        setattr(passage, name, 12)
        passage.show(30, 7, 0)
        passage.go(12)
        assert passage.stands and passage.held == 18
