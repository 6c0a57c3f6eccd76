"""What a request tells of its session."""

from __future__ import annotations

import hashlib
import json

import pytest

from k8sproxy.common.formats.asciicast import MAX_COMMAND, MAX_HEADER_LINE, MAX_TEXT, decode_output
from k8sproxy.request.classify import STREAMING
from k8sproxy.request.requestinfo import request_info
from k8sproxy.sessions.facts import Facts, session_facts
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


def test_an_attach_has_no_command_whatever_its_query_says() -> None:
    found = facts(POD + "attach?command=harmless&container=main")
    assert (found.kind, found.command, found.container) == ("attach", "", "main")
    assert facts(POD + "portforward?command=x").command == ""


def test_the_command_is_what_the_api_server_runs() -> None:
    """`read` of Go's url.ParseQuery and Kubernetes' conversion; a query that others read otherwise is refused before
    (policy.query)."""
    found = facts(POD + "exec?command=echo&%63ommand=a%3Bb&Command=no&command[]=no&command=c+d&container=x&container=y")
    assert (found.command, found.container) == ("echo a;b c d", "x")


def test_a_command_that_is_not_text_can_be_had_back() -> None:
    assert decode_output(facts(POD + "exec?command=rm&command=%FF%C3%A9%F4%8F%BB%BF%ED%B0%80").command) == (
        b"rm \xff\xc3\xa9\xf4\x8f\xbb\xbf\xed\xb0\x80"
    )


@pytest.mark.parametrize("path", ["exec/a/web/main", "exec/a/web/7f2c-uid/main"])
def test_through_a_node(path: str) -> None:
    found = facts(f"/api/v1/nodes/n1/proxy/{path}?command=sh")
    assert (found.kind, found.node, found.namespace, found.pod, found.container) == ("exec", "n1", "a", "web", "main")


@pytest.mark.parametrize(
    ("query", "tty"),
    [
        *(("", False), ("tty=", True), ("tty=1", True), ("tty=no", True), ("tty=FALSE", False), ("tty=0&tty=1", False)),
        *(("tty=fal%C5%BFe", False), ("t%74y=1", True), ("TTY=1", False), ("tty=00", True)),
    ],
)
def test_tty_as_the_api_server_reads_it(query: str, tty: bool) -> None:
    assert facts(f"{POD}exec?{query}").tty is tty


@pytest.mark.parametrize(("query", "tty"), [("", False), ("tty=1", True), ("tty=true", False), ("tty=0&tty=1", False)])
def test_tty_as_the_kubelet_reads_it(query: str, tty: bool) -> None:
    assert facts(f"/api/v1/nodes/n1/proxy/exec/a/web/main?{query}").tty is tty


def test_limits() -> None:
    found = facts(f"{POD}exec?command=sh&command={'x' * 60_000}&command=tail", b"\xff" * 9000)
    assert found.command.startswith("sh xxx") and found.command.endswith("xxx tail")
    assert len(found.command) <= MAX_COMMAND and len(found.user_agent.encode()) <= MAX_TEXT
    assert {name: cut.bytes for name, cut in found.truncated.items()} == {"command": 60_008, "userAgent": 36_000}
    header = json.loads(found.cast_header(1.0).line(80, 24))
    assert header["command"] == found.command
    assert header["truncated"]["command"] == {
        "bytes": 60_008,
        "sha256": hashlib.sha256(b"sh " + b"x" * 60_000 + b" tail").hexdigest(),
    }


@pytest.mark.parametrize("character", ["%01", "%22", "%5C", "%FF", "%F0%9F%98%80", "x"])
@pytest.mark.parametrize("path", ["pods/web/exec", "nodes/n1/proxy/exec/a/web/main"])
def test_no_query_makes_a_header_that_is_too_long(path: str, character: str) -> None:
    much = character * (130_000 // 3 // len(character))
    place = "/api/v1/namespaces/a/" if path.startswith("pods") else "/api/v1/"
    found = facts(f"{place}{path}?container={much}&command={much}&command={much}", b"\x01" * 60_000)
    assert len(found.cast_header(1.0).line(65535, 65535)) <= MAX_HEADER_LINE


def test_header() -> None:
    header = FACTS.cast_header(1_700_000_000.9)
    assert (header.timestamp, header.session_id, header.impersonated_user) == (
        1_700_000_000,
        FACTS.id,
        "ana@example.com",
    )
