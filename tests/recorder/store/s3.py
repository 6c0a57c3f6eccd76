"""A real S3-compatible server for the tests: versitygw, as tests/bed builds it, over a folder."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bed import free_port
from tests.bed.processes import Process, Processes
from tests.bed.programs import HERE

BUCKET = "recordings"
_ACCESS, _SECRET = "tests", "tests-tests"


def _program() -> Path | None:
    make = ["make", "--silent", "--no-print-directory", "-C", str(HERE)]
    if shutil.which("go") is None or subprocess.run([*make, "--question", "objects"], check=False).returncode:
        return None
    where = subprocess.run([*make, "where"], check=True, capture_output=True, text=True).stdout.strip()
    found = shutil.which("versitygw", path=where)
    return Path(found) if found else None


class Server:
    """One bucket. It may be stopped and started again, at the same address and with all that was put there."""

    def __init__(self, folder: Path, program: Path, processes: Processes) -> None:
        self.port = free_port()
        (folder / "objects" / BUCKET).mkdir(parents=True)  # a folder there is a bucket
        (folder / "attributes").mkdir()
        self._folder = folder
        self._program = program
        self._processes = processes
        self._process: Process | None = None

    def url(self, prefix: str) -> str:
        """For store.url."""
        return f"s3://{BUCKET}/{prefix}"

    @property
    def options(self) -> dict[str, str]:
        """For store.options."""
        return {
            "endpoint": f"http://127.0.0.1:{self.port}",
            "allow_http": "true",
            "region": "us-east-1",
            "access_key_id": _ACCESS,
            "secret_access_key": _SECRET,
        }

    def start(self) -> None:
        """Returns when it takes connections."""
        argv: list[str | Path] = [
            self._program,
            "--port",
            f"127.0.0.1:{self.port}",
            "--access",
            _ACCESS,
            "--secret",
            _SECRET,
            "--quiet",
        ]
        # Not every file system has attributes of its own.
        argv += ["posix", "--sidecar", self._folder / "attributes", self._folder / "objects"]
        self._process = self._processes.start("versitygw", argv, abrupt=True)
        self._process.wait_until(self._answers, "an answer", timeout=20)

    def _answers(self) -> bool | None:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port), 1).close()
            return True
        return None

    def stop(self) -> None:
        """kill -9."""
        if self._process is not None:
            self._processes.stop(self._process)
            self._process = None

    def files(self, prefix: str) -> list[Path]:
        """What it has below a prefix, as files."""
        return [path for path in (self._folder / "objects" / BUCKET / prefix).rglob("*") if path.is_file()]


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Server]:
    """The server, gone when the block is left, and when this process is killed."""
    program = _program()
    if program is None:
        why = "the S3-compatible server is not built (make -C tests/bed objects)"
        if os.environ.get("K8SPROXY_REQUIRE_BED") == "1":
            pytest.fail(why)
        pytest.skip(why)
    processes = Processes(folder / "logs")
    try:
        server = Server(folder, program, processes)
        server.start()
        yield server
    finally:
        processes.close()
