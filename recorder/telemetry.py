"""What the recorder says of itself: logs and metrics.

Logs are structlog's, JSON or for people, to standard error, written by a thread so that a reader of the log that stops
reading does not stop the recorder. Metrics are read off counters that the parts keep anyway, when Prometheus asks.
"""

from __future__ import annotations

import logging
import queue
import sys
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import structlog
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

# Lines that wait for a log reader that does not read; about 5 MiB. More are dropped.
MAX_PENDING = 20_000
# Seconds: the bounds of the histogram of commits and of acks.
BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class LogWriter:
    """Lines on their way to standard error. dropped: those that nobody took."""

    def __init__(self) -> None:
        self.dropped = 0
        self._lines: queue.Queue[str | None] = queue.Queue(MAX_PENDING)
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Write by a thread from now on."""
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Write what is waiting, for at most a second."""
        thread, self._thread = self._thread, None
        if thread is not None:
            try:
                self._lines.put(None, timeout=1.0)
            except queue.Full:
                return
            thread.join(1.0)

    def write(self, line: str) -> None:
        """Take one line, without its end."""
        if self._thread is None:
            sys.stderr.write(line + "\n")
            return
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self.dropped += 1

    def _run(self) -> None:
        while True:
            lines: list[str] = []
            line = self._lines.get()
            while line is not None:
                lines.append(line)
                try:
                    line = self._lines.get_nowait()
                except queue.Empty:
                    break
            try:
                sys.stderr.write("".join(f"{text}\n" for text in lines))
                sys.stderr.flush()
            except (OSError, ValueError):
                self.dropped += len(lines)
            if line is None:
                return


LOG = LogWriter()


class _Logger:
    """What structlog hands rendered lines to."""

    def msg(self, message: str) -> None:
        LOG.write(message)

    debug = info = warning = warn = error = critical = fatal = exception = log = msg


def configure_logging(level: str, style: str) -> None:
    """Set up structlog. level: debug, info, warning or error. style: json, or console for people."""
    # Plain tracebacks: those that structlog prefers show local variables, which hold what was on people's screens.
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if style == "json"
        else structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    )
    processors: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
    ]
    if style == "json":
        processors.append(structlog.processors.format_exc_info)
    structlog.configure(
        processors=[*processors, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=lambda *_: _Logger(),
        cache_logger_on_first_use=False,
    )


class Histogram:
    """Counts of seconds."""

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        """Take one."""
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.sum += seconds

    def family(self, name: str, text: str) -> HistogramMetricFamily:
        """As Prometheus has it."""
        buckets, total = [], 0
        for bound, count in zip((*map(str, BOUNDS), "+Inf"), self.counts, strict=True):
            total += count
            buckets.append((bound, total))
        return HistogramMetricFamily(name, text, buckets=buckets, sum_value=self.sum)


class Metrics(Collector):
    """The registry of one process. gauges: told (name, text, labels, value) by the app whenever it is asked."""

    def __init__(self, read: Callable[[], Iterable[Metric]]) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self._read = read
        ProcessCollector(registry=self.registry)
        self.registry.register(self)

    def describe(self) -> Iterable[Metric]:
        """None: names are known when they are asked for."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """See Collector."""
        yield from self._read()


def gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    """One number that goes up and down."""
    return GaugeMetricFamily(name, text, value=value)


def counter(name: str, text: str, value: float) -> CounterMetricFamily:
    """One number that goes up."""
    return CounterMetricFamily(name, text, value=value)


def counters(name: str, text: str, label: str, values: Iterable[tuple[str, float]]) -> CounterMetricFamily:
    """Numbers that go up, by one label."""
    family = CounterMetricFamily(name, text, labels=[label])
    for key, value in values:
        family.add_metric([key], value)
    return family
