"""exec, attach and cp with the real kubectl, over WebSocket and over SPDY."""

from __future__ import annotations

import hashlib
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from tests.bed import Bed
from tests.system.kubectl import STREAMING, Kubectl
from tests.system.terminal import Terminal

MEBIBYTE = 1024 * 1024
LARGE = 200 * 1000 * 1000  # bytes, as the issue has it
TRANSFER_LIMIT = 100.0  # seconds; ten are usual on two cores, less than the limit of a test


@pytest.fixture(params=STREAMING)
def streaming(request: pytest.FixtureRequest, alice: Kubectl) -> Kubectl:
    """alice's kubectl, once for each protocol."""
    return alice.speaking(STREAMING[request.param])


@pytest.mark.parametrize("code", [0, 1, 42, 137])
def test_exec_tells_the_exit_code(streaming: Kubectl, web: str, code: int) -> None:
    done = streaming.run("exec", web, "--", "sh", "-c", f"echo out; echo err >&2; exit {code}")
    assert (done.returncode, done.stdout) == (code, b"out\n")
    assert done.stderr.startswith(b"err\n")


def test_exec_of_what_is_not_there(streaming: Kubectl) -> None:
    assert 'pods "nobody" not found' in streaming.fails("exec", "nobody", "--", "true")


def test_exec_with_a_terminal_that_is_resized(streaming: Kubectl, web: str) -> None:
    argv = streaming.argv("exec", "-it", web, "--", "sh")
    with Terminal(argv, streaming.environ(), rows=24, columns=80) as terminal:
        # A size takes its own way, not with the keys; ask until it is there.
        for rows, columns in ((24, 80), (33, 121)):
            terminal.resize(rows, columns)
            wanted = f"{rows} {columns}"
            terminal.type(f"until [ \"$(stty size)\" = '{wanted}' ]; do sleep 0.05; done; echo now $(stty size)\n")
            terminal.expect(rf"now {wanted}\r\n")
        terminal.type("exit 5\n")
        assert terminal.wait() == 5


def test_interrupt_in_a_terminal_reaches_the_program(streaming: Kubectl, web: str) -> None:
    # `wait` and nothing else: a signal between two commands of a shell is not heard before the second one ends.
    script = "sleep 100 & trap 'echo caught; kill $!; exit 6' INT; echo up; wait"
    argv = streaming.argv("exec", "-it", web, "--", "sh", "-c", script)
    with Terminal(argv, streaming.environ()) as terminal:
        terminal.expect("up\r\n")
        terminal.type("\x03")
        terminal.expect("caught\r\n")
        assert terminal.wait() == 6


def test_200_megabytes_there_and_back(streaming: Kubectl, web: str, tmp_path: Path) -> None:
    """The command stays until everything has arrived: the API server ends a SPDY session as soon as either direction
    fails (upgradeaware.go), so a ping of kubectl's behind the command's end would cut what is still under way."""
    sent, got = hashlib.sha256(), hashlib.sha256()
    arrived = tmp_path / "arrived"
    with subprocess.Popen(
        streaming.argv("exec", "-i", web, "--", "sh", "-c", f"cat; until [ -e {arrived} ]; do sleep 0.1; done"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=streaming.environ(),
    ) as popen:
        assert popen.stdin and popen.stdout
        feeder = threading.Thread(target=_feed, args=(popen.stdin, sent))
        limit = threading.Timer(TRANSFER_LIMIT, popen.kill)
        feeder.start()
        limit.start()
        count, last = 0, time.monotonic()
        try:
            while data := popen.stdout.read1(MEBIBYTE):  # type: ignore[attr-defined]  # it is a BufferedReader
                got.update(data)
                count += len(data)
                last = time.monotonic()
                if count == LARGE:
                    arrived.touch()
            popen.wait()
        finally:
            limit.cancel()
            popen.kill()  # where this has failed, nobody else would let go of its pipes
            feeder.join()
    assert count == LARGE, f"{count} bytes, the last of them {time.monotonic() - last:.0f} s before the end"
    assert popen.returncode == 0
    assert got.digest() == sent.digest()


def _feed(pipe: IO[bytes], digest: hashlib._Hash) -> None:
    try:
        with pipe:
            for _ in range(LARGE // 1_000_000):
                data = os.urandom(1_000_000)
                digest.update(data)
                pipe.write(data)
    except BrokenPipeError:
        pass  # the reader sees that it is too little


def test_stdin_ends_while_output_goes_on(streaming: Kubectl, web: str) -> None:
    done = streaming.run("exec", "-i", web, "--", "sh", "-c", "cat; sleep 0.5; echo after", input=b"before\n")
    assert done.stdout == b"before\nafter\n"


def test_cp_both_ways(streaming: Kubectl, web: str, tmp_path: Path) -> None:
    here, there, back = tmp_path / "here", tmp_path / "there", tmp_path / "back"
    here.mkdir()
    (here / "small").write_text("small\n")
    (here / "large").write_bytes(os.urandom(8 * MEBIBYTE))
    there.mkdir()
    streaming.ok("cp", str(here), f"{web}:{there}/here")
    assert _contents(there / "here") == _contents(here)
    streaming.ok("cp", f"{web}:{there}/here", str(back))
    assert _contents(back) == _contents(here)


def _contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.fixture
def reader(bed: Bed) -> Iterator[str]:
    """A pod that says what it is told, for attach."""
    main = {"name": "main", "image": "bed", "stdin": True}
    command = ["sh", "-c", 'while read line; do echo "heard $line"; done']
    bed.pod("reader", containers=[{**main, "command": command}])
    yield "reader"
    bed.cluster.delete_pod("reader")


def test_attach(streaming: Kubectl, reader: str) -> None:
    with streaming.start("attach", "-i", reader) as attached:
        attached.write(b"one\n")
        attached.expect("heard one\n")
        attached.write(b"two\n")
        attached.expect("heard two\n")
