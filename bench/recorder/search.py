"""How fast the recorder's index answers: python -m bench.recorder.search [--recordings N] [--url URL] [--rounds N]

Makes as many recordings as asked, with text of a shell's kind (words of a Zipf distribution, names of pods, hashes) and
lengths from a line to many screens, writes them by the index's own bulk path, and then asks a mix of questions, each as
a page of 50 with hits, again and again with other words. Times, and CPU (of all threads here,
for a machine that has other work), for each kind of question and over all. Without --url
it is a SQLite file in a folder that is removed after; a PostgreSQL database has to be empty.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench.processes import run_benchmark
from recorder.index import EventFilter, Filter, Index
from recorder.index.database import Change, Writing
from recorder.index.filters import EVERYTHING, Everywhere, Scope
from recorder.index.records import Extract, put_events, put_recordings, put_text
from recorder.model import ApiEvent, End, Recording, Source, new_id
from recorder.screen import Segment

_START = 1_750_000_000.0
_SPAN = 180 * 86400.0  # half a year
_SENDER = Source("proxy", "100.64.0.9", tags=("tag:k8sproxy",))
_USERS = [f"user{number}@example.com" for number in range(200)]
_CLUSTERS = ["prod-eu", "prod-us", "staging", "dev"]
_NAMESPACES = [f"team-{number}" for number in range(60)]
_PROGRAMS = [
    *("kubectl get pods", "ls -la /var/lib/app", "cat /etc/hosts", "psql -h db", "top", "ps aux"),
    *("tail -f /var/log/app.log", "curl -s localhost:8080/healthz", "env", "df -h"),
]
_BATCH = 500


class Writer:
    """Makes text; its vocabulary is 20,000 words of which few are common."""

    def __init__(self, dice: random.Random) -> None:
        self.dice = dice
        letters = "abcdefghijklmnopqrstuvwxyz"
        self.words = ["".join(dice.choices(letters, k=dice.randint(3, 11))) for _ in range(20_000)]
        self._drawn: list[str] = []
        self._weights = [1 / (rank + 1) for rank in range(len(self.words))]

    def word(self) -> str:
        if not self._drawn:
            self._drawn = self.dice.choices(self.words, self._weights, k=100_000)
        return self._drawn.pop()

    def lines(self, count: int, duration: float) -> list[tuple[float, str]]:
        lines = []
        for number in range(count):
            kind = self.dice.random()
            if kind < 0.2:
                line = f"$ {self.dice.choice(_PROGRAMS)} {self.word()}"
            elif kind < 0.4:
                line = f"{self.word()}-{self.dice.getrandbits(40):010x} 1/1 Running 0 {self.dice.randint(1, 99)}d"
            else:
                line = " ".join(self.word() for _ in range(self.dice.randint(3, 12)))
            lines.append((duration * number / count, line))
        return lines


def recording(dice: random.Random, number: int, total: int) -> Recording:
    started = _START + _SPAN * number / total
    user, duration = dice.choice(_USERS), dice.expovariate(1 / 300)
    header = {
        "version": 2,
        "width": 120,
        "height": 40,
        "timestamp": int(started),
        "command": dice.choice(["bash", "sh", "/bin/sh -c 'ps aux'", "psql", "python manage.py shell"]),
        "srcNode": f"laptop-{user.partition('@')[0]}.tailnet.ts.net.",
        "srcNodeID": f"n{dice.getrandbits(40):x}CNTRL",
        "srcNodeUser": user,
        "kubernetes": {
            "PodName": f"app-{dice.randrange(500)}-{dice.getrandbits(20):05x}",
            "Namespace": dice.choice(_NAMESPACES),
            "Container": "app",
            "SessionType": "exec",
            "Cluster": dice.choice(_CLUSTERS),
        },
        "impersonation": {"user": user, "groups": ["developers"]},
        "sessionID": f"{dice.getrandbits(64):016x}",
        "userAgent": "kubectl/v1.36.3 (linux/amd64) kubernetes/0000000",
    }
    end = End.CUT if dice.random() < 0.02 else End.CLEAN
    return Recording(new_id(started), header, _SENDER, started, started + duration, end, 1000, duration, 10)


def api_event(dice: random.Random, number: int, total: int) -> ApiEvent:
    received = _START + _SPAN * number / total
    user, namespace = dice.choice(_USERS), dice.choice(_NAMESPACES)
    resource, name = dice.choice(["pods", "secrets", "deployments", "configmaps"]), f"app-{dice.randrange(500)}"
    document = {
        "type": "kubernetes-api-request",
        "source": {"node": f"laptop-{user.partition('@')[0]}.tailnet.ts.net.", "nodeUser": user},
        "kubernetes": {
            "Verb": dice.choice(["get", "list", "watch", "delete", "patch"]),
            "Resource": resource,
            "Namespace": namespace,
            "Name": name,
            "Path": f"/api/v1/namespaces/{namespace}/{resource}/{name}",
            "Cluster": dice.choice(_CLUSTERS),
        },
    }
    return ApiEvent(new_id(received), received, _SENDER, document)


async def fill(index: Index, writer: Writer, total: int) -> None:
    """By the bulk path that a rebuild takes."""
    dice = writer.dice
    began = time.perf_counter()
    characters = 0
    async with index.database.replacement() as fresh:
        for first in range(0, total, _BATCH):
            batch = [recording(dice, number, total) for number in range(first, min(first + _BATCH, total))]
            await fresh.write(await put_recordings(fresh, batch))
            changes: list[Change] = []
            for one in batch:
                lines = writer.lines(min(2000, int(dice.paretovariate(1.1) * 8)), one.duration)
                characters += sum(len(line) for _, line in lines)
                segments = [Segment(tuple(lines[at : at + 160])) for at in range(0, len(lines), 160)]
                changes += await put_text(fresh, one, Extract(segments, truncated=False, unseen=False))
            await fresh.write(changes)
            await fill_events(fresh, dice, first, len(batch), total)
            if first % 10_000 == 0:
                print(f"  {first:,} of {total:,}, {time.perf_counter() - began:.0f} s", flush=True)
    print(
        f"{total:,} recordings with {characters / 1e6:.0f} MB of text and as many events"
        f" in {time.perf_counter() - began:.0f} s"
    )


async def fill_events(fresh: Writing, dice: random.Random, first: int, count: int, total: int) -> None:
    await fresh.write(
        await put_events(fresh, [api_event(dice, number, total) for number in range(first, first + count)])
    )


def questions(writer: Writer) -> dict[str, Callable[[], tuple[Filter | EventFilter | str, Scope]]]:
    """Kinds of questions; each call asks another one of its kind."""
    dice = writer.dice

    def rare() -> str:
        return writer.words[dice.randrange(2000, 20_000)]

    def middling() -> str:
        return writer.words[dice.randrange(50, 1000)]

    def common() -> str:
        return writer.words[dice.randrange(10)]

    def narrow() -> Scope:
        return (Everywhere(namespaces=(dice.choice(_NAMESPACES), "x-*"), clusters=("prod-*",)),)

    def own() -> Scope:
        return (Everywhere(owner=dice.choice(_USERS)),)

    def since() -> float:
        return _START + _SPAN * dice.random()

    return {
        "newest": lambda: (Filter(), EVERYTHING),
        "newest in a narrow scope": lambda: (Filter(), narrow()),
        "own": lambda: (Filter(), own()),
        "a user": lambda: (Filter(user=dice.choice(_USERS)), EVERYTHING),
        "cluster and namespace": lambda: (
            Filter(cluster=dice.choice(_CLUSTERS), namespace=dice.choice(_NAMESPACES)),
            EVERYTHING,
        ),
        "pods by a glob": lambda: (Filter(pod=f"app-{dice.randrange(500)}-*"), EVERYTHING),
        "cut off, long": lambda: (Filter(state=End.CUT, min_duration=900), EVERYTHING),
        "nothing fits": lambda: (Filter(pod="*nothing*", user="*example.org"), EVERYTHING),
        "a rare word": lambda: (Filter(text=rare()), EVERYTHING),
        "a common word": lambda: (Filter(text=common()), EVERYTHING),
        "the beginning of words": lambda: (Filter(text=middling()[:3]), EVERYTHING),
        "two words": lambda: (Filter(text=f"{common()} {middling()}"), EVERYTHING),
        "a phrase": lambda: (Filter(text=f'"{common()} {common()}"'), EVERYTHING),
        "a command line": lambda: (Filter(text='"curl -s localhost:8080/healthz"'), EVERYTHING),
        "a word and a user": lambda: (Filter(text=middling(), user=dice.choice(_USERS)), EVERYTHING),
        "a common word and a user": lambda: (Filter(text=common(), user=dice.choice(_USERS)), EVERYTHING),
        "a common word, own": lambda: (Filter(text=common()), own()),
        "a word in a narrow scope": lambda: (Filter(text=middling()), narrow()),
        "a word before a time": lambda: (Filter(text=common(), until=since()), EVERYTHING),
        "events: a verb in a narrow scope": lambda: (EventFilter(verb="delete"), narrow()),
        "events: secrets of a user": lambda: (EventFilter(resource="secrets", user=dice.choice(_USERS)), EVERYTHING),
        "activity": lambda: ("activity", narrow()),
        "facets": lambda: ("facets", narrow()),
    }


async def ask(index: Index, asked: Filter | EventFilter | str, scope: Scope) -> int:
    if isinstance(asked, Filter):
        return len((await index.recordings(asked, scope, limit=50)).items)
    if isinstance(asked, EventFilter):
        return len((await index.events(asked, scope, limit=50)).items)
    if asked == "activity":
        return len(await index.activity(scope, _START, _START + _SPAN, 180))
    return len(await index.facets(scope))


async def measure(index: Index, writer: Writer, rounds: int) -> dict[str, tuple[float, ...]]:
    times: dict[str, list[float]] = {}
    spent: dict[str, list[float]] = {}
    found: dict[str, int] = {}
    kinds = questions(writer)
    for number in range(rounds + 1):
        for name, kind in kinds.items():
            asked, scope = kind()
            began, before = time.perf_counter(), time.process_time()
            rows = await ask(index, asked, scope)
            if number:  # the first round is not counted
                spent.setdefault(name, []).append((time.process_time() - before) * 1e3)
                times.setdefault(name, []).append((time.perf_counter() - began) * 1e3)
                found[name] = found.get(name, 0) + rows
    figures: dict[str, tuple[float, ...]] = {
        name: (_at(some, 50), _at(some, 95), _at(spent[name], 50), _at(spent[name], 95), found[name] / rounds)
        for name, some in times.items()
    }
    pages = [name for name in times if name not in ("activity", "facets")]
    every, every_spent = ([one for name in pages for one in of[name]] for of in (times, spent))
    middle_and_high = (_at(every, 50), _at(every, 95), _at(every_spent, 50), _at(every_spent, 95))
    figures["all questions for a page"] = (*middle_and_high, sum(found[name] for name in pages) / len(pages) / rounds)
    return figures


def _at(values: list[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--recordings", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--url", help="of an empty PostgreSQL database, or sqlite:FILE (used again if it is there)")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    writer = Writer(random.Random(7))
    with tempfile.TemporaryDirectory() as folder:
        index = Index(options.url or f"sqlite:{folder}/index.db")
        await index.open()
        try:
            if not (await index.recordings(Filter(), EVERYTHING, limit=1)).items:
                await fill(index, writer, options.recordings)
            figures = await measure(index, writer, options.rounds)
        finally:
            await index.aclose()
        if not options.url:
            print(f"{sum(file.stat().st_size for file in Path(folder).iterdir()) / 1e6:.0f} MB on disk")
    print(f"{'':34}{'p50 ms':>9}{'p95 ms':>9}{'CPU p50':>9}{'CPU p95':>9}{'rows':>7}")
    for name, row in figures.items():
        print(f"{name:34}" + "".join(f"{figure:9.1f}" for figure in row[:-1]) + f"{row[-1]:7.0f}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    run_benchmark(lambda: asyncio.run(main()))
