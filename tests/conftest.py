"""Scenes: a test that is a coroutine runs on both event loops, and must leave no task and no fault of a callback.

A module whose scenes do not depend on the loop names the ones that it needs in EVENT_LOOPS.
"""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import itertools
import os
from collections.abc import Callable
from typing import Any

import pytest
import uvloop

from tools.compiled import hot_set

# Seconds. No scene waits for time to pass; one that is still there has lost an event.
STUCK = 10.0

_LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "uvloop": uvloop.new_event_loop,
    "asyncio": asyncio.new_event_loop,
}


def pytest_sessionstart() -> None:
    """End the run where it would test something else than it says: sources in place of the compiled wheel, or a
    compiled module that lies in the checkout and hides its source."""
    if wrong := wrongly_built(compiled=os.environ.get("K8SPROXY_COMPILED") == "1"):
        pytest.exit("\n".join(wrong), returncode=3)


def wrongly_built(*, compiled: bool) -> list[str]:
    """A line for each hot module that would be imported from a file of the other kind."""
    wrong = []
    for name in itertools.chain.from_iterable(hot_set().values()):
        found = importlib.util.find_spec(name)
        origin = str(found and found.origin)
        if origin.endswith(".py") is compiled:
            wrong.append(f"{name} is imported from {origin}: not {'compiled' if compiled else 'its source'}")
    return wrong


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if inspect.iscoroutinefunction(metafunc.function):
        metafunc.fixturenames.append("event_loop_name")
        metafunc.parametrize("event_loop_name", getattr(metafunc.module, "EVENT_LOOPS", list(_LOOPS)))


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    function = pyfuncitem.obj
    if not inspect.iscoroutinefunction(function):
        return None
    arguments: dict[str, Any] = {name: pyfuncitem.funcargs[name] for name in inspect.signature(function).parameters}
    faults: list[dict[str, Any]] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
        async with asyncio.timeout(STUCK):
            await function(**arguments)
        await asyncio.sleep(0)
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        assert not tasks, f"left behind: {tasks}"

    with asyncio.Runner(loop_factory=_LOOPS[str(pyfuncitem.callspec.params["event_loop_name"])]) as runner:
        runner.run(main())
    assert not faults, faults
    return True
