"""The pages in real Chromium: what a person does, and what a hostile recording tries.

Skipped where there is no Chromium, unless K8SPROXY_REQUIRE_BED is 1. CHROMIUM names another one than Debian's.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import pytest
from playwright.async_api import Page, async_playwright

from recorder.model import End
from recorder.web import live
from tests.recorder.web.visited import Stage, api_event, cast_header, line, person

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or ""

pytestmark = pytest.mark.skipif(
    not CHROMIUM and os.environ.get("K8SPROXY_REQUIRE_BED") != "1", reason="there is no Chromium here"
)

SCREEN = ".ap-term-text"
LONG: list[object] = [
    [0.5, "o", "$ make deploy\r\n"],
    [5.0, "o", "building\r\n"],
    [60.0, "r", "100x30"],
    [61.5, "o", "the needle is here\r\n"],
    [120.0, "o", "\x1b[2J\x1b[Hall done\r\n"],
]


@dataclass
class Seen:
    """What a browser did by itself."""

    requests: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


@asynccontextmanager
async def browsing(stage: Stage, seen: Seen) -> AsyncIterator[Page]:
    async with async_playwright() as driver:
        browser = await driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            page = await (await browser.new_context(base_url=stage.url)).new_page()
            page.set_default_timeout(30_000)
            page.on("request", lambda request: seen.requests.append(request.url))
            page.on("pageerror", lambda error: seen.errors.append(str(error)))
            page.on("console", lambda entry: seen.errors.append(entry.text) if entry.type == "error" else None)

            async def dismiss(dialog: object) -> None:
                seen.dialogs.append(str(dialog))
                await dialog.dismiss()  # type: ignore[attr-defined]  # playwright's Dialog

            page.on("dialog", dismiss)
            yield page
        finally:
            await browser.close()


async def shows(page: Page, text: str, *, there: bool = True) -> None:
    """Wait until the terminal shows a text, or no longer shows it. A function, for the policy lets nobody evaluate
    text, the driver included."""
    await page.wait_for_function(
        "([selector, text, there]) => document.querySelector(selector)?.textContent.includes(text) === there",
        arg=[SCREEN, text, there],
    )


async def screen(page: Page) -> str:
    return await page.locator(SCREEN).text_content() or ""


def test_a_session_is_found_by_a_word_on_its_screen_and_played(tmp_path: Path) -> None:
    async def check() -> None:
        async with Stage(tmp_path) as stage:
            for number in range(3):
                await stage.record(cast_header(pod=f"other-{number}"), [[1.0, "o", "hay\r\n"]])
            await stage.event(api_event())
            await stage.record(cast_header(command="make deploy"), LONG)
            seen = Seen()
            async with browsing(stage, seen) as page:
                await page.goto("/")
                await page.get_by_role("searchbox").fill("needle")
                await page.keyboard.press("Enter")
                await page.get_by_text("the needle is here").click()
                await shows(page, "needle")  # at the hit's moment, without playing
                assert "all done" not in await screen(page)
                # Beyond the end of what is shown, and back to before it.
                player = page.locator(".ap-wrapper")
                await player.focus()
                await page.keyboard.press("9")
                await page.keyboard.press("0")
                await shows(page, "needle", there=False)
                await page.select_option("#speed", "16")
                await page.select_option("#idle", "1")
                await player.focus()
                await page.keyboard.press("Space")
                await shows(page, "all done")
                await page.locator("a[data-moment]").first.click()
                await shows(page, "needle")
                # Another word of the same session, without going back.
                await page.get_by_role("searchbox").fill("building")
                await page.keyboard.press("Enter")
                await page.locator("mark").get_by_text("building").click()
                await shows(page, "building")
                assert "needle" not in await screen(page)
            assert not seen.errors and not seen.dialogs
            assert all(address.startswith(stage.url) for address in seen.requests)

    asyncio.run(check())


def test_a_running_session_is_watched(tmp_path: Path) -> None:
    async def check() -> None:
        async with Stage(tmp_path) as stage:
            identifier = await stage.record(cast_header(), [[0.5, "o", "before\r\n"]], end=None)
            seen = Seen()
            async with browsing(stage, seen) as page:
                await page.goto(f"/sessions/{identifier}")
                await shows(page, "before")
                stage.writer.write(line([1.5, "r", "120x40"]) + line([2.0, "o", "and after\r\n"]))
                await shows(page, "and after")
                await stage.writer.finish(End.CLEAN)
                await page.get_by_text("The session has ended. Reload").wait_for()
                assert "and after" in await screen(page)
                assert await page.locator(".ap-overlay").count() == 0  # nothing stands before the last screen
                await page.reload()
                await page.locator("#speed").wait_for()
            assert not seen.errors

    asyncio.run(check())


def test_a_live_view_goes_blank_when_its_grant_is_withdrawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def check() -> None:
        async with Stage(tmp_path) as stage:
            identifier = await stage.record(cast_header(), [[0.5, "o", "before\r\n"]], end=None)
            monkeypatch.setattr(live, "RECHECK", 0.05)
            seen = Seen()
            async with browsing(stage, seen) as page:
                await page.goto(f"/sessions/{identifier}")
                await shows(page, "before")
                stage.peer = person("ana@example.com")
                await page.get_by_text("may no longer watch this session").wait_for()
                await shows(page, "before", there=False)
            assert not seen.errors
            await stage.writer.finish(End.CLEAN)

    asyncio.run(check())


def test_what_a_terminal_does_not_show_is_offered_to_see(tmp_path: Path) -> None:
    async def check() -> None:
        async with Stage(tmp_path) as stage:
            hidden = "<b>stolen</b> " + "x" * 300
            body: list[object] = [[0.5, "o", "before\r\n"], [2.0, "o", f"\x1b_{hidden}\x1b\\\x1b[8mneedle\x1b[0m\r\n"]]
            identifier = await stage.record(cast_header(), body)
            seen = Seen()
            async with browsing(stage, seen) as page:
                await page.set_viewport_size({"width": 360, "height": 700})
                await page.goto("/sessions?q=stolen")
                await page.get_by_text("not shown: APC").wait_for()
                await page.get_by_text("unseen output").wait_for()
                stage.index.standing.restart()
                stage.index.standing.stored = 34
                await page.goto(f"/sessions/{identifier}")
                await page.get_by_role("heading", name="Output that a terminal does not show").wait_for()
                assert await page.locator("main b").count() == 0
                assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
                await page.locator("section[aria-labelledby=unseen] a[data-moment]").first.click()
                await shows(page, "before")
                await page.goto("/sessions")
                await page.get_by_text("The index has 1 of 34 sessions so far").wait_for()
                assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            assert not seen.errors and not seen.dialogs

    asyncio.run(check())


SIZE = "(size) => document.querySelector('.ap-term').style.getPropertyValue('--term-cols') === size"


@pytest.mark.parametrize("size", ["", "x", "100", "100x", "x30", "0x0", "100x0", "-1x5", "1e3x10", "100x30x5", "a b"])
def test_a_resize_that_names_no_size_leaves_the_terminal_as_it_is(tmp_path: Path, size: str) -> None:
    async def check() -> None:
        async with Stage(tmp_path) as stage:
            events: list[object] = [[0.1, "r", "132x40"], [0.2, "r", size], [0.3, "o", "needle\r\n"]]
            identifier = await stage.record(cast_header(), events)
            running = await stage.record(cast_header(), events, end=None)
            seen = Seen()
            async with browsing(stage, seen) as page:
                await page.goto(f"/sessions/{identifier}?t=0.3")
                await shows(page, "needle")
                await page.wait_for_function(SIZE, arg="132")
                await page.goto(f"/sessions/{running}")
                await shows(page, "needle")
                await page.wait_for_function(SIZE, arg="132")
            assert not seen.errors
            await stage.writer.finish(End.CLEAN)

    asyncio.run(check())


HOSTILE = (
    '<img src=x onerror=alert(1)><script>alert(2)</script>"><svg onload=alert(3)>'
    "\x1b]8;;javascript:alert(4)\x1b\\link\x1b]8;;\x1b\\\x1b]52;c;YQ==\x07\x1b]0;<b>title</b>\x07"
    "\x1b]1337;File=inline=1:AAAA\x07\x1b[6n\x1b[c\x1bP+q544e\x1b\\\u202e\u2066\U0010fe80"
)


def test_a_hostile_recording_does_nothing(tmp_path: Path) -> None:
    async def check() -> None:
        async with Stage(tmp_path) as stage:
            header = cast_header(HOSTILE, HOSTILE, HOSTILE, HOSTILE, HOSTILE, userAgent=HOSTILE, title=HOSTILE)
            header |= {"width": 10**9, "height": 10**9, "theme": {"fg": HOSTILE, "bg": HOSTILE}, "env": {"x": HOSTILE}}
            events: list[object] = [
                [0.1, "o", f"needle {HOSTILE}\r\n"],
                [0.2, "r", "999999999x999999999"],
                [0.25, "o", "\x1b[9999;9999H\x1b[99999999b"],
                [0.3, "r", HOSTILE],
                [0.4, "m", HOSTILE],
                b'[0.5,"o",{"a":1}]\n',
                b'{"next":"0~0"}\n',
                b"not json\n",
                [0.6, "o", "\x1b[2J\x1b[Hstill standing\r\n"],
            ]
            identifier = await stage.record(header, events)
            event = await stage.event(api_event(HOSTILE, HOSTILE, HOSTILE))
            seen = Seen()
            async with browsing(stage, seen) as page:
                for path in ("/", "/sessions?q=needle", "/events", f"/events/{event}", "/looks", "/holds"):
                    await page.goto(path)
                    assert await page.locator("main img, main script, main svg[onload]").count() == 0
                await page.goto(f"/sessions/{identifier}?q=needle&t=0.6")
                await shows(page, "still standing")
                await page.goto(f"/sessions/{identifier}?q=needle&t=0.1")
                await shows(page, "needle")
                assert await page.locator("#player img, #player script, #player a, #player [onerror]").count() == 0
                assert await page.locator('a[href^="javascript:"]').count() == 0
                assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            assert not seen.dialogs
            assert not [entry for entry in seen.errors if "Content Security" in entry], seen.errors
            assert all(address.startswith(stage.url) for address in seen.requests)

    asyncio.run(check())


def test_without_a_grant_there_is_nothing_to_see(tmp_path: Path) -> None:
    async def check() -> None:
        async with Stage(tmp_path) as stage:
            identifier = await stage.record(cast_header(), LONG)
            stage.peer = person("eve@example.com")
            seen = Seen()
            async with browsing(stage, seen) as page:
                for path in ("/", f"/sessions/{identifier}", "/sessions?q=needle"):
                    answer = await page.goto(path)
                    assert answer is not None and answer.status == 403
                    text = await page.inner_text("main")
                    assert "does not let you look" in text and "ana" not in text and "needle" not in text

    asyncio.run(check())


def test_pages_fit_a_phone_and_are_used_by_keyboard(tmp_path: Path) -> None:
    async def check() -> None:
        async with Stage(tmp_path) as stage:
            identifier = await stage.record(cast_header(command="x" * 200, pod="p" * 60), LONG)
            await stage.event(api_event())
            async with browsing(stage, Seen()) as page:
                await page.set_viewport_size({"width": 360, "height": 700})
                for path in (
                    "/",
                    "/sessions?q=needle",
                    f"/sessions/{identifier}",
                    "/events",
                    "/looks",
                    "/holds",
                    "/about",
                    "/x",
                ):
                    await page.goto(path)
                    assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path
                    await page.keyboard.press("Tab")
                    assert await page.evaluate("document.activeElement.className") == "skip", path
                    outline = await page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
                    assert outline == "solid", path
                    await page.keyboard.press("Enter")
                    assert await page.evaluate("document.activeElement.id") == "content", path
                for width in (360, 1280):
                    await page.set_viewport_size({"width": width, "height": 700})
                    await page.goto("/")
                    boxes = [await text.bounding_box() for text in await page.locator(".activity text").all()]
                    for one, other in combinations([box for box in boxes if box is not None], 2):
                        beside = one["x"] + one["width"] <= other["x"] or other["x"] + other["width"] <= one["x"]
                        below = one["y"] + one["height"] <= other["y"] or other["y"] + other["height"] <= one["y"]
                        assert beside or below, (width, one, other)

    asyncio.run(check())
