"""Who is told of each request at its end: the metrics and the log.

A request that was forwarded is counted and has a line, also where its client has gone before there was an answer. One
that the proxy itself answers (whoami, documents) is counted and has none. One that was refused is counted by its cause
as well, and its line is a warning; so is an answer that was cut short.
"""

from __future__ import annotations

import structlog

from k8sproxy.audit.entry import Entry, Outcome, Served, Sink
from k8sproxy.common.errors import Refusal
from k8sproxy.protocol.http1 import RequestHead
from k8sproxy.request.requestinfo import RequestInfo
from k8sproxy.telemetry import RequestLog, Telemetry

_log = structlog.get_logger("k8sproxy")

# 499, as nginx has it: the client went before there was an answer.
CLIENT_GONE = 499
# Characters of the path in the line of a refusal.
_PATH = 256


class OwnSink:
    """The proxy's own metrics and log, in one pass: every request pays for it."""

    __slots__ = ("_requests", "_telemetry")

    def __init__(self, telemetry: Telemetry, requests: RequestLog) -> None:
        self._telemetry = telemetry
        self._requests = requests

    def answered(self, entry: Entry, info: RequestInfo, outcome: Outcome, seconds: float, cut: str) -> None:
        """Count it, and write its line."""
        status, sent = outcome.status or CLIENT_GONE, outcome.sent
        if type(outcome) is Served:
            self._telemetry.request(info.verb, "", status, outcome.proxy_seconds, outcome.received, sent)
        else:
            self._telemetry.request(info.verb, _resource(info), status, outcome.proxy_seconds, outcome.received, sent)
            if self._requests.enabled:
                self._requests.write(
                    entry.connection, entry.number, entry.who, info.verb, info.path, status, seconds, sent
                )
        if cut:
            self._telemetry.refusal(cut)
            _log.warning("response_cut", connection=entry.connection, request=entry.number, cause=cut)

    def refused(self, entry: Entry, refusal: Refusal) -> None:
        """Count it by its cause, and warn of it."""
        info, head, caller = entry.info, entry.head, entry.caller
        verb, resource = (info.verb, _resource(info)) if info is not None else ("", "")
        self._telemetry.refused(verb, resource, refusal.status, refusal.cause)
        _log.warning(
            "refused",
            connection=entry.connection,
            request=entry.number,
            cause=refusal.cause,
            code=refusal.status,
            message=refusal.message,
            method=head.method if head else None,
            path=_path(head) if head else None,
            address=caller.address if caller else entry.address,
            peer=caller.display if caller else None,
        )

    def lost(self, entry: Entry) -> None:
        """Count it, and write its line."""
        info, head = entry.info, entry.head
        verb, resource = (info.verb, _resource(info)) if info is not None else ("", "")
        self._telemetry.request(verb, resource, CLIENT_GONE, 0.0, 0, 0)
        if self._requests.enabled:
            path = info.path if info is not None else _path(head) if head is not None else ""
            self._requests.write(entry.connection, entry.number, entry.who, verb, path, CLIENT_GONE, 0.0, 0)


def sinks_of(telemetry: Telemetry, requests: RequestLog) -> tuple[Sink, ...]:
    """All sinks, in their order."""
    return (OwnSink(telemetry, requests),)


def _resource(info: RequestInfo) -> str:
    """The resource as metrics name it: pods, pods/exec."""
    return f"{info.resource}/{info.subresource}" if info.subresource else info.resource


def _path(head: RequestHead) -> str:
    """The path of a request that may not have been understood."""
    return head.target.partition("?")[0][:_PATH]
