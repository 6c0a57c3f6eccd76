"""A terminal of the test's own, with a program at its other end."""

from __future__ import annotations

import codecs
import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence


class Terminal:
    """rows, columns: its size at the start. Everything the program has written is kept: its bytes in `raw`, and as
    text in `screen`."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], *, rows: int = 24, columns: int = 80) -> None:
        self.raw = bytearray()
        self.screen = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._read = 0
        self._master, slave = pty.openpty()
        self._set(rows, columns)
        try:
            self._popen = subprocess.Popen(
                argv, stdin=slave, stdout=slave, stderr=slave, env=dict(env), start_new_session=True
            )
        finally:
            os.close(slave)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self._popen.kill()
        self._popen.wait()
        os.close(self._master)

    def _set(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def resize(self, rows: int, columns: int) -> None:
        self._set(rows, columns)
        # The kernel tells those whose controlling terminal it is; Popen cannot make it the program's.
        self._popen.send_signal(signal.SIGWINCH)

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def expect(self, pattern: str, timeout: float = 20) -> re.Match[str]:
        """Wait for a match behind the last one."""
        end = time.monotonic() + timeout
        while True:
            if match := re.search(pattern, self.screen[self._read :]):
                self._read += match.end()
                return match
            assert self._more(end - time.monotonic()), f"no {pattern!r} on the screen:\n{self.screen!r}"

    def _more(self, timeout: float) -> bool:
        ready, _, _ = select.select([self._master], [], [], max(0.0, timeout))
        if not ready:
            return False
        with contextlib.suppress(OSError):  # EIO: the program has ended
            data = os.read(self._master, 64 * 1024)
            self.raw += data
            self.screen += self._decoder.decode(data)
            return bool(data)
        return False

    def wait(self, timeout: float = 20) -> int:
        """The program's exit code; what it writes on its way is read."""
        end = time.monotonic() + timeout
        while self._more(end - time.monotonic()):
            pass
        return self._popen.wait(max(0.1, end - time.monotonic()))
