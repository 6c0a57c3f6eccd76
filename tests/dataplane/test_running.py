"""What runs on a connection: how it is named, found to stand still, and ended from outside."""

from __future__ import annotations

from typing import cast

import pytest

from k8sproxy.access.caller import tailnet_caller
from k8sproxy.access.decision import authorize, decide
from k8sproxy.common.errors import Refusal
from k8sproxy.dataplane.relay import Exchange
from k8sproxy.dataplane.running import Running
from k8sproxy.request.requestinfo import request_info
from k8sproxy.sessions.session import Session
from tests.dataplane.proxied import ANA

WITHDRAWN = Refusal(503, "grant_withdrawn", "not any more")


class Noted:
    """An exchange and a session, which note what they are told."""

    def __init__(self) -> None:
        self.upgraded = False
        self.uploading = True
        self.closing = False
        self.received = 0
        self.said: list[tuple[str, ...]] = []

    def look(self) -> None:
        self.said.append(("look",))

    def cut(self, cause: str, message: str = "") -> None:
        self.said.append(("cut", cause, message))

    def end(self, cause: str, message: str) -> None:
        self.said.append(("end", cause, message))

    def end_at_boundary(self) -> None:
        self.said.append(("boundary",))


def running(path: str = "/api/v1/pods", *, session: bool = False) -> tuple[Running, Noted]:
    it, noted = Running(), Noted()
    asked = request_info("GET", path, "")
    decision = decide(authorize(tailnet_caller(ANA)), asked, 0.0)
    it.begin(asked, decision, cast(Session, noted) if session else None)
    it.exchange = cast(Exchange, noted)
    return it, noted


def test_nothing_runs_before_and_after() -> None:
    it = Running()
    for _ in range(2):
        assert it.kind == ""
        it.end(WITHDRAWN)
        it.drain()
        it.tick(1.0, 1.0)
        it, noted = running()
        it.over()
        assert not noted.said and (it.decision, it.session) == (None, None)


@pytest.mark.parametrize(
    ("path", "upgraded", "kind"),
    [
        ("/api/v1/pods", False, "request"),
        ("/api/v1/pods?watch=1", False, "watch"),
        ("/api/v1/namespaces/a/pods/web/exec", True, "upgrade"),
    ],
)
def test_kinds(path: str, upgraded: bool, kind: str) -> None:
    it, noted = running(path)
    noted.upgraded = upgraded
    assert it.kind == kind


@pytest.mark.parametrize(
    ("session", "upgraded", "told"),
    [(False, False, "cut"), (False, True, "cut"), (True, False, "cut"), (True, True, "end")],
)
def test_the_user_of_a_session_is_told_by_the_session(session: bool, upgraded: bool, told: str) -> None:
    it, noted = running(session=session)
    noted.upgraded = upgraded
    it.end(WITHDRAWN)
    assert noted.said == [(told, "grant_withdrawn", "not any more")]


def test_an_upload_that_stands_still_is_ended() -> None:
    it, noted = running()
    for now, received in ((1.0, 5), (2.0, 6), (12.0, 6)):
        noted.received = received
        it.tick(now, 10.0)
    assert ("cut", "upload_stalled", "") not in noted.said
    it.tick(12.1, 10.0)
    assert noted.said[-1] == ("cut", "upload_stalled", "")


def test_an_upload_does_not_pay_for_the_time_of_an_earlier_request() -> None:
    it, noted = running()
    it.tick(1.0, 10.0)
    asked, decision = it.asked, it.decision
    assert asked is not None and decision is not None
    it.over()
    it.begin(asked, decision, None)
    it.exchange = cast(Exchange, noted)
    it.tick(50.0, 10.0)
    it.tick(60.0, 10.0)
    assert {said[0] for said in noted.said} == {"look"}
    it.tick(60.1, 10.0)
    assert noted.said[-1] == ("cut", "upload_stalled", "")


def test_an_upload_that_upstream_holds_up_is_not() -> None:
    it, noted = running()
    it.tick(1.0, 10.0)
    noted.uploading = False
    it.tick(50.0, 10.0)
    noted.uploading = True
    it.tick(59.0, 10.0)
    assert {said[0] for said in noted.said} == {"look"}


@pytest.mark.parametrize(("path", "said"), [("/api/v1/pods", []), ("/api/v1/pods?watch=1", [("boundary",)])])
def test_a_drain_ends_a_watch_between_two_events(path: str, said: list[tuple[str, ...]]) -> None:
    it, noted = running(path)
    it.drain()
    assert noted.closing and noted.said == said
