"""How far upstream's bytes may go, and where the client stands then."""

from __future__ import annotations

from k8sproxy.recording.passage import Passage


def test_what_goes_and_what_waits() -> None:
    passage = Passage()
    assert passage.stands and not passage.held
    passage.show(10, 0)
    assert passage.go(passage.read) == 10 and passage.stands
    passage.show(10, 4)  # the last four are of a message that is not whole
    assert passage.border == 16
    seen = [(passage.go(limit), passage.stands, passage.read - passage.passed) for limit in (16, 18, 10)]
    assert seen == [(6, True, 4), (2, False, 2), (0, False, 2)], "nothing is taken back"
    passage.show(6, 0)
    assert passage.go(passage.read) == 8 and passage.stands


def test_promises_are_kept_in_their_order() -> None:
    passage = Passage()
    passage.show(100, 0)
    passage.promise(40, 400)
    passage.promise(30, 500)  # less than was promised says nothing
    passage.promise(100, 1000)
    for stored, confirmed in ((0, 0), (399, 0), (400, 40), (999, 40), (1000, 100), (5000, 100)):
        passage.confirm(stored)
        assert passage.confirmed == confirmed
    passage.show(50, 50)
    passage.promise(130, 1200)  # within a message as large as all that may wait
    passage.confirm(1200)
    assert passage.go(passage.confirmed) == 130 and not passage.stands


def test_the_end_and_the_first_output_are_borders() -> None:
    for name in ("end", "first"):
        passage = Passage()
        setattr(passage, name, 12)
        passage.show(30, 7)
        passage.go(12)
        assert passage.stands and passage.held == 18
