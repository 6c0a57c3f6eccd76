"""Who goes on with a connection's coroutine: a callback while it waits directly, the task while it waits otherwise."""

from __future__ import annotations

import asyncio

import pytest

from k8sproxy.dataplane.drive import Drive, directly, in_task


class Work:
    """A coroutine that notes where it is, and in which task."""

    def __init__(self) -> None:
        self.drive = Drive(asyncio.get_running_loop())
        self.seen: list[tuple[str, bool]] = []

    def note(self, what: str) -> None:
        self.seen.append((what, asyncio.current_task() is self.task))

    def start(self, work: object) -> None:
        async def run() -> object:
            return await self.drive.run(work)  # type: ignore[arg-type]

        self.task = asyncio.ensure_future(run())


async def test_the_loop_goes_on_in_the_turn_in_which_it_was_woken() -> None:
    work = Work()

    async def steps() -> str:
        work.note("first")
        await directly()
        work.note("woken")
        await directly()
        work.note("again")
        return "done"

    work.start(steps())
    await asyncio.sleep(0)
    work.drive.wake()
    assert work.seen == [("first", True)]
    await asyncio.sleep(0)
    assert work.seen == [("first", True), ("woken", False)]
    work.drive.wake()
    await asyncio.sleep(0)
    assert work.seen[-1] == ("again", False) and not work.drive.is_running
    assert await work.task == "done"


async def test_what_waits_otherwise_goes_on_in_the_task() -> None:
    work = Work()
    gate, parking = asyncio.Event(), asyncio.Event()

    async def steps() -> None:
        await directly()
        await in_task()
        work.note("in the task")
        async with asyncio.timeout(10):
            await gate.wait()
        work.note("behind the gate")
        parking.set()
        await directly()
        work.note("woken")

    work.start(steps())
    await asyncio.sleep(0)
    work.drive.wake()
    await asyncio.sleep(0)
    assert not work.seen
    gate.set()
    await parking.wait()
    await asyncio.sleep(0)
    work.drive.wake()
    await work.task
    assert work.seen == [("in the task", True), ("behind the gate", True), ("woken", False)]


async def test_a_future_that_is_met_in_a_callback_is_waited_for_in_the_task() -> None:
    work = Work()
    future: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def steps() -> str:
        await directly()
        return await future

    work.start(steps())
    await asyncio.sleep(0)
    work.drive.wake()
    future.set_result("here")
    assert await work.task == "here"


@pytest.mark.parametrize("otherwise", [False, True])
async def test_a_cancelled_task_cancels_what_waits(otherwise: bool) -> None:
    work = Work()

    async def steps() -> None:
        try:
            await (in_task() if otherwise else directly())
            await asyncio.Event().wait()
        finally:
            work.note("cancelled")
            await asyncio.sleep(0)
            work.note("in its own time")

    work.start(steps())
    await asyncio.sleep(0)
    work.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work.task
    assert work.seen == [("cancelled", True), ("in its own time", True)]


async def test_a_fault_in_a_callback_is_the_tasks() -> None:
    work = Work()

    async def steps() -> None:
        await directly()
        raise ValueError("here")

    work.start(steps())
    await asyncio.sleep(0)
    work.drive.wake()
    with pytest.raises(ValueError, match="here"):
        await work.task


async def test_a_fault_of_what_is_waited_for_arrives() -> None:
    work = Work()

    async def steps() -> str:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        future.set_exception(ValueError("here"))
        await directly()
        try:
            await future
        except ValueError as error:
            return str(error)
        return ""

    work.start(steps())
    await asyncio.sleep(0)
    work.drive.wake()
    assert await work.task == "here"


@pytest.mark.parametrize("first", ["woken", "cancelled"])
async def test_cancelled_in_the_turn_in_which_it_ends(first: str) -> None:
    work = Work()
    work.start(directly_once())
    await asyncio.sleep(0)
    if first == "woken":
        work.drive.wake()
    work.task.cancel()
    work.drive.wake()
    with pytest.raises(asyncio.CancelledError):
        await work.task


async def directly_once() -> None:
    await directly()
