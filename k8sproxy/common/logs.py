"""How lines of the log are written, and what structlog makes of an event: for both programs.

Lines are collected for FLUSH_SECONDS and written to standard error by a thread, so that a reader of the log that stops
reading does not stop the program; past MAX_PENDING lines are dropped and counted. Without the thread every line is
written at once.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from typing import Any, TextIO

import structlog

# Seconds that a log line may wait to be written together with others.
FLUSH_SECONDS = 0.05
# Lines waiting for a log reader that does not read: about 10 MiB.
MAX_PENDING = 20_000
# Their characters: a path alone may have 8 Ki.
MAX_PENDING_SIZE = 32 * 1024 * 1024
# Seconds that the end of the process waits for such a reader.
STOP_SECONDS = 2.0


class LogWriter:
    """Collects lines and has a thread write them. `write` is what structlog and the request log both call."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.dropped = 0
        self._lines: list[str] = []
        self._size = 0
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def write(self, line: str) -> None:
        """Take one line, with its line feed."""
        if len(self._lines) >= MAX_PENDING or self._size > MAX_PENDING_SIZE:
            self.dropped += 1
            return
        self._size += len(line)
        self._lines.append(line)
        if self._thread is None:
            self.flush()

    def start(self) -> None:
        """From here on the thread writes; without it every line is written at once."""
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Write what is there and end the thread; for a reader that does not read it waits STOP_SECONDS, not more."""
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join(STOP_SECONDS)
            if thread.is_alive():
                return  # It is writing, and holds the lock.
        self.flush()

    def flush(self) -> None:
        """Write what has been collected."""
        with self._lock:
            # Taken from the front of the one list there is: who adds a line meanwhile must not add it to a list that
            # has been written already.
            lines = self._lines[:]
            self._size = 0
            del self._lines[: len(lines)]
            if lines:
                try:
                    self.stream.write("".join(lines))
                    self.stream.flush()
                except (OSError, ValueError):
                    self.dropped += len(lines)

    def _run(self) -> None:
        while self._thread is not None:
            time.sleep(FLUSH_SECONDS)
            self.flush()


LOG = LogWriter(sys.stderr)


class _Logger:
    """What structlog hands rendered lines to."""

    def msg(self, message: str) -> None:
        LOG.write(message + "\n")

    debug = info = warning = warn = error = critical = fatal = exception = log = msg


class _Libraries(logging.Handler):
    """What libraries log by themselves (asyncio, aiohttp), as events among ours. Left alone they write tracebacks to
    standard error, and aiohttp one for each malformed request, with the bytes of it."""

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        log = structlog.get_logger()
        if type(error).__module__.startswith("aiohttp.http_exceptions"):
            log.info("malformed_request", logger=record.name, error=type(error).__name__)
            return
        write = log.error if record.levelno >= logging.ERROR else log.warning
        more = {"exc_info": error} if error is not None else {}
        write("library", logger=record.name, message=record.getMessage(), **more)


def configure_logging(level: str, style: str) -> None:
    """Set up structlog. level: debug, info, warning or error. style: json, or console for people, in colours
    where standard error is a terminal."""
    root = logging.getLogger()
    if not any(isinstance(handler, _Libraries) for handler in root.handlers):
        root.addHandler(_Libraries(logging.WARNING))
    # Plain tracebacks: those that structlog prefers show local variables, which hold heads, which hold tokens.
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if style == "json"
        else structlog.dev.ConsoleRenderer(
            colors=LOG.stream.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    )
    processors: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
    ]
    if style == "json":
        processors.append(structlog.processors.format_exc_info)
    structlog.configure(
        processors=[*processors, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=lambda *_: _Logger(),
        cache_logger_on_first_use=False,
    )
