"""k8sproxy/common/tailnet/peer.py: whom a configuration names."""

from __future__ import annotations

import pytest

from k8sproxy.common.tailnet.peer import MAX_NAME, Peer, is_named, read_name


def user(login: str) -> Peer:
    return Peer(address="100.64.0.9", stable_id="n1", node_name="laptop.", login_name=login)


def tagged(*tags: str) -> Peer:
    return Peer(address="100.64.0.9", stable_id="n1", node_name="proxy.", tags=tags, login_name="tagged-devices")


@pytest.mark.parametrize(
    "name", ["alice", "alice@example.com", "https://id.example.com/u#1", "alice@github", "Ana María"]
)
def test_whatever_whois_may_answer_can_be_named(name: str) -> None:
    assert read_name(name) == name and is_named(user(name), {name})
    assert not is_named(user(name + "x"), {name}) and not is_named(user(name.upper()), {name})
    assert not is_named(user(""), {name})


@pytest.mark.parametrize(
    "name",
    ["", " a", "a ", "a\n", "\x00", "tag:", "tag:-a", "tag:a b", "group:a", "autogroup:x", "svc:a", "*", "x" * 513, 5],
)
def test_what_names_nobody_is_refused(name: object) -> None:
    with pytest.raises(ValueError, match=r"^must be"):
        read_name(name)
    assert len("x" * MAX_NAME) == 512


def test_tags_are_tags_and_names_are_names() -> None:
    assert is_named(tagged("tag:a", "tag:b"), {"tag:b"})
    assert not is_named(tagged("tag:a"), {"tagged-devices"})  # all tagged nodes have that one
    assert not is_named(user("tag:b"), {"tag:b"})  # a control server may let people call themselves anything
    assert not is_named(tagged("alice"), {"alice"})
