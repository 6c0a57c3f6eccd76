"""What is computed of a caller once, and when it is computed anew."""

from __future__ import annotations

import pytest

from k8sproxy.access.caller import tailnet_caller
from k8sproxy.access.decision import Snapshot
from k8sproxy.dataplane import authorities as module
from k8sproxy.dataplane.authorities import Authorities
from k8sproxy.dataplane.routes import Route
from tests.dataplane.proxied import ANA, Stage, get, peer, reply


async def test_connections_of_one_caller_share_their_authority() -> None:
    async with Stage() as stage:
        first, upstream, _ = await stage.exchange(get())
        await upstream.send(reply())
        await first.response()
        second = await stage.client()
        await second.send(get())
        await upstream.head()
        await upstream.send(reply())
        await second.response()
        one, other = (connection.standing.authority for connection in stage.connections)
        assert one is not None and one is other


async def test_another_caller_or_route_has_another_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_KEPT", 2)
    async with Stage() as stage:
        kept, ana, ops = Authorities(), tailnet_caller(ANA), tailnet_caller(peer("ops"))
        known = kept.of(ana, stage.route)
        assert known.authority.caller is ana and '"user":"ana@example.com"' in known.who
        assert kept.of(ana, stage.route) is known
        assert kept.of(ops, stage.route).authority.grants.groups == ("ops",)
        passing = Route(stage.upstream, Snapshot(impersonate=False))
        assert kept.of(ana, passing).authority.impersonation is None
        assert kept.of(ana, stage.route) is not known  # the oldest had to go
