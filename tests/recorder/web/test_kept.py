"""Holds and acts on the pages and in the API: who may know of them, and what is told where they have a fault."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from recorder.model import Recording, new_id
from recorder.proof import PublicKeys, Signer
from recorder.proof.actlog import ActLog
from recorder.proof.acts import Acts, Kind, Subject, act_file
from recorder.proof.report import Finding, Status
from recorder.retention.holds import Hold, Holds, Match
from recorder.store.blobs import FolderBlobs
from recorder.store.errors import StoreError
from recorder.web.openapi import SCHEMAS
from tests.recorder.proof.sealed import run
from tests.recorder.web.schema import check
from tests.recorder.web.visited import Stage, cast_header, person

BASE = "/api/v1"
AUDITOR = person("eve@example.com", {"view": True, "audit": True})
OF_SHOP = person("sam@example.com", {"namespaces": ["shop"], "audit": True})
VIEWER = person("ana@example.com", {"view": True})
HOSTILE = "case \x1b[2J <script>\u202e7"


class Keeps:
    """What a recorder tells, over a folder."""

    def __init__(self, folder: Path) -> None:
        signer = Signer.make()
        self.fault: str | None = None
        self.found: Finding | None = None
        self.standing_fault: str | None = None
        self.log = ActLog(FolderBlobs(folder), PublicKeys([signer.public_key]), signer)
        self.holds = Holds(FolderBlobs(folder), self.log)

    async def now(self) -> Sequence[Hold]:
        return await self.holds.now()

    async def acts(self) -> Acts:
        return await self.log.read()

    async def standing(self, recording: Recording) -> Finding | None:
        if self.standing_fault is not None:
            raise StoreError(self.standing_fault)
        return self.found


class Scene:
    """Sessions of ana's in the namespaces shop and bank; both are held, and whatever bob does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.keeps = Keeps(folder)
        self.stage = Stage(folder, keeps=self.keeps)

    async def fill(self) -> None:
        self.shop = await self.stage.record(cast_header(namespace="shop"), [])
        self.bank = await self.stage.record(cast_header(namespace="bank"), [])
        add = self.keeps.holds.add
        self.shop_hold = await add(Hold(new_id(), 1.0, "eve", HOSTILE, None, self.shop))
        await add(Hold(new_id(), 2.0, "eve", "case 8", None, self.bank))
        await add(Hold(new_id(), 3.0, "eve", "case 9", Match(users=("bob@*",))))
        removal = await self.keeps.log.add(
            Kind.REMOVAL, [Subject(new_id(), "old"), Subject("events 2026-01-02")], by="x"
        )
        await self.keeps.log.add(Kind.REVERSAL, [Subject("events 2026-01-02")], by="x", why="held", of=removal.number)


def test_who_may_know_of_holds(tmp_path: Path) -> None:
    async def scene() -> None:
        scene = Scene(tmp_path)
        async with scene.stage as stage:
            await scene.fill()
            stage.peer = AUDITOR
            answer = (await stage.get(f"{BASE}/holds")).json()
            assert [hold["reason"] for hold in answer["items"]] == [HOSTILE, "case 8", "case 9"]
            assert answer["items"][0]["session"] == scene.shop and answer["items"][2]["match"] == {"users": ["bob@*"]}
            assert answer["faults"] == [] and all(hold["signed"] for hold in answer["items"])
            (hold,) = (await stage.get(f"{BASE}/sessions/{scene.shop}")).json()["holds"]
            assert hold["id"] == scene.shop_hold.id
            stage.peer = OF_SHOP
            assert [hold["reason"] for hold in (await stage.get(f"{BASE}/holds")).json()["items"]] == [HOSTILE]
            assert (await stage.get(f"{BASE}/acts")).status == 403
            assert scene.bank not in (await stage.get("/holds")).text
            stage.peer = VIEWER
            for path in (f"{BASE}/holds", f"{BASE}/acts", "/holds"):
                assert (await stage.get(path)).status == 403
            assert (await stage.get(f"{BASE}/sessions/{scene.shop}")).json()["holds"] is None
            page = (await stage.get(f"/sessions/{scene.shop}")).text
            assert "Held" not in page and "/holds" not in page

    run(scene())


def test_pages_show_holds_and_acts_and_nothing_hostile(tmp_path: Path) -> None:
    async def scene() -> None:
        scene = Scene(tmp_path)
        async with scene.stage as stage:
            await scene.fill()
            stage.peer = AUDITOR
            page = (await stage.get("/holds")).text
            assert page.count("<tr>") == 2 + 3 + 5 and "<script>" not in page and "\x1b" not in page
            assert "\u202e" not in page and f'href="/sessions/{scene.shop}"' in page and "bob@*" in page
            assert "reversal" in page and "ends 4" in page and "Nothing is held" not in page
            page = (await stage.get(f"/sessions/{scene.shop}")).text
            assert "<dt>Held</dt>" in page and "case" in page and "<script>" not in page
            assert "<dt>Held</dt>" not in (await stage.get(f"/sessions/{await other(stage)}")).text

    async def other(stage: Stage) -> str:
        return await stage.record(cast_header(namespace="x"), [])

    run(scene())


def test_acts_page_by_page(tmp_path: Path) -> None:
    async def scene() -> None:
        scene = Scene(tmp_path)
        async with scene.stage as stage:
            await scene.fill()
            numbers: list[list[int]] = []
            cursor = ""
            while True:
                answer = await stage.get(f"{BASE}/acts?limit=2&cursor={cursor}")
                numbers.append([act["number"] for act in answer.json()["items"]])
                if not (cursor := answer.json()["cursor"] or ""):
                    break
            assert numbers == [[5, 4], [3, 2], [1]]
            (reversal, *_) = (await stage.get(f"{BASE}/acts")).json()["items"]
            assert (reversal["act"], reversal["of"], reversal["why"]) == ("reversal", 4, "held")
            assert reversal["key"] and reversal["manifest"] is None
            assert (await stage.get("/holds?limit=2&cursor=4")).text.count("<tr>") == 2 + 3 + 2
            for bad in ("x", "-1", "1_0", "١"):
                assert (await stage.get(f"{BASE}/acts?cursor={bad}")).status == 400

    run(scene())


@pytest.mark.parametrize("tamper", ["hold", "act", "retention"])
def test_what_is_wrong_is_said(tmp_path: Path, tamper: str) -> None:
    async def scene() -> None:
        scene = Scene(tmp_path)
        async with scene.stage as stage:
            await scene.fill()
            if tamper == "hold":
                (scene.folder / f"holds/{scene.shop_hold.id}.json").unlink()
                what = f"the hold {scene.shop_hold.id} was signed, and its file is missing"
            elif tamper == "act":
                (scene.folder / act_file(5)).unlink()
                what = "act 5 existed before and is missing now"
            else:
                scene.keeps.fault = what = f"{scene.shop} differs from what was sealed and is not removed"
            page = (await stage.get("/holds")).text
            assert f'role="alert"><bdi>{what}' in page
            found = (await stage.get(f"{BASE}/{'acts' if tamper == 'act' else 'holds'}")).json()
            assert found["faults"] == [what]
            detail = (await stage.get(f"{BASE}/sessions/{scene.shop}")).json()
            assert (detail["holds"] is None) is (tamper == "hold")

    run(scene())


def test_where_nothing_is_signed(tmp_path: Path) -> None:
    async def scene() -> None:
        async with Stage(tmp_path) as stage:
            assert (await stage.get(f"{BASE}/holds")).json() == {"items": [], "faults": []}
            assert (await stage.get(f"{BASE}/acts")).json() == {"items": [], "cursor": None, "faults": []}
            page = (await stage.get("/holds")).text
            assert "Nothing is held" in page and "Nothing was held, released or removed." in page
            document = (await stage.get(f"{BASE}/openapi.json")).json()
            for name in ("holds", "acts"):
                answer = (await stage.get(f"{BASE}/{name}")).json()
                schemas = document["components"]["schemas"]
                check(answer, schemas[name.capitalize()], schemas)

    run(scene())


def test_a_session_says_whether_it_is_signed_to_whoever_may_view_it(tmp_path: Path) -> None:
    async def scene() -> None:
        scene = Scene(tmp_path)
        async with scene.stage as stage:
            await scene.fill()
            stage.peer = VIEWER
            for status, detail, day in (
                (Status.OK, "", "2026-01-02"),
                (Status.LATE, "its end was signed at a start", "2026-01-02"),
                (Status.UNKNOWN, "it was not signed", ""),
            ):
                scene.keeps.found = Finding(scene.shop, status, detail, day)
                answer = (await stage.get(f"{BASE}/sessions/{scene.shop}")).json()
                check(answer, SCHEMAS["SessionDetail"], SCHEMAS)
                assert answer["proof"] == {"status": status.value, "detail": detail, "day": day or None}
                page = (await stage.get(f"/sessions/{scene.shop}")).text
                assert status.value in page and detail in page and day in page
                assert (f'<span class="damaged">{status.value}</span>' in page) is (status is not Status.OK)
            scene.keeps.found = None
            assert (await stage.get(f"{BASE}/sessions/{scene.shop}")).json()["proof"] is None
            assert "<dt>Signed</dt>" not in (await stage.get(f"/sessions/{scene.shop}")).text
            scene.keeps.standing_fault = "the store is away"
            assert (await stage.get(f"{BASE}/sessions/{scene.shop}")).json()["proof"] is None

    run(scene())
