"""Sessions that end before their command does: a grant withdrawn, an administrator, the proxy's own end."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.bed import Bed
from tests.system.kubectl import STREAMING, Kubectl, Running
from tests.system.proxy import Proxy, command, wait_until
from tests.system.recorders import Recorder, Sink

Record = Callable[..., None]
WITHDRAWN = 10.0  # seconds from a grant's end to a session's, as the issue has it


@pytest.fixture(params=STREAMING)
def streaming(request: pytest.FixtureRequest, alice: Kubectl) -> Kubectl:
    """alice's kubectl, once for each protocol."""
    return alice.speaking(STREAMING[request.param])


@pytest.fixture
def go(tmp_path: Path) -> Iterator[Path]:
    """The file that commands here wait for; whatever was left behind in the pod ends with the test."""
    path = tmp_path / "go"
    yield path
    path.touch()


def waiting(go: Path) -> tuple[str, ...]:
    """A command that says that it has begun, and waits."""
    return ("sh", "-c", f"echo begun; until [ -e {go} ]; do sleep 0.05; done")


def ended_with(running: Running, reason: str) -> None:
    """It has failed, and its user has read why."""
    assert running.wait(WITHDRAWN) == 1
    assert running.out == "begun\n"
    assert reason in running.err


@pytest.mark.parametrize("recorded", [True, False], ids=["recorded", "unrecorded"])
@pytest.mark.parametrize("change", ["gone", "less", "enforced"])
def test_a_withdrawn_grant_ends_a_session(
    record: Record,
    grants: Callable[..., None],
    sink: Sink,
    streaming: Kubectl,
    web: str,
    go: Path,
    recorded: bool,
    change: str,
) -> None:
    addresses = [sink.address] if recorded else []
    record(*addresses)
    with streaming.start("exec", web, "--", *waiting(go)) as running:
        running.expect("begun\n")
        if change == "gone":
            grants([])
        else:
            record(*addresses, enforce=change == "enforced")  # the group that this replaces is gone
        ended_with(running, "the tailnet's policy does not allow this any more")
    if recorded:
        kept = sink.ended()
        assert kept.end == "clean"
        assert kept.cast.output() == b"begun\n"


def test_a_grant_with_more_ends_nothing(record: Record, sink: Sink, streaming: Kubectl, web: str, go: Path) -> None:
    record(sink.address)
    with streaming.start("exec", web, "--", *waiting(go)) as running:
        running.expect("begun\n")
        record(sink.address, keep=True)
        go.touch()
        assert running.wait() == 0


# -- an administrator


def sessions(proxy: Proxy, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`k8sproxy sessions ..` with the proxy's own configuration."""
    argv = command("sessions", *arguments, "--config", str(proxy.file))
    return subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)


def listed(proxy: Proxy) -> list[dict[str, object]]:
    """What the admin site has, which is quicker to ask than the command."""
    found: list[dict[str, object]] = proxy.get("/sessions").json()["sessions"]
    return found


def test_sessions_are_listed(
    record: Record, sink: Sink, streaming: Kubectl, web: str, go: Path, shared_proxy: Proxy, bed: Bed
) -> None:
    record(sink.address, enforce=True)
    with streaming.start("exec", web, "-c", "main", "--", *waiting(go)) as running:
        running.expect("begun\n")
        (found,) = listed(shared_proxy)
        text = sessions(shared_proxy, "list").stdout
        assert json.loads(sessions(shared_proxy, "list", "--json").stdout)["sessions"][0]["id"] == found["id"]
        go.touch()
        assert running.wait() == 0
    assert found["id"] == sink.ended().cast.header["sessionID"]
    expected = {
        "kind": "exec",
        "peer": "alice@example.com",
        "node": bed.nodes["alice"].dns_name,
        "address": bed.nodes["alice"].tailnet_ip,
        "user": "alice@example.com",
        "cluster": "bed",
        "namespace": "default",
        "pod": web,
        "container": "main",
        "command": " ".join(waiting(go)),
        "tty": False,
        "recorded": True,
        "recorder": sink.address,
        "failureMode": "closed",
        "lost": 0,
    }
    assert {name: found[name] for name in expected} == expected
    assert isinstance(found["sent"], int) and found["sent"] >= len("begun\n")
    head, row = text.splitlines()
    assert head.split() == ["ID", "SINCE", "WHO", "WHAT", "WHERE", "OUTPUT", "RECORDED"]
    assert row.split()[0] == str(found["id"])[:8]
    assert "bed/default/web/main" in row and f"{sink.address} (enforced)" in row
    wait_until(lambda: not listed(shared_proxy), "the session's end")
    assert sessions(shared_proxy, "list").stdout == "no session runs now\n"


@pytest.mark.parametrize("recorded", [True, False], ids=["recorded", "unrecorded"])
def test_an_administrator_ends_a_session(
    record: Record, sink: Sink, streaming: Kubectl, web: str, go: Path, shared_proxy: Proxy, recorded: bool
) -> None:
    record(*([sink.address] if recorded else []), enforce=recorded)
    with streaming.start("exec", web, "--", *waiting(go)) as running:
        running.expect("begun\n")
        (found,) = listed(shared_proxy)
        prefix = str(found["id"])[:8]
        done = sessions(shared_proxy, "end", prefix, "--reason", "maintenance at noon")
        assert (done.returncode, done.stdout) == (0, f"ended {found['id']}\n")
        ended_with(running, "the session was ended by an administrator: maintenance at noon")
    wait_until(lambda: not listed(shared_proxy), "the session's end")
    again = sessions(shared_proxy, "end", prefix, "--reason", "again", "--json")
    assert again.returncode == 1
    assert "there is no such session" in again.stderr
    if recorded:
        assert sink.ended().end == "clean"


def test_only_the_session_that_is_meant_ends(
    record: Record, streaming: Kubectl, web: str, go: Path, shared_proxy: Proxy
) -> None:
    with (
        streaming.start("exec", web, "--", *waiting(go)) as first,
        streaming.start("exec", web, "--", *waiting(go)) as second,
    ):
        first.expect("begun\n")
        second.expect("begun\n")
        oldest = str(listed(shared_proxy)[0]["id"])
        done = sessions(shared_proxy, "end", oldest, "--reason", "this one", "--json")
        assert json.loads(done.stdout) == {"ended": oldest}
        wait_until(lambda: first.popen.poll() is not None or second.popen.poll() is not None, "the end of one")
        assert len(listed(shared_proxy)) == 1
        go.touch()
        assert sorted((first.wait(), second.wait())) == [0, 1]
        assert "this one" in first.err + second.err


# -- the proxy's end


@pytest.mark.parametrize("version", [1, 2])
def test_a_proxy_that_ends_finishes_recordings(
    record: Record,
    new_proxy: Callable[..., Proxy],
    kubectl: Callable[..., Kubectl],
    web: str,
    go: Path,
    version: int,
) -> None:
    proxy = new_proxy(shutdown={"grace": "0s"})
    with Recorder(version=version) as recorder:
        record(recorder.address, enforce=True, proxy=proxy)
        alice = kubectl("alice", proxy).speaking(STREAMING["websocket"])
        with alice.start("exec", web, "--", *waiting(go)) as running:
            running.expect("begun\n")
            proxy.signal(signal.SIGTERM)
            ended_with(running, "the proxy is being stopped")
        session = recorder.ended()
        assert session.end == "clean"
        assert b"begun" in session.body
        assert proxy.process.wait(15) == 0
    assert proxy.events("session_ended")[0]["recorded"]


def test_a_session_may_end_within_the_grace(
    record: Record, new_proxy: Callable[..., Proxy], kubectl: Callable[..., Kubectl], web: str, go: Path, sink: Sink
) -> None:
    proxy = new_proxy()
    record(sink.address, enforce=True, proxy=proxy)
    with kubectl("alice", proxy).start("exec", web, "--", *waiting(go)) as running:
        running.expect("begun\n")
        proxy.signal(signal.SIGTERM)
        proxy.wait_event("draining")
        go.touch()
        assert running.wait() == 0
    assert sink.ended().end == "clean"
    assert proxy.process.wait(15) == 0
