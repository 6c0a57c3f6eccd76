"""What the recorder says of itself to Prometheus: read off counters that the parts keep anyway, when it asks."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from k8sproxy.common.build import build_labels
from recorder import __version__

# Seconds: the bounds of the histogram of commits and of acks.
BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


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


def gauges(name: str, text: str, label: str, values: Iterable[tuple[str, float]]) -> GaugeMetricFamily:
    """Numbers that go up and down, by one label."""
    family = GaugeMetricFamily(name, text, labels=[label])
    for key, value in values:
        family.add_metric([key], value)
    return family


def build_info() -> GaugeMetricFamily:
    """What runs, and how it was built."""
    family = GaugeMetricFamily(
        "recorder_build_info", "What runs, and how it was built.", labels=("version", "compiled", "python")
    )
    family.add_metric(build_labels(__version__), 1)
    return family


def counter(name: str, text: str, value: float) -> CounterMetricFamily:
    """One number that goes up."""
    return CounterMetricFamily(name, text, value=value)


def counters(name: str, text: str, label: str, values: Iterable[tuple[str, float]]) -> CounterMetricFamily:
    """Numbers that go up, by one label."""
    family = CounterMetricFamily(name, text, labels=[label])
    for key, value in values:
        family.add_metric([key], value)
    return family
