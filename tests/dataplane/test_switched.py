"""Switched with a tap that does as the test says: what waits, who pauses whom, and how each side's end goes on."""

from __future__ import annotations

import asyncio
from typing import cast

from k8sproxy.dataplane.ends import ClientGone, Cut
from k8sproxy.dataplane.switched import Switched
from k8sproxy.dataplane.turns import Turns
from k8sproxy.dataplane.wire import Wire
from k8sproxy.sessions.tap import Tap
from tests.recording.scenes import FakeWire

EVENT_LOOPS = ["asyncio"]


class Told(Tap):
    """takes: bytes of upstream's that may go in a call; None for all. ends: whether upstream's end may."""

    def __init__(self) -> None:
        self.blocked = False
        self.takes: int | None = None
        self.ends = True
        self.reply = b""
        self.words: bytes | None = None
        self.seen: list[bytes] = []
        self.held = 0
        self.ends_in_call = False

    def from_client(self, view: memoryview) -> bytes:
        if self.ends_in_call:
            self.ended("cause", "message")
        return self.reply

    def from_upstream(self, view: memoryview) -> int:
        self.seen.append(bytes(view))
        if self.ends_in_call:
            self.ended("cause", "message")
        self.held += len(view)
        size = self.held if self.takes is None else min(self.takes, self.held)
        self.held -= size
        return size

    def upstream_ended(self) -> bool:
        return self.ends

    def farewell(self, message: str) -> bytes | None:
        return self.words


class Play:
    def __init__(self) -> None:
        self.tap = Told()
        self.client, self.upstream = FakeWire(paused=True), FakeWire(paused=False)
        self.ends: list[Exception | None] = []
        self.switched = Switched(
            asyncio.get_running_loop(),
            cast(Wire, self.client),
            cast(Wire, self.upstream),
            self.tap,
            turns=Turns(asyncio.get_running_loop()),
            owner="n-ana",
            finish=lambda: self.ends.append(None),
            fail=self.ends.append,
        )

    def start(self, *, from_client: bytes = b"", from_upstream: bytes = b"") -> Play:
        self.switched.start(from_client=from_client, from_upstream=memoryview(from_upstream))
        return self


async def test_what_waits_is_kept_and_shown_once() -> None:
    play = Play()
    play.tap.takes = 2
    play.start(from_upstream=b"abcd")
    play.upstream.arrive(b"ef")
    assert play.tap.seen == [b"abcd", b"ef"] and play.client.written == b"abcd"
    play.tap.takes = 1
    play.tap.drained()
    assert play.client.written == b"abcde"
    play.upstream.arrive(b"ghi")
    play.tap.takes = 3
    play.tap.drained()
    assert play.client.written == b"abcdefghi" and play.switched.sent == 9 and not play.switched._held
    play.tap.takes = None
    play.tap.drained()
    assert play.client.written == b"abcdefghi" and play.tap.seen == [b"abcd", b"ef", b"", b"ghi", b"", b""]
    play.switched.let_go()


async def test_a_blocked_tap_pauses_upstream_alone() -> None:
    play = Play().start()
    play.tap.blocked, play.tap.takes = True, 0
    play.upstream.arrive(b"abc")
    assert play.upstream.paused and not play.client.paused
    play.client.drained()
    assert play.upstream.paused, "the client has room, the tap has not"
    play.client.arrive(b"typed")
    assert play.upstream.written == b"typed"
    play.tap.blocked, play.tap.takes = False, None
    play.client.blocked = True
    play.tap.drained()
    assert play.client.written == b"abc" and play.upstream.paused, "the tap has room, the client has not"
    play.client.blocked = False
    play.client.drained()
    assert not play.upstream.paused
    play.switched.let_go()


async def test_upstreams_end_waits_behind_its_bytes_and_for_the_tap() -> None:
    play = Play().start()
    play.tap.takes, play.tap.ends = 0, False
    play.upstream.arrive(b"abc")
    play.upstream.ends()
    play.upstream.ends(ConnectionResetError())  # a reset behind the end tells nothing new
    assert not play.client.end_written and not play.ends
    play.tap.takes = None
    play.tap.drained()
    assert play.client.written == b"abc" and not play.client.end_written
    play.tap.ends = True
    play.tap.drained()
    assert play.client.end_written and not play.ends
    play.client.ends()
    assert play.ends == [None] and play.switched._last is None


async def test_an_end_waits_for_what_is_still_to_be_written() -> None:
    play = Play().start()
    play.client.blocked = True
    play.upstream.ends()
    assert not play.client.end_written
    play.client.blocked = False
    play.client.drained()
    assert play.client.end_written
    play.upstream.blocked = True
    play.client.ends()
    assert play.ends == [None]


async def test_whoever_breaks() -> None:
    play = Play().start()
    play.client.ends(ConnectionResetError())
    assert isinstance(play.ends[0], ClientGone)
    play = Play().start()
    play.upstream.ends(ConnectionResetError())
    assert isinstance(play.ends[0], Cut) and play.ends[0].reset and play.ends[0].cause == "upstream_broke"


async def test_cut() -> None:
    play = Play().start()
    play.tap.words = b"bye"
    play.switched.cut("cause", "message")
    play.switched.cut("cause", "message")
    [cut] = play.ends
    assert isinstance(cut, Cut) and cut.said and not cut.reset and play.client.written == b"bye"
    assert play.switched.sent == 3
    play = Play().start()
    play.switched.cut("cause", "message")
    assert isinstance(play.ends[0], Cut) and play.ends[0].reset


async def test_bytes_of_the_call_that_ends_it_go_nowhere() -> None:
    for side in ("client", "upstream"):
        play = Play()
        play.tap.ends_in_call = True
        play.start(**{f"from_{side}": b"abc"})
        assert len(play.ends) == 1 and play.client.written == play.upstream.written == b""
        assert not play.switched._held


async def test_replies_go_to_a_client_that_reads() -> None:
    play = Play().start()
    play.tap.reply = b"pong"
    play.client.arrive(b"ping")
    play.client.blocked = True
    play.client.arrive(b"ping")
    assert play.client.written == b"pong" and play.upstream.written == b"pingping" and play.switched.sent == 4
    play.switched.let_go()


async def test_upstreams_end_behind_a_cut_does_not_make_it_look_clean() -> None:
    """The same turn of the loop may read an end of either side, or write the last bytes before one."""
    play = Play().start()
    play.client.blocked = True
    play.upstream.ends()
    play.switched.cut("grant_withdrawn", "not any more")
    play.client.blocked = False
    play.client.drained()
    assert not play.client.end_written
    for upstream in (True, False):
        play = Play().start()
        play.switched.cut("grant_withdrawn", "not any more")
        (play.upstream if upstream else play.client).ends()
        assert not play.client.end_written and not play.upstream.end_written and play.switched._last is None
        assert [type(end) for end in play.ends] == [Cut]
