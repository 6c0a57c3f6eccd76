"""How much the recorder takes in: python -m bench.recorder.ingest [--sessions N] [--rates MB/S ..] [--seconds S]
    [--life S] [--event BYTES] [--json FILE] [--markdown FILE]

`recorder serve` as it is installed, on a folder, and sessions as a k8sproxy has them (bench/peers/cmd/castload): 500 on
16 connections, h2c, terminal text in events of 64 KiB, at each rate for some seconds, and then as fast as it goes. Each
rate has a recorder of its own, so that memory is that rate's. At the end of each, sessions end, the recorder is waited
for, and all of it is held against what was sent; `recorder verify` must be clean.

    MB/s        bytes acked, over the time from the first event to the last ack
    ack         from an event's write to the reading of the ack that covers it, over all events
    behind      how much later than due the recorder's windows let an event be sent, at p99
    CPU s/GB    the recorder's own CPU, all threads, from the first event to the last ack, over the bytes
    after       its CPU from there until every recording is in the store; what the index does later is not in it
    memory      of its own at most, less what it had before the first session, over the sessions
    load's CPU  the generator's, in cores, and of both together 2 are there

With --life each session ends after about so many seconds and another one takes its place, so that the index has texts
to make meanwhile (a running session's is made after a minute).

Others on the machine take from all of it: their share is given for each row.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import threading
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench.machine import Others, describe
from bench.processes import build_peers, run_benchmark
from bench.recorder.served import Served, check, journal, make_pool
from bench.report import Goal, goals_table, number, row, table_head, write_section

Sample = dict[str, float]

# Seconds between looks at the recorder's memory: a look takes a millisecond of its time.
_LOOK = 0.25


class Memory:
    """The most that a process had of its own, looked at in a thread from `with` to its end."""

    def __init__(self, served: Served) -> None:
        self.most = self.before = served.process.memory()
        self._served = served
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def _look(self) -> None:
        while not self._over.wait(_LOOK):
            self.most = max(self.most, self._served.process.memory())

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def sample(directory: Path, peers: Path, pool: Sequence[bytes], rate: float, options: argparse.Namespace) -> Sample:
    """One rate, 0 for as fast as it goes, with a recorder of its own."""
    with ExitStack() as stack:
        directory.mkdir()
        served = Served(stack, directory, prefix=options.prefix)
        others = Others()
        told = directory / "acked"
        command = [str(peers / "castload"), f"--address=127.0.0.1:{served.port}", f"--pool={peers / 'pool'}"]
        command += [f"--sessions={options.sessions}", f"--connections={options.connections}", f"--rate={rate}"]
        command += [f"--seconds={options.seconds}", f"--journal={told}", f"--life={options.life}"]
        cpu: dict[str, float] = {}
        answer: dict[str, Any] = {}
        with Memory(served) as memory, subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
            for line in running.stdout or ():
                answer = json.loads(line)
                cpu[answer["state"]] = served.process.cpu()
                if answer["state"] == "sent":
                    taken = others.share()
        if running.returncode or answer["lost"]:
            raise RuntimeError(f"sessions were lost: {(directory / 'recorder.log').read_text()[-2000:]}")
        served.settled()
        after = served.process.cpu()
        acked = {line["session"]: line["acked"] for line in journal(told)}
        total = check(served.data, pool, acked)
        if total != answer["bytes"]:
            raise RuntimeError(f"{total} bytes are kept of {answer['bytes']}")
        verified = served.verify()
        stored = sum(path.stat().st_size for path in served.data.glob("recordings/**/*.chunk"))
        print(
            f"  {rate or 'as fast as it goes'}: {total:,} bytes as sent, in {stored:,}; verify: {verified}", flush=True
        )
        gigabytes = answer["bytes"] / 1e9
        return {
            "mb_s": answer["mb_per_s"],
            "ack_p50_ms": answer["ack_p50_ms"],
            "ack_p99_ms": answer["ack_p99_ms"],
            "ack_max_ms": answer["ack_max_ms"],
            "behind_p99_ms": answer["behind_p99_ms"],
            "cpu_s_gb": (cpu["sent"] - cpu["open"]) / gigabytes,
            "cores": (cpu["sent"] - cpu["open"]) / answer["acked_s"],
            "after_s_gb": (after - cpu["sent"]) / gigabytes,
            "load_cores": answer["cpu_s"] / answer["total_s"],
            "kib": (memory.most - memory.before) / 1024 / options.sessions,
            "others": taken,
        }


def table(samples: dict[str, Sample]) -> Iterable[str]:
    """Markdown: a row a rate."""
    names = {
        "mb_s": "MB/s", "ack_p50_ms": "ack p50 ms", "ack_p99_ms": "p99 ms", "ack_max_ms": "most ms",
        "behind_p99_ms": "behind p99 ms", "cpu_s_gb": "CPU s/GB", "cores": "cores", "after_s_gb": "after, s/GB",
        "load_cores": "load's cores", "kib": "KiB a session", "others": "others' share",
    }  # fmt: skip
    yield from table_head("asked for", *names.values())
    for name, taken in samples.items():
        yield row(name, *(number(taken[key]) for key in names))


def goals(samples: dict[str, Sample], sessions: int) -> Iterable[Goal]:
    """What is wanted, as far as it was measured."""
    who = f"{sessions} sessions"
    if (full := samples.get("100 MB/s")) is not None:
        yield Goal(f"{who}, 100 MB/s asked for: MB/s", full["mb_s"], 98.0, at_most=False)
        yield Goal(f"{who} at 100 MB/s: ack p99, ms", full["ack_p99_ms"], 200.0)
    most = max(samples.values(), key=lambda taken: taken["kib"])
    yield Goal(f"{who}, at any rate: memory of each, KiB", most["kib"], 300.0)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m bench.recorder.ingest", description="how much the recorder takes")
    parser.add_argument("--sessions", type=int, default=500)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--rates", type=float, nargs="*", default=[20, 50, 100, 0], help="MB/s; 0: as fast as it goes")
    parser.add_argument("--seconds", type=float, default=15.0, help="of sending, at each rate")
    parser.add_argument(
        "--life", type=float, default=0.0, help="seconds of a session, then another one; 0: all the time"
    )
    parser.add_argument("--event", type=int, default=65_000, help="bytes of an event")
    parser.add_argument("--prefix", nargs="*", default=[], help="words before the recorder's command: a profiler")
    parser.add_argument("--peers", type=Path, help="where castload is already built")
    parser.add_argument("--json", type=Path, help="write the figures to a file")
    parser.add_argument("--markdown", type=Path, help="write the tables to a file, into their section where it has one")
    options = parser.parse_args()
    samples: dict[str, Sample] = {}
    with tempfile.TemporaryDirectory(prefix="recorder-bench-") as name:
        peers = Path(name)
        if options.peers:
            (peers / "castload").symlink_to(options.peers / "castload")
        else:
            build_peers(peers, ["castload"], print)
        pool = make_pool(peers / "pool", options.event)
        for turn, rate in enumerate(options.rates):
            title = f"{rate:g} MB/s" if rate else "all it takes"
            samples[title] = sample(peers / str(turn), peers, pool, rate, options)
    lines = [
        f"{describe()}; {options.sessions} sessions on {options.connections} connections, events of"
        f" {options.event:,} bytes, {options.seconds:g} s each.",
        "",
        *table(samples),
        "",
        *goals_table(goals(samples, options.sessions)),
    ]
    print("\n".join(lines))
    if options.markdown:
        write_section(options.markdown, f"bench.recorder.{'ends' if options.life else 'ingest'}", lines)
    if options.json:
        options.json.write_text(json.dumps({"machine": lines[0], "samples": samples}, indent=2) + "\n")


if __name__ == "__main__":
    run_benchmark(main)
