"""The machine that figures come from: what it is, and how much of it others took meanwhile.

A load average says little here, since the benchmark itself keeps every core busy. What others take is counted instead:
the CPU time of every process that does not descend from this one. A process's time goes to its parent when it ends
(cutime and cstime in proc(5)), so that the sum over all processes loses nothing but what nobody waited for.
"""

from __future__ import annotations

import os
import platform
import re
import ssl
import subprocess
import time
import timeit
from datetime import UTC, datetime
from pathlib import Path

from bench.processes import ROOT
from k8sproxy.common.build import describe_build

_TICK = os.sysconf("SC_CLK_TCK")


def describe() -> str:
    """One line: when, which commit, on what."""
    model = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    parts = (
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        f"commit {_commit()} ({describe_build()})",
        f"{os.cpu_count()} cores ({model.group(1).strip() if model else platform.machine()})",
        f"Linux {platform.release()}",
        f"Python {platform.python_version()} (a call takes {_call():.0f} ns)",
        ssl.OPENSSL_VERSION.rsplit(" ", 3)[0],
    )
    return ", ".join(parts)


def _call() -> float:
    """Nanoseconds for a call of a Python function: what this interpreter, as it was compiled, makes of this machine."""
    count = 100_000
    return min(timeit.repeat("f(1)", "def f(x): return x", number=count, repeat=9)) / count * 1e9


def _commit() -> str:
    """The commit, and whether the programs have changed since."""
    git = ["git", "-C", str(ROOT)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run(
            [*git, "diff", "--quiet", "HEAD", "--", "k8sproxy", "recorder"], check=False
        ).returncode
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + (" with changes" if changed else "")


class Others:
    """How much of the machine others take: share() since the last call, or since the start."""

    def __init__(self) -> None:
        self._last = (time.monotonic(), _seconds_of_others())

    def share(self) -> float:
        """0 to 1: 1 is every core."""
        then, before = self._last
        self._last = now, after = (time.monotonic(), _seconds_of_others())
        # A process that nobody waited for takes its past with it: never less than nothing.
        return max(0.0, (after - before) / (now - then) / (os.cpu_count() or 1))


def _seconds_of_others() -> float:
    """CPU time, user and system, of all processes that are not ours and of their ended children."""
    parents: dict[int, int] = {}
    spent: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        pid = int(path.parent.name)
        parents[pid] = int(fields[1])
        spent[pid] = sum(int(field) for field in fields[11:15])

    def ours(pid: int) -> bool:
        while pid and pid != os.getpid():
            pid = parents.get(pid, 0)
        return pid != 0

    return sum(ticks for pid, ticks in spent.items() if not ours(pid)) / _TICK
