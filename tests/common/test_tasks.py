"""Tasks with an owner: held, ended, reported; and no other place in the two programs that starts one."""

from __future__ import annotations

import ast
import asyncio
import gc
import weakref
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from k8sproxy.common.tasks import Tasks, beside, left_to_waiter

ROOT = Path(__file__).parents[2]


async def _fail() -> None:
    raise ValueError("a fault of ours")


async def test_a_task_has_its_name_and_is_held_until_it_is_done() -> None:
    tasks, go = Tasks(), asyncio.Event()

    async def work() -> int:
        await go.wait()
        return 7

    task = weakref.ref(tasks.start(work(), "some work"))
    gc.collect()
    running = task()
    assert running is not None and running.get_name() == "some work" and list(tasks) == [running]
    go.set()
    assert await running == 7
    assert not tasks


async def test_a_fault_is_logged_and_then_the_end_is_told() -> None:
    tasks, told = Tasks(), []
    with capture_logs() as logs:
        task = tasks.start(_fail(), "some work", ended=lambda task: told.append((task, len(tasks), len(logs))))
        await tasks.finished()
    assert told == [(task, 0, 1)]
    assert logs[0]["event"] == "task_failed" and logs[0]["task"] == "some work"
    assert isinstance(logs[0]["exc_info"], ValueError)


async def test_a_fault_may_be_taken_by_its_owner_or_by_who_waits() -> None:
    tasks, faults = Tasks(), []
    with capture_logs() as logs:
        own = tasks.start(_fail(), "own", failed=lambda task, error: faults.append((task, str(error))))
        awaited = tasks.start(_fail(), "awaited", failed=left_to_waiter)
        with pytest.raises(ValueError, match="ours"):
            await awaited
        await tasks.finished()
    assert faults == [(own, "a fault of ours")] and not logs


async def test_the_end_is_told_though_what_takes_the_fault_fails_itself() -> None:
    tasks, told, faults = Tasks(), [], []
    loop = asyncio.get_running_loop()
    before = loop.get_exception_handler()
    loop.set_exception_handler(lambda _, context: faults.append(context["exception"]))

    def fail(task: asyncio.Task[None], error: BaseException) -> None:
        raise KeyError

    tasks.start(_fail(), "some work", failed=fail, ended=lambda _: told.append(len(tasks)))
    await tasks.finished()
    loop.set_exception_handler(before)
    assert told == [0] and isinstance(faults[0], KeyError)


async def test_the_end_of_a_task_that_never_began_is_told() -> None:
    tasks = Tasks()
    told: list[asyncio.Task[None]] = []
    tasks.start(_fail(), "never begun", ended=told.append)
    tasks.cancel()
    await tasks.finished()
    assert told[0].cancelled() and not tasks


async def test_closing_cancels_once_and_waits_for_what_a_task_does_at_its_end() -> None:
    tasks, steps = Tasks(), []

    async def late() -> None:
        steps.append("late began")
        await asyncio.Event().wait()

    async def careful() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            tasks.start(late(), "late")
            await asyncio.sleep(0)
            steps.append("careful ended")

    tasks.start(careful(), "careful")
    tasks.start(asyncio.Event().wait(), "quick")
    await asyncio.sleep(0)
    await tasks.aclose()
    assert "careful ended" in steps and not tasks


async def test_a_task_can_close_its_owner() -> None:
    tasks = Tasks()

    async def close() -> None:
        await tasks.aclose()

    other = tasks.start(asyncio.Event().wait(), "other")
    closing = tasks.start(close(), "closing")
    await closing
    assert other.cancelled() and not tasks


async def test_finished_waits_for_tasks_that_are_started_meanwhile() -> None:
    tasks, told = Tasks(), []

    async def first() -> None:
        tasks.start(second(), "second")

    async def second() -> None:
        await asyncio.sleep(0)
        told.append("second")

    tasks.start(first(), "first")
    await tasks.finished()
    assert told == ["second"]


async def test_work_beside_a_block_ends_with_it() -> None:
    ended = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.set()

    with pytest.raises(KeyError):
        async with beside(work(), "beside"):
            await asyncio.sleep(0)
            raise KeyError
    assert ended.is_set()


async def test_the_outcome_of_work_beside_a_block_is_the_blocks() -> None:
    async def work() -> int:
        return 7

    with capture_logs() as logs:
        async with beside(work(), "answer") as answer, beside(_fail(), "fault") as fault:
            await asyncio.wait((answer, fault))
        assert answer.result() == 7
        with pytest.raises(ValueError, match="ours"):
            fault.result()
    assert not logs


@pytest.mark.parametrize("package", ["k8sproxy", "recorder"])
def test_no_other_module_starts_a_task(package: str) -> None:
    """The linter bans asyncio.create_task and asyncio.ensure_future. It cannot see a method of a loop."""
    found = []
    for path in sorted((ROOT / package).rglob("*.py")):
        if path != ROOT / "k8sproxy/common/tasks.py":
            found += [f"{path.relative_to(ROOT)}:{line}" for line in _started(path.read_text())]
    assert not found


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("loop.create_task(work())", [1]),
        ("self._loop.create_task(work())", [1]),
        ("asyncio.get_running_loop().create_task(work())", [1]),
        ("start = loop.create_task", [1]),
        ("asyncio.ensure_future(work())", [1]),
        ("from asyncio import create_task", [1]),
        ("asyncio.Task(work())", [1]),
        ("task: asyncio.Task[None] | None = None", []),
        ("async def main():\n    async with asyncio.TaskGroup() as group:\n        group.create_task(work())", []),
    ],
)
def test_what_starts_a_task(source: str, lines: list[int]) -> None:
    assert _started(source) == lines


_STARTERS = {"create_task", "ensure_future", "run_coroutine_threadsafe"}


def _started(source: str) -> list[int]:
    """The lines that start a task, or could: but not those of a TaskGroup."""
    tree = ast.parse(source)
    groups = {
        item.optional_vars.id
        for node in ast.walk(tree)
        if isinstance(node, ast.AsyncWith)
        for item in node.items
        if isinstance(item.optional_vars, ast.Name) and ast.unparse(item.context_expr) == "asyncio.TaskGroup()"
    }
    lines = []
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id=name), attr="create_task") if name in groups:
                pass
            case ast.Attribute(attr=attr) if attr in _STARTERS:
                lines.append(node.lineno)
            case ast.ImportFrom(module="asyncio", names=names) if any(
                one.name in {*_STARTERS, "Task"} for one in names
            ):
                lines.append(node.lineno)
            case ast.Call(func=ast.Attribute(value=ast.Name(id="asyncio"), attr="Task")):
                lines.append(node.lineno)
    return lines
