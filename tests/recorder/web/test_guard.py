from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from k8sproxy.common.errors import Refusal
from recorder.web.guard import host_of
from recorder.web.routes import BASE
from tests.recorder.web.visited import Stage, cast_header, person


@pytest.mark.parametrize(
    ("field", "host"),
    [
        ("recorder.test", "recorder.test"),
        ("Recorder.Test.:8443", "recorder.test"),
        ("100.64.0.9:80", "100.64.0.9"),
        ("[fd7a:115c:a1e0::9]:80", "fd7a:115c:a1e0::9"),
        ("[::1]", "::1"),
    ],
)
def test_host(field: str, host: str) -> None:
    assert host_of(field) == host


@pytest.mark.parametrize("field", ["", ":80", "a:b", "[::1", "[::1]x", "[::1]:x", "[recorder.test]", "a:80:80"])
def test_no_host(field: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        host_of(field)


CASES: list[tuple[dict[str, str], int, int]] = [  # header fields, status of a page, status of the API
    ({}, 200, 200),
    ({"Host": "recorder.test"}, 200, 200),
    ({"Host": "RECORDER.test.:80"}, 200, 200),
    ({"Host": "100.64.0.9"}, 200, 200),
    ({"Host": "evil.example"}, 421, 421),
    ({"Host": "recorder.test.evil.example"}, 421, 421),
    ({"Host": "a b"}, 421, 421),
    ({"Host": "recorder.test", "Origin": "http://recorder.test"}, 200, 200),
    ({"Host": "recorder.test", "Origin": "https://recorder.test"}, 403, 403),
    ({"Host": "recorder.test", "Origin": "null"}, 403, 403),
    ({"Host": "recorder.test", "Origin": "http://evil.example"}, 403, 403),
    ({"Sec-Fetch-Site": "same-origin"}, 200, 200),
    ({"Sec-Fetch-Site": "none"}, 200, 200),
    ({"Sec-Fetch-Site": "same-site"}, 403, 403),
    ({"Sec-Fetch-Site": "cross-site"}, 403, 403),
    ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}, 403, 403),
    ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"}, 403, 403),
    ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}, 200, 403),
]


def test_who_makes_the_browser_ask(tmp_path: Path) -> None:
    async def ask() -> None:
        async with Stage(tmp_path) as stage:
            for fields, page, api in CASES:
                assert (await stage.get("/sessions", **fields)).status == page, fields
                assert (await stage.get(f"{BASE}/sessions", **fields)).status == api, fields
            for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"):
                answer = await stage.get("/sessions", method=method)
                assert answer.status == 405 and answer.headers["Allow"] == "GET, HEAD"
                assert "Access-Control-Allow-Origin" not in answer.headers

    asyncio.run(ask())


def test_without_a_grant_there_is_one_answer_to_everything(tmp_path: Path) -> None:
    async def ask() -> None:
        async with Stage(tmp_path) as stage:
            identifier = await stage.record(cast_header(), [[1.0, "o", "needle"]])
            strangers = (
                person("eve@example.com"),
                person("eve@example.com", {"send": True}),
                person("eve@example.com", {"live": True, "export": True}),
            )
            for stage.peer in strangers:
                pages, problems = set(), set()
                for path in (
                    "/",
                    "/sessions",
                    f"/sessions/{identifier}",
                    "/sessions/x",
                    "/looks",
                    "/nowhere",
                    "/events",
                ):
                    answer = await stage.get(path)
                    pages.add((answer.status, answer.body))
                for path in (
                    "/sessions",
                    f"/sessions/{identifier}",
                    f"/sessions/{identifier}/cast",
                    "/x",
                    "/openapi.json",
                ):
                    answer = await stage.get(BASE + path)
                    problems.add((answer.status, answer.body))
                assert len(pages) == len(problems) == 1
                assert {status for status, _ in pages | problems} == {403}
                assert b"ana@" not in next(iter(pages))[1]
            stage.peer = Refusal(403, "peer_unknown", "this connection is not a tailnet peer's")
            assert (await stage.get("/")).status == 403

    asyncio.run(ask())
