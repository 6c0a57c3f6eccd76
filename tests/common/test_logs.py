"""The log of both programs: no line lost or doubled, no reader of the log that stops a program, no secret."""

from __future__ import annotations

import io
import json
import logging
import sys
import threading
from collections.abc import Iterator

import pytest
import structlog
from aiohttp.http_exceptions import BadHttpMessage

from k8sproxy.common import logs
from k8sproxy.common.logs import MAX_PENDING, LogWriter, configure_logging


class Pipe(io.StringIO):
    """A reader of the log that reads when it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.let = threading.Event()
        self.entered = threading.Event()

    def write(self, text: str) -> int:
        self.entered.set()
        self.let.wait()
        return super().write(text)


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    stream = io.StringIO()
    monkeypatch.setattr(logs, "LOG", LogWriter(stream))
    before = structlog.get_config()
    handlers = logging.getLogger().handlers[:]
    yield stream
    logging.getLogger().handlers[:] = handlers
    structlog.configure(**before)


def test_every_line_is_written_once() -> None:
    """While the thread takes lines, others are added: the list is never swapped under whoever adds."""
    stream = io.StringIO()
    writer = LogWriter(stream)
    writer.start()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    flushing = threading.Event()

    def flush() -> None:
        while not flushing.is_set():
            writer.flush()

    flusher = threading.Thread(target=flush)
    flusher.start()
    try:
        for number in range(15_000):
            writer.write(f"{number}\n")
    finally:
        flushing.set()
        flusher.join()
        sys.setswitchinterval(interval)
        writer.stop()
    assert stream.getvalue().split() == [str(number) for number in range(15_000)]
    assert writer.dropped == 0


def test_reader_that_does_not_read_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines are dropped and counted past a limit, and the process ends all the same."""
    monkeypatch.setattr(logs, "STOP_SECONDS", 0.01)
    pipe = Pipe()
    writer = LogWriter(pipe)
    writer.start()
    writer.write("first\n")
    pipe.entered.wait()
    for _ in range(MAX_PENDING + 5):
        writer.write("x\n")
    assert writer.dropped == 5
    writer.stop()
    pipe.let.set()


def test_reader_that_is_gone() -> None:
    stream = io.StringIO()
    stream.close()
    writer = LogWriter(stream)
    writer.write("x\n")
    assert writer.dropped == 1


@pytest.mark.parametrize("style", ["json", "console"])
def test_tracebacks_hold_no_values(log: io.StringIO, style: str) -> None:
    """A traceback that shows local variables shows heads, and tokens in them."""
    configure_logging("info", style)
    authorization = b"Bearer %s" % "".join(("hunt", "er2")).encode()
    try:
        _ = authorization[100]
    except IndexError:
        structlog.get_logger().exception("request_failed")
    assert "IndexError" in log.getvalue() and "hunter2" not in log.getvalue()


def test_only_a_terminal_gets_colours(log: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    for terminal in False, True:
        monkeypatch.setattr(log, "isatty", lambda terminal=terminal: terminal)
        configure_logging("info", "console")
        structlog.get_logger().info("something", number=1)
        assert ("\x1b[" in log.getvalue()) is terminal


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error"])
def test_levels(log: io.StringIO, level: str) -> None:
    configure_logging(level, "json")
    for name in ("debug", "info", "warning", "error"):
        getattr(structlog.get_logger(), name)(name, number=1)
    events = [json.loads(line)["event"] for line in log.getvalue().splitlines()]
    threshold = logging.getLevelNamesMapping()[level.upper()]
    assert events == [
        name for name in ("debug", "info", "warning", "error") if getattr(logging, name.upper()) >= threshold
    ]


def test_what_libraries_log_is_a_line_among_ours(log: io.StringIO) -> None:
    """And what a client sent is in none of them, though aiohttp has it in the messages of its exceptions."""
    for _ in range(2):
        configure_logging("info", "json")
    try:
        raise BadHttpMessage("Authorization: Bearer hunter2")
    except BadHttpMessage:
        logging.getLogger("aiohttp.server").exception("Error handling request")
    logging.getLogger("asyncio").warning("socket.%s() out of system resource", "accept")
    try:
        raise LookupError("ours")
    except LookupError:
        logging.getLogger("aiohttp.server").exception("Error handling request")
    malformed, warning, fault = map(json.loads, log.getvalue().splitlines())
    assert (malformed["event"], malformed["level"], malformed["error"]) == (
        "malformed_request",
        "info",
        "BadHttpMessage",
    )
    assert "hunter2" not in log.getvalue()
    assert (warning["logger"], warning["message"]) == ("asyncio", "socket.accept() out of system resource")
    assert fault["level"] == "error" and "LookupError: ours" in fault["exception"]
