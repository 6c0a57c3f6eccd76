"""A session's head: its id, and only what can be read is offered."""

from __future__ import annotations

import pytest

from k8sproxy.access.caller import tailnet_caller
from k8sproxy.access.decision import Snapshot, authorize, decide
from k8sproxy.access.rewrite import Streaming, check_offer, offered_protocols, rewrite
from k8sproxy.common.errors import ProtocolError
from k8sproxy.common.tailnet.peer import Peer
from k8sproxy.protocol.http1 import RequestHead, parse_fields
from k8sproxy.request.requestinfo import request_info

TARGET = "/api/v1/namespaces/a/pods/web/exec?command=sh"
RULES = {"tailscale.com/cap/kubernetes": ({"impersonate": {"groups": ["dev"]}},)}
PEER = Peer("100.64.0.7", "n-ana", "laptop.tail.ts.net.", login_name="ana@example.com", capabilities=RULES)
KNOWN = frozenset(("v5.channel.k8s.io", "v4.channel.k8s.io"))


def head(*lines: str) -> RequestHead:
    text = ["Host: k", "Connection: Upgrade", "Upgrade: websocket", *lines, "", ""]
    return RequestHead("GET", TARGET, parse_fields("\r\n".join(text).encode("latin-1"), max_count=100))


def lines(*sent: str, protocols: frozenset[str] | None = KNOWN, impersonate: bool = True) -> list[str]:
    decision = decide(
        authorize(tailnet_caller(PEER), Snapshot(impersonate=impersonate)),
        request_info("GET", TARGET, "websocket"),
        0.0,
    )
    made = rewrite(
        head(*sent), decision, target=TARGET, host=b"api", authorization=None, streaming=Streaming("the-id", protocols)
    )
    return made.data.decode("latin-1").lower().split("\r\n")


def test_the_id_is_the_proxys() -> None:
    for spelt in ("Audit-ID: mine", "audit_id: mine", "AUDIT-ID: mine"):
        assert [line for line in lines(spelt) if "audit" in line] == ["audit-id: the-id"]


@pytest.mark.parametrize("name", ["Sec-WebSocket-Protocol", "sec_websocket_protocol", "X-Stream-Protocol-Version"])
def test_only_what_can_be_read_is_offered(name: str) -> None:
    sent = f"{name}: v9.channel.k8s.io, v5.channel.k8s.io ,,v4.channel.k8s.io,V5.channel.k8s.io"
    assert f"{name.lower()}: v5.channel.k8s.io, v4.channel.k8s.io" in lines(sent)
    assert not [line for line in lines(f"{name}: v9.channel.k8s.io") if line.startswith(name.lower())]
    assert f"{name.lower()}: v9.channel.k8s.io" in lines(f"{name}: v9.channel.k8s.io", protocols=None)


def test_no_extension_of_websocket() -> None:
    for spelt in ("Sec-WebSocket-Extensions: permessage-deflate", "sec_websocket_extensions: x"):
        assert not [line for line in lines(spelt) if "extensions" in line]
        assert [line for line in lines(spelt, protocols=None) if "extensions" in line]


def test_a_bearer_token_goes_or_stays_as_without_a_session() -> None:
    token = "base64url.bearer.authorization.k8s.io.c2VjcmV0"
    sent = f"Sec-WebSocket-Protocol: {token}, v5.channel.k8s.io, v9.channel.k8s.io"
    assert "sec-websocket-protocol: v5.channel.k8s.io" in lines(sent)
    passed = lines(sent, impersonate=False)
    assert f"sec-websocket-protocol: {token.lower()}, v5.channel.k8s.io" in passed


def test_offered() -> None:
    fields = head("Sec-WebSocket-Protocol: a, b", "sec_websocket_protocol: c,,", "X-Stream-Protocol-Version: d").fields
    assert offered_protocols(fields) == ("a", "b", "c", "d")
    token = head("Sec-WebSocket-Protocol: base64url.bearer.authorization.k8s.io.eA").fields
    assert offered_protocols(token) == ()


def test_nothing_of_one_session_is_remembered_for_the_next() -> None:
    decision = decide(authorize(tailnet_caller(PEER)), request_info("GET", TARGET, "websocket"), 0.0)
    one = head("A: b")
    made = [
        rewrite(one, decision, target=TARGET, host=b"api", authorization=None, streaming=streaming).data
        for streaming in (Streaming("id-1"), Streaming("id-2"), None)
    ]
    assert b"Audit-ID: id-1" in made[0] and b"Audit-ID: id-2" in made[1] and b"Audit-ID" not in made[2]


def test_what_offers_nothing_goes_on() -> None:
    assert "x-a: b" in lines("X-A: b", "Sec-WebSocket-Protocol: v5.channel.k8s.io")


def test_an_upgrade_that_is_passed_over_is_no_session() -> None:
    check_offer(head().fields)
    check_offer(parse_fields(b"Host: k\r\n\r\n", max_count=100))
    with pytest.raises(ProtocolError, match="SPDY"):
        check_offer(parse_fields(b"Host: k\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n", max_count=100))
