"""Following the daemon's bus: at most so often, never losing the last word, through its absences."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path

import pytest

from k8sproxy.common.errors import Refusal
from k8sproxy.common.tailnet.bus import BACKOFF_FIRST, BACKOFF_MOST, INTERVAL, Bus
from k8sproxy.common.tailnet.localapi import LocalAPI
from k8sproxy.common.tailnet.whois import WhoIs
from standins.tailscaled import FakeTailscaled, user_whois
from tests.common.tailnet.leakless import run

Notice = bool | Refusal | None  # said something; not to be had; the stream has ended


class Stream(LocalAPI):
    """A daemon whose bus says what the test puts into `notices`."""

    def __init__(self) -> None:
        super().__init__("/nonexistent")
        self.notices: asyncio.Queue[Notice] = asyncio.Queue()
        self.open = 0

    async def watch(self) -> AsyncGenerator[None, None]:
        self.open += 1
        try:
            while (notice := await self.notices.get()) is not None:
                if isinstance(notice, Refusal):
                    raise notice
                yield None
        finally:
            self.open -= 1


class Sleeper:
    """Sleeps until the test says so; `asleep` holds how long each sleeper wants to."""

    def __init__(self) -> None:
        self.asleep: list[tuple[float, asyncio.Future[None]]] = []

    async def __call__(self, seconds: float) -> None:
        entry = (seconds, asyncio.get_running_loop().create_future())
        self.asleep.append(entry)
        try:
            await entry[1]
        finally:
            self.asleep.remove(entry)

    def wake(self, seconds: float) -> None:
        [future] = [future for wanted, future in self.asleep if wanted == seconds]
        future.set_result(None)

    @property
    def seconds(self) -> list[float]:
        return sorted(seconds for seconds, _ in self.asleep)


class Clock:
    time = 0.0

    def __call__(self) -> float:
        return self.time


Script = Callable[[Stream, Bus, Sleeper, Clock], Awaitable[None]]


def play(script: Script) -> None:
    async def scene() -> None:
        stream, sleeper, clock = Stream(), Sleeper(), Clock()
        bus = Bus(stream, sleep=sleeper, clock=clock)
        following = asyncio.ensure_future(bus.follow())
        try:
            await script(stream, bus, sleeper, clock)
            assert not following.done()
        finally:
            following.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await following
        assert (stream.open, sleeper.asleep, bus.connected) == (0, [], False)

    run(scene())


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def say(stream: Stream, *notices: Notice) -> None:
    for notice in notices:
        stream.notices.put_nowait(notice)
    await settle()


AWAY = Refusal(503, "localapi_unavailable", "gone")


def test_the_first_word_counts_at_once() -> None:
    async def script(stream: Stream, bus: Bus, sleeper: Sleeper, clock: Clock) -> None:
        await settle()
        assert (bus.generation, bus.connected) == (0, False)
        await say(stream, True)
        assert (bus.generation, bus.connected) == (1, True)

    play(script)


def test_many_words_are_one_change_and_the_last_is_not_lost() -> None:
    async def script(stream: Stream, bus: Bus, sleeper: Sleeper, clock: Clock) -> None:
        await say(stream, True)
        await say(stream, *[True] * 100)
        assert bus.generation == 1 and sleeper.seconds == [INTERVAL]
        sleeper.wake(INTERVAL)
        await settle()
        assert bus.generation == 2
        sleeper.wake(INTERVAL)
        await settle()
        assert bus.generation == 2 and sleeper.asleep == []  # silence: nobody wakes for nothing
        await say(stream, True)
        assert bus.generation == 3

    play(script)


def test_the_end_of_the_stream_and_what_was_missed_meanwhile() -> None:
    async def script(stream: Stream, bus: Bus, sleeper: Sleeper, clock: Clock) -> None:
        await say(stream, True)
        sleeper.wake(INTERVAL)
        await say(stream, None)
        assert not bus.connected and stream.open == 0
        assert bus.generation == 1 and sleeper.seconds == [BACKOFF_FIRST]
        sleeper.wake(BACKOFF_FIRST)
        await say(stream, True)
        assert bus.generation == 2 and bus.connected

    play(script)


def test_a_daemon_that_stays_away_is_tried_less_and_less() -> None:
    async def script(stream: Stream, bus: Bus, sleeper: Sleeper, clock: Clock) -> None:
        delays = []
        for _ in range(9):
            await say(stream, AWAY)
            [delay] = sleeper.seconds
            delays.append(delay)
            sleeper.wake(delay)
        assert delays == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0]
        assert bus.generation == 0

    play(script)


def test_a_daemon_that_takes_the_subscription_and_drops_it_is_no_better() -> None:
    async def script(stream: Stream, bus: Bus, sleeper: Sleeper, clock: Clock) -> None:
        await say(stream, True, None)
        sleeper.wake(BACKOFF_FIRST)
        await say(stream, True, None)
        assert max(sleeper.seconds) == INTERVAL and BACKOFF_FIRST * 2 in sleeper.seconds

    play(script)


def test_a_daemon_that_was_there_for_a_while_is_tried_soon() -> None:
    async def script(stream: Stream, bus: Bus, sleeper: Sleeper, clock: Clock) -> None:
        await say(stream, AWAY)
        sleeper.wake(BACKOFF_FIRST)
        await say(stream, AWAY)
        sleeper.wake(BACKOFF_FIRST * 2)
        await say(stream, True)
        clock.time += BACKOFF_MOST + 1
        await say(stream, None)
        assert BACKOFF_FIRST in sleeper.seconds

    play(script)


@pytest.mark.parametrize("turns", range(8))
def test_a_cancel_at_any_turn_leaves_nothing(turns: int) -> None:
    async def scene() -> None:
        stream, sleeper = Stream(), Sleeper()
        following = asyncio.ensure_future(Bus(stream, sleep=sleeper).follow())
        for turn in range(turns):
            await asyncio.sleep(0)
            if turn == 2:
                stream.notices.put_nowait(True)
        following.cancel()
        with pytest.raises(asyncio.CancelledError):
            await following
        assert (stream.open, sleeper.asleep) == (0, [])

    run(scene())


def test_over_the_socket_through_a_restart(tmp_path: Path) -> None:
    async def scene() -> None:
        async with FakeTailscaled(tmp_path / "sock") as daemon:
            daemon.peers = {"100.64.0.7": user_whois("ana@example.com", "laptop", "100.64.0.7")}
            api = LocalAPI(daemon.path)
            whois = WhoIs(api, bus=Bus(api, interval=0.0))
            following = asyncio.ensure_future(whois.watch_changes())
            key = whois.open("100.64.0.7", 1)
            seen = await whois.wait_changed(0)
            await daemon.until(lambda: daemon.streams == 1)

            ana = await whois.ask(key)
            assert whois.cached(key) is ana
            daemon.peers = {"100.64.0.7": user_whois("ana@example.com", "laptop", "100.64.0.7", {"x": [1]})}
            daemon.notify()
            seen = await whois.wait_changed(seen)
            assert whois.cached(key) is None
            assert (await whois.ask(key)).capabilities == {"x": (1,)}

            daemon.end_streams()
            seen = await whois.wait_changed(seen)
            await daemon.until(lambda: daemon.streams == 1)
            again = await whois.ask(key)
            await daemon.stop()
            assert await whois.ask(key) is again  # kept, for its time
            await daemon.start()
            await whois.wait_changed(seen)
            assert whois.cached(key) is None

            following.cancel()
            await asyncio.wait((following,))
            await whois.aclose()
            await api.aclose()

    run(scene())
