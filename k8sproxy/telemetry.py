"""What the proxy says of itself: metrics and logs, made so that the hot path hardly pays for them.

Metrics: a request costs a few dictionary and list increments; prometheus-client only renders them when /metrics is
asked for. Label values come from clients in part (a resource may be any word in a path), so the number of series is
bounded: past MAX_SERIES a request is counted under the resource "other". So is one that failed past MAX_FAILED_SERIES,
since any word at all can fail: what does not exist must not use up the series of what does.

Logs: events go through structlog (logs); the line of a request is put together by hand (the JSON encoder of the
standard library for the strings, the fields of the connection encoded once), because it is written at every request.
"""

from __future__ import annotations

import json
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from k8sproxy import __version__
from k8sproxy.common.build import build_labels
from k8sproxy.common.logs import LOG

# Series of k8sproxy_requests_total. A cluster has some hundred pairs of verb and resource, a few codes each.
MAX_SERIES = 2000
# Those of them with a code from 400 on.
MAX_FAILED_SERIES = 500
# Upper bounds, seconds, of the latency added by the proxy: 25 us to 100 ms.
_BUCKETS = (25e-6, 50e-6, 75e-6, 100e-6, 150e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 0.1)

encode_string: Callable[[str], str] = json.encoder.encode_basestring_ascii


class Telemetry(Collector):
    """All counters of the process. Gauges that others hold (pools, WhoIs) are read through `gauges` when scraped."""

    def __init__(self) -> None:
        self._requests: dict[tuple[str, str, int], int] = {}
        self._failed_series = 0
        self._refusals: dict[str, int] = {}
        self._added = [0] * (len(_BUCKETS) + 1)
        self._added_sum = 0.0
        self.connections = 0  # client connections open now
        self.accepted = 0  # client connections accepted
        self.handshake_failures = 0
        self.bytes_from_clients = 0
        self.bytes_to_clients = 0
        self.reloads = {"ok": 0, "refused": 0}
        self.gauges: list[Callable[[], Iterable[Metric]]] = []
        self.registry = CollectorRegistry()
        self.registry.register(self)
        ProcessCollector(registry=self.registry)

    def request(self, verb: str, resource: str, code: int, added: float, received: int, sent: int) -> None:
        """Count a request that is over. added: seconds spent in the proxy; received, sent: bytes of body."""
        requests = self._requests
        try:
            requests[verb, resource, code] += 1
        except KeyError:
            self._new_series(verb, resource, code)
        self._added[bisect_left(_BUCKETS, added)] += 1
        self._added_sum += added
        if received:  # most requests have no body
            self.bytes_from_clients += received
        self.bytes_to_clients += sent

    def refused(self, verb: str, resource: str, code: int, cause: str) -> None:
        """Count a request that the proxy answered itself, to turn it down. verb, resource: empty where not known."""
        if (verb, resource, code) in self._requests:
            self._requests[verb, resource, code] += 1
        else:
            self._new_series(verb, resource, code)
        self.refusal(cause)

    def _new_series(self, verb: str, resource: str, code: int) -> None:
        key = (verb, resource, code)
        failed = code >= 400
        if len(self._requests) >= MAX_SERIES or (failed and self._failed_series >= MAX_FAILED_SERIES):
            key = (verb, "other", code)  # verbs are few: a client has no say in their names
        elif failed:
            self._failed_series += 1
        self._requests[key] = self._requests.get(key, 0) + 1

    def refusal(self, cause: str) -> None:
        """Count something that the proxy turned down, by its cause."""
        self._refusals[cause] = self._refusals.get(cause, 0) + 1

    def describe(self) -> Iterator[Metric]:
        return iter(())  # Nothing is collected at registration.

    def collect(self) -> Iterator[Metric]:
        """Everything as prometheus-client has it."""
        build = GaugeMetricFamily(
            "k8sproxy_build_info", "What runs, and how it was built.", labels=("version", "compiled", "python")
        )
        build.add_metric(build_labels(__version__), 1)
        yield build
        requests = CounterMetricFamily(
            "k8sproxy_requests", "Requests answered, by verb, resource and code.", labels=("verb", "resource", "code")
        )
        for (verb, resource, code), count in list(self._requests.items()):
            requests.add_metric((verb, resource, str(code)), count)
        yield requests
        yield _labelled("k8sproxy_refusals", "Requests turned down by the proxy itself.", "reason", self._refusals)
        total, buckets = 0, []
        for bound, count in zip((*map(str, _BUCKETS), "+Inf"), self._added, strict=True):
            total += count
            buckets.append((bound, float(total)))
        added = HistogramMetricFamily(
            "k8sproxy_added_latency_seconds", "Time a request's and its response's heads spent in the proxy."
        )
        added.add_metric((), buckets, self._added_sum)
        yield added
        yield GaugeMetricFamily("k8sproxy_connections", "Client connections open now.", self.connections)
        yield CounterMetricFamily("k8sproxy_connections_accepted", "Client connections accepted.", self.accepted)
        yield CounterMetricFamily(
            "k8sproxy_handshake_failures", "Connections that ended before TLS was up.", self.handshake_failures
        )
        yield CounterMetricFamily(
            "k8sproxy_received_bytes", "Bytes of bodies and streams from clients.", self.bytes_from_clients
        )
        yield CounterMetricFamily("k8sproxy_sent_bytes", "Bytes of responses to clients.", self.bytes_to_clients)
        yield _labelled("k8sproxy_reloads", "Reloads of the configuration, by result.", "result", self.reloads)
        yield CounterMetricFamily("k8sproxy_log_lines_dropped", "Log lines lost.", LOG.dropped)
        for read in self.gauges:
            yield from read()


def _labelled(name: str, text: str, label: str, counts: dict[str, int]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=(label,))
    for value, count in list(counts.items()):
        family.add_metric((value,), count)
    return family


class RequestLog:
    """The line of each request. style: json or console."""

    def __init__(self, style: str, *, enabled: bool = True) -> None:
        self._json = style == "json"
        self.enabled = enabled
        self._second = 0
        self._whole = ""
        self._millisecond = 0
        self._stamp = ""

    def write(
        self, connection: str, request: int, fields: str, verb: str, path: str, code: int, seconds: float, sent: int
    ) -> None:
        """Write one line. fields: what `encode_fields` made of the peer."""
        millisecond = int(time.time() * 1000)
        if millisecond != self._millisecond:
            self._millisecond = millisecond
            second, rest = divmod(millisecond, 1000)
            if second != self._second:
                self._second = second
                self._whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
            self._stamp = f"{self._whole}.{rest:03d}Z"
        if self._json:
            LOG.write(
                f'{{"time":"{self._stamp}","level":"info","event":"request","connection":"{connection}","request":{request}'
                f',{fields},"verb":{encode_string(verb)},"path":{encode_string(path)},"code":{code}'
                f',"seconds":{seconds:.6f},"sent":{sent}}}\n'
            )
        else:
            LOG.write(
                f"{self._stamp} {connection}/{request} {code} {verb} {encode_string(path)[1:-1]} {seconds * 1e3:.2f} "
                f"ms {sent} B {fields}\n"
            )


def encode_fields(fields: dict[str, object]) -> str:
    """The members of a JSON object without its braces, for RequestLog.write."""
    return json.dumps(fields, separators=(",", ":"))[1:-1]
