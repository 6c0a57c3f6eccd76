"""Programs under measurement: started, waited for, read from /proc, ended by their ids; and no process left behind.

A benchmark runs in a child of the process that was started (`run_benchmark`). That process only waits for its end and
then ends whatever is left. The kernel hands every orphan among its descendants to it (PR_SET_CHILD_SUBREAPER,
prctl(2)), so a program that has put itself into the background is found as well, and so is all that a benchmark leaves
when it is killed. SIGINT and SIGTERM let the benchmark end in an orderly way first, as does the death of the process
that waits.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType, TracebackType

ROOT = Path(__file__).parent.parent
PEERS = Path(__file__).parent / "peers"
_TICK = os.sysconf("SC_CLK_TCK")
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
# Seconds that a benchmark has to end after a signal, and that what it leaves has after that, before they are killed.
_ORDERLY = 30.0
_GRACE = 5.0


def run_benchmark(main: Callable[[], None]) -> None:
    """Run a benchmark and exit as it does, when none of its processes is left."""
    sys.stdout.flush()
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    signals = (signal.SIGINT, signal.SIGTERM)
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # until the process that is to get them exists
    waiting = os.getpid()
    benchmark = os.fork()
    if not benchmark:
        for number in signals:
            signal.signal(number, _exit)
        _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != waiting:  # it has died before it could be noticed
            os.kill(os.getpid(), signal.SIGTERM)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
        main()
        sys.exit()

    def forward(number: int, _: FrameType | None) -> None:
        signal.alarm(int(_ORDERLY))
        with contextlib.suppress(ProcessLookupError):
            os.kill(benchmark, number)

    def kill(_: int, __: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(benchmark, signal.SIGKILL)

    signal.signal(signal.SIGALRM, kill)
    for number in signals:
        signal.signal(number, forward)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
    _, status = os.waitpid(benchmark, 0)
    signal.alarm(0)
    _end_all()
    code = os.waitstatus_to_exitcode(status)
    sys.exit(code if code >= 0 else 128 - code)


def _exit(number: int, _: FrameType | None) -> None:
    for each in (signal.SIGINT, signal.SIGTERM):  # a terminal's SIGINT comes twice, and nothing may cut the end short
        signal.signal(each, signal.SIG_IGN)
    sys.exit(128 + number)


def _end_all() -> None:
    """End all descendants: politely, then not."""
    until = time.monotonic() + _GRACE
    told: set[int] = set()
    while found := descendants(os.getpid()):
        late = time.monotonic() > until
        for pid in found:
            if late or pid not in told:
                told.add(pid)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL if late else signal.SIGTERM)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.01)


def descendants(pid: int) -> list[int]:
    """The ids of a process's children, their children, and so on."""
    found = [pid]
    for each in found:
        for children in Path(f"/proc/{each}/task").glob("*/children"):
            with contextlib.suppress(OSError):  # it has ended
                found += [int(child) for child in children.read_text().split()]
    return found[1:]


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def build_peers(directory: Path, names: Sequence[str], say: Callable[[str], None]) -> None:
    """Build the Go programs of bench/peers into `directory`."""
    environment = {**os.environ, "GOFLAGS": "-buildvcs=false"}
    for name in names:
        say(f"building {name}")
        command = ["go", "build", "-trimpath", "-o", str(directory / name), f"./cmd/{name}"]
        subprocess.run(command, cwd=PEERS, env=environment, check=True)


def find(program: str) -> str | None:
    """The path of an installed program, None without it. Debian keeps some outside of a user's PATH."""
    return shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


class Measured:
    """A running program: how much CPU and memory it, with its children, has used."""

    def __init__(self, name: str, command: Sequence[str], log: Path, *, port: int | None = None) -> None:
        self.name = name
        self.log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=output, cwd=ROOT, start_new_session=True)
        if port is not None:
            self.wait_for(port)

    def wait_for(self, port: int, seconds: float = 60.0) -> None:
        """Wait until something listens on the port; raises RuntimeError with the end of the log."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                return
            except OSError:
                time.sleep(0.05)
        raise RuntimeError(f"{self.name} did not start:\n{self.log.read_text(errors='replace')[-2000:]}")

    def _pids(self) -> list[int]:
        return [self.process.pid, *descendants(self.process.pid)]

    def cpu(self) -> float:
        """Seconds of CPU so far, user and system."""
        total = 0
        for pid in self._pids():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
        return total / _TICK

    def memory(self) -> int:
        """Bytes resident that are its own."""
        total = 0
        for pid in self._pids():
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith(("Private_Dirty:", "Private_Clean:")):
                    total += int(line.split()[1]) * 1024
        return total

    def __enter__(self) -> Measured:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def python(*arguments: str) -> list[str]:
    """A command of this interpreter."""
    return [sys.executable, *arguments]
