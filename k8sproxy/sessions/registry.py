"""All sessions of the process: made here, listed here, ended here.

Sessions outlive reloads of the configuration, and so does this registry. What it lists is names and numbers: of what
was said in a session nothing but its command is kept here.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter
from collections.abc import Iterable
from functools import partial
from typing import Any

import structlog
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from k8sproxy.access.decision import Decision
from k8sproxy.access.ownrules import RecordingLevel
from k8sproxy.common.errors import Refusal
from k8sproxy.common.tasks import Tasks
from k8sproxy.recording.recorders import Recorders
from k8sproxy.recording.upload import Upload
from k8sproxy.request.requestinfo import RequestInfo
from k8sproxy.sessions.facts import Facts, session_facts
from k8sproxy.sessions.session import Session

_log = structlog.get_logger("k8sproxy")


class Sessions:
    """The registry. recorders: the client of the recorder wire; closed with it."""

    def __init__(self, recorders: Recorders) -> None:
        self.recorders = recorders
        self.limit = 256  # of one owner at once; a reload may change it
        self._places: Counter[str] = Counter()  # sessions by owner, from their recorder's choice to their end
        self._entered: set[str] = set()
        self._running: dict[str, Session] = {}
        self._tasks = Tasks()  # recordings that are brought to their end
        self._settling: set[str] = set()  # their sessions
        self._begun: dict[tuple[str, str], int] = {}
        self._failures: dict[tuple[str, str], int] = {}

    def make(self, facts: Facts, info: RequestInfo, decision: Decision, *, offered: tuple[str, ...]) -> Session:
        """The session that a request asks for; info.session is one of STREAMING. Raises Refusal and ProtocolError."""
        return Session(self, facts, decision.recording, upgrade=info.upgrade, offered=offered)

    def enter(self, session: Session) -> None:
        """Give a session one of its owner's places. Raises Refusal 429 (too_many_sessions) where there is none."""
        peer = session.facts.peer
        if self._places[peer.owner] >= self.limit:
            message = (
                f"{peer.display} already has {self.limit} sessions here, from all nodes together; end some of them"
            )
            raise Refusal(429, "too_many_sessions", message)
        self._places[peer.owner] += 1
        self._entered.add(session.facts.id)

    # -- what people ask

    def listed(self) -> list[dict[str, Any]]:
        """The sessions that run now, oldest first, as JSON values."""
        return [_values(session) for session in self._running.values()]

    def find(self, prefix: str) -> list[Session]:
        """The running sessions whose id begins so."""
        return [session for name, session in self._running.items() if name.startswith(prefix)]

    def end(self, session: Session, reason: str, by: str) -> None:
        """End a session. reason: what its user is told; by: who wanted it, for the log."""
        _log.warning("session_ending", session=session.facts.id, by=by, reason=reason)
        session.end("session_ended", f"the session was ended by an administrator: {reason}")

    def end_all(self, cause: str, message: str) -> int:
        """End all of them, as at the end of a drain; how many there were."""
        running = tuple(self._running.values())
        for session in running:
            session.end(cause, message)
        return len(running)

    def metrics(self) -> Iterable[Metric]:
        """Sessions, failed recordings, recorders."""
        begun = CounterMetricFamily("k8sproxy_sessions", "Sessions begun.", labels=("kind", "recorded"))
        for (kind, recorded), count in self._begun.items():
            begun.add_metric((kind, recorded), count)
        running: dict[str, int] = {}
        for session in self._running.values():
            running[session.facts.kind] = running.get(session.facts.kind, 0) + 1
        now = GaugeMetricFamily("k8sproxy_sessions_running", "Sessions that run now.", labels=("kind",))
        for kind, count in running.items():
            now.add_metric((kind,), count)
        failures = CounterMetricFamily(
            "k8sproxy_recording_failures", "Recordings that failed, or have a gap.", labels=("stage", "mode")
        )
        for (stage, mode), count in self._failures.items():
            failures.add_metric((stage, mode), count)
        yield from (begun, now, failures)
        yield from self._recorder_metrics()

    def _recorder_metrics(self) -> Iterable[Metric]:
        states = self.recorders.describe()
        up = GaugeMetricFamily(
            "k8sproxy_recorder_up", "1 while a recorder is not known to be bad.", labels=("recorder",)
        )
        uploads = GaugeMetricFamily(
            "k8sproxy_recorder_uploads", "Sessions on their way to a recorder.", labels=("recorder",)
        )
        sent = CounterMetricFamily("k8sproxy_recorder_sent_bytes", "Bytes of recordings sent.", labels=("recorder",))
        seconds = CounterMetricFamily(
            "k8sproxy_recorder_ack_seconds", "Sum of sampled ack latencies.", labels=("recorder",)
        )
        acks = CounterMetricFamily("k8sproxy_recorder_acks", "Sampled acks.", labels=("recorder",))
        for state in states:
            at = (state.address,)
            up.add_metric(at, 0 if state.state == "bad" else 1)
            uploads.add_metric(at, state.uploads)
            sent.add_metric(at, state.bytes_sent)
            seconds.add_metric(at, state.ack_seconds)
            acks.add_metric(at, state.acks)
        buffers = self.recorders.buffers
        held = GaugeMetricFamily(
            "k8sproxy_recording_buffered_bytes", "Bytes of recordings that wait for recorders.", buffers.used
        )
        limited = CounterMetricFamily(
            "k8sproxy_recording_limited", "Sessions blocked by a limit on what waits, by limit.", labels=("limit",)
        )
        for name, count in buffers.limited.items():
            limited.add_metric((name,), count)
        yield from (up, uploads, sent, seconds, acks, held, limited)

    async def aclose(self) -> None:
        """Wait for recordings that are being brought to their end, and let go of the recorders."""
        await self._tasks.finished()
        await self.recorders.aclose()

    # -- what sessions ask (session.Registry)

    async def accept(self, recorders: tuple[str, ...], *, acks: bool, user: str) -> Upload:
        """An accepted upload. acks: one that is confirmed while it goes on. user: whose share of the recorder's places
        it takes. Raises NoRecorder."""
        return await self.recorders.open(recorders, acks=acks, user=user)

    def begun(self, session: Session) -> None:
        """A session's streams begin."""
        self._running[session.facts.id] = session
        key = (session.facts.kind, "yes" if session.recorded else "no")
        self._begun[key] = self._begun.get(key, 0) + 1

    def over(self, session: Session) -> None:
        """A session has ended. Its place is free once its recording has come to its end: a client that goes leaves that
        behind, and another place for it would let anybody have recordings without number wait for a slow recorder."""
        self._running.pop(session.facts.id, None)
        if session.facts.id in self._settling:
            return  # until _settled
        if session.facts.id in self._entered:
            self._entered.discard(session.facts.id)
            owner = session.facts.peer.owner
            self._places[owner] -= 1
            if not self._places[owner]:
                del self._places[owner]

    def failed(self, stage: str, mode: RecordingLevel) -> None:
        """Count a recording that failed."""
        key = (stage, mode.value)
        self._failures[key] = self._failures.get(key, 0) + 1

    def run(self, session: Session) -> asyncio.Task[None]:
        """Bring a session's recording to its end, whatever becomes of the session."""
        self._settling.add(session.facts.id)
        name = f"last ack of session {session.facts.id}"
        return self._tasks.start(session.settle(), name, ended=partial(self._settled, session))

    def _settled(self, session: Session, task: asyncio.Task[None]) -> None:
        self._settling.discard(session.facts.id)
        if session.facts.id not in self._running:
            self.over(session)


def _values(session: Session) -> dict[str, Any]:
    facts, demand = session.facts, session.demand
    peer, identity = facts.peer, facts.impersonation
    return {
        "id": facts.id,
        "kind": facts.kind,
        "peer": peer.display,
        "node": peer.node_name.removesuffix("."),
        "address": peer.address,
        "user": identity.user if identity else None,
        "groups": list(identity.groups) if identity else None,
        "cluster": facts.cluster,
        "namespace": facts.namespace,
        "pod": facts.pod,
        "container": facts.container,
        "command": facts.command,
        "tty": facts.tty,
        "started": session.started,
        "received": session.received,
        "sent": session.sent,
        "recorded": session.recorded,
        "recorder": session.recorder or None,
        "failureMode": demand.level.value if demand else None,
        "lost": session.lost,
        "ports": session.ports,
    }


def facts_of(info: RequestInfo, decision: Decision, cluster: str, connection: str, user_agent: bytes) -> Facts:
    """The facts of a session that a request asks for. connection: its id in the log. Raises ProtocolError.

    Touches nothing but its arguments: for a long query it is longwork's.
    """
    return session_facts(
        str(uuid.uuid4()),
        info,
        decision.caller.peer,
        decision.impersonation,
        cluster=cluster,
        connection=connection,
        user_agent=user_agent,
    )
