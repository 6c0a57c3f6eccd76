from __future__ import annotations

import asyncio
import re
from pathlib import Path

from k8sproxy.common.errors import Refusal
from tests.recorder.web.visited import EVERYTHING, Stage, api_event, cast_header, person

PAGES = ("/", "/sessions", "/sessions?q=needle", "/events", "/looks", "/holds", "/about")


def test_every_page_answers_with_its_headers(tmp_path: Path) -> None:
    async def check() -> None:
        async with Stage(tmp_path) as stage:
            identifier = await stage.record(
                cast_header(command="ls -l"), [[0.5, "o", "a needle\r\n"], [2.0, "o", "end"]]
            )
            event = await stage.event(api_event())
            for path in (*PAGES, f"/sessions/{identifier}?q=needle&t=1", f"/events/{event}", "/nowhere", "/sessions/x"):
                answer = await stage.get(path)
                assert answer.status == (404 if path in ("/nowhere", "/sessions/x") else 200), (path, answer.text)
                policy = answer.headers["Content-Security-Policy"]
                assert (
                    "default-src 'none'" in policy
                    and "frame-ancestors 'none'" in policy
                    and "base-uri 'none'" in policy
                )
                assert "unsafe-inline" not in policy and "'unsafe-eval'" not in policy
                assert ("wasm-unsafe-eval" in policy) == path.startswith(f"/sessions/{identifier}")
                assert answer.headers["X-Content-Type-Options"] == "nosniff"
                assert answer.headers["Cross-Origin-Opener-Policy"] == "same-origin"
                assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
                assert answer.headers["Referrer-Policy"] == "no-referrer"
                assert answer.headers["Cache-Control"] == "no-store"
                assert "Server" not in answer.headers
                assert not re.search(r"<script(?![^>]* src=)|<style|\sstyle=|\son\w+=|javascript:", answer.text), path
                for address in re.findall(r'(?:src|href|action)="([^"]*)"', answer.text):
                    assert address.startswith(("/", "?", "#")) and not address.startswith("//"), address

    asyncio.run(check())


def test_what_the_sender_cut_is_said(tmp_path: Path) -> None:
    async def check() -> None:
        async with Stage(tmp_path) as stage:
            cut = {"command": {"bytes": 70_000, "sha256": "ab" * 32}}
            identifier = await stage.record(cast_header(truncated=cut), [[1.0, "o", "x"]])
            page = (await stage.get(f"/sessions/{identifier}")).text
            assert f'command had 70000 bytes, SHA-256 <code class="path">{"ab" * 32}</code>' in page
            assert (await stage.get(f"/api/v1/sessions/{identifier}")).json()["truncated"] == cut
            other = await stage.record(cast_header(truncated={"command": "<b>"}), [[1.0, "o", "x"]])
            assert "SHA-256" not in (await stage.get(f"/sessions/{other}")).text

    asyncio.run(check())


def test_a_search_shows_the_words_and_links_to_their_moment(tmp_path: Path) -> None:
    async def check() -> None:
        async with Stage(tmp_path) as stage:
            identifier = await stage.record(
                cast_header(), [[1.0, "o", "nothing\r\n"], [61.5, "o", "the needle here\r\n"], [70.0, "o", "x"]]
            )
            await stage.record(cast_header(pod="other-0"), [[1.0, "o", "hay\r\n"]])
            page = (await stage.get("/sessions?q=needle")).text
            assert "<mark>needle</mark>" in page and "other-0" not in page
            assert f'href="/sessions/{identifier}?q=needle&amp;t=61.5"' in page
            assert 'data-at="61.5"' in (await stage.get(f"/sessions/{identifier}?q=needle&t=61.5")).text
            empty = (await stage.get("/sessions?q=nowhere")).text
            assert "No session that you may see matches." in empty

    asyncio.run(check())


def test_the_second_page_of_a_list_is_not_a_filtered_one(tmp_path: Path) -> None:
    async def check() -> None:
        async with Stage(tmp_path) as stage:
            for _ in range(2):
                await stage.record(cast_header(), [[1.0, "o", "x"]])
                await stage.event(api_event())
            for name in ("sessions", "events", "looks"):
                for path in (f"/{name}?limit=1", f"/{name}?cursor=999999999999999999"):
                    page = (await stage.get(path)).text
                    assert "<details open>" not in page and ">Clear</a>" not in page, path
                assert "<details open>" in (await stage.get(f"/{name}?user=*")).text

    asyncio.run(check())


def test_nothing_kept_yet_is_a_page_with_a_sentence(tmp_path: Path) -> None:
    async def check() -> None:
        async with Stage(tmp_path) as stage:
            assert "There are no sessions that you may see yet" in (await stage.get("/")).text
            assert "There are no sessions" in (await stage.get("/sessions")).text
            assert "There are no API events" in (await stage.get("/events")).text
            assert "Nobody has looked" in (await stage.get("/looks")).text

    asyncio.run(check())


def test_refusals_are_pages(tmp_path: Path) -> None:
    async def check() -> None:
        async with Stage(tmp_path) as stage:
            stage.peer = Refusal(503, "whois_unavailable", "tailscaled does not answer")
            answer = await stage.get("/")
            assert (answer.status, "Tailscaled does not answer." in answer.text) == (503, True)
            stage.peer = person("eve@example.com", {"users": "not a list"})
            answer = await stage.get("/sessions")
            assert answer.status == 403 and "malformed" in answer.text and "eve@" not in answer.text
            stage.peer = person("root@example.com", EVERYTHING)
            assert (await stage.get("/sessions?usr=x")).status == 400
            assert (await stage.get("/sessions?since=yesterday")).status == 400
            assert (await stage.get("/sessions?cursor=%00")).status == 400
            assert (await stage.get("/sessions?cursor=zzz")).status == 400
            assert (await stage.get("/sessions?limit=100000")).status == 400
            assert (await stage.get("/sessions", method="POST")).status == 405

    asyncio.run(check())


def test_hostile_names_are_spelled_out(tmp_path: Path) -> None:
    nasty = '"><script>alert(1)</script>\u202egnp.\x1b]0;x\x07\u200b{{ 7*7 }}\U0010fe80<img src=x onerror=alert(2)>'

    async def check() -> None:
        async with Stage(tmp_path) as stage:
            header = cast_header(user=nasty, command=nasty, namespace=nasty, pod=nasty, cluster=nasty, userAgent=nasty)
            identifier = await stage.record(header, [[1.0, "o", f"needle {nasty}\r\n"]])
            event = await stage.event(api_event(user=nasty, verb=nasty, namespace=nasty))
            for path in (
                "/",
                "/sessions?q=needle",
                f"/sessions/{identifier}?q=needle",
                "/events",
                f"/events/{event}",
                "/looks",
            ):
                text = (await stage.get(path)).text
                assert "<script>alert" not in text and "<img" not in text
                assert not set(text) & set("\u202e\x1b\x07\u200b\U0010fe80"), path
            assert "\\u{202e}" in (await stage.get("/sessions")).text

    asyncio.run(check())


def test_a_long_command_is_there_as_a_whole(tmp_path: Path) -> None:
    async def check() -> None:
        async with Stage(tmp_path) as stage:
            command = "sh -c '" + "echo <b>&\u202e; " * 200 + "the end'"
            identifier = await stage.record(cast_header(command=command), [[1.0, "o", "x"]])
            page = (await stage.get(f"/sessions/{identifier}")).text
            assert page.count("echo &lt;b&gt;&amp;\\u{202e}; ") > 200 and "the end" in page
            assert "the end" not in (await stage.get("/sessions")).text

    asyncio.run(check())


def test_assets_are_kept_by_their_tag(tmp_path: Path) -> None:
    async def check() -> None:
        async with Stage(tmp_path) as stage:
            page = (await stage.get("/")).text
            address = re.search(r'href="(/static/style\.css\?v=\w+)"', page)
            assert address is not None
            answer = await stage.get(address[1])
            assert answer.status == 200 and "immutable" in answer.headers["Cache-Control"]
            assert answer.headers["Content-Type"] == "text/css; charset=utf-8"
            tag = answer.headers["ETag"]
            assert (await stage.get("/static/style.css", If_None_Match=tag)).status == 304
            for path in (
                "/static/",
                "/static/../app.py",
                "/static/%2e%2e/app.py",
                "/static/vendor/",
                "/static/nothing",
            ):
                assert (await stage.get(path)).status == 404, path

    asyncio.run(check())
