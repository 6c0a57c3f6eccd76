"""The thread for long work: whose turn it is, and what becomes of who does not wait any more."""

from __future__ import annotations

import asyncio
import sys
import threading

import pytest

from k8sproxy.common.longwork import SWITCH, LongWork
from tests.recording.scenes import scene, until


class Gate:
    """Work that ends when the test says so."""

    def __init__(self) -> None:
        self.entered: list[str] = []
        self.threads: set[int] = set()
        self._open = threading.Event()

    def work(self, name: str) -> str:
        self.entered.append(name)
        self.threads.add(threading.get_ident())
        assert self._open.wait(10)
        return name

    def open(self) -> None:
        self._open.set()


@scene
async def test_owners_take_turns() -> None:
    """One who has a hundred things to be done waits for them in a row of its own."""
    longwork, gate = LongWork(), Gate()
    flood = [asyncio.ensure_future(longwork.run("ana", gate.work, f"ana {number}")) for number in range(100)]
    quiet = asyncio.ensure_future(longwork.run("ben", gate.work, "ben"))
    await until(lambda: longwork.waiting == 100)
    gate.open()
    assert await quiet == "ben"
    assert await asyncio.gather(*flood) == [f"ana {number}" for number in range(100)]
    assert gate.entered.index("ben") <= 2
    assert [name for name in gate.entered if name != "ben"] == [f"ana {number}" for number in range(100)]
    assert len(gate.threads) == 1 and threading.get_ident() not in gate.threads
    assert sys.getswitchinterval() == pytest.approx(SWITCH)
    await longwork.aclose()


@scene
async def test_who_is_cancelled_leaves_its_row() -> None:
    longwork, gate = LongWork(), Gate()
    running = asyncio.ensure_future(longwork.run("ana", gate.work, "first"))
    waiting = [asyncio.ensure_future(longwork.run("ana", gate.work, f"{number}")) for number in range(3)]
    await until(lambda: gate.entered)
    for task in (running, waiting[0], waiting[1]):
        task.cancel()
    await asyncio.gather(running, *waiting[:2], return_exceptions=True)
    gate.open()
    assert await waiting[2] == "2"
    assert gate.entered == ["first", "2"], "what has begun goes on, and nobody hears of it"
    await longwork.aclose()


@scene
async def test_what_fails_is_raised_and_the_next_goes_on() -> None:
    longwork = LongWork()
    failing = asyncio.ensure_future(longwork.run("ana", int, "x"))
    following = asyncio.ensure_future(longwork.run("ana", int, "7"))
    with pytest.raises(ValueError, match="invalid literal"):
        await failing
    assert await following == 7 and longwork.waiting == 0
    await longwork.aclose()
    await longwork.aclose()


@scene
async def test_the_end_cancels_what_waits() -> None:
    longwork, gate = LongWork(), Gate()
    running = asyncio.ensure_future(longwork.run("ana", gate.work, "first"))
    waiting = asyncio.ensure_future(longwork.run("ben", gate.work, "second"))
    await until(lambda: gate.entered)
    gate.open()
    await longwork.aclose()
    assert await running == "first"
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert gate.entered == ["first"]
