"""The LocalAPI's answers, and what is none."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k8sproxy.common.tailnet.answers import CertificatePair, Malformed, NodeStatus, read_pair, read_status, read_whois
from k8sproxy.common.tailnet.peer import Peer, Repeated
from standins.tailscaled import groups, user_whois

ASKED = "100.64.0.7:0"
ANA = user_whois("ana@example.com", "laptop", "100.64.0.7", groups("dev"))


def changed(path: str, value: object) -> bytes:
    """Ana's answer with one field set to something else, or taken out (...)."""
    answer: dict[str, Any] = copy.deepcopy(ANA)
    *outer, last = path.split(".")
    inner = answer
    for name in outer:
        inner = inner[name]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return json.dumps(answer).encode()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("Node", ...),
        ("Node", None),
        ("Node", []),
        ("Node.StableID", ...),
        ("Node.StableID", ""),
        ("Node.StableID", 7),
        ("Node.Name", ...),
        ("Node.Name", None),
        ("Node.Name", ["laptop"]),
        ("Node.Tags", "tag:ci"),
        ("Node.Tags", [7]),
        ("Node.Tags", {"tag:ci": True}),
        ("Node.Addresses", ...),
        ("Node.Addresses", []),
        ("Node.Addresses", None),
        ("UserProfile", ...),
        ("UserProfile", None),
        ("UserProfile.ID", "7"),
        ("UserProfile.ID", 7.5),
        ("UserProfile.ID", True),
        ("UserProfile.LoginName", ...),
        ("UserProfile.LoginName", None),
        ("UserProfile.LoginName", 7),
        ("CapMap", []),
        ("CapMap", "x"),
        ("CapMap", {"x": {}}),
        ("CapMap", {"x": "y"}),
    ],
)
def test_a_field_that_is_not_what_it_should_be(path: str, value: object) -> None:
    with pytest.raises(Malformed) as caught:
        read_whois(changed(path, value), ASKED)
    assert path.split(".")[-1] in str(caught.value)


@pytest.mark.parametrize("body", [b"", b"null", b"[]", b"7", b"{", b"\xff", b'{"Node":', b"[" * 100_000, b"{} {}"])
def test_no_answer_at_all(body: bytes) -> None:
    for read in (lambda: read_whois(body, ASKED), lambda: read_status(body), lambda: read_pair(body)):
        with pytest.raises(Malformed):
            read()


def test_other_fields_may_come_and_go() -> None:
    assert read_whois(changed("Node.SomethingNew", {"a": [1]}), ASKED) == read_whois(json.dumps(ANA).encode(), ASKED)
    assert read_whois(changed("CapMap", ...), ASKED).capabilities == {}
    assert read_whois(changed("Node.Tags", None), ASKED).tags == ()


def test_values_of_capabilities_are_whatever_json_is() -> None:
    values = [1, 1.5, True, None, "x", [1], {"a": {"b": None}}]
    assert read_whois(changed("CapMap", {"x": values}), ASKED).capabilities == {"x": tuple(values)}


def test_what_is_wrong_is_said_without_repeating_it() -> None:
    with pytest.raises(Malformed) as caught:
        read_whois(changed("CapMap", {"cap": {"secret": "s3cr3t"}}), ASKED)
    assert "s3cr3t" not in str(caught.value)
    with pytest.raises(Malformed) as caught:
        read_whois(changed("CapMap", {"x" * 9999: 1}), ASKED)
    assert len(str(caught.value)) < 200


@given(st.data())
def test_mutated_answers_are_a_peer_or_malformed(data: st.DataObject) -> None:
    body = bytearray(json.dumps(ANA).encode())
    for _ in range(data.draw(st.integers(1, 5))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        peer = read_whois(bytes(body), ASKED)
    except Malformed:
        return
    assert isinstance(peer, Peer) and peer.stable_id


def test_the_least_of_a_status() -> None:
    # A daemon that has not logged in: no node, no addresses, no names.
    assert read_status(b'{"BackendState": "NeedsLogin", "TailscaleIPs": null, "Self": null, "CertDomains": null}') == (
        NodeStatus("NeedsLogin", stable_id="", name="", addresses=(), cert_domains=(), tun=False)
    )


@pytest.mark.parametrize("body", [b'{"BackendState": 7}', b'{"BackendState": "Running", "TailscaleIPs": "x"}', b"{}"])
def test_a_status_that_is_none(body: bytes) -> None:
    with pytest.raises(Malformed):
        read_status(body)


KEY = b"-----BEGIN EC PRIVATE KEY-----\nAAAA\n-----END EC PRIVATE KEY-----\n"
LEAF = b"-----BEGIN CERTIFICATE-----\nBBBB\n-----END CERTIFICATE-----\n"
CA = b"-----BEGIN CERTIFICATE-----\nCCCC\n-----END CERTIFICATE-----\n"


def test_a_pair() -> None:
    assert read_pair(KEY + LEAF + CA) == CertificatePair(KEY, LEAF + CA)
    assert read_pair(b"words\n" + KEY + b"\n\n" + LEAF) == CertificatePair(KEY, LEAF)


@pytest.mark.parametrize("body", [KEY, LEAF, KEY + KEY + LEAF, KEY + LEAF[:-3], KEY[:20] + LEAF])
def test_no_pair(body: bytes) -> None:
    with pytest.raises(Malformed) as caught:
        read_pair(body)
    assert "AAAA" not in str(caught.value)


def test_a_member_that_comes_twice_is_told() -> None:
    # Go reads the first as true (null changes nothing), Python's parsers as null: recording enforced, or not.
    rules = '[{"enforceRecorder": true, "enforceRecorder": null}, {"impersonate": {"groups": [], "groups": ["a"]}}, {}]'
    body = json.dumps({**ANA, "CapMap": {"a": ["@"], "b": None}}).replace('["@"]', rules).encode()
    assert read_whois(body, ASKED).capabilities == {"a": (Repeated(), {"impersonate": Repeated()}, {}), "b": ()}


@pytest.mark.parametrize("double", ['"CapMap": {"a": null, "a": [{}]}', '"CapMap": {"a": []}, "CapMap": {"b": []}'])
def test_a_capability_that_comes_twice_is_no_answer(double: str) -> None:
    plain = {name: value for name, value in ANA.items() if name != "CapMap"}
    body = json.dumps(plain)[:-1] + ", " + double + "}"
    with pytest.raises(Malformed, match="CapMap"):
        read_whois(body.encode(), ASKED)
