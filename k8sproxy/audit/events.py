"""API events: the part of it that stands in the path of a request.

    events.weigh(..)                how much room the event of a request takes
    events.admit(grants, weight)    before upstream is contacted: is there room? False where `wait` must be called
    begun = events.begin(..)        notes what is known of the request; its body is collected while it passes
    events.tell(grants, begun)      queues the event, once, also of a request that failed

A request without a body is told at once, so that the event of a watch comes when the watch begins. The queues, and the
tasks that send what is in them, are those of apievents.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from k8sproxy.access.grants import Grants, Impersonation
from k8sproxy.audit.apievents import ApiEvents
from k8sproxy.audit.eventqueue import NoEventRecorder
from k8sproxy.audit.requestevent import IN_FLIGHT, BodyKeeper, RequestEvent, kept_at_most, long_line, told_agent
from k8sproxy.audit.shares import Pot, Weight
from k8sproxy.common.errors import Refusal
from k8sproxy.common.formats.apievent import origin_fragment
from k8sproxy.common.tailnet.peer import Peer
from k8sproxy.request.requestinfo import RequestInfo


@dataclass(slots=True)
class EventSettings:
    """What a reload may change. body_bytes: kept of a body. redact: whether secrets are taken out. node_name, node_id:
    of the proxy's own node, "" while not known."""

    body_bytes: int = 64 * 1024
    redact: bool = True
    node_name: str = ""
    node_id: str = ""


class Events:
    """One for the process. queues: closed with it."""

    def __init__(self, queues: ApiEvents, settings: EventSettings) -> None:
        self.queues = queues
        self.settings = settings
        self._budget = Pot(IN_FLIGHT)

    def origin(self, peer: Peer, impersonation: Impersonation | None, cluster: str) -> str:
        """What events of one connection have in common, to be kept with it."""
        user, groups = (impersonation.user, impersonation.groups) if impersonation is not None else ("", ())
        fragment = origin_fragment(peer, self.settings.node_name, self.settings.node_id, user, groups)
        return f'{fragment},"cluster":{json.dumps(cluster)}'

    def weigh(self, peer: Peer, info: RequestInfo, *, content_length: int | None, chunked: bool) -> Weight:
        """What telling of a request takes."""
        limit = self.settings.body_bytes
        body = kept_at_most(limit, chunked=True) if chunked else min(limit, content_length or 0)
        return Weight(peer.owner, body, long_line(info), limit)

    def admit(self, grants: Grants, weight: Weight) -> bool:
        """Whether the request may go on at once; if not, `wait` says more. Where it may, `tell` has to follow."""
        if not self.queues.admit(grants.recorders, grants.enforced, weight):
            return False
        if grants.enforced and not self._budget.take(weight.owner, weight.body):
            self.queues.release(grants.recorders, weight)
            return False
        return True

    async def wait(self, grants: Grants, weight: Weight) -> None:
        """Look for a recorder that lives. Raises Refusal 403 (event_recorder_unavailable) where none does, and 429
        (event_share) where the peer has too many events or bodies on their way already; 403 (event_refused) where a
        recorder has just refused an event of the peer's for good."""
        try:
            await self.queues.revive(grants.recorders)
        except NoEventRecorder as error:
            raise _unavailable(grants, str(error)) from None
        if self.admit(grants, weight):
            return
        if (why := self.queues.why_refused(grants.recorders, weight.owner)) is not None:
            raise Refusal(403, "event_refused", untold(grants, why))
        if self.queues.is_full_for(grants.recorders, weight) or not self._budget.fits(weight.owner, weight.body):
            raise Refusal(
                429,
                "event_share",
                f"this request must be recorded as an API event ({_because(grants)}), and your events that "
                f"wait for a recorder fill your share of the proxy's memory; try again in a moment",
                retry_after=1,
            )
        raise _unavailable(grants, "the queue of events is full")

    def begin(
        self,
        grants: Grants,
        weight: Weight,
        info: RequestInfo,
        origin: str,
        *,
        user_agent: bytes,
        body: bool,
        chunked: bool,
        session_id: str,
    ) -> RequestEvent:
        """What is noted of an admitted request. body: whether it has one."""
        reserved = weight.body if grants.enforced else 0
        keeper = BodyKeeper(weight.limit, chunked=chunked, budget=self._budget, owner=weight.owner, reserved=reserved)
        if not body:
            keeper.settle()
        return RequestEvent(
            info,
            origin,
            time.time(),
            *told_agent(user_agent),
            keeper if body else None,
            session_id,
            self.settings.redact,
            weight=weight if grants.enforced else Weight(weight.owner),
        )

    def tell(self, grants: Grants, event: RequestEvent) -> None:
        """Queue it."""
        if event.body is not None:
            event.body.settle()
        self.queues.add(grants.recorders, event, enforced=grants.enforced)

    def tell_ports(
        self,
        grants: Grants,
        info: RequestInfo,
        origin: str,
        session_id: str,
        ports: Mapping[str, Mapping[str, int]],
        owner: str = "",
    ) -> None:
        """Tell what a port-forward came to, beside the event of its opening; as far as there is room."""
        extra = f'"portForward":{json.dumps(ports, separators=(",", ":"))}'
        event = RequestEvent(
            info,
            origin,
            time.time(),
            session_id=session_id,
            redact=self.settings.redact,
            extra=extra,
            weight=Weight(owner),
        )
        self.queues.add(grants.recorders, event, enforced=False)

    def metrics(self) -> Iterable[Metric]:
        """The queues."""
        queues = self.queues
        yield GaugeMetricFamily("k8sproxy_events_queued", "API events that wait for a recorder.", queues.queued)
        yield CounterMetricFamily("k8sproxy_events_sent", "API events that a recorder has accepted.", queues.sent)
        dropped = CounterMetricFamily(
            "k8sproxy_events_dropped", "API events that no recorder accepted.", labels=("reason",)
        )
        dropped.add_metric(("full",), queues.dropped)
        dropped.add_metric(("failed",), queues.failed)
        dropped.add_metric(("refused",), queues.refused)
        dropped.add_metric(("stopped",), queues.lost)
        yield dropped


def untold(grants: Grants, why: str) -> str:
    """The message for a client whose event a recorder accepts in no form. why: with the recorder's address."""
    return (
        f"your requests must be recorded as API events ({_because(grants)}), and the recorder refuses the event of "
        f"one of them: {why}"
    )


def _because(grants: Grants) -> str:
    """Why an event is enforced, whichever capability says so."""
    return f"enableEvents, recording: {grants.recording.value}" if grants.recording is not None else "enableEvents"


def _unavailable(grants: Grants, why: str) -> Refusal:
    return Refusal(
        403,
        "event_recorder_unavailable",
        f"this request must be recorded as an API event ({_because(grants)}), and no recorder accepts it: {why}",
    )
