"""Recorders that fail: what the user saw, and whether the command had started.

Every command here begins by touching a file. Where enforceRecorder is set, a session without a recorder has not begun,
and one whose recorder fails is over within two seconds, with the reason on kubectl's stderr; where it isn't, the
session goes on to its end.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.bed import Bed
from tests.system.kubectl import STREAMING, Kubectl
from tests.system.proxy import Proxy, reported, wait_until
from tests.system.raw import CLOSE, PING, PONG, Connection, WebSocket
from tests.system.recorders import Recorder, dead_port, deaf_port, read_cast

Record = Callable[..., None]

# Seconds from a fault to the end of an enforced session, as the issue has it.
SOON = 2.0
ACK, FINISH = 2, 1  # seconds that a recorder has here: for an ack, and for the last one


@pytest.fixture(scope="module")
def hasty(bed: Bed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """A proxy that soon gives a recorder up which does not accept."""
    recording = {"dialTimeout": "300ms", "acceptTimeout": "600ms"}
    directory = tmp_path_factory.mktemp("hasty")
    proxy = Proxy(directory, bed.nodes["proxy"], bed.proxy_account_kubeconfig, recording=recording)
    with reported(proxy), proxy:
        yield proxy


@pytest.fixture(scope="module")
def proxy(bed: Bed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """A proxy that does not wait long for acks, with small buffers."""
    recording = {"ackTimeout": f"{ACK}s", "finishTimeout": f"{FINISH}s", "buffer": "64KiB"}
    directory = tmp_path_factory.mktemp("faults")
    proxy = Proxy(directory, bed.nodes["proxy"], bed.proxy_account_kubeconfig, recording=recording)
    with reported(proxy), proxy:
        yield proxy


@pytest.fixture(params=STREAMING)
def protocol(request: pytest.FixtureRequest) -> dict[str, str]:
    """What makes kubectl speak the one protocol, and the other one."""
    return STREAMING[request.param]


@pytest.fixture
def streaming(protocol: dict[str, str], kubectl: Callable[..., Kubectl], proxy: Proxy) -> Kubectl:
    """alice's kubectl through `proxy`, once for each protocol."""
    return kubectl("alice", proxy).speaking(protocol)


@pytest.fixture
def use(record: Record, proxy: Proxy) -> Record:
    """alice's recorders in `proxy`: use("IP:PORT", .., enforce=True)."""

    def change(*addresses: str, enforce: bool) -> None:
        record(*addresses, enforce=enforce, proxy=proxy)

    return change


# -- before it begins


@contextlib.contextmanager
def _refusing(**attributes: Any) -> Iterator[str]:
    with Recorder(**attributes) as recorder:
        yield recorder.address


# The recorder, and what is said of it.
NONE_TO_BE_HAD: dict[str, tuple[Callable[[], contextlib.AbstractContextManager[str]], str]] = {
    "nobody listens": (dead_port, "refused"),
    "TCP hangs": (deaf_port, "did not accept a connection"),
    "nothing is answered": (lambda: _refusing(hang="accept"), "did not answer"),
    "SETTINGS hangs": (lambda: _refusing(hang="SETTINGS"), "did not answer"),
    "HEAD hangs": (lambda: _refusing(hang="HEAD"), "did not answer"),
    "POST hangs": (lambda: _refusing(hang="POST"), "did not accept the session"),
    "POST hangs, v1": (lambda: _refusing(hang="POST", version=1), "100 Continue"),
    "POST 403": (lambda: _refusing(statuses={"POST": 403}), "403"),
    "POST 500": (lambda: _refusing(statuses={"POST": 500}), "500"),
    "POST 417, v1": (lambda: _refusing(statuses={"POST": 417}, version=1), "417"),
    "POST 403, v1": (lambda: _refusing(statuses={"POST": 403}, version=1), "403"),
}


@pytest.mark.parametrize("name", NONE_TO_BE_HAD)
def test_no_recorder_and_no_session(
    record: Record,
    protocol: dict[str, str],
    kubectl: Callable[..., Kubectl],
    web: str,
    tmp_path: Path,
    hasty: Proxy,
    name: str,
) -> None:
    make, why = NONE_TO_BE_HAD[name]
    mark = tmp_path / "mark"
    with make() as address:
        record(address, enforce=True, proxy=hasty)
        said = kubectl("alice", hasty).speaking(protocol).fails("exec", web, "--", "touch", str(mark))
    assert "must be recorded (recording: closed), and no recorder accepted it" in said
    assert f"{address}: " in said
    assert why in said
    assert not mark.exists()


@pytest.mark.parametrize("name", NONE_TO_BE_HAD)
def test_no_recorder_and_a_session_that_goes_on(
    record: Record,
    protocol: dict[str, str],
    kubectl: Callable[..., Kubectl],
    web: str,
    tmp_path: Path,
    hasty: Proxy,
    name: str,
) -> None:
    make, why = NONE_TO_BE_HAD[name]
    mark = tmp_path / "mark"
    before = len(hasty.events("session_unrecorded"))
    with make() as address:
        record(address, enforce=False, proxy=hasty)
        done = kubectl("alice", hasty).speaking(protocol).run("exec", web, "--", "sh", "-c", f"touch {mark}; echo done")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"done\n", b"")
    assert mark.exists()
    noted = hasty.wait_event("session_unrecorded", before)
    assert why in noted["why"] and address in noted["why"]


def test_a_recorder_that_refuses_the_second_version(use: Record, streaming: Kubectl, web: str) -> None:
    with Recorder(statuses={"HEAD": 500}) as recorder:
        use(recorder.address, enforce=True)
        streaming.ok("exec", web, "--", "true")
        assert recorder.ended().version == 1


def test_every_recorder_is_named_with_its_reason(use: Record, streaming: Kubectl, web: str) -> None:
    with dead_port() as nobody, _refusing(statuses={"POST": 503}) as busy:
        use(nobody, busy, enforce=True)
        said = streaming.fails("exec", web, "--", "true")
    assert f"{nobody}: " in said
    assert f"{busy}: HTTP 503" in said


# -- in its middle

# What happens to a recorder that has part of a session, and the words that tell of it.
FAULTS: dict[str, tuple[dict[str, Any], Callable[[Recorder], object], str]] = {
    "dies": ({}, lambda recorder: recorder.stop(), "recorder"),
    "dies, v1": ({"version": 1}, lambda recorder: recorder.stop(), "recorder"),
    "error frame": (
        {},
        lambda recorder: recorder.do(lambda: recorder.sessions[0].error("the disk is full")),
        "the recorder says: the disk is full",
    ),
    "ack of more than was sent": (
        {},
        lambda recorder: recorder.do(lambda: recorder.sessions[0].ack(10**9)),
        "confirms 1000000000 bytes",
    ),
    "ack that is none": (
        {},
        lambda recorder: recorder.do(lambda: recorder.sessions[0].send(b"no\n")),
        "not a JSON object",
    ),
    "reset": ({}, lambda recorder: recorder.do(lambda: recorder.sessions[0].reset()), "gave up the session"),
    "early end": ({}, lambda recorder: recorder.do(lambda: recorder.sessions[0].finish()), "ended its answer"),
    "early end, v1": (
        {"version": 1},
        lambda recorder: recorder.do(lambda: recorder.sessions[0].finish(507)),
        "HTTP 507",
    ),
    "no ack": ({"acks": False}, lambda recorder: None, "confirmed nothing for 2 s"),
}
# A session whose second half waits for a file: mark, go, done.
SCRIPT = "touch {0}/mark; echo first; until [ -e {0}/go ]; do sleep 0.05; done; echo second"


@pytest.mark.parametrize("name", FAULTS)
def test_a_recorder_that_fails_ends_what_must_be_recorded(
    use: Record, streaming: Kubectl, web: str, tmp_path: Path, proxy: Proxy, name: str
) -> None:
    attributes, fail, why = FAULTS[name]
    with Recorder(**attributes) as recorder:
        use(recorder.address, enforce=True)
        with streaming.start("exec", web, "--", "sh", "-c", SCRIPT.format(tmp_path)) as running:
            if name == "no ack":
                _ack_the_header(recorder)  # before that nothing is shown
            running.expect("first\n")
            recorder.received("first")
            fail(recorder)
            begin = time.monotonic()
            assert running.wait() == 1
            seconds = time.monotonic() - begin
    (tmp_path / "go").touch()  # what it left behind in the pod
    assert (tmp_path / "mark").exists()
    assert running.out == "first\n"
    assert "this session must be recorded, and its recording failed: " in running.err
    assert why in running.err
    patience = ACK if name == "no ack" else 0.0  # the ack time-out
    assert seconds < SOON + patience


def _ack_the_header(recorder: Recorder) -> None:
    session = recorder.begun()
    recorder.wait(lambda: b"\n" in session.body, "the header")
    recorder.do(lambda: session.ack(session.body.index(b"\n") + 1))


def test_nothing_is_shown_before_the_recorder_has_the_header(
    use: Record, streaming: Kubectl, web: str, tmp_path: Path
) -> None:
    with Recorder(acks=False) as recorder:
        use(recorder.address, enforce=True)
        done = streaming.run("exec", web, "--", "echo", "first")
        assert (done.returncode, done.stdout) == (1, b"")
        assert b"this session must be recorded, and its recording failed: " in done.stderr
        assert b"first" in recorder.sessions[0].body


@pytest.mark.parametrize("name", FAULTS)
def test_a_recorder_that_fails_and_a_session_that_goes_on(
    use: Record, streaming: Kubectl, web: str, tmp_path: Path, proxy: Proxy, name: str
) -> None:
    attributes, fail, why = FAULTS[name]
    before = len(proxy.events("recording_failed"))
    with Recorder(**attributes) as recorder:
        use(recorder.address, enforce=False)
        with streaming.start("exec", web, "--", "sh", "-c", SCRIPT.format(tmp_path)) as running:
            running.expect("first\n")
            recorder.received("first")
            fail(recorder)
            noted = proxy.wait_event("recording_failed", before)
            (tmp_path / "go").touch()
            assert running.wait() == 0
    assert (running.out, running.err) == ("first\nsecond\n", "")
    assert why in noted["why"]


# -- at its end


@pytest.mark.parametrize("version", [1, 2])
def test_the_last_ack_that_never_comes(
    use: Record, streaming: Kubectl, web: str, tmp_path: Path, proxy: Proxy, version: int
) -> None:
    with Recorder(version=version, finishes=False) as recorder:
        use(recorder.address, enforce=True)
        done = streaming.run("exec", web, "--", "echo", "all of it")
        assert (done.returncode, done.stdout) == (1, b"all of it\n")
        assert b"the recorder did not confirm the end within 1 s" in done.stderr
        use(recorder.address, enforce=False)
        done = streaming.run("exec", web, "--", "echo", "all of it")
        assert (done.returncode, done.stdout, done.stderr) == (0, b"all of it\n", b"")


def test_an_end_that_is_no_success(use: Record, streaming: Kubectl, web: str) -> None:
    """The last answer of a v1 recorder is its word that it has it all."""
    with Recorder(version=1, final=500) as recorder:
        use(recorder.address, enforce=True)
        assert "HTTP 500" in streaming.fails("exec", web, "--", "true")


# -- slow

GAP = re.compile(
    r"\r\n\x1b\[0;2m\[k8sproxy: (\d+) bytes of output are missing here: the recorder was too slow\]\x1b\[0m\r\n"
)
PIECES = 4096  # KiB of output: many times what the buffers between the pod and the recorder take


def _print(tmp_path: Path) -> str:
    """A command with PIECES KiB of output, which says how it went."""
    return f"head -c {PIECES * 1024} /dev/zero | tr '\\0' x; touch {tmp_path}/printed"


def test_a_slow_recorder_slows_what_must_be_recorded(
    use: Record, streaming: Kubectl, web: str, tmp_path: Path, proxy: Proxy
) -> None:
    """It stops reading, so output stops; then it reads on, and all of it comes."""
    with Recorder(reading=False) as recorder:
        use(recorder.address, enforce=True)
        with streaming.start("exec", web, "--", "sh", "-c", _print(tmp_path)) as running:
            session = recorder.begun()
            recorder.wait(lambda: session._unread >= 60_000, "a window's worth of output")
            assert running.popen.poll() is None
            assert len(running.out) < PIECES * 1024
            recorder.do(session.read)
            assert running.wait() == 0
        assert len(running.out) == PIECES * 1024
        recorder.ended()
        assert len(read_cast(bytes(session.body)).output()) == PIECES * 1024


def test_a_recorder_that_never_reads_on(use: Record, streaming: Kubectl, web: str, tmp_path: Path) -> None:
    with Recorder(reading=False) as recorder:
        use(recorder.address, enforce=True)
        done = streaming.run("exec", web, "--", "sh", "-c", _print(tmp_path))
        assert done.returncode == 1
        assert b"confirmed nothing for 2 s" in done.stderr
        assert len(done.stdout) < PIECES * 1024
        assert set(done.stdout) == {ord("x")}


def test_a_gap_where_the_recorder_is_slow(
    use: Record, streaming: Kubectl, web: str, tmp_path: Path, proxy: Proxy
) -> None:
    """Output goes on, the recording says where it lacks how much, and goes on behind that."""
    before = len(proxy.events("recording_gap"))
    with Recorder(reading=False) as recorder:
        use(recorder.address, enforce=False)
        script = _print(tmp_path) + f"; until [ -e {tmp_path}/go ]; do sleep 0.05; done; echo behind"
        with streaming.start("exec", web, "--", "sh", "-c", script) as running:
            wait_until(lambda: len(running.out) == PIECES * 1024, "all output")
            recorder.do(recorder.sessions[0].read)
            session = recorder.sessions[0]
            recorder.wait(lambda: session.received > 65536, "more")
            (tmp_path / "go").touch()
            assert running.wait() == 0
        assert running.err == ""
        recorder.ended()
        cast = read_cast(bytes(session.body))
    assert session.end == "clean"
    text = cast.output().decode()
    # Output and the bytes that each notice says are missing, in turn.
    kept, lost = "".join(GAP.split(text)[::2]), sum(map(int, GAP.findall(text)))
    assert kept == "x" * (PIECES * 1024 - lost) + "behind\n"
    assert lost > 0
    assert len(proxy.events("recording_gap")) > before
    ended = wait_until(
        lambda: [line for line in proxy.events("session_ended") if line["session"] == cast.header["sessionID"]],
        "its end",
    )
    assert ended[0]["lost"] == lost


def test_pings_are_answered_while_output_waits(
    record: Record, new_proxy: Callable[..., Proxy], bed: Bed, web: str, tmp_path: Path
) -> None:
    """kubectl gives a session up where no pong comes for a minute; upstream's would stand behind the output.

    The command stays until all has arrived: a ping that reaches a closed connection of the kubelet's breaks it, with
    what is still under way on it.
    """
    proxy = new_proxy(recording={"buffer": "64KiB"})
    script = _print(tmp_path) + f"; until [ -e {tmp_path}/go ]; do sleep 0.05; done"
    command = "&".join(f"command={quote(word)}" for word in ("sh", "-c", script))
    target = f"/api/v1/namespaces/default/pods/{web}/exec?stdout=1&{command}"
    alice = bed.nodes["alice"]
    with Recorder(reading=False) as recorder:
        record(recorder.address, enforce=True, proxy=proxy)
        with Connection.open(proxy.node.dns_name, proxy.port, through=alice, ca=proxy.ca) as connection:
            client = WebSocket(connection, target)
            assert client.status == 101
            count = 0
            connection.sock.settimeout(0.5)
            with contextlib.suppress(TimeoutError):  # nothing comes any more: the output waits
                for _, payload in client.frames():
                    count += len(payload[1:])
            assert 0 < count < PIECES * 1024
            connection.sock.settimeout(10)
            for number in range(3):
                client.send(PING, b"ping %d" % number)
                assert client.until(PONG) == (b"ping %d" % number, b"")
            recorder.do(recorder.sessions[0].read)
            for opcode, payload in client.frames():
                count += len(payload[1:]) if opcode < CLOSE else 0
                if count == PIECES * 1024:
                    break
            (tmp_path / "go").touch()
            assert b'"status":"Success"' in client.channels()[3]
