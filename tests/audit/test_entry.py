"""The account of a request: what the sinks are told at its end, and its API event from its begin to its end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from k8sproxy.access.caller import tailnet_caller
from k8sproxy.access.decision import Decision, authorize, decide
from k8sproxy.audit.apievents import ApiEvents
from k8sproxy.audit.entry import Entry, Outcome, Served, Trail
from k8sproxy.audit.events import Events, EventSettings
from k8sproxy.common.errors import Refusal
from k8sproxy.protocol.http1 import RequestHead, parse_fields
from k8sproxy.request.requestinfo import RequestInfo, request_info
from tests.dataplane.proxied import peer

RECORDER = "100.64.0.9:80"
ENFORCED: dict[str, Any] = {"enableEvents": True, "enforceRecorder": True, "recorderAddrs": [RECORDER]}


class Noted:
    """A sink that notes what it sees."""

    def __init__(self) -> None:
        self.lines: list[tuple[object, ...]] = []

    def answered(self, entry: Entry, info: RequestInfo, outcome: Outcome, seconds: float, cut: str) -> None:
        self.lines.append((entry.number, entry.head is not None, info.path, outcome.status, cut, None))

    def refused(self, entry: Entry, refusal: Refusal) -> None:
        path = entry.info.path if entry.info else None
        self.lines.append((entry.number, entry.head is not None, path, None, "", refusal.cause))

    def lost(self, entry: Entry) -> None:
        self.lines.append((entry.number, entry.head is not None, entry.info and entry.info.path, None, "", "lost"))


class Recorder:
    """Takes events, once it is told to."""

    def __init__(self) -> None:
        self.there = True
        self.taken: list[bytes] = []

    async def post(self, address: str, documents: Sequence[bytes]) -> None:
        await self.probe(address)
        self.taken += documents

    async def probe(self, address: str) -> None:
        if not self.there:
            raise OSError("not there")


def accounted(recorder: Recorder | None = None) -> tuple[Entry, Noted, Events]:
    recorder = recorder or Recorder()
    noted = Noted()
    events = Events(ApiEvents(recorder.post, recorder.probe), EventSettings())
    return Entry(Trail(events, (noted,)), "c1", "100.64.0.7:0"), noted, events


def asked(entry: Entry, path: str = "/api/v1/pods", fields: bytes = b"Host: k8s\r\n\r\n") -> RequestHead:
    head = RequestHead("GET", path, parse_fields(fields, max_count=9))
    entry.begin(head)
    entry.info = request_info("GET", path, "")
    return head


def decided(entry: Entry, **rule: Any) -> Decision:
    assert entry.info is not None
    return decide(authorize(tailnet_caller(peer("dev", **rule))), entry.info, 0.0)


def test_each_request_ends_once_and_leaves_nothing() -> None:
    entry, noted, _ = accounted()
    asked(entry)
    entry.end(Served(5), 0.1)
    asked(entry, "/version")
    entry.end(Served(5), 0.1, "upstream_broke")
    asked(entry, "/api")
    entry.refuse(Refusal(403, "peer_unknown", "no"))
    entry.refuse(Refusal(400, "bad_request", "no head"))
    assert noted.lines == [
        (1, True, "/api/v1/pods", 200, "", None),
        (2, True, "/version", 200, "upstream_broke", None),
        (3, True, "/api", None, "", "peer_unknown"),
        (3, False, None, None, "", "bad_request"),
    ]
    assert entry.head is None


async def test_a_request_without_a_body_is_told_at_once() -> None:
    recorder = Recorder()
    entry, _, events = accounted(recorder)
    head = asked(entry)
    decision = decided(entry, enableEvents=True, recorderAddrs=[RECORDER])
    assert entry.tell(decision, head.fields, cluster="prod", session="") is None
    assert events.queues.queued == 1
    assert entry.watch(decision, lambda _: None) is None
    entry.over(decision, whole=True)
    await events.queues.aclose()
    assert len(recorder.taken) == 1 and b'"cluster":"prod"' in recorder.taken[0]


@pytest.mark.parametrize("whole", [True, False])
async def test_a_request_with_a_body_is_told_once_that_has_been_seen(whole: bool) -> None:
    recorder = Recorder()
    entry, _, events = accounted(recorder)
    head = asked(entry, fields=b"Host: k8s\r\nContent-Length: 8\r\n\r\n")
    decision = decided(entry, enableEvents=True, recorderAddrs=[RECORDER])
    assert entry.tell(decision, head.fields, cluster="prod", session="") is None
    seen = entry.watch(decision, lambda _: None)
    assert seen is not None and events.queues.queued == 0
    seen(memoryview(b'{"a": 1}'))
    entry.over(decision, whole=whole)
    entry.over(decision, whole=whole)
    await events.queues.aclose()
    assert len(recorder.taken) == 1 and (b'"truncated"' in recorder.taken[0].lower()) is not whole


async def test_where_it_must_be_told_the_request_waits_for_a_recorder() -> None:
    recorder = Recorder()
    entry, _, events = accounted(recorder)
    head = asked(entry)
    decision = decided(entry, **ENFORCED)
    wait = entry.tell(decision, head.fields, cluster="prod", session="")
    assert wait is not None and events.queues.queued == 0
    await wait()
    entry.over(decision, whole=True)
    asked(entry)
    assert entry.tell(decision, head.fields, cluster="prod", session="") is None, "it is known to live"
    entry.over(decision, whole=True)
    await events.queues.aclose()
    assert len(recorder.taken) == 2


async def test_where_it_must_be_told_and_cannot_it_is_refused() -> None:
    recorder = Recorder()
    recorder.there = False
    entry, _, events = accounted(recorder)
    head = asked(entry)
    decision = decided(entry, **ENFORCED)
    wait = entry.tell(decision, head.fields, cluster="prod", session="")
    assert wait is not None
    with pytest.raises(Refusal, match="no recorder accepts it"):
        await wait()
    entry.over(decision, whole=True)
    assert events.queues.queued == 0
    await events.queues.aclose()
