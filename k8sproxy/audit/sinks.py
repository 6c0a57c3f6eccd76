"""Who is told of each request at its end: the metrics and the log.

A request that was forwarded is counted and has a line. One that the proxy itself answers (whoami, documents) is counted
and has none. One that was refused is counted by its cause as well, and its line is a warning; so is an answer that was
cut short.
"""

from __future__ import annotations

import structlog

from k8sproxy.audit.entry import Entry, Served, Sink
from k8sproxy.common.errors import Refusal
from k8sproxy.request.requestinfo import RequestInfo
from k8sproxy.telemetry import RequestLog, Telemetry

_log = structlog.get_logger("k8sproxy")

# 499, as nginx has it: the client went before there was an answer.
CLIENT_GONE = 499
# Characters of the path in the line of a refusal.
_PATH = 256


class MetricsSink:
    """Counts requests and refusals."""

    __slots__ = ("_telemetry",)

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry

    def ended(self, entry: Entry) -> None:
        """Count it."""
        outcome, info, refusal = entry.outcome, entry.info, entry.refusal
        if outcome is not None and info is not None:
            resource = "" if type(outcome) is Served else _resource(info)
            self._telemetry.request(
                info.verb,
                resource,
                outcome.status or CLIENT_GONE,
                outcome.proxy_seconds,
                outcome.received,
                outcome.sent,
            )
            if entry.cut:
                self._telemetry.refusal(entry.cut)
        elif refusal is not None:
            verb, resource = (info.verb, _resource(info)) if info is not None else ("", "")
            self._telemetry.refused(verb, resource, refusal.status, refusal.cause)


class LogSink:
    """Writes a line for each request."""

    __slots__ = ("_requests",)

    def __init__(self, requests: RequestLog) -> None:
        self._requests = requests

    def ended(self, entry: Entry) -> None:
        """Write its line."""
        outcome, info, refusal = entry.outcome, entry.info, entry.refusal
        if outcome is not None and info is not None:
            if self._requests.enabled and type(outcome) is not Served:
                self._requests.write(
                    entry.connection,
                    entry.number,
                    entry.who,
                    info.verb,
                    info.path,
                    outcome.status or CLIENT_GONE,
                    entry.seconds,
                    outcome.sent,
                )
            if entry.cut:
                _log.warning("response_cut", connection=entry.connection, request=entry.number, cause=entry.cut)
        elif refusal is not None:
            self._warn(entry, refusal)

    @staticmethod
    def _warn(entry: Entry, refusal: Refusal) -> None:
        head, caller = entry.head, entry.caller
        _log.warning(
            "refused",
            connection=entry.connection,
            request=entry.number,
            cause=refusal.cause,
            code=refusal.status,
            message=refusal.message,
            method=head.method if head else None,
            path=head.target.partition("?")[0][:_PATH] if head else None,
            address=caller.address if caller else entry.address,
            peer=caller.display if caller else None,
        )


def sinks_of(telemetry: Telemetry, requests: RequestLog) -> tuple[Sink, ...]:
    """All sinks, in their order."""
    return MetricsSink(telemetry), LogSink(requests)


def _resource(info: RequestInfo) -> str:
    """The resource as metrics name it: pods, pods/exec."""
    return f"{info.resource}/{info.subresource}" if info.subresource else info.resource
