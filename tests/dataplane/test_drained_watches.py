"""A drain ends a watch between two events, whatever they are written in and however they come."""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import struct
from itertools import pairwise

import pytest

from k8sproxy.dataplane.upstream import UpstreamConnection
from tests.dataplane.proxied import Raw, Stage, get

_WATCH = "/api/v1/pods?watch=1"
JSON = "Content-Type: application/json"
TABLE = "Content-Type: application/json;stream=watch;as=Table;v=v1;g=meta.k8s.io"
PROTOBUF = "Content-Type: application/vnd.kubernetes.protobuf;stream=watch"
GZIP = "Content-Encoding: gzip"


def event(kind: str, number: int, size: int = 10_000) -> bytes:
    """An event that Go writes in three chunks."""
    if PROTOBUF in kind:
        data = struct.pack(">I", size) + (bytes([10, number]) * size)[:size]
    else:
        rows = [{"cells": [f"pod-{number}", "x" * size]}, {}]
        data = json.dumps({"type": "ADDED", "object": {"kind": "Table", "rows": rows}}).encode() + b"\n"
    return gzip.compress(data) if GZIP in kind else data


def chunked(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)


def head(kind: tuple[str, ...]) -> bytes:
    return "\r\n".join(("HTTP/1.1 200 OK", "Transfer-Encoding: chunked", *kind, "", "")).encode()


def in_pieces(data: bytes, size: int = 4096) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


async def draining(stage: Stage) -> asyncio.Future[int]:
    drained = asyncio.ensure_future(stage.server.drain(10))
    await stage.until(lambda: stage.shared.draining)
    return drained


kinds = pytest.mark.parametrize(
    "kind",
    [(JSON,), (TABLE,), (PROTOBUF,), (JSON, GZIP), (PROTOBUF, GZIP), ()],
    ids=["json", "table", "protobuf", "gzip-json", "gzip-protobuf", "untyped"],
)


async def taken(client: Raw) -> bytes:
    """The body of a response in chunks, up to its end and the connection's."""
    body = b""
    while size := int(await client.until(b"\r\n"), 16):
        body += (await client.exactly(size + 2))[:-2]
    assert await client.rest() == b"\r\n"
    return body


@pytest.mark.parametrize("cut", [1, 2, 3])
@kinds
async def test_within_an_event(kind: tuple[str, ...], cut: int) -> None:
    """Its first chunks have been sent: the rest of it is waited for, and what comes behind it is not sent."""
    async with Stage() as stage:
        first, second, third = (event("".join(kind), number) for number in range(3))
        pieces = in_pieces(second, max(1, len(second) // 3 - 1))
        assert len(pieces) > cut
        client, upstream, _ = await stage.exchange(get(_WATCH))
        await upstream.send(head(kind) + chunked(first, *pieces[:cut]))
        await client.head()
        await client.exactly(len(chunked(first, *pieces[:cut])))
        drained = await draining(stage)
        (connection,) = stage.connections
        assert connection.running.kind == "watch" and not client.received
        await upstream.send(chunked(*pieces[cut:], third))
        rest = await client.rest()
        assert rest == chunked(*pieces[cut:]) + b"0\r\n\r\n"
        assert await upstream.gone()
        client.close()
        assert await drained == 0


@kinds
async def test_between_two_events(kind: tuple[str, ...]) -> None:
    async with Stage() as stage:
        first = event("".join(kind), 1)
        client, upstream, _ = await stage.exchange(get(_WATCH))
        await upstream.send(head(kind) + chunked(*in_pieces(first)))
        await client.head()
        await client.exactly(len(chunked(*in_pieces(first))))
        drained = await draining(stage)
        assert await client.rest() == b"0\r\n\r\n" and await upstream.gone()
        client.close()
        assert await drained == 0


@kinds
async def test_before_the_answer(kind: tuple[str, ...]) -> None:
    """The head says that the connection ends with it; the first event in the same packet is passed on, no more."""
    async with Stage() as stage:
        first, second = event("".join(kind), 1), event("".join(kind), 2)
        client, upstream, _ = await stage.exchange(get(_WATCH))
        drained = await draining(stage)
        await upstream.send(head(kind) + chunked(*in_pieces(first), *in_pieces(second)))
        assert (await client.head()).endswith(b"Connection: close\r\n\r\n")
        assert await taken(client) in (first, first + second)
        client.close()
        assert await drained == 0


@kinds
async def test_however_it_comes(kind: tuple[str, ...]) -> None:
    """Chunks that end anywhere, packets that end anywhere: what the client has in the end is whole events."""
    async with Stage() as stage:
        rng = random.Random(7)
        events = [event("".join(kind), number, rng.randrange(1, 300)) for number in range(40)]
        ends = {len(b"".join(events[:count])) for count in range(len(events) + 1)}
        body = b"".join(events)
        cuts = sorted({*rng.choices(range(len(body)), k=100), *rng.sample(sorted(ends), 20), 0, len(body)})
        stream = head(kind) + chunked(*(body[a:b] for a, b in pairwise(cuts)))
        client, upstream, _ = await stage.exchange(get(_WATCH))
        sent = 2000
        await upstream.send(stream[:sent])
        await client.head()
        drained = await draining(stage)

        async def send_on() -> None:
            position = sent
            while position < len(stream):
                size = rng.randrange(1, 400)
                await upstream.send(stream[position : position + size])
                position += size
                await asyncio.sleep(0)

        sending = asyncio.ensure_future(send_on())
        got = await taken(client)
        assert body.startswith(got) and len(got) in ends
        sending.cancel()
        await asyncio.wait((sending,))
        client.close()
        assert await drained == 0


@pytest.mark.parametrize(
    "kind", [("Content-Type: application/cbor-seq",), (JSON, "Content-Encoding: zstd")], ids=["cbor", "zstd"]
)
async def test_what_cannot_be_told_apart_goes_on(kind: tuple[str, ...]) -> None:
    """Until the server ends it, or the drain's grace: then it is cut, so that no client takes it for whole."""
    async with Stage() as stage:
        client, upstream, _ = await stage.exchange(get(_WATCH))
        await upstream.send(head(kind) + chunked(b"\xa1"))
        await client.head()
        drained = await draining(stage)
        await upstream.send(chunked(b"\xa0") + b"0\r\n\r\n")
        assert await taken(client) == b"\xa1\xa0"
        client.close()
        assert await drained == 0


async def test_a_pretty_printed_event_is_not_cut() -> None:
    async with Stage() as stage:
        pretty = json.dumps({"type": "ADDED", "object": {"a": [{}, {}]}}, indent=2).encode() + b"\n"
        client, upstream, _ = await stage.exchange(get(_WATCH))
        lines = pretty.splitlines(keepends=True)
        await upstream.send(head((JSON,)) + chunked(*lines[:4]))
        await client.head()
        drained = await draining(stage)
        await upstream.send(chunked(*lines[4:]) + b"0\r\n\r\n")
        assert json.loads(await taken(client))
        client.close()
        assert await drained == 0


async def test_a_log_that_is_followed_is_not_cut() -> None:
    async with Stage() as stage:
        client, upstream, _ = await stage.exchange(get("/api/v1/namespaces/a/pods/web/log?follow=true"))
        await upstream.send(head(("Content-Type: text/plain",)) + chunked(b"one\n"))
        await client.head()
        drained = await draining(stage)
        await upstream.send(chunked(b"two\n") + b"0\r\n\r\n")
        assert await taken(client) == b"one\ntwo\n"
        client.close()
        assert await drained == 0


async def test_while_its_upstream_connection_is_made() -> None:
    """There is no exchange yet that could be told: it is told as it begins."""
    async with Stage() as stage:
        connecting, go_on = asyncio.Event(), asyncio.Event()
        connect = stage.upstream.connect

        async def slowly(*, repeatable: bool) -> UpstreamConnection:
            connecting.set()
            await go_on.wait()
            return await connect(repeatable=repeatable)

        stage.upstream.connect = slowly  # type: ignore[method-assign]
        client = await stage.client()
        await client.send(get(_WATCH))
        await connecting.wait()
        drained = await draining(stage)
        go_on.set()
        upstream = await stage.api.accept()
        await upstream.head()
        first = event(JSON, 1)
        await upstream.send(head((JSON,)) + chunked(*in_pieces(first)))
        assert (await client.head()).endswith(b"Connection: close\r\n\r\n")
        assert await taken(client) == first
        client.close()
        assert await drained == 0
