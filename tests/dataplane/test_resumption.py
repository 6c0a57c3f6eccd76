"""Connections to the API server that resume TLS: the server's side says whether they do."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from dataclasses import replace
from typing import cast

import pytest

from k8sproxy.dataplane.resumption import RECHECK, Resumption
from k8sproxy.tls.certificates import server_context
from standins.pki import Authority
from standins.tls import trusting
from tests.dataplane.proxied import Raw, Stage, Truncated, get, giving_tickets, pki, reply


async def accepted(stage: Stage, server: ssl.SSLContext) -> Raw:
    sock, _ = await asyncio.get_running_loop().sock_accept(stage.api._sock)
    upstream = Raw(sock)
    stage.api._all.append(upstream)
    return await upstream.start_tls(server, server_side=True)


async def resumed(stage: Stage, server: ssl.SSLContext | None = None) -> bool:
    """Whether the connection of one more request resumes TLS; nothing is left of it. server: the API server's."""
    client = await stage.client()
    await client.send(get())
    upstream = await accepted(stage, server or pki()[0])
    await upstream.head()
    tls = upstream._tls
    assert tls is not None
    await upstream.send(reply(b"ok", "200 OK", "Connection: close"))
    assert (await client.response()).status == 200
    await leave(stage, client)
    return bool(tls.session_reused)


async def leave(stage: Stage, client: Raw) -> None:
    await client.end()
    await stage.until(lambda: not stage.connections)


class Clock:
    def __init__(self, stage: Stage) -> None:
        self.now = 1000.0
        stage.upstream._resumption = Resumption(lambda: self.now)


async def test_the_second_connection_resumes() -> None:
    async with Stage(tls=True) as stage:
        assert [await resumed(stage) for _ in range(3)] == [False, True, True]


async def test_the_certificate_is_looked_at_again_also_where_each_connection_has_resumed() -> None:
    async with Stage(tls=True) as stage:
        clock = Clock(stage)
        found = []
        for _ in range(6):
            found.append(await resumed(stage))
            clock.now += RECHECK / 2 - 1
        assert found == [False, True, True, False, True, True]


async def test_another_context_has_a_handshake_of_its_own() -> None:
    """It has another CA, or another client certificate."""
    async with Stage(tls=True) as stage:
        await resumed(stage)
        endpoint = stage.upstream.endpoint
        context = ssl.create_default_context()
        context.load_verify_locations(cadata="".join(map(ssl.DER_cert_to_PEM_cert, pki()[1].get_ca_certs(True))))
        stage.upstream.endpoint = replace(endpoint, tls=lambda: context)
        assert [await resumed(stage) for _ in range(2)] == [False, True]
        stage.upstream.endpoint = endpoint
        assert not await resumed(stage)


@pytest.mark.parametrize("known", [True, False], ids=["the same CA", "another CA"])
async def test_a_server_that_does_not_know_the_ticket_shows_its_certificate(known: bool) -> None:
    ours = Authority()
    server, other = (
        giving_tickets(server_context(*authority.issue("127.0.0.1")))
        for authority in (ours, ours if known else Authority())
    )
    async with Stage(tls=True) as stage:
        context = trusting(ours.pem)
        stage.upstream.endpoint = replace(stage.upstream.endpoint, tls=lambda: context)
        assert [await resumed(stage, server) for _ in range(2)] == [False, True]
        if known:
            assert [await resumed(stage, other) for _ in range(2)] == [False, True]
            return
        client = await stage.client()
        await client.send(get())
        with contextlib.suppress(ssl.SSLError, Truncated):
            await accepted(stage, other)
        status, message = (await client.response()).refusal()
        assert status == 502 and "certificate" in message
        await leave(stage, client)
        assert not await resumed(stage, server), "a failed handshake is followed by a full one"


def test_a_connection_without_a_ticket_changes_nothing() -> None:
    kept = Resumption(lambda: 0.0)
    context = ssl.create_default_context()
    kept.keep(context, None, 5.0)
    assert kept.ticket(context) is None and kept.needs(context, 0.0)


def test_what_was_proved_before_a_handshake_failed_is_not_kept_again() -> None:
    """A connection from before may end later, and still has its ticket."""
    now = 100.0
    kept = Resumption(lambda: now)
    context = ssl.create_default_context()
    now = 101.0
    kept.forget()
    assert not kept.needs(context, 100.0)
    now = 102.0
    assert kept.needs(context, 102.0)


def test_a_resumed_connection_is_as_old_as_its_own_ticket() -> None:
    """Another connection may have had a full handshake while this one was resumed."""

    class Resumed:
        session_reused = True

    kept = Resumption(lambda: 700.0)
    assert kept.checked(cast(ssl.SSLSocket, Resumed()), 100.0) == 100.0
