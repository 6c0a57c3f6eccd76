"""The same questions to a running recorder's site."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from k8sproxy.common.cli import Failed
from k8sproxy.common.errors import Refusal
from recorder.cli.common import Where
from recorder.cli.library import open_library
from recorder.index.filters import Filter
from recorder.model import End
from tests.recorder.proof.sealed import run
from tests.recorder.web.visited import Stage, cast_header, person


def test_all_that_a_library_can(tmp_path: Path) -> None:
    async def check() -> None:
        async with Stage(tmp_path) as stage:
            ids = [
                await stage.record(cast_header(command=f"bash {number}"), [[1.0, "o", f"word{number} here\r\n"]])
                for number in range(3)
            ]
            running = await stage.record(cast_header(user="bob@example.com"), [[0.0, "o", "x"]], end=None)
            async with open_library(Where(url=stage.url.rstrip("/"))) as library:
                told: list[int] = []
                found = await library.sessions(Filter(state=End.CLEAN), 2, lambda done, total: told.append(done))
                assert [session["id"] for session in found] == ids[:0:-1] and told == [2]
                (one,) = await library.sessions(Filter(text="word1"), 10, lambda done, total: None)
                assert one["id"] == ids[1] and one["hits"][0]["time"] == 1.0
                assert [
                    session["id"]
                    for session in await library.sessions(
                        Filter(user="bob*", since=1.0, until=1e10, min_duration=0.0), 10, lambda done, total: None
                    )
                ] == [running]
                assert (await library.session(ids[0]))["command"] == "bash 0"
                assert await library.events(ids[0]) == []
                cast = b"".join([piece async for piece in library.cast(ids[0])])
                assert cast.splitlines()[1] == b'[1.0, "o", "word0 here\\r\\n"]'
                lines = [line async for line in library.window(ids[0], at=0.5)]
                assert json.loads(lines[-1]) == {"next": None} and len(lines) == 3
                assert [line async for line in library.window(ids[0], position="0.5~0")][1] == lines[1]
                for wrong in ("0" * 26, "../x", "\x1b"):
                    with pytest.raises(Failed, match="no"):
                        await library.session(wrong)

    run(check())


def test_refusals_are_told(tmp_path: Path) -> None:
    async def check() -> None:
        async with Stage(tmp_path) as stage:
            identifier = await stage.record(cast_header(), [[1.0, "o", "x"]])
            async with open_library(Where(url=stage.url.rstrip("/"))) as library:
                stage.peer = person("ana@example.com", {"own": True, "export": False})
                with pytest.raises(Failed, match="policy"):
                    _ = [piece async for piece in library.cast(identifier)]
                stage.peer = Refusal(403, "peer_unknown", "nobody \x1b[2J knows you")
                with pytest.raises(Failed) as failed:
                    await library.session(identifier)
                assert "\x1b" not in failed.value.message

    run(check())


@pytest.mark.parametrize(
    "document", ["{}", '{"items": 1, "cursor": null}', '{"items": [{}], "cursor": null}', "[" * 100_000, "[]", "x"]
)
def test_what_answers_something_else(document: str) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(text=document, content_type="application/json")

    async def check() -> None:
        app = web.Application()
        app.router.add_get("/{path:.*}", answer)
        async with TestServer(app) as server, open_library(Where(url=str(server.make_url("")))) as library:
            with pytest.raises(Failed, match="not a recorder"):
                await library.sessions(Filter(), 10, lambda done, total: None)
            with pytest.raises(Failed, match="not a recorder"):
                await library.session("0" * 26)

    run(check())


def test_a_filter_is_asked_as_it_was_given(tmp_path: Path) -> None:
    async def check() -> None:
        async with Stage(tmp_path) as stage, open_library(Where(url=stage.url.rstrip("/"))) as library:
            identifier = await stage.record(cast_header(), [[100.125, "o", "x"]])
            for least, expected in ((100.1249, [identifier]), (100.1251, [])):
                found = await library.sessions(Filter(min_duration=least), 10, lambda done, total: None)
                assert [session["id"] for session in found] == expected

    run(check())


def test_what_is_no_recorder(tmp_path: Path) -> None:
    async def check() -> None:
        async with Stage(tmp_path) as stage, open_library(Where(url=stage.url + "static")) as library:
            with pytest.raises(Failed):
                await library.sessions(Filter(), 1, lambda done, total: None)

    run(check())
