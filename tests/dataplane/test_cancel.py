"""A connection's task is cancelled at each of its awaits in turn, and leaves nothing behind: Stage asserts that."""

from __future__ import annotations

import asyncio
import contextlib
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator
from functools import partial
from typing import Any

import pytest

from k8sproxy.dataplane.listener import Trust
from tests.dataplane.proxied import CHUNKED, UNKNOWN, Raw, Stage, get, pki, reply, request
from tests.dataplane.test_listener import Service, proxy_header
from tests.dataplane.test_upgrade import switching, upgrade

Play = Callable[[Stage, Raw], Awaitable[object]]


async def requests(stage: Stage, client: Raw) -> None:
    """Two requests, a dial, an upload, a big answer that has to wait, and an orderly end."""
    await client.send(get())
    upstream = await stage.api.accept()
    await upstream.head()
    await upstream.send(reply())
    await client.response()
    await client.send(request("POST", "/api", "Content-Length: 4", "Connection: close"))
    await upstream.head()
    await client.send(b"body")
    await upstream.exactly(4)
    sending = asyncio.ensure_future(upstream.send(reply(b"x" * 4_000_000)))
    try:
        await asyncio.sleep(0.01)
        await client.response()
        await client.rest()
    finally:
        sending.cancel()
        await asyncio.wait((sending,))


async def refused(stage: Stage, client: Raw) -> None:
    stage.daemon.answer = UNKNOWN
    await client.send(request("POST", "/api", "Content-Length: 4"))
    await client.response()
    await client.rest()


async def stale(stage: Stage, client: Raw) -> None:
    await client.send(get())
    upstream = await stage.api.accept()
    await upstream.head()
    await upstream.send(reply())
    await client.response()
    await client.send(get("/again"))
    await upstream.head()
    upstream.close()
    upstream = await stage.api.accept()
    await upstream.head()
    await upstream.send(reply())
    await client.response()


async def watching(stage: Stage, client: Raw) -> None:
    await client.send(get("/api/v1/pods?watch=1"))
    upstream = await stage.api.accept()
    await upstream.head()
    await upstream.send(CHUNKED + b"1\r\nx\r\n")
    await client.until(b"x\r\n")
    upstream.close()
    await client.rest()


async def upgraded(stage: Stage, client: Raw) -> None:
    await client.send(upgrade())
    upstream = await stage.api.accept()
    await upstream.head()
    await upstream.send(switching())
    await client.head()
    await client.end()
    await upstream.rest()
    await upstream.end()
    await client.rest()


async def behind_a_service(stage: Stage, client: Raw) -> None:
    await requests(stage, client)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("play", [requests, refused, stale, watching, upgraded, behind_a_service])
async def test_cancelled_at_every_await(play: Play, tls: bool) -> None:
    at = 1
    while await _cancelled_at(at, play, tls=tls):
        at += 1
    assert at > (3 if play is refused else 4)


async def _cancelled_at(at: int, play: Play, *, tls: bool) -> bool:
    """Whether there was an await number `at` to cancel."""
    reached = asyncio.Event()
    proxied = play is behind_a_service
    async with Stage(tls=tls, trust=Trust.PROXY if proxied else Trust.DIRECT) as stage:
        serve = stage.server._serve
        stage.server._serve = lambda *arguments: _stepping(serve(*arguments), at, reached)  # type: ignore[method-assign]

        async def act() -> None:
            with contextlib.suppress(Exception):
                if proxied:
                    stage.daemon.answer = Service()
                raw = await stage.raw()
                if proxied:
                    await raw.send(proxy_header())
                if tls:
                    await raw.start_tls(pki()[1], server_side=False)
                await play(stage, raw)

        acting = asyncio.ensure_future(act())
        cancelled = asyncio.ensure_future(reached.wait())
        await asyncio.wait((acting, cancelled), return_when=asyncio.FIRST_COMPLETED)
        await asyncio.sleep(0)
        for task in (acting, cancelled):
            task.cancel()
        await asyncio.wait((acting, cancelled))
    return reached.is_set()


async def _stepping(coroutine: Coroutine[Any, Any, None], at: int, reached: asyncio.Event) -> None:
    await _steps(coroutine, at, reached)


@types.coroutine
def _steps(coroutine: Coroutine[Any, Any, None], at: int, reached: asyncio.Event) -> Generator[Any, Any, None]:
    """Runs `coroutine`; the await number `at` that has to wait is cancelled."""
    step: Callable[[], Any] = partial(coroutine.send, None)
    waits = 0
    while True:
        try:
            future = step()
        except StopIteration:
            return
        waits += 1
        if waits == at:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            reached.set()
        try:
            yield future
        except BaseException as error:
            step = partial(coroutine.throw, error)
        else:
            step = partial(coroutine.send, None)


async def test_task_that_never_began() -> None:
    """Cancelled between its creation and its first step: the socket is closed and the connection counted off."""
    async with Stage() as stage:
        take = stage.server.take

        def taken(*arguments: Any) -> None:
            take(*arguments)
            for task in stage.server._tasks:
                task.cancel()

        stage.server.take = taken  # type: ignore[method-assign, assignment]
        client = await stage.raw()
        assert await client.gone()
