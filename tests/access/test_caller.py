"""Callers of the tailnet: who a peer is, and whose share it takes."""

from __future__ import annotations

from math import inf

from k8sproxy.access.caller import tailnet_caller
from k8sproxy.common.tailnet.peer import Peer

USER = Peer("100.64.0.7", "n1", "laptop.t.ts.net.", login_name="ann@example.com", user_id=1)
TAGGED = Peer("100.64.0.8", "n2", "ci.t.ts.net.", tags=("tag:ci", "tag:ci", "tag:k8s"))


def test_a_users_node_is_its_user() -> None:
    caller = tailnet_caller(USER)
    assert (caller.user, caller.groups, caller.address) == ("ann@example.com", (), "100.64.0.7")
    assert (caller.owner, caller.display) == ("ann@example.com", "ann@example.com")


def test_a_tagged_node_is_itself_with_its_tags() -> None:
    caller = tailnet_caller(TAGGED)
    assert (caller.user, caller.groups) == ("ci.t.ts.net", ("tag:ci", "tag:k8s"))
    assert (caller.owner, caller.display) == ("n2", "ci.t.ts.net")


def test_the_tailnet_proves_a_caller_until_it_says_otherwise() -> None:
    caller = tailnet_caller(USER)
    assert (caller.proof, caller.until, caller.uid, dict(caller.extra)) == ("tailnet", inf, "", {})
