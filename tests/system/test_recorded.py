"""Recorded sessions of the real kubectl, over WebSocket and over SPDY: what was kept is what was seen."""

from __future__ import annotations

import base64
import functools
import hashlib
import io
import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.bed import Bed, Node
from tests.system.kubectl import STREAMING, Kubectl
from tests.system.proxy import Proxy, wait_until
from tests.system.recorders import Recorder, Screen, Sink, dead_port, play, read_cast
from tests.system.terminal import Terminal

MEBIBYTE = 1024 * 1024
LARGE = 200 * 1000 * 1000  # bytes, as the issue has it
Record = Callable[..., None]


@pytest.fixture(params=STREAMING)
def streaming(request: pytest.FixtureRequest, alice: Kubectl) -> Kubectl:
    """alice's kubectl, once for each protocol."""
    return alice.speaking(STREAMING[request.param])


def line_of(proxy: Proxy, event: str, session: str) -> dict[str, Any]:
    """The line of that event and session in the proxy's log."""
    return wait_until(
        lambda: next((line for line in proxy.events(event) if line["session"] == session), None), f"{event} in the log"
    )


# -- what is kept


def test_exec_is_kept_as_it_was_seen(record: Record, sink: Sink, streaming: Kubectl, web: str) -> None:
    record(sink.address, enforce=True)
    done = streaming.run("exec", web, "--", "sh", "-c", "echo out; echo err >&2; exit 3")
    assert (done.returncode, done.stdout) == (3, b"out\n")
    cast = sink.ended().cast
    assert sink.kept[0].end == "clean"
    assert sorted(cast.output().splitlines()) == [b"err", b"out"]
    assert {code for _, code, _ in cast.events} == {"o"}


def test_the_second_version_of_the_wire(record: Record, recorder: Recorder, streaming: Kubectl, web: str) -> None:
    record(recorder.address, enforce=True)
    assert streaming.ok("exec", web, "--", "echo", "out") == "out\n"
    session = recorder.ended()
    assert (session.version, session.end) == (2, "clean")
    assert read_cast(bytes(session.body)).output() == b"out\n"
    assert session.acked == len(session.body)


def test_output_that_is_no_text_comes_back_byte_for_byte(
    record: Record, sink: Sink, streaming: Kubectl, web: str, tmp_path: Path
) -> None:
    record(sink.address, enforce=True)
    content = bytes(range(256)) * 40 + "ü漢字👩‍👩‍👧 ".encode() * 300 + "\U0010fe80".encode() + os.urandom(5000)
    (tmp_path / "binary").write_bytes(content)
    done = streaming.run("exec", web, "--", "cat", str(tmp_path / "binary"))
    assert done.stdout == content
    assert sink.ended().cast.output() == content


def test_stderr_is_apart_where_the_recorder_asks_for_it(record: Record, streaming: Kubectl, web: str) -> None:
    fields = {"asciicast-event-codes": "o,e,r,m"}
    with Sink(event_codes="o,e,r,m") as sink, Recorder(fields=fields) as recorder:
        for address in (sink.address, recorder.address):
            record(address, enforce=True)
            streaming.run("exec", web, "--", "sh", "-c", "echo out; echo err >&2")
        for cast in (sink.ended().cast, read_cast(bytes(recorder.ended().body))):
            assert (cast.output("o"), cast.output("e")) == (b"out\n", b"err\n")


def test_what_is_typed_is_never_kept(record: Record, sink: Sink, streaming: Kubectl, web: str) -> None:
    """Not even where the terminal does not show it: a password."""
    record(sink.address, enforce=True)
    argv = streaming.argv("exec", "-it", web, "--", "sh", "-c", "stty -echo; echo Password:; read p; echo ${#p} chars")
    with Terminal(argv, streaming.environ()) as terminal:
        terminal.expect("Password:")
        terminal.type("hunter22\n")
        terminal.expect("8 chars")
        assert terminal.wait() == 0
    done = streaming.run("exec", "-i", web, "--", "wc", "-c", input=b"hunter22")
    assert done.stdout.strip() == b"8"
    for number in (1, 2):
        kept = sink.ended(number)
        assert kept.end == "clean"
        assert b"hunter" not in kept.body


def test_a_terminals_screen_is_played_again(
    record: Record, sink: Sink, streaming: Kubectl, web: str, tmp_path: Path
) -> None:
    """Wide and combining characters, one that is cut in two by the program, colours, a cursor that goes about, and
    two resizes; the screen is compared after each, and at the end with what the cast gives."""
    record(sink.address, enforce=True)
    script = tmp_path / "paint"
    script.write_bytes(
        b"""until [ "$(stty size)" = '24 80' ]; do sleep 0.02; done
printf '\\033[2J\\033[H\\033[1;31mred\\033[0m \xe6\xbc\xa2\xe5\xad\x97 e\\314\\201 \xf0\x9f\x91\xa9\\n'
printf 'split: \\346\\274'; sleep 0.1; printf '\\242.\\033[5;70Hwraps at the edge'
echo; echo FIRST
until [ "$(stty size)" = '30 100' ]; do sleep 0.02; done
printf '\\033[28;90Hbottom'; echo; echo SECOND
until [ "$(stty size)" = '10 40' ]; do sleep 0.02; done
printf '\\033[3;3Hsmall\\342\\202\\254\\n'; echo THIRD; exit 4
"""
    )
    argv = streaming.argv("exec", "-it", web, "--", "sh", str(script))
    with Terminal(argv, streaming.environ(), rows=24, columns=80) as terminal:
        for words, size in (("FIRST\r\n", (30, 100)), ("SECOND\r\n", (10, 40))):
            terminal.expect(words)
            terminal.resize(*size)
        assert terminal.wait() == 4
        seen = bytes(terminal.raw)
    cast = sink.ended().cast
    assert cast.sizes == [(80, 24), (100, 30), (40, 10)]
    # Behind the command's own output is what kubectl itself says.
    output = cast.output()
    assert seen.startswith(output)
    assert seen[len(output) :].strip() == b"command terminated with exit code 4"
    assert play(cast).display == _shown(output, cast.sizes)
    assert "漢" in output.decode()


def _shown(data: bytes, sizes: list[tuple[int, int]]) -> list[str]:
    """The screen of the terminal itself, which had its new sizes behind these words."""
    screen = Screen(*sizes[0])
    for mark, size in zip((b"FIRST\r\n", b"SECOND\r\n"), sizes[1:], strict=True):
        shown, _, data = data.partition(mark)
        screen.feed(shown + mark)
        screen.resize(*size)
    screen.feed(data)
    return screen.display


# -- every way to a session


@pytest.fixture
def reader(bed: Bed) -> Iterator[str]:
    """A pod that says what it is told, for attach."""
    command = ["sh", "-c", 'while read line; do echo "heard $line"; done']
    bed.pod("reader", containers=[{"name": "main", "image": "bed", "stdin": True, "command": command}])
    yield "reader"
    bed.cluster.delete_pod("reader")


def test_attach(record: Record, sink: Sink, streaming: Kubectl, reader: str) -> None:
    record(sink.address, enforce=True)
    with streaming.start("attach", "-i", reader) as attached:
        attached.write(b"one\n")
        attached.expect("heard one\n")
    kept = sink.ended()
    assert kept.cast.output() == b"heard one\n"
    assert kept.cast.header["kubernetes"]["SessionType"] == "attach"
    assert "command" not in kept.cast.header


def test_debug(record: Record, sink: Sink, streaming: Kubectl, bed: Bed) -> None:
    """An ephemeral container, then attach. Its stdin outlives who is attached (stdinOnce is not set), so the command
    has to end by itself."""
    record(sink.address, enforce=True)
    bed.pod("patient")
    script = "read line; echo got $line; read line"
    try:
        words = ("debug", "patient", "-i", "--image=bed", "--target=main", "--", "sh", "-c", script)
        with streaming.start(*words) as debugging:
            debugging.write(b"this\n")
            debugging.expect("got this\n")
            debugging.write(b"that\n")
            assert debugging.wait() == 0
        kept = sink.ended()
        assert b"got this\n" in kept.cast.output()
        assert kept.cast.header["kubernetes"]["Container"].startswith("debugger-")
    finally:
        bed.cluster.delete_pod("patient")


def test_run_with_a_terminal(record: Record, sink: Sink, streaming: Kubectl) -> None:
    record(sink.address, enforce=True)
    argv = streaming.argv("run", "-it", "--rm", "shortly", "--image=bed", "--restart=Never", "--", "sh")
    with Terminal(argv, streaming.environ(), rows=30, columns=90) as terminal:
        terminal.expect("try pressing enter")
        terminal.type("echo 4$((1+1))\n")
        terminal.expect("42\r\n")
        terminal.type("exit\n")
        assert terminal.wait() == 0
    cast = sink.ended().cast
    assert b"42\r\n" in cast.output()
    # kubectl attach says a size one larger first, so that programs paint again.
    assert (90, 30) in cast.sizes


def test_cp_both_ways(record: Record, streaming: Kubectl, web: str, tmp_path: Path) -> None:
    """What is copied out is in the recording, byte for byte: once stderr, where tar says this and that, is apart."""
    with Sink(event_codes="e") as sink:
        record(sink.address, enforce=True)
        content = _copied(streaming, web, tmp_path)
        casts = [sink.ended(number + 1).cast for number in range(len(sink.kept))]
    archives = [cast.output("o") for cast in casts if cast.header["command"].startswith("tar cf -")]
    assert len(archives) == 1
    assert content in archives[0]


def _copied(streaming: Kubectl, web: str, tmp_path: Path) -> bytes:
    """Bytes that were copied there and back."""
    here, there, back = tmp_path / "here", tmp_path / "there", tmp_path / "back"
    content = os.urandom(MEBIBYTE)
    here.write_bytes(content)
    streaming.ok("cp", str(here), f"{web}:{there}")
    assert there.read_bytes() == content
    streaming.ok("cp", f"{web}:{there}", str(back))
    assert back.read_bytes() == content
    return content


def test_200_megabytes_out(record: Record, sink: Sink, streaming: Kubectl, web: str, large: Path) -> None:
    """The command stays until everything has arrived: see test_sessions."""
    record(sink.address, enforce=True)
    arrived = large.with_name(f"arrived-{os.getpid()}-{time.monotonic_ns()}")
    script = f"cat {large}; until [ -e {arrived} ]; do sleep 0.1; done"
    got, count = hashlib.sha256(), 0
    with subprocess.Popen(
        streaming.argv("exec", web, "--", "sh", "-c", script), stdout=subprocess.PIPE, env=streaming.environ()
    ) as popen:
        assert popen.stdout
        limit = threading.Timer(100, popen.kill)
        limit.start()
        try:
            while data := popen.stdout.read1(MEBIBYTE):  # type: ignore[attr-defined]  # it is a BufferedReader
                got.update(data)
                count += len(data)
                if count == LARGE:
                    arrived.touch()
        finally:
            limit.cancel()
    assert (popen.returncode, count) == (0, LARGE)
    assert got.hexdigest() == _digest(large)
    kept, recorded = sink.ended(), hashlib.sha256()
    assert kept.end == "clean"
    for line in io.BytesIO(kept.body):
        if line.startswith(b"["):
            recorded.update(json.loads(line)[2].encode())
    assert recorded.hexdigest() == got.hexdigest()


def test_200_megabytes_in(record: Record, sink: Sink, streaming: Kubectl, web: str, large: Path) -> None:
    record(sink.address, enforce=True)
    with large.open("rb") as file:
        done = subprocess.run(
            streaming.argv("exec", "-i", web, "--", "sha256sum"),
            stdin=file,
            capture_output=True,
            env=streaming.environ(),
            timeout=100,
            check=True,
        )
    assert done.stdout.decode().split()[0] == _digest(large)
    kept = sink.ended()
    assert kept.cast.output() == done.stdout
    assert len(kept.body) < 4096


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """200 MB of text."""
    path = tmp_path_factory.mktemp("large") / "large"
    line = base64.b64encode(os.urandom(3 * 249_999)) + b"\n"
    with path.open("wb") as file:
        while (left := LARGE - file.tell()) > 0:
            file.write(line[:left])
    yield path
    path.unlink()


@functools.cache
def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# -- what stands beside it


def test_the_header_of_a_users_session(
    record: Record, sink: Sink, streaming: Kubectl, web: str, bed: Bed, shared_proxy: Proxy
) -> None:
    record(sink.address, enforce=True)
    before = time.time()
    streaming.ok("exec", web, "-c", "main", "--", "sh", "-c", "exit  0")
    header = sink.ended().cast.header
    alice = bed.nodes["alice"]
    known = bed.nodes["proxy"].whois(f"{alice.tailnet_ip}:1")
    assert known
    groups = header["impersonation"].pop("groups")
    assert before - 1 <= header.pop("timestamp") <= time.time()
    assert header.pop("userAgent").startswith("kubectl/v1.")
    session = header.pop("sessionID")
    assert header == {
        "version": 2,
        "width": 80,
        "height": 24,
        "command": "sh -c exit  0",
        "srcNode": alice.dns_name,
        "srcNodeID": known["Node"]["StableID"],
        "srcNodeUserID": known["UserProfile"]["ID"],
        "srcNodeUser": "alice@example.com",
        "env": {},
        "sshUser": "",
        "localUser": "",
        "connectionID": session,
        "kubernetes": {
            "PodName": web,
            "Namespace": "default",
            "Container": "main",
            "SessionType": "exec",
            "Cluster": "bed",
        },
        "impersonation": {"user": "alice@example.com"},
    }
    assert groups[0] == "system:masters"


def test_the_header_of_a_tagged_nodes_session(
    record: Record, sink: Sink, kubectl: Callable[..., Kubectl], web: str, bed: Bed
) -> None:
    record(sink.address, enforce=True, who="ci")
    kubectl("ci").ok("exec", web, "--", "true")
    header = sink.ended().cast.header
    assert header["srcNodeTags"] == ["tag:ci"]
    assert not {"srcNodeUser", "srcNodeUserID"} & header.keys()
    assert header["impersonation"]["user"] == header["srcNode"] == bed.nodes["ci"].dns_name


def test_one_id_in_the_recording_the_log_and_the_audit(
    record: Record, sink: Sink, streaming: Kubectl, web: str, bed: Bed, shared_proxy: Proxy
) -> None:
    record(sink.address, enforce=True)
    streaming.ok("exec", web, "--", "true")
    session = sink.ended().cast.header["sessionID"]
    logged = line_of(shared_proxy, "session_started", session)
    assert (logged["kind"], logged["pod"], logged["recorder"]) == ("exec", web, sink.address)
    assert logged["failure_mode"] == "closed"
    assert line_of(shared_proxy, "session_ended", session)["recorded"]
    audited = [event for event in bed.cluster.audit_events() if event["auditID"] == session]
    assert {event["objectRef"]["subresource"] for event in audited} == {"exec"}
    assert {event["impersonatedUser"]["username"] for event in audited} == {"alice@example.com"}


# -- the way to the recorder


@pytest.fixture(scope="module")
def recorder_node(bed: Bed) -> Node:
    return bed.add_node("recorder", tags=["tag:recorder"], socks5=False)


@pytest.mark.parametrize("version", [1, 2])
def test_a_recorder_on_the_tailnet_named_by_its_tag(
    record: Record,
    recorder_node: Node,
    streaming: Kubectl,
    web: str,
    bed: Bed,
    shared_proxy: Proxy,
    sink: Sink,
    recorder: Recorder,
    version: int,
) -> None:
    """The daemon is userspace-only, so that the way there is its LocalAPI's dial."""
    port = sink.port if version == 1 else recorder.fake.port
    bed.tailnet.set_recorder_port(port)
    record(recorder=["tag:recorder"], enforce=True)
    assert streaming.ok("exec", web, "--", "echo", "far away") == "far away\n"
    kept = sink.ended() if version == 1 else recorder.ended()
    assert read_cast(bytes(kept.body)).output() == b"far away\n"
    session = read_cast(bytes(kept.body)).header["sessionID"]
    assert line_of(shared_proxy, "session_started", session)["recorder"] == f"{recorder_node.tailnet_ip}:{port}"


def test_the_second_recorder_where_the_first_is_gone(
    record: Record, alice: Kubectl, web: str, recorder: Recorder, sink: Sink
) -> None:
    with dead_port() as nobody:
        record(nobody, recorder.address, sink.address, enforce=True)
        alice.ok("exec", web, "--", "true")
        recorder.ended()
        recorder.stop()
        for number in (1, 2):
            alice.ok("exec", web, "--", "true")
            assert sink.ended(number).end == "clean"


def test_the_wires_version_is_remembered(record: Record, alice: Kubectl, web: str) -> None:
    with Sink() as first, Recorder() as second:
        for recorder in (first, second):
            record(recorder.address, enforce=True)
            for _ in range(3):
                alice.ok("exec", web, "--", "true")
        assert [kept.end for kept in first.kept] == ["clean"] * 3
        assert first.refused == ["PRI * HTTP/2.0"]  # asked once for the second version
        assert [session.end for session in second.sessions] == ["clean"] * 3
        assert (second.fake.dials, second.fake.probes) == (1, 1)


def test_nothing_is_recorded_where_no_recorder_is_named(
    record: Record, alice: Kubectl, web: str, shared_proxy: Proxy
) -> None:
    record()
    before = len(shared_proxy.events("session_ended"))
    alice.ok("exec", web, "--", "true")

    def unrecorded() -> dict[str, Any] | None:
        # The line of the session before may come late.
        return next((line for line in shared_proxy.events("session_ended")[before:] if not line["recorded"]), None)

    ended = wait_until(unrecorded, "the end of a session that is not recorded")
    assert line_of(shared_proxy, "session_started", ended["session"])["recorder"] is None
