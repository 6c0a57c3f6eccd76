"""Opening a long recording in its middle: python -m bench.recorder.seek [--megabytes N] [--rounds N] [--json FILE]
    [--markdown FILE]

Makes a recording of a gigabyte by the store's own way in (a Live, the journal, the builder), an hour long at an even
pace, and opens it at moments around its middle, as the player and `recorder play --start` do: by a window of the API,
and by the library that the command line reads a folder with.

    API         GET /api/v1/sessions/ID/window?at=S of a running `recorder serve`, to the answer's last byte: who asks
                is looked up, the look is kept, the window is read
    library     the same window in a new process, from the opening of the store to the last line; and with the start of
                the interpreter and all imports

cold: nothing of the folder is in the page cache (POSIX_FADV_DONTNEED), and the recorder has just been started. warm:
asked again at the same moment. Bytes read are those that the process asked the kernel for meanwhile (rchar of
/proc/PID/io), whether they came from the disk or not.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench.machine import Others, describe
from bench.processes import python, run_benchmark
from bench.recorder.served import Served, event_line, make_pool, wait
from bench.report import Goal, goals_table, number, row, table_head, write_section
from recorder.model import End, Source
from recorder.store import Store
from recorder.store.blobs import FolderBlobs
from recorder.store.logs import FolderLog

Sample = dict[str, float]

# Seconds of the recording.
_LENGTH = 3600.0
# Bytes of an event: a page of a log.
_EVENT = 8000

_LIBRARY = """
import asyncio, json, sys, time
from pathlib import Path
async def main():
    from recorder.cli.common import Where
    from recorder.cli.library import open_library
    from recorder.config import load
    config = load(Path(sys.argv[1]))
    began, size, before = time.perf_counter(), 0, read()
    async with open_library(Where(config=config, configured=True)) as library:
        async for line in library.window(sys.argv[2], at=float(sys.argv[3])):
            size += len(line)
    print(json.dumps({"ms": (time.perf_counter() - began) * 1e3, "size": size, "read": read() - before}))
def read():
    return int(Path("/proc/self/io").read_text().split()[1])
asyncio.run(main())
"""


async def make(folder: Path, pool: Sequence[bytes], size: int) -> str:
    """A recording of so many bytes; its id."""
    store = Store(FolderBlobs(folder), FolderLog(folder))
    await store.open()
    try:
        header = {
            "version": 2, "width": 120, "height": 40, "timestamp": 1_780_000_000, "command": "tail -f app.log",
            "srcNode": "laptop.tail1234.ts.net.", "srcNodeUser": "ana@example.com", "sessionID": "0",
        }  # fmt: skip
        live = await store.begin(json.dumps(header).encode() + b"\n", Source("k8sproxy", "100.64.0.9"))
        count = size // len(event_line(pool, 0, 0))
        for event in range(count):
            line = event_line(pool, 0, event)
            live.write(b"[%.6f%b" % (event * _LENGTH / count, line[line.index(b",") :]))
            if live.blocked:
                await live.ready()
        recording = await live.finish(End.CLEAN)
    finally:
        await store.aclose()
    return recording.id


def forget(folder: Path) -> None:
    """Let nothing of it be in the page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


def known(served: Served, identifier: str) -> bool:
    """Whether the index of a recorder that was just started has it."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{served.web_port}/api/v1/sessions/{identifier}", timeout=60):
            return True
    except urllib.error.HTTPError:
        return False


def by_api(served: Served, identifier: str, at: float) -> Sample:
    """One window of the running recorder."""
    url = f"http://127.0.0.1:{served.web_port}/api/v1/sessions/{identifier}/window?at={at:.3f}"
    before, began = _read(served), time.perf_counter()
    with urllib.request.urlopen(url, timeout=60) as answer:
        body = answer.read()
    took = (time.perf_counter() - began) * 1e3
    _see(body, at)
    return {"ms": took, "size": len(body), "read": _read(served) - before}


def _read(served: Served) -> int:
    return int(Path(f"/proc/{served.process.process.pid}/io").read_text().split()[1])


def _see(body: bytes, at: float) -> None:
    """That it is the window which was asked for."""
    times = [json.loads(line)[0] for line in body.splitlines()[1:-1]]
    if not times or not times[0] < at < times[-1]:
        raise RuntimeError(f"a window around {at} s that is none")


def by_library(served: Served, identifier: str, at: float) -> Sample:
    """The same in a process of its own. whole_ms: with its start."""
    began = time.perf_counter()
    done = subprocess.run(
        python("-c", _LIBRARY, str(served.file), identifier, str(at)), capture_output=True, check=True, text=True
    )
    sample: Sample = json.loads(done.stdout)
    return {**sample, "whole_ms": (time.perf_counter() - began) * 1e3}


def measure(directory: Path, identifier: str, rounds: int) -> dict[str, list[Sample]]:
    """Each way, cold and warm, at another moment each round."""
    samples: dict[str, list[Sample]] = {}
    for turn in range(rounds):
        at = _LENGTH / 2 + 60.0 * turn
        with ExitStack() as stack:
            folder = directory / str(turn)
            folder.mkdir()
            served = Served(stack, folder, data=directory / "data", viewers=True)
            wait(lambda: known(served, identifier), "the recording on the site")  # noqa: B023  # it is called at once
            served.indexed()
            for name, way in (("API", by_api), ("library", by_library)):
                forget(served.data)
                samples.setdefault(f"{name}, cold", []).append(way(served, identifier, at))
                samples.setdefault(f"{name}, warm", []).append(way(served, identifier, at))
    return samples


def table(samples: dict[str, list[Sample]]) -> Iterable[str]:
    """Markdown: a row a way, medians and the worst."""
    yield from table_head("", "ms", "most ms", "with the process's start, ms", "KB of cast", "KB read")
    for name, taken in samples.items():
        middle = {key: statistics.median(one[key] for one in taken) for key in taken[0]}
        whole = number(middle["whole_ms"]) if "whole_ms" in middle else ""
        most = number(max(one["ms"] for one in taken))
        yield row(name, number(middle["ms"]), most, whole, number(middle["size"] / 1e3), number(middle["read"] / 1e3))


def goals(samples: dict[str, list[Sample]], megabytes: int) -> Iterable[Goal]:
    """What is wanted."""
    for name, taken in samples.items():
        times = [one["ms"] for one in taken]
        spread = (min(times), max(times))
        yield Goal(f"the middle of {megabytes:,} MB by {name}, ms", statistics.median(times), 300.0, spread=spread)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m bench.recorder.seek", description="open a long recording inside")
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures to a file")
    parser.add_argument("--markdown", type=Path, help="write the tables to a file, into their section where it has one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="recorder-bench-") as name:
        directory = Path(name)
        pool = make_pool(directory / "pool", _EVENT, 2048)
        began = time.perf_counter()
        identifier = asyncio.run(make(directory / "data", pool, options.megabytes * 1_000_000))
        took = time.perf_counter() - began
        stored = sum(path.stat().st_size for path in (directory / "data").glob("recordings/**/*.chunk"))
        others = Others()
        samples = measure(directory, identifier, options.rounds)
        title = (
            f"{describe()}; a recording of {options.megabytes:,} MB ({stored / 1e6:,.0f} MB stored, made in"
            f" {took:.0f} s), {options.rounds} rounds; others took {others.share():.0%} of the machine."
        )
    lines = [title, "", *table(samples), "", *goals_table(goals(samples, options.megabytes))]
    print("\n".join(lines))
    if options.markdown:
        write_section(options.markdown, "bench.recorder.seek", lines)
    if options.json:
        content: dict[str, Any] = {"machine": title, "samples": samples}
        options.json.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    run_benchmark(main)
