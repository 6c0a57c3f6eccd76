"""A PostgreSQL server for the tests, from Debian's binaries: a folder of its own, a unix socket and no port."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from tests.bed.processes import Process, Processes


def binaries() -> Path | None:
    """Where initdb and postgres are: the newest of Debian's, else those in PATH."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name))
    for folder in reversed(debian):
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            return folder
    found = shutil.which("initdb")
    return Path(found).resolve().parent if found else None


class Server:
    """A running server; each `database` is a new one."""

    def __init__(self, folder: Path, psql: list[str]) -> None:
        self._folder = folder
        self._psql = psql
        self._numbers = count(1)

    def url(self, name: str) -> str:
        return f"postgresql://recorder@/{name}?host={self._folder}"

    def sql(self, statement: str, database: str = "postgres") -> str:
        argv = [*self._psql, "-XAtq", "-v", "ON_ERROR_STOP=1", "-d", self.url(database), "-c", statement]
        return subprocess.run(argv, check=True, capture_output=True, text=True).stdout

    def database(self, encoding: str = "UTF8") -> str:
        """The URL of a new one."""
        name = f"index{next(self._numbers)}"
        self.sql(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C'")
        return self.url(name)


@contextlib.contextmanager
def running() -> Iterator[Server]:
    """The server, gone with all that is its own when the block is left, and when this process is killed."""
    folder = binaries()
    if folder is None:
        if os.environ.get("K8SPROXY_REQUIRE_BED") == "1":
            pytest.fail("no PostgreSQL: install the packages postgresql and postgresql-client")
        pytest.skip("no PostgreSQL (initdb and postgres) is installed")
    home = Path(tempfile.mkdtemp(prefix="index-"))  # not under pytest's own: the path of a socket has 107 bytes
    try:
        as_user: list[str] = []
        if os.geteuid() == 0:  # initdb refuses to run as root
            nobody = pwd.getpwnam("nobody")
            os.chown(home, nobody.pw_uid, nobody.pw_gid)
            as_user = ["setpriv", f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups", "--"]
        data = home / "data"
        initdb = [
            *as_user,
            str(folder / "initdb"),
            "-D",
            str(data),
            "-U",
            "recorder",
            "-A",
            "trust",
            "-N",
            "-E",
            "UTF8",
        ]
        subprocess.run([*initdb, "--no-locale"], check=True, capture_output=True, cwd=home)
        processes = Processes(home / "logs")
        try:
            settings = {
                "listen_addresses": "",
                "unix_socket_directories": home,
                "fsync": "off",
                "shared_buffers": "32MB",
            }
            argv = [*as_user, str(folder / "postgres"), "-D", str(data)]
            server = Server(home, [str(folder / "psql")])
            process = processes.start("postgres", [*argv, *(f"--{name}={value}" for name, value in settings.items())])
            _wait(process, server)
            yield server
        finally:
            processes.close()
    finally:
        shutil.rmtree(home)


def _wait(process: Process, server: Server) -> None:
    def answers() -> bool | None:
        with contextlib.suppress(subprocess.CalledProcessError):
            return bool(server.sql("SELECT 1"))
        return None

    process.wait_until(answers, "an answer", timeout=30)
