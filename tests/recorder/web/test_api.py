from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from recorder.index import IndexFailure
from recorder.model import End, new_id
from recorder.web.api import answer
from recorder.web.routes import BASE
from tests.recorder.web.schema import check
from tests.recorder.web.visited import EVERYTHING, Stage, api_event, cast_header, machine, person

EVENTS: list[object] = [[0.5, "o", "hello \x1b[1mneedle\x1b[0m\r\n"], [1.5, "r", "100x30"], [2.0, "o", "bye\r\n"]]


def test_every_route_is_described_and_answers_as_described(tmp_path: Path) -> None:
    async def ask() -> None:
        async with Stage(tmp_path) as stage:
            identifier = await stage.record(cast_header(), EVENTS)
            event = await stage.event(api_event())
            description = (await stage.get(f"{BASE}/openapi.json")).json()
            routes = {
                resource.canonical
                for resource in stage.app.router.resources()
                if resource.canonical.startswith("/api/")
            }
            assert routes == set(description["paths"])
            for path, methods in description["paths"].items():
                operation = methods["get"]
                address = path.replace("{id}", event if path.startswith(f"{BASE}/events") else identifier)
                if path.endswith("/window"):
                    address += "?at=1"
                answer = await stage.get(address)
                assert answer.status == 200, (address, answer.text)
                kind = answer.headers["Content-Type"].partition(";")[0]
                content = operation["responses"]["200"]["content"]
                assert kind in content, (path, kind)
                if kind == "application/json":
                    check(answer.json(), content[kind]["schema"], description["components"]["schemas"])
                for parameter in operation["parameters"]:
                    if parameter["in"] == "query" and parameter["schema"].get("type") in ("number", "integer"):
                        wrong = await stage.get(f"{address.partition('?')[0]}?{parameter['name']}=x")
                        assert wrong.status == 400, parameter
                        check(
                            wrong.json(), {"$ref": "#/components/schemas/Problem"}, description["components"]["schemas"]
                        )
                unknown = await stage.get(f"{address.partition('?')[0]}?unknown=1")
                assert unknown.status == 400 or path.endswith(("openapi.json", "whoami", "text", "json", "live")), path
                assert (await stage.get(address, method="HEAD")).status == 200

    asyncio.run(ask())


@pytest.mark.parametrize("last", [b'[0.1,"o"]\n', b"no JSON\n", b'[3.0,"o","torn'])
def test_damage_is_told_alike_wherever_a_session_is_told(tmp_path: Path, last: bytes) -> None:
    async def ask() -> None:
        async with Stage(tmp_path) as stage:
            identifier = await stage.record(cast_header(), [*EVENTS, last])
            whole = await stage.record(cast_header(), EVENTS)
            await stage.store.builder.drained()
            await stage.index.settled()
            for address, damaged in ((identifier, True), (whole, False)):
                assert (await stage.get(f"{BASE}/sessions/{address}")).json()["damaged"] is damaged
                assert ("with lines that can" in (await stage.get(f"/sessions/{address}")).text) is damaged
            for query in ("", "?q=needle"):
                items = (await stage.get(f"{BASE}/sessions{query}")).json()["items"]
                assert {item["id"]: item["damaged"] for item in items} == {identifier: True, whole: False}
                assert (await stage.get(f"/sessions{query}")).text.count('class="damaged"') == 1
            assert (await stage.get("/")).text.count('class="damaged"') == 1

    asyncio.run(ask())


HIDES: list[object] = [[0.5, "o", "all is well\r\n"], [2.0, "o", "\x1b_stolen sécret\x1b\\\x1b[8mneedle\x1b[0m\r\n"]]


def test_output_that_a_terminal_does_not_show_is_told(tmp_path: Path) -> None:
    async def ask() -> None:
        async with Stage(tmp_path) as stage:
            hides = await stage.record(cast_header(), HIDES)
            plain = await stage.record(cast_header(), [[0.5, "o", "\x1b]0;a title\x07all is well\r\n"]])
            for identifier, unseen in ((hides, True), (plain, False)):
                detail = (await stage.get(f"{BASE}/sessions/{identifier}")).json()
                assert (detail["unseen"], detail["searchable"]) == (unseen, True)
            items = (await stage.get(f"{BASE}/sessions?q=well")).json()["items"]
            assert {item["id"]: item["unseen"] for item in items} == {hides: True, plain: False}
            (item,) = (await stage.get(f"{BASE}/sessions?q=secret")).json()["items"]
            assert item["id"] == hides and item["hits"][0]["unseen"] == "APC"
            assert (await stage.get(f"{BASE}/sessions/{hides}/unseen")).json() == {
                "items": [
                    {"time": 2.0, "kind": "APC", "text": "stolen sécret"},
                    {"time": 2.0, "kind": "concealed", "text": "needle"},
                ],
                "complete": True,
            }
            page = (await stage.get(f"/sessions/{hides}")).text
            assert "Output that a terminal does not show" in page and "stolen sécret" in page
            assert "unseen output" in page and "unseen output" not in (await stage.get(f"/sessions/{plain}")).text
            assert (await stage.get("/sessions")).text.count("unseen output") == 1
            assert "not shown: APC" in (await stage.get("/sessions?q=secret")).text
            running = await stage.record(cast_header(), HIDES, end=None)
            stage.peer = person("ann@example.com", {"view": True})
            assert (await stage.get(f"{BASE}/sessions/{running}/unseen")).status == 403
            stage.peer = person("eve@example.com", {"own": True})
            assert (await stage.get(f"{BASE}/sessions/{hides}/unseen")).status == 404
            await stage.writer.finish(End.CLEAN)

    asyncio.run(ask())


LISTS = ("sessions", "sessions?q=needle", "events", "activity", "facets", "sessions/{id}", "sessions/{id}/events")


LOST = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
WHOLE = {
    "complete": True,
    "share": 1.0,
    "indexed": None,
    "sessions": None,
    "running": 0,
    "unreadable": None,
}
SHORT = WHOLE | {"complete": False, "share": 0.029}


def test_an_answer_that_may_be_short_says_so(tmp_path: Path) -> None:
    async def ask() -> None:
        async with Stage(tmp_path) as stage:
            identifier = await stage.record(cast_header(), EVENTS)
            for path in LISTS:
                index = (await stage.get(f"{BASE}/{path.format(id=identifier)}")).json()["index"]
                assert index == WHOLE, path
            # As while it is compared with a store of 34.
            stage.index.standing.restart()
            stage.index.standing.stored = 34
            for path in LISTS:
                index = (await stage.get(f"{BASE}/{path.format(id=identifier)}")).json()["index"]
                assert index == SHORT | {"indexed": 1, "sessions": 34, "unreadable": []}, path
            for path in ("/", "/sessions", "/sessions?q=nothing", "/events", f"/sessions/{identifier}"):
                assert "1 of 34 sessions" in (await stage.get(path)).text, path
            # How many there are outside of what a person may see is not for them.
            stage.peer = person("ana@example.com", {"own": True})
            index = (await stage.get(f"{BASE}/sessions")).json()["index"]
            assert index == SHORT
            text = (await stage.get("/sessions")).text
            assert "2.9 % of all sessions" in text and "of 34" not in text
            stage.peer = person("root@example.com", EVERYTHING)
            # One that the store can't give is named, and to nobody who may not see all.
            stage.index.standing.finish({LOST})
            index = (await stage.get(f"{BASE}/sessions")).json()["index"]
            assert (index["indexed"], index["sessions"], index["unreadable"]) == (1, 2, [LOST])
            text = (await stage.get("/sessions")).text
            assert (
                "1 of 2 sessions, so this page" in text
                and f"Sessions that cannot be read: <code>{LOST}</code>." in text
            )
            stage.peer = person("ana@example.com", {"own": True})
            assert LOST not in (await stage.get(f"{BASE}/sessions")).text + (await stage.get("/sessions")).text
            stage.peer = person("root@example.com", EVERYTHING)
            stage.index.standing.unreadable = set()
            await stage.record(cast_header(), EVENTS, end=None)
            assert (await stage.get(f"{BASE}/sessions?q=needle")).json()["index"]["running"] == 1
            assert "The last minutes of" in (await stage.get("/sessions?q=needle")).text
            assert "The last minutes" not in (await stage.get("/sessions")).text
            await stage.writer.finish(End.CLEAN)

    asyncio.run(ask())


def test_refusals_are_problems(tmp_path: Path) -> None:
    async def ask() -> None:
        async with Stage(tmp_path) as stage:
            for path, status in (
                ("/sessions/x", 404),
                (f"/sessions/{new_id()}", 404),
                (f"/sessions/{new_id()}/cast", 404),
                (f"/events/{new_id()}", 404),
                ("/nothing", 404),
                ("/sessions?state=dead", 400),
            ):
                answer = await stage.get(BASE + path)
                assert answer.status == status
                assert answer.headers["Content-Type"] == "application/problem+json"
                assert answer.json()["status"] == status and answer.json()["detail"]
                assert answer.headers["X-Content-Type-Options"] == "nosniff"
                assert "sandbox" in answer.headers["Content-Security-Policy"]

    asyncio.run(ask())


@pytest.mark.parametrize(
    "path",
    [
        "/activity?buckets=0",
        "/activity?buckets=1.5",
        "/activity?buckets=367",
        "/activity?since=2026-01-02&until=2026-01-01",
        "/sessions?min_duration=1e13",
        "/sessions?since=1e12",
        "/sessions?cursor=1e3",
        "/sessions/ID/window?at=0&from=0~0",
        "/sessions/ID/window?from=0%0A~0",
        "/sessions/ID/window?from=0~0%0A0",
    ],
)
def test_what_the_description_does_not_allow_is_refused(tmp_path: Path, path: str) -> None:
    async def ask() -> None:
        async with Stage(tmp_path) as stage:
            identifier = await stage.record(cast_header(), EVENTS)
            answer = await stage.get(BASE + path.replace("ID", identifier))
            assert answer.status == 400, answer.text

    asyncio.run(ask())


@pytest.mark.parametrize(
    "path",
    [
        "/activity?since=&until=&buckets=",
        "/sessions?since=2026-01-02&until=2026-01-02T10:00&min_duration=1e12&cursor=",
        "/sessions?since=0&until=1e11",
        "/looks?since=2026-01-02T10:00:00.5-03:00&until=2026-01-02 10:00",
        "/sessions/ID/window",
        "/sessions/ID/cast?start=1e12&end=0",
    ],
)
def test_what_the_description_allows_is_answered(tmp_path: Path, path: str) -> None:
    async def ask() -> None:
        async with Stage(tmp_path) as stage:
            identifier = await stage.record(cast_header(), EVENTS)
            answer = await stage.get(BASE + path.replace("ID", identifier))
            assert answer.status == 200, answer.text

    asyncio.run(ask())


def test_a_search_that_is_too_long_is_told(tmp_path: Path) -> None:
    async def ask() -> None:
        async with Stage(tmp_path) as stage:
            identifier = await stage.record(cast_header(), EVENTS)
            words = "+".join(f"w{number}" for number in range(17))
            for path in (
                f"{BASE}/sessions?q={words}",
                f"{BASE}/sessions/{identifier}?q={words}",
                f"/sessions?q={words}",
                f"/sessions/{identifier}?q={words}",
            ):
                answer = await stage.get(path)
                assert answer.status == 400 and "16 terms" in answer.text, path
            for limit in ("0", "501", "-1", "1e1", "0000000005000", "9" * 400):
                answer = await stage.get(f"{BASE}/sessions?limit={limit}")
                assert answer.status == 400 and "limit must be" in answer.text, limit

    asyncio.run(ask())


def test_pages_of_a_list_join(tmp_path: Path) -> None:
    async def ask() -> None:
        async with Stage(tmp_path) as stage:
            kept = [await stage.record(cast_header(pod=f"web-{number}"), EVENTS) for number in range(7)]
            found: list[str] = []
            cursor = ""
            while True:
                answer = (await stage.get(f"{BASE}/sessions?limit=3{cursor}")).json()
                found += [item["id"] for item in answer["items"]]
                if answer["cursor"] is None:
                    break
                cursor = f"&cursor={answer['cursor']}"
            assert found == kept[::-1]

    asyncio.run(ask())


def test_downloads(tmp_path: Path) -> None:
    async def ask() -> None:
        async with Stage(tmp_path) as stage:
            identifier = await stage.record(cast_header(), [*EVENTS, b"not json\n", [3.0, "x", float("nan")]])
            cast = await stage.get(f"{BASE}/sessions/{identifier}/cast")
            assert json.loads(cast.text.splitlines()[0])["version"] == 2
            assert cast.headers["Content-Disposition"] == f'attachment; filename="{identifier}.cast"'
            assert [json.loads(line) for line in cast.text.splitlines()[1:4]] == EVENTS
            text = await stage.get(f"{BASE}/sessions/{identifier}/text")
            assert text.text == "hello needle\nbye\n" and text.headers["Content-Type"].startswith("text/plain")
            document = (await stage.get(f"{BASE}/sessions/{identifier}/json")).json()
            assert document["events"] == EVENTS and document["session"]["id"] == identifier

    asyncio.run(ask())


@pytest.mark.parametrize("right", ["export", "live", "audit"])
def test_what_is_seen_and_not_allowed_is_forbidden(tmp_path: Path, right: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def ask() -> None:
        async with Stage(tmp_path) as stage:
            monkeypatch.setattr(stage.index._intake.texts, "refresh", 0.0)
            over = await stage.record(cast_header(), EVENTS)
            running = await stage.record(cast_header(), EVENTS, end=None)
            stage.peer = person("ben@example.com", {**EVERYTHING, right: False})
            expected = {
                f"/sessions/{over}/cast": right == "export",
                f"/sessions/{over}/text": right == "export",
                f"/sessions/{over}/json": right == "export",
                f"/sessions/{over}/window?at=0": False,
                f"/sessions/{running}/window?at=0": right == "live",
                f"/sessions/{running}/cast": right in ("live", "export"),
                "/looks": right == "audit",
            }
            for path, refused in expected.items():
                answer = await stage.get(BASE + path)
                assert answer.status == (403 if refused else 200), path
            if right == "live":
                assert (await stage.get(f"{BASE}/sessions/{running}/live")).status == 403
                # Word by word, a search would tell what is on the screen.
                for word, found in (("needle", [over]), ("need", [over]), ("hello", [over])):
                    listed = (await stage.get(f"{BASE}/sessions?q={word}")).json()["items"]
                    assert [item["id"] for item in listed] == found
                    assert running not in (await stage.get(f"/sessions?q={word}")).text
                listed = (await stage.get(f"{BASE}/sessions?command=bash")).json()["items"]
                assert [item["id"] for item in listed] == [running, over]
                assert "data-live" not in (await stage.get(f"/sessions/{running}")).text
            await stage.writer.finish(End.CLEAN)

    asyncio.run(ask())


def test_every_look_is_written_down(tmp_path: Path) -> None:
    async def ask() -> None:
        async with Stage(tmp_path) as stage:
            identifier = await stage.record(cast_header(), EVENTS)
            event = await stage.event(api_event())
            stage.peer = person("ben@example.com", {"view": True, "export": True})
            for path in (
                "/sessions?q=needle",
                f"/sessions/{identifier}",
                f"/sessions/{identifier}/window?at=0",
                f"/sessions/{identifier}/window?at=1",
                f"/sessions/{identifier}/cast",
                f"/sessions/{identifier}/cast",
                f"/sessions/{identifier}/text",
                f"/events/{event}",
            ):
                assert (await stage.get(BASE + path)).status == 200
            stage.peer = machine("auditor.tail1234.ts.net", {"audit": True})
            looks = (await stage.get(f"{BASE}/looks")).json()["items"]
            assert [(look["kind"], look["detail"]) for look in looks[::-1]] == [
                ("search", "needle"),
                ("view", ""),
                ("export", "cast"),
                ("export", "cast"),
                ("export", "text"),
                ("event", event),
            ]
            assert {look["user"] for look in looks} == {"ben@example.com"}
            assert (await stage.get(f"{BASE}/sessions")).json()["items"] == []  # may audit, may not view
            assert (await stage.get("/looks")).status == 200

    asyncio.run(ask())


def test_what_is_no_json_is_null_however_deep() -> None:
    value: Any = [float("nan"), float("inf"), 1.5, "NaN"]
    for _ in range(700):
        value = [value]
    body = answer({"header": value}).body
    assert isinstance(body, bytes) and b'[null, null, 1.5, "NaN"]' in body


def test_looks_of_two_people_at_one_machine_are_two(tmp_path: Path) -> None:
    async def ask() -> None:
        async with Stage(tmp_path) as stage:
            identifier = await stage.record(cast_header(), EVENTS)
            for login in ("ben@example.com", "ana@example.com", "ben@example.com"):
                stage.peer = replace(person(login, EVERYTHING), stable_id="n1")
                assert (await stage.get(f"{BASE}/sessions/{identifier}")).status == 200
            looks = (await stage.get(f"{BASE}/looks")).json()["items"]
            assert [look["user"] for look in looks] == ["ana@example.com", "ben@example.com"]

    asyncio.run(ask())


def test_what_can_not_be_written_down_is_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def ask() -> None:
        async with Stage(tmp_path) as stage:
            identifier = await stage.record(cast_header(), EVENTS)
            event = await stage.event(api_event())

            async def fails(*_: Any, **__: Any) -> None:
                raise IndexFailure("the disk is full")

            monkeypatch.setattr(stage.index, "add_look", fails)
            for path in (
                f"/sessions/{identifier}",
                f"/events/{event}",
                "/sessions?q=needle",
                f"{BASE}/sessions?q=needle",
                f"{BASE}/sessions/{identifier}",
                f"{BASE}/sessions/{identifier}/window?at=0",
                f"{BASE}/sessions/{identifier}/cast",
                f"{BASE}/sessions/{identifier}/text",
                f"{BASE}/sessions/{identifier}/json",
                f"{BASE}/sessions/{identifier}/live",
                f"{BASE}/sessions/{identifier}/events",
                f"{BASE}/events/{event}",
            ):
                answer = await stage.get(path)
                assert answer.status == 503 and "write down" in answer.text, path
                assert "hello" not in answer.text and "web-0" not in answer.text

    asyncio.run(ask())
