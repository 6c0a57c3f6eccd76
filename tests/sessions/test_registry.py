"""The registry: what is listed, found, ended and counted."""

from __future__ import annotations

import asyncio
import json
import socket

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from k8sproxy.access.ownrules import RecordingLevel
from k8sproxy.common.errors import Refusal
from k8sproxy.recording.recorders import Recorders
from k8sproxy.sessions.registry import Sessions
from tests.recording.scenes import CLOSED, FACTS, OPEN, Scene, WebSocket, scene


async def _dial(host: str, port: int) -> socket.socket:
    raise OSError("no recorder here")


class Collected:
    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    def collect(self) -> object:
        return self._sessions.metrics()


def metrics(sessions: Sessions) -> str:
    registry = CollectorRegistry()
    registry.register(Collected(sessions))  # type: ignore[arg-type]  # it has what is asked of one
    return generate_latest(registry).decode()


@scene
async def test_what_runs_is_listed_and_found() -> None:
    sessions = Sessions(Recorders(_dial))
    played = [Scene(WebSocket(), mode) for mode in (None, OPEN, CLOSED)]
    for number, one in enumerate(played):
        await one.begin()
        object.__setattr__(one.session.facts, "id", f"{number}{FACTS.id[1:]}")
        sessions.begun(one.session)
    listed = sessions.listed()
    assert [session["failureMode"] for session in listed] == [None, "open", "closed"]
    assert json.loads(json.dumps(listed)) == listed
    assert sessions.find("1") == [played[1].session] and sessions.find("x") == []
    assert len(sessions.find("")) == 3
    text = metrics(sessions)
    assert 'k8sproxy_sessions_running{kind="exec"} 3.0' in text
    assert 'k8sproxy_sessions_total{kind="exec",recorded="yes"} 2.0' in text
    assert 'k8sproxy_sessions_total{kind="exec",recorded="no"} 1.0' in text
    sessions.end(played[0].session, "lunch", "bob@example.com")
    assert played[0].over and not played[1].over
    sessions.end_all("stopping", "the proxy is being stopped")
    assert all(one.over for one in played)
    assert [one.session.cause for one in played] == ["session_ended", "stopping", "stopping"]
    for one in played:
        sessions.over(one.session)
        sessions.over(one.session)
        await one.close()
    assert sessions.listed() == [] and "k8sproxy_sessions_running{" not in metrics(sessions)
    await sessions.aclose()


@scene
async def test_failures_are_counted() -> None:
    sessions = Sessions(Recorders(_dial))
    for stage, mode in (("not_accepted", CLOSED), ("failed", OPEN), ("failed", OPEN), ("slow", RecordingLevel.OPEN)):
        sessions.failed(stage, mode)
    text = metrics(sessions)
    assert 'k8sproxy_recording_failures_total{mode="open",stage="failed"} 2.0' in text
    assert 'k8sproxy_recording_failures_total{mode="closed",stage="not_accepted"} 1.0' in text
    await sessions.aclose()


@scene
async def test_closing_waits_for_the_last_ack() -> None:
    sessions = Sessions(Recorders(_dial))
    played = Scene(WebSocket(), CLOSED, acks=False)
    await played.begin()
    task = sessions.run(played.session)
    closing = asyncio.ensure_future(sessions.aclose())
    for _ in range(10):
        await asyncio.sleep(0)
    assert not closing.done() and not task.done() and played.recorder is not None
    played.recorder.open()
    await closing
    assert task.done() and not sessions._tasks
    await played.session.close()


@scene
async def test_a_place_is_free_once_the_recording_has_come_to_its_end() -> None:
    """A client that opens sessions and goes, while their recorder is slow, has no more of them than its places."""
    sessions = Sessions(Recorders(_dial))
    sessions.limit = 1
    played = Scene(WebSocket(), CLOSED, acks=False)
    await played.begin()
    session = played.session
    sessions.enter(session)
    sessions.begun(session)
    task = sessions.run(session)
    sessions.over(session)  # its client has gone
    assert sessions.listed() == []
    with pytest.raises(Refusal) as caught:
        sessions.enter(session)
    assert (caught.value.status, caught.value.cause) == (429, "too_many_sessions")
    assert played.recorder is not None
    played.recorder.open()
    await task
    await asyncio.sleep(0)
    sessions.enter(session)
    sessions.over(session)
    assert not sessions._places and not sessions._entered
    await sessions.aclose()
    await session.close()
