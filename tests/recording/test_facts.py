"""What a request tells of its session."""

from __future__ import annotations

import pytest

from k8sproxy.errors import ProtocolError
from k8sproxy.policy.requestinfo import request_info
from k8sproxy.recording.facts import MAX_COMMAND, STREAMING, Facts, session_facts
from tests.recording.scenes import FACTS

POD = "/api/v1/namespaces/a/pods/web/"


def facts(target: str, user_agent: bytes = b"kubectl") -> Facts:
    info = request_info("GET", target, "websocket")
    assert info.session in STREAMING
    return session_facts(
        "i", info, FACTS.peer, FACTS.impersonation, cluster="c", connection="c1", user_agent=user_agent
    )


def test_exec() -> None:
    found = facts(POD + "exec?container=main&command=sh&command=-c&command=echo%20%C3%A9&tty=true")
    assert (found.kind, found.namespace, found.pod, found.container) == ("exec", "a", "web", "main")
    assert (found.command, found.tty, found.node) == ("sh -c echo é", True, "")
    assert facts(POD + "attach?command=").kind == "attach"


@pytest.mark.parametrize("path", ["exec/a/web/main", "exec/a/web/7f2c-uid/main"])
def test_through_a_node(path: str) -> None:
    found = facts(f"/api/v1/nodes/n1/proxy/{path}?command=sh")
    assert (found.kind, found.node, found.namespace, found.pod, found.container) == ("exec", "n1", "a", "web", "main")


@pytest.mark.parametrize(
    ("query", "tty"),
    [("", False), ("tty=", True), ("tty=1", True), ("tty=no", True), ("tty=FALSE", False), ("tty=0&tty=1", False)],
)
def test_tty_as_the_api_server_reads_it(query: str, tty: bool) -> None:
    assert facts(f"{POD}exec?{query}").tty is tty


def test_ports() -> None:
    assert facts(POD + "portforward?ports=80,443&ports=0,-1,99999,%D9%A3,x,,8080").ports == (80, 443, 8080)


def test_limits() -> None:
    assert len(facts(POD + "exec?command=" + "x" * 9000).command) == MAX_COMMAND
    assert facts(POD + "exec", b"\xff" * 9000).user_agent == "\ufffd" * 512
    with pytest.raises(ProtocolError):
        facts(POD + "exec?" + "a&" * 20_000)


def test_header() -> None:
    header = FACTS.cast_header(1_700_000_000.9)
    assert (header.timestamp, header.session_id, header.impersonated_user) == (
        1_700_000_000,
        FACTS.id,
        "ana@example.com",
    )
