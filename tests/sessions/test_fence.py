"""How far upstream's bytes may go, by what the recorder has. How it looks to a client is test_session's."""

from __future__ import annotations

from typing import cast

from k8sproxy.recording.recording import KEPT, RUNNING, SLOW, Recording, State
from k8sproxy.sessions.fence import WINDOW, Closed, Confirmed, Fence
from k8sproxy.sessions.passage import Passage


class Recorded:
    """A recording as a fence sees it."""

    def __init__(self) -> None:
        self.state: State = RUNNING
        self.has_header = False
        self.begun = 0
        self.full = False
        self.stored = 0
        self.written = 0
        self.pending = False
        self.held = 0

    def begin_header(self) -> None:
        self.begun += 1

    def push(self) -> None:
        pass

    def torn(self, stderr: bool) -> bool:
        return False

    def hold(self, size: int) -> bool:
        self.held = size
        return True


def closed() -> tuple[Closed, Recorded]:
    recorded = Recorded()
    return Closed(Passage(), cast(Recording, recorded)), recorded


def test_where_nothing_waits() -> None:
    fence = Fence(Passage())
    fence.passage.show(100, 40, 10)
    fence.begins(0)
    assert fence.go(40) == 100 and not fence.blocked
    assert not fence.must_settle and not fence.ends(100) and not fence.answers_pings


def test_the_first_output_waits_for_the_header() -> None:
    fence, recorded = closed()
    fence.passage.show(30, 0, 0)
    assert fence.go(0) == 30
    fence.begins(30)
    fence.passage.show(50, 0, 0)
    assert fence.go(0) == 0 and fence.blocked and recorded.begun == 1 and fence.answers_pings
    recorded.has_header = True
    assert fence.go(0) == 50 and not fence.blocked


def test_the_end_waits_until_all_is_kept() -> None:
    fence, recorded = closed()
    recorded.has_header = True
    assert fence.ends(20) and not fence.ends(25)
    fence.passage.show(40, 0, 0)
    fence.settle()
    assert fence.go(0) == 20 and fence.blocked and fence.must_settle
    recorded.state = KEPT
    assert fence.go(0) == 20 and not fence.blocked and not fence.must_settle


def test_a_slow_recorder_stops_at_a_border() -> None:
    fence, recorded = closed()
    recorded.has_header, recorded.state = True, SLOW
    fence.passage.show(100, 30, 5)
    assert fence.go(0) == 70 and fence.blocked
    fence.passage.show(10, 40, 0)
    assert fence.go(0) == 0
    recorded.state = RUNNING
    assert fence.go(0) == 40 and not fence.blocked


def test_what_may_be_the_end_of_the_session_waits() -> None:
    fence, recorded = closed()
    recorded.has_header = True
    fence.passage.show(10, 4, 0)
    assert fence.go(4) == 6


def test_each_byte_waits_for_its_confirmation() -> None:
    recorded = Recorded()
    fence = Confirmed(Passage(), cast(Recording, recorded))
    fence.begins(0)
    fence.output(False, 40)
    fence.passage.show(40, 0, 0)
    recorded.written = 90
    fence.read()
    assert fence.go(0) == 0 and not fence.blocked and fence.answers_pings and recorded.held == 40
    recorded.stored = 89
    assert fence.go(0) == 0
    recorded.stored = 90
    assert fence.go(0) == 40 and not fence.answers_pings


def test_no_more_than_a_window_waits_for_confirmation() -> None:
    recorded = Recorded()
    fence = Confirmed(Passage(), cast(Recording, recorded))
    fence.passage.show(WINDOW, 0, 0)
    recorded.written = WINDOW
    fence.read()
    assert fence.go(0) == 0 and fence.blocked
    recorded.stored = WINDOW
    assert fence.go(0) == WINDOW and not fence.blocked
