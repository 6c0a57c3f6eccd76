"""What a running recorder says of itself: readiness, warnings and metrics, read off its parts when somebody asks.

Each part may be absent: during the start they come one after the other, and some are never configured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client.metrics_core import Metric

from k8sproxy.common.logs import LOG
from recorder.assembly import Finding, WebServer
from recorder.ingest.server import IngestServer
from recorder.ingest.site import IngestSite
from recorder.retention.service import Keeping
from recorder.store import Store
from recorder.telemetry import Histogram, build_info, counter, counters, gauge, gauges


@dataclass(slots=True, eq=False)
class Parts:
    """The parts of a recorder that are there. commits, acks: seconds that they took."""

    store: Store | None = None
    finding: Finding | None = None
    keeping: Keeping | None = None
    site: IngestSite | None = None
    server: IngestServer | None = None
    web: WebServer | None = None
    commits: Histogram = field(default_factory=Histogram)
    acks: Histogram = field(default_factory=Histogram)


def checks(parts: Parts, *, starting: str | None, draining: bool) -> dict[str, str | None]:
    """Readiness, part by part: None where a part is well, else what is wrong. starting: what the start waits for."""
    store = parts.store
    return {
        "starting": starting,
        "draining": "the recorder is stopping" if draining else None,
        "store": store.healthy if store is not None else "the store is not open",
        "removal": store.removal_fault if store is not None else None,
    }


def warnings(parts: Parts) -> dict[str, str | None]:
    """What is wrong or late and keeps nobody from sending."""
    kept = dict(parts.keeping.warnings()) if parts.keeping is not None else {}
    return kept | ({"index": parts.finding.fault} if parts.finding is not None else {})


def metrics(parts: Parts, reloads: Mapping[str, int]) -> Iterator[Metric]:
    """For /metrics. reloads: by result."""
    yield build_info()
    yield counters("recorder_reloads", "Reloads, by result.", "result", reloads.items())
    yield parts.commits.family("recorder_commit_seconds", "Seconds that a commit of the journal took.")
    yield parts.acks.family("recorder_ack_seconds", "Seconds from the arrival of a session's byte until it is safe.")
    yield counter("recorder_log_lines_dropped", "Log lines lost.", LOG.dropped)
    store, site = parts.store, parts.site
    if store is not None:
        yield gauge("recorder_store_healthy", "1 while the store accepts writes.", store.healthy is None)
        removing = store.removal_fault is None
        yield gauge("recorder_removal_healthy", "1 while the store can remove what is no longer needed.", removing)
        yield counters("recorder_store_errors", "Writes that failed, by part.", "part", store.errors.items())
        yield gauge("recorder_store_held_bytes", "Bytes in memory that are in no chunk yet.", store.held)
        yield gauge("recorder_store_unfinished", "Recordings that are not completely in the store.", len(store.lives))
        if store.free is not None:
            yield gauge("recorder_store_free_bytes", "Bytes left on the store's disk.", store.free)
        if (journal := store.journal) is not None:
            yield counter("recorder_commits", "Commits of the journal.", journal.commits)
            yield counter("recorder_committed_bytes", "Bytes made safe by the journal.", journal.synced)
            yield gauge("recorder_journal_segments", "Segments of the journal.", len(journal.segments))
    if parts.keeping is not None:
        yield from parts.keeping.metrics()
    if parts.finding is not None:
        index = parts.finding.index
        yield gauge("recorder_index_healthy", "1 while the index accepts updates.", parts.finding.fault is None)
        yield counter("recorder_index_errors", "Attempts of the index that failed.", parts.finding.errors)
        yield gauge("recorder_index_waiting", "Rows and texts that wait for the index.", index.waiting)
        yield counter("recorder_index_dropped", "Rows and texts that the index gave up.", index.dropped)
    if site is not None:
        counts = site.counts
        yield counter("recorder_ingest_bytes", "Bytes of cast text that have come in.", counts.bytes)
        yield counter("recorder_events", "API events kept.", counts.events)
        yield gauge("recorder_sessions_open", "Sessions that are coming in.", counts.open)
        yield gauge("recorder_connections", "Connections of senders.", counts.connections)
        yield counters("recorder_sessions", "Sessions begun, by wire.", "wire", counts.sessions.items())
        yield counters("recorder_sessions_ended", "Sessions that have ended, by end.", "end", counts.ends.items())
        yield from _shares(parts, site)
        yield counters("recorder_refusals", "Requests refused, by cause.", "cause", counts.refused.items())


def _shares(parts: Parts, site: IngestSite) -> Iterator[Metric]:
    shares = {"sessions": site.sessions, "user_sessions": site.users, "event_bytes": site.bodies}
    if parts.server is not None:
        shares["connections"] = parts.server.inside.shares
        gate = parts.server.gate
        yield gauge("recorder_connections_waiting", "Connections that are not admitted yet.", gate.outside)
        yield counter("recorder_connections_ended", "Connections ended before they were admitted.", gate.ended)
    if parts.web is not None:
        shares["web_connections"] = parts.web.listener.inside.shares
    rows = [(name, one.taken, one.largest, one.limit.each) for name, one in shares.items()]
    for column, name, text in (
        (1, "taken", "What all senders together use, by limit."),
        (2, "largest", "What the sender (or user) that uses most has in use, by limit."),
        (3, "limit", "What one sender (or user) may use, by limit."),
    ):
        yield gauges(f"recorder_share_{name}", text, "limit", [(str(row[0]), float(row[column])) for row in rows])
