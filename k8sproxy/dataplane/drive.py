"""What runs the requests of a connection: the callbacks of its wires, and its task where something must be waited for.

A task that is woken costs a future, a call by the loop and a switch, and an ordinary request would pay for that twice:
for its head and for its response. So the coroutine that answers the requests of one connection is driven by whoever has
what it waits for:

    await directly()    what comes next comes in a callback (a whole head, the end of an exchange), which calls `wake`;
                        the loop goes on with the coroutine once it has called what else was ready in this turn
    await in_task()     what comes next waits for something else (an authenticator, a gate, a new connection): from here
                        on the connection's task goes on with it, until the coroutine waits `directly` again

The callback itself could go on with it. But of sixteen connections that are ready in one turn it is cheaper to read all
heads and then to send all of them on than to do both for one after the other (a fifth of the CPU of a small request on
a busy machine, at the same number of instructions; the caches are the likely reason).

It is one coroutine and the same code whoever drives it. What belongs to asyncio's tasks (a time limit, cancellation)
exists behind `in_task` alone: asyncio.timeout raises RuntimeError elsewhere. The task is parked meanwhile. A fault that
leaves the coroutine, and a cancellation of the task, arrive where they would if the task had run it all.
"""

from __future__ import annotations

import asyncio
import types
from collections.abc import Coroutine, Generator
from typing import Any, TypeVar

T = TypeVar("T")

# What the coroutine yields to whoever drives it; anything else is a future of asyncio's.
_DIRECT = object()
_TASK = object()


@types.coroutine
def directly() -> Generator[object, None, None]:
    """Wait until a callback calls `Drive.wake`."""
    yield _DIRECT


@types.coroutine
def in_task() -> Generator[object, None, None]:
    """Go on in the connection's task."""
    yield _TASK


class Drive:
    """Drives one coroutine at a time."""

    __slots__ = ("_due", "_fault", "_loop", "_over", "_parked", "_result", "_wanted", "_work")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._work: Coroutine[Any, Any, Any] | None = None
        self._parked: asyncio.Future[None] | None = None
        self._wanted: object = _TASK  # what the coroutine yielded when a callback could not go on with it
        self._due = False  # what it waits for directly is here
        self._over = False  # it has ended in a callback, and this is how:
        self._result: Any = None
        self._fault: BaseException | None = None

    @types.coroutine
    def run(self, work: Coroutine[Any, Any, T]) -> Generator[Any, Any, T]:
        """Run `work` to its end, for the task that awaits this; its result."""
        self._work = work
        self._over = False
        error: BaseException | None = None
        try:
            while True:
                try:
                    if error is None:
                        wanted: object = work.send(None)
                    else:
                        thrown, error = error, None
                        wanted = work.throw(thrown)
                        del thrown
                except StopIteration as end:
                    return end.value  # type: ignore[no-any-return]
                try:
                    if wanted is _DIRECT:
                        self._parked = self._loop.create_future()
                        self._wanted = _TASK
                        yield from self._parked
                        if self._over:
                            break
                        wanted = self._wanted
                    if wanted is not _TASK:
                        yield wanted
                except BaseException as caught:
                    self._due = False
                    if self._over:
                        raise  # cancelled just when it had ended
                    error = caught
            if self._fault is not None:
                raise self._fault
            return self._result  # type: ignore[no-any-return]
        finally:
            # A fault's traceback holds this frame: no circle is left of it.
            self._work = self._parked = self._fault = self._result = error = None

    @property
    def is_running(self) -> bool:
        """Whether there is a coroutine that has not ended."""
        return self._work is not None and not self._over

    def wake(self) -> None:
        """What the coroutine waits for `directly` is here: go on with it in this turn of the loop."""
        self._due = True
        self._loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        if not self._due:
            return  # it was cancelled meanwhile
        self._due = False
        work, parked = self._work, self._parked
        assert work is not None and parked is not None  # noqa: S101  # only who waits is woken
        try:
            wanted = work.send(None)
        except StopIteration as end:
            self._over, self._result = True, end.value
        except BaseException as error:
            self._over, self._fault = True, error
        else:
            if wanted is _DIRECT:
                return
            self._wanted = wanted
        if not parked.done():
            parked.set_result(None)
