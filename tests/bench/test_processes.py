"""A benchmark that ends, however it does, leaves no process behind."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest

# Prints the ids of the benchmark and of what it has started, then ends as its argument says. One of them does not heed
# SIGTERM, one has left its session and its parent.
_BENCHMARK = '''
import os, subprocess, sys, tempfile
from pathlib import Path
from bench import processes
from bench.processes import Measured, run_benchmark

processes._GRACE = 0.5

IDLE = "import signal, sys; print('here', flush=True); signal.pause()"
DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('here', flush=True); signal.pause()"
AWAY = """import os, signal
if os.fork(): os._exit(0)
os.setsid()
if os.fork(): os._exit(0)
print(os.getpid(), flush=True)
signal.pause()"""

def main():
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        log = directory / "log"
        with Measured("idle", [sys.executable, "-c", IDLE], log) as idle:
            while not log.read_text():
                pass
            deaf = subprocess.Popen([sys.executable, "-c", DEAF], stdout=subprocess.PIPE)
            deaf.stdout.readline()
            away = subprocess.Popen([sys.executable, "-c", AWAY], stdout=subprocess.PIPE)
            print(os.getpid(), idle.process.pid, deaf.pid, away.stdout.readline().decode().strip(), name, flush=True)
            sys.stdin.readline()
            if sys.argv[1] == "fail":
                raise RuntimeError("as it was told")
            if sys.argv[1] == "crash":
                os.abort()

run_benchmark(main)
'''


class Run:
    """waiting: the process that was started. ids: of the benchmark and of all that it started."""

    def __init__(self, stack: ExitStack, how: str) -> None:
        command = [sys.executable, "-c", _BENCHMARK, how]
        self.waiting = stack.enter_context(
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
        assert self.waiting.stdout is not None
        *ids, self.folder = self.waiting.stdout.readline().split()
        self.ids = [int(each) for each in ids]
        self._open = [os.pidfd_open(each) for each in self.ids]
        for each in self._open:
            stack.callback(os.close, each)

    def go_on(self) -> None:
        assert self.waiting.stdin is not None
        self.waiting.stdin.write("\n")
        self.waiting.stdin.flush()

    def ended(self, *which: int) -> bool:
        """Whether these of its processes have ended, in the end."""
        return all(select.select([self._open[each]], [], [], 60)[0] for each in which)


@contextmanager
def started(how: str) -> Iterator[Run]:
    with ExitStack() as stack:
        run = Run(stack, how)
        try:
            yield run
        finally:
            for each in run._open:
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(each, signal.SIGKILL)


@pytest.mark.parametrize(("how", "code"), [("return", 0), ("fail", 1), ("crash", 128 + signal.SIGABRT)])
def test_it_ends(how: str, code: int) -> None:
    with started(how) as run:
        run.go_on()
        assert run.waiting.wait(60) == code
        assert run.ended(0, 1, 2, 3)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_is_told_to_end(number: signal.Signals) -> None:
    with started("return") as run:
        run.waiting.send_signal(number)
        assert run.waiting.wait(60) == 128 + number
        assert run.ended(0, 1, 2, 3) and not os.path.exists(run.folder)


def test_it_is_killed() -> None:
    with started("return") as run:
        os.kill(run.ids[0], signal.SIGKILL)
        assert run.waiting.wait(60) == 128 + signal.SIGKILL
        assert run.ended(0, 1, 2, 3)


def test_the_process_that_waits_for_it_is_killed() -> None:
    with started("return") as run:
        run.waiting.kill()
        assert run.ended(0, 1) and not os.path.exists(run.folder)
