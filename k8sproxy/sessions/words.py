"""What the client of a session reads where it can't be recorded, and the log lines of its beginning and its end."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NoReturn

import structlog

from k8sproxy.access.ownrules import RecordingLevel
from k8sproxy.common.errors import Refusal
from k8sproxy.recording.upload import NoRecorder

if TYPE_CHECKING:
    from k8sproxy.sessions.facts import Facts
    from k8sproxy.sessions.session import Session

_log = structlog.get_logger("k8sproxy")


def unavailable(level: RecordingLevel, attempts: tuple[tuple[str, str], ...]) -> Refusal:
    """What the client of a session is told that must be recorded and can't be."""
    return Refusal(
        403,
        "recorder_unavailable",
        f"this session must be recorded (recording: {level.value}), and no recorder accepted it: "
        f"{NoRecorder(attempts)}",
    )


def declined(error: NoRecorder) -> Refusal:
    """The same where a recorder is well, and the user has too many sessions there."""
    return Refusal(429, "too_many_sessions", f"this session must be recorded, and no recorder accepts it: {error}")


def not_offered(offered: tuple[str, ...]) -> Refusal:
    """The same where none of the protocols that the client offers can be read."""
    return Refusal(
        403,
        "unrecordable_session",
        "a grant of this peer enforces session recording, and none of the streaming protocols that the client "
        f"offers can be recorded: {', '.join(offered)[:200]}",
    )


def refuse(level: RecordingLevel, why: str) -> NoReturn:
    """The same where upstream's answer, of which nothing has been passed on, can't be recorded."""
    raise Refusal(
        403,
        "unrecordable_session",
        f"this session must be recorded (recording: {level.value}), but it cannot be: {why}",
        close=True,
    )


def say_started(session: Session) -> None:
    """Write the line of a session's beginning."""
    facts, demand = session.facts, session.demand
    _log.info(
        "session_started",
        session=facts.id,
        connection=facts.connection,
        kind=facts.kind,
        peer=facts.peer.display,
        user=facts.impersonation.user if facts.impersonation else None,
        cluster=facts.cluster,
        namespace=facts.namespace,
        pod=facts.pod,
        container=facts.container,
        recorder=session.recorder or None,
        failure_mode=demand.level.value if demand else None,
    )


def say_ended(session: Session) -> None:
    """Write the line of its end."""
    _log.info(
        "session_ended",
        session=session.facts.id,
        seconds=round(time.time() - session.started, 3),
        received=session.received,
        sent=session.sent,
        recorded=session.recorded,
        lost=session.lost or None,
        ports=session.ports or None,
        cause=session.cause or None,
    )


def say_fault(facts: Facts) -> None:
    """Within an except clause: a fault of ours in reading a session, or in what is made of its output."""
    _log.error("capture_faulty", session=facts.id, exc_info=True)
