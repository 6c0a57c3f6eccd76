"""Starting, watching and ending the bed's processes, and waiting for them.

Each program runs in a session of its own (so Ctrl-C reaches only the driver),
writes to a log file of its own, and is ended by its process group's id.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

POLL = 0.02  # seconds between two looks at a condition
GRACE = 3.0  # seconds between SIGTERM and SIGKILL


class BedError(Exception):
    """The bed could not do what it was asked; the message quotes the log."""


class Process:
    """A running program: its name, process group and log file."""

    def __init__(self, name: str, popen: subprocess.Popen[bytes], log: Path, abrupt: bool) -> None:
        self.name = name
        self.popen = popen
        self.log = log
        self.abrupt = abrupt

    @property
    def pid(self) -> int:
        return self.popen.pid

    def running(self) -> bool:
        return self.popen.poll() is None

    def log_tail(self, lines: int = 15) -> str:
        with self.log.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 64 * 1024))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])

    def signal_group(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def wait_until(self, check: Callable[[], T | None], what: str, timeout: float = 60) -> T:
        """The first answer of check() that is not None; fails at once where the process has ended."""
        end = time.monotonic() + timeout
        while True:
            answer = check()
            if answer is not None:
                return answer
            if not self.running():
                raise BedError(f"{self.name} ended ({self.popen.returncode}) before {what}:\n{self.log_tail()}")
            if time.monotonic() > end:
                raise BedError(f"{self.name}: no {what} after {timeout:g} s:\n{self.log_tail()}")
            time.sleep(POLL)


class Processes:
    """All processes of one bed. Not before stop() are they gone; a watchdog ends them where stop() is never reached."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._lock = threading.Lock()
        self._running: list[Process] = []
        logs.mkdir(parents=True, exist_ok=True)
        self._watchdog = subprocess.Popen(
            [sys.executable, "-I", "-S", str(Path(__file__).with_name("watchdog.py"))],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )

    def start(
        self,
        name: str,
        argv: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        stdout: int | None = None,
        abrupt: bool = False,
    ) -> Process:
        """Start argv with its output in NAME.log; stdout=subprocess.PIPE keeps stdout apart.

        abrupt: nothing is lost where it is killed, so nobody need wait for it to end in good order.
        """
        log = self._logs / f"{name}.log"
        with log.open("ab") as file:
            popen = subprocess.Popen(
                [str(part) for part in argv],
                stdin=subprocess.DEVNULL,
                stdout=file if stdout is None else stdout,
                stderr=file,
                env={**os.environ, **(env or {})},
                start_new_session=True,
            )
        self._tell(f"+{popen.pid}")
        process = Process(name, popen, log, abrupt)
        with self._lock:
            self._running.append(process)
        return process

    def first(self, name: str) -> Process:
        """The running process of that name."""
        with self._lock:
            for process in self._running:
                if process.name == name:
                    return process
        raise BedError(f"{name} does not run")

    def stop(self, *processes: Process) -> None:
        """End the given processes, or all: SIGTERM, then SIGKILL for the group."""
        with self._lock:
            ending = [p for p in self._running if not processes or p in processes]
            self._running = [p for p in self._running if p not in ending]
        for process in reversed(ending):
            process.signal_group(signal.SIGKILL if process.abrupt else signal.SIGTERM)
        end = time.monotonic() + GRACE
        for process in ending:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.popen.wait(max(0.0, end - time.monotonic()))
            process.signal_group(signal.SIGKILL)
            process.popen.wait()
            if process.popen.stdout:
                process.popen.stdout.close()
            self._tell(f"-{process.pid}")

    def at_end(self, *command: str) -> None:
        """Have the watchdog run a command when everything has ended."""
        self._tell("!" + json.dumps(command))

    def close(self) -> None:
        """End everything, the watchdog too."""
        self.stop()
        if self._watchdog.stdin:
            with contextlib.suppress(BrokenPipeError):
                self._watchdog.stdin.close()
        self._watchdog.wait()

    def _tell(self, line: str) -> None:
        if self._watchdog.stdin:
            with self._lock, contextlib.suppress(BrokenPipeError):
                self._watchdog.stdin.write(line.encode() + b"\n")
                self._watchdog.stdin.flush()


def free_port(address: str = "127.0.0.1") -> int:
    """A port that nobody listens on.

    From below the kernel's ephemeral range (32768 and up): from inside it, an outgoing connection could take
    the port before its program does.
    """
    for _ in range(200):
        port = random.randrange(20000, 32000)
        with socket.socket() as probe:
            try:
                probe.bind((address, port))
            except OSError:
                continue
            return port
    raise BedError(f"no free port on {address}")
