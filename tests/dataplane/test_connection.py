"""The states of a connection: what its client can still be told, also where a fault of ours comes in between."""

from __future__ import annotations

import pytest

from k8sproxy.dataplane.connection import ConnectionState
from k8sproxy.dataplane.routes import PermitState
from tests.dataplane.proxied import UNKNOWN, Stage, get, reply
from tests.lives import assert_documented


@pytest.mark.parametrize("states", [ConnectionState, PermitState])
def test_the_docstrings_have_the_tables(states: type[ConnectionState]) -> None:
    assert_documented(states)


async def test_from_one_request_to_the_next() -> None:
    async with Stage() as stage:
        client = await stage.client()
        await stage.until(lambda: bool(stage.connections))
        (connection,) = stage.connections
        seen = [connection.state]
        _, upstream, _ = await stage.exchange(get(), client)
        seen.append(connection.state)
        await upstream.send(reply()[:-1])
        await client.head()
        seen.append(connection.state)
        await upstream.send(reply()[-1:])
        await client.exactly(2)
        await stage.until(lambda: connection.running.exchange is None)
        await client.send(get("/.well-known/k8sproxy/whoami"))
        assert (await client.response()).status == 200
        await stage.until(lambda: connection.state is ConnectionState.UNANSWERED)
        await client.end()
        await stage.until(lambda: not stage.connections)
        seen.append(connection.state)
    # While the exchange runs, it has a state of its own.
    assert [state.name for state in seen] == ["UNANSWERED", "UNANSWERED", "UNANSWERED", "ENDED"]


@pytest.mark.parametrize("sent", [get(), b"GET /\r\n\r\n"], ids=["refused", "malformed"])
async def test_a_fault_behind_a_refusal_adds_nothing_to_it(sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Stage() as stage:
        stage.daemon.answer = UNKNOWN
        client = await stage.client()
        monkeypatch.setattr(stage.shared.telemetry, "refused", lambda *_: 1 / 0)
        await client.send(sent)
        assert (await client.response()).status in (400, 403)
        assert await client.gone()
