from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncGenerator
from pathlib import Path

import aiohttp
import pytest

from recorder.model import End
from recorder.web import live
from recorder.web.routes import BASE
from tests.recorder.web.visited import Stage, cast_header, line, person


async def yes() -> bool:
    return True


def test_a_running_session_is_followed_to_its_end(tmp_path: Path) -> None:
    async def check() -> None:
        async with Stage(tmp_path) as stage:
            identifier = await stage.record(cast_header(), [[0.5, "o", "before\r\n"]], end=None)
            async with stage.client.get(f"{BASE}/sessions/{identifier}/live") as response:
                assert response.headers["Content-Type"] == "text/event-stream"
                assert response.headers["X-Content-Type-Options"] == "nosniff"
                seen = b""
                while b"before" not in seen:
                    seen += await response.content.readany()
                stage.writer.write(line([1.5, "o", "after\r\n"]))
                while b"after" not in seen:
                    seen += await response.content.readany()
                await stage.writer.finish(End.CLEAN)
                seen += await response.content.read()
            messages = [message.split(b"\n") for message in seen.split(b"\n\n") if message.startswith(b"data")]
            values = [json.loads(row.removeprefix(b"data: ")) for message in messages for row in message]
            assert values[0]["version"] == 2 and values[1:] == [[0.5, "o", "before\r\n"], [1.5, "o", "after\r\n"]]
            assert seen.endswith(b"event: over\ndata:\n\n")
            answer = await stage.get(f"{BASE}/sessions/{identifier}/live", Accept="application/x-ndjson")
            assert [json.loads(row) for row in answer.text.splitlines()][1:] == values[1:]

    asyncio.run(check())


def test_a_withdrawn_grant_ends_what_it_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def check() -> None:
        async with Stage(tmp_path) as stage:
            identifier = await stage.record(cast_header(), [[0.5, "o", "before\r\n"]], end=None)
            monkeypatch.setattr(live, "RECHECK", 0.01)
            address = f"{BASE}/sessions/{identifier}/live"
            async with stage.client.get(address) as response:
                assert b"before" in await response.content.readuntil(b"before")
                stage.peer = person("root@example.com", {"view": True})
                rest = await response.content.read()  # to its end, though the session goes on
                assert rest.endswith(b"event: withdrawn\ndata:\n\n") and b"over" not in rest
            assert (await stage.get(address)).status == 403
            stage.peer = person("root@example.com", {"view": True, "live": True})
            async with stage.client.get(address, headers={"Accept": "application/x-ndjson"}) as response:
                assert b"before" in await response.content.readuntil(b"before")
                stage.peer = person("root@example.com")
                with pytest.raises(aiohttp.ClientError):  # cut off, for a program would take it for the session's end
                    await response.content.read()
            await stage.writer.finish(End.CLEAN)

    asyncio.run(check())


@pytest.mark.parametrize("form", ["cast", "text", "json"])
def test_a_withdrawn_grant_ends_a_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    async def check() -> None:
        async with Stage(tmp_path) as stage:
            noise = [[float(n), "o", os.urandom(30_000).hex()] for n in range(400)]  # more than any buffer on its way
            identifier = await stage.record(cast_header(), noise)
            monkeypatch.setattr(live, "RECHECK", 0.01)
            async with stage.client.get(f"{BASE}/sessions/{identifier}/{form}") as response:
                assert response.status == 200
                stage.peer = person("root@example.com", {"view": True})
                with pytest.raises(aiohttp.ClientError):
                    await response.content.read()

    asyncio.run(check())


def test_silence_is_filled_and_nothing_is_left_behind() -> None:
    closed: list[bool] = []

    async def quiet() -> AsyncGenerator[bytes, None]:
        try:
            yield b"one\n"
            await asyncio.Event().wait()
        finally:
            closed.append(True)

    async def check() -> None:
        pieces = quiet()
        told = live.told(pieces, yes, beat=0.001, recheck=60.0)
        assert await anext(told) == b"one\n"
        assert await anext(told) is None and await anext(told) is None
        await told.aclose()
        await pieces.aclose()
        assert closed == [True]
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(check())


def test_a_cancel_at_any_step_leaves_nothing() -> None:
    async def pieces() -> AsyncGenerator[bytes, None]:
        for _ in range(3):
            await asyncio.sleep(0)
            yield b"x\n"

    async def watch() -> None:
        source = pieces()
        told = live.told(source, yes, beat=60.0, recheck=60.0)
        try:
            async for _ in told:
                pass
        finally:
            await told.aclose()
            await source.aclose()

    async def check() -> None:
        for turns in range(12):
            task = asyncio.ensure_future(watch())
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait((task,))
            assert len(asyncio.all_tasks()) == 1

    asyncio.run(check())


def test_messages_are_lines_of_data() -> None:
    async def pieces() -> AsyncGenerator[bytes | None, None]:
        yield b'{"version":2}\n[1,"o","a"]\n'
        yield None
        yield b'[2,"o","\\u2028"]\n'

    async def check() -> None:
        text = b"".join([part async for part in live.messages(pieces())])
        assert text == (
            b'data: {"version":2}\ndata: [1,"o","a"]\n\n: still here\n\n'
            b'data: [2,"o","\\u2028"]\n\nevent: over\ndata:\n\n'
        )

    asyncio.run(check())
