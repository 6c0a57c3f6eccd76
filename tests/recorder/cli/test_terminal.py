"""`play` in a real terminal: its keys, and how it leaves the terminal behind."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from recorder.cli.tame import RESTORE
from tests.recorder.cli.conftest import Folder

_START = "from recorder.cli import main; main()"
# Seconds until anything at all: a start of Python on a busy machine.
_PATIENCE = 60


class Terminal:
    """A terminal with `recorder play` on it."""

    def __init__(self, master: int, slave: int, process: subprocess.Popen[bytes]) -> None:
        self.slave = slave
        self.process = process
        self.output = b""
        self._master = master

    def until(self, text: bytes) -> None:
        """Read until it is there."""
        while text not in self.output:
            ready, _, _ = select.select([self._master], [], [], _PATIENCE)
            assert ready, self.output
            self.output += os.read(self._master, 4096)

    def press(self, keys: bytes) -> None:
        """Type."""
        os.write(self._master, keys)


@contextmanager
def playing(folder: Folder, *options: str) -> Iterator[Terminal]:
    master, slave = pty.openpty()
    arguments = ["play", folder.ids[0], "--store", str(folder.stage.root), *options]
    process = subprocess.Popen(
        [sys.executable, "-c", _START, *arguments], stdin=slave, stdout=slave, stderr=slave, start_new_session=True
    )
    try:
        yield Terminal(master, slave, process)
    finally:
        process.kill()
        process.wait()
        os.close(master)
        os.close(slave)


@pytest.mark.parametrize("how", ["quit", "end", "term", "interrupt"])
def test_the_terminal_is_left_as_it_was(folder: Folder, how: str) -> None:
    with playing(folder, *(["--speed", "64"] if how == "end" else [])) as terminal:
        before = termios.tcgetattr(terminal.slave)
        terminal.until(b"deploy the shop")
        # What is typed meanwhile must not reach the shell that comes after.
        if how == "quit":
            terminal.press(b"  \x1b[A q")
            terminal.press(b"q")
        elif how == "term":
            terminal.process.send_signal(signal.SIGTERM)
        elif how == "interrupt":
            terminal.process.send_signal(signal.SIGINT)
        terminal.until(RESTORE.replace("\r\n", "").encode())
        code = terminal.process.wait(_PATIENCE)
        assert code == (0 if how in ("quit", "end") else 130)
        assert termios.tcgetattr(terminal.slave) == before
        assert (b"done" in terminal.output) is (how == "end")


def test_the_arrow_seeks(folder: Folder) -> None:
    with playing(folder, "--start", "58") as terminal:
        terminal.until(b"deploy the shop")
        terminal.press(b"\x1b[C")
        terminal.until(b"done")
        assert terminal.process.wait(_PATIENCE) == 0
