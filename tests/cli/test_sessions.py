"""k8sproxy sessions: what is printed of an admin site's answers, and of those that are none."""

from __future__ import annotations

import http.server
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from k8sproxy.cli import cli
from k8sproxy.cli.sessions import _row

SESSION: dict[str, Any] = {
    "id": "0f0e0d0c-0000-4000-8000-000000000001",
    "kind": "exec",
    "peer": "ana@example.com",
    "cluster": "prod",
    "namespace": "a",
    "pod": "web",
    "container": "",
    "command": "sh -c \x1b[2Jx",
    "started": time.time() - 65,
    "sent": 5000,
    "recorded": True,
    "recorder": "100.64.0.9:80",
    "failureMode": "closed",
    "ports": {},
}


class Admin:
    """Answers with (status, body). seen: (method, path, body, content type)."""

    def __init__(self) -> None:
        self.answer: tuple[int, bytes] = (200, json.dumps({"sessions": [SESSION]}).encode())
        self.seen: list[tuple[str, str, bytes, str]] = []
        self.address = ""


@pytest.fixture
def admin() -> Iterator[Admin]:
    state = Admin()

    class Handler(http.server.BaseHTTPRequestHandler):
        timeout = 10

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            state.seen.append((self.command, self.path, body, self.headers.get("Content-Type", "")))
            status, answer = state.answer
            self.send_response(status)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def do_GET(self) -> None:
            self.do_POST()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        state.address = f"127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield state
        server.shutdown()
        thread.join(10)


def run(*args: str) -> Result:
    return CliRunner().invoke(cli, ["sessions", *args])


def test_list(admin: Admin) -> None:
    result = run("list", "--admin", admin.address)
    assert result.exit_code == 0 and "\x1b" not in result.stdout
    head, row = result.stdout.splitlines()
    assert head.split() == ["ID", "SINCE", "WHO", "WHAT", "WHERE", "OUTPUT", "RECORDED"]
    assert re.match(r"0f0e0d0c  \d:\d\d:\d\d  ", row) and "ana@example.com" in row and "prod/a/web" in row
    assert "5 KiB" in row and row.endswith("100.64.0.9:80 (enforced)")
    levels = ("acknowledged", "open", None)
    rows = [_row(SESSION | {"failureMode": level})[-1] for level in levels]
    assert rows == ["100.64.0.9:80 (acknowledged)", "100.64.0.9:80", "100.64.0.9:80"]
    assert json.loads(run("list", "--json", "--admin", admin.address).stdout)["sessions"] == [SESSION]
    admin.answer = (200, b'{"sessions":[]}')
    assert run("list", "--admin", admin.address).stdout == "no session runs now\n"


def test_end(admin: Admin) -> None:
    admin.answer = (200, b'{"ended":"0f0e0d0c-0000-4000-8000-000000000001"}')
    result = run("end", "0f0e/../x", "--reason", "lunch é", "--admin", admin.address)
    assert (result.exit_code, result.stdout) == (0, "ended 0f0e0d0c-0000-4000-8000-000000000001\n")
    [(method, path, body, content_type)] = admin.seen
    assert (method, path, content_type) == ("POST", "/sessions/0f0e%2F..%2Fx/end", "application/json")
    assert json.loads(body) == {"reason": "lunch é"}
    assert run("end", "0f0e", "--admin", admin.address).exit_code == 2  # no reason


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((404, b'{"kind":"Status","message":"k8sproxy: there is no such session"}'), "there is no such session"),
        ((403, b'{"message":"k8sproxy: not\\u001b[2J for you"}'), "for you"),
        ((500, b"{}"), "500"),
        ((404, b"404: Not Found"), "there is no admin site"),
        ((200, b"[]"), "there is no admin site"),
        ((200, b"\xff\xfe"), "there is no admin site"),
        ((200, b"{}"), "does not list sessions"),
        ((200, b'{"sessions":[{"id":"x"}]}'), "does not list sessions"),
        ((200, b'{"sessions":[7]}'), "does not list sessions"),
    ],
)
def test_answers_that_are_none(admin: Admin, answer: tuple[int, bytes], words: str) -> None:
    admin.answer = answer
    result = run("list", "--admin", admin.address)
    assert result.exit_code == 1 and result.stdout == "" and words in result.stderr
    assert result.stderr.startswith("k8sproxy: ") and result.stderr.count("\n") == 1 and "\x1b" not in result.stderr


def test_nobody_there(tmp_path: Path) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{sock.getsockname()[1]}"
        for where in (address, f"unix:{tmp_path}/none", "no address at all"):
            result = run("list", "--admin", where)
            assert result.exit_code == 1 and "there is no admin site" in result.stderr, where
    result = CliRunner().invoke(cli, ["sessions", "list"], env={"K8SPROXY_CONFIG": ""})
    assert result.exit_code == 2 and "--admin ADDRESS" in result.stderr
