"""Nothing that was acknowledged is lost: python -m bench.recorder.kills [--rounds N] [--senders N] [--json FILE]

`recorder serve` as it is installed, on a folder, and sessions that send as fast as they may (bench/peers/cmd/castload).
At a random moment the recorder gets SIGKILL, and is started again. Then, of every session of that round:

    all bytes that were acked are there, as they were sent, and none that was not sent
    a session whose end was acked is `clean`, any other one `cut` (or not there, if nothing of it was acked)
    the index has the same recordings as the store, with the same sizes and ends
    `recorder verify` is clean

The same folder is used for all rounds, so that a round starts on what the ones before have left. A kill of the process
is no loss of power: what the kernel has taken is there. That it was synced before it was acked is what
tests/recorder/store/test_faults.py shows.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import sqlite3
import subprocess
import tempfile
import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from bench.machine import describe
from bench.processes import build_peers, run_benchmark
from bench.recorder.served import Served, compare, journal, kept, make_pool, wait
from recorder.model import End

# Seconds after the first session is accepted within which the kill comes.
_KILL_WITHIN = 1.5
# MB/s of all senders: no more is checked in a round than takes some seconds.
_RATE = 40.0


class Kills:
    """One recorder, killed again and again. checked: recordings that were looked at already."""

    def __init__(self, directory: Path, peers: Path, options: argparse.Namespace, stack: ExitStack) -> None:
        self._directory = directory
        self._peers = peers
        self._options = options
        self._dice = random.Random(options.seed)
        self._pool = make_pool(peers / "pool", options.event)
        self._first = 0
        self._checked: set[str] = set()
        self.served = Served(stack, directory)

    def round(self) -> dict[str, float]:
        """Kill it once, under load, start it again and look."""
        told = self._directory / "acked"
        command = [str(self._peers / "castload"), f"--address=127.0.0.1:{self.served.port}", "--seconds=60"]
        command += [f"--pool={self._peers / 'pool'}", f"--sessions={self._options.senders}", f"--first={self._first}"]
        command += ["--connections=8", f"--rate={self._options.rate}", f"--journal={told}", "--life=0.5"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as running:
            assert running.stdout is not None
            running.stdout.readline()  # all are accepted
            time.sleep(self._dice.uniform(0.0, _KILL_WITHIN))
            self.served.process.process.send_signal(signal.SIGKILL)
            self.served.process.process.wait()
            running.stdout.read()
        began = time.monotonic()
        self.served.start()
        back = time.monotonic() - began
        self.served.settled()
        sessions = {line["session"]: line for line in journal(told)}
        self._first = max(sessions) + 1
        figures = asyncio.run(self._look(sessions))
        self.served.verify()
        return {"back_s": back, **figures}

    async def _look(self, sessions: dict[int, dict[str, Any]]) -> dict[str, float]:
        missing, states = dict(sessions), {}
        total = clean = 0
        async for recording, pieces in kept(self.served.data):
            states[recording.id] = (recording.size, recording.end.value)
            if recording.id in self._checked:
                continue
            self._checked.add(recording.id)
            number = int(recording.header["sessionID"])
            session = missing.pop(number)
            total += await compare(number, pieces, self._pool, session["acked"], recording.size)
            if recording.size > session["sent"]:
                raise RuntimeError(f"session {number}: {recording.size} bytes are kept of {session['sent']} sent")
            if session["over"] and recording.end is not End.CLEAN:
                raise RuntimeError(f"session {number}: its end was acked, and it is {recording.end.value}")
            if recording.end is End.RUNNING or (recording.end is End.CLEAN and not session["ending"]):
                raise RuntimeError(f"session {number} is {recording.end.value}")
            if recording.damaged:
                raise RuntimeError(f"session {number} is marked as damaged")
            clean += recording.end is End.CLEAN
        lost = [number for number, session in missing.items() if session["acked"]]
        if lost:
            raise RuntimeError(f"sessions with acked bytes are not there: {lost[:10]}")
        wait(lambda: self._rows() == states, "an index that agrees with the store")
        acked = sum(session["acked"] for session in sessions.values())
        return {"sessions": len(sessions), "clean": clean, "mb": total / 1e6, "acked_mb": acked / 1e6}

    def _rows(self) -> dict[str, tuple[int, str]]:
        """What the index says of each recording."""
        with closing(sqlite3.connect(f"file:{self.served.data / 'index.db'}?mode=ro", uri=True)) as database:
            rows = database.execute("SELECT id, size, state FROM recordings").fetchall()
        return {identifier: (size, state) for identifier, size, state in rows}


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m bench.recorder.kills", description="kill a recorder under load")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--senders", type=int, default=100)
    parser.add_argument("--rate", type=float, default=_RATE, help="MB/s of all senders")
    parser.add_argument("--event", type=int, default=20_000, help="bytes of an event")
    parser.add_argument("--seed", type=int, default=None, help="of the moments")
    parser.add_argument("--peers", type=Path, help="where castload is already built")
    parser.add_argument("--json", type=Path, help="write the figures to a file")
    options = parser.parse_args()
    rounds = []
    with tempfile.TemporaryDirectory(prefix="recorder-kills-") as name, ExitStack() as stack:
        directory, peers = Path(name) / "recorder", Path(name)
        directory.mkdir()
        if options.peers:
            (peers / "castload").symlink_to(options.peers / "castload")
        else:
            build_peers(peers, ["castload"], print)
        kills = Kills(directory, peers, options, stack)
        for number in range(options.rounds):
            figures = kills.round()
            rounds.append(figures)
            print(
                f"round {number + 1}: " + ", ".join(f"{key} {value:.3g}" for key, value in figures.items()), flush=True
            )
    sessions, acked = (sum(one[key] for one in rounds) for key in ("sessions", "acked_mb"))
    print(
        f"{describe()}; {len(rounds)} kills under {options.senders} senders: {sessions:.0f} sessions,"
        f" {acked:,.0f} MB acked, none of it lost; back after {max(one['back_s'] for one in rounds):.1f} s at most"
    )
    if options.json:
        options.json.write_text(json.dumps(rounds, indent=2) + "\n")


if __name__ == "__main__":
    run_benchmark(main)
