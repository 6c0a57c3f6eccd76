"""Queries that a hostile client writes, in front of the real API server: the recording has the command that ran, and no
query makes its header one that is refused. (The same with the real recorder: test_recorder.py.)"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bed import Bed
from tests.system.proxy import Proxy
from tests.system.raw import Connection, WebSocket, in_query
from tests.system.recorders import Sink

Record = Callable[..., None]


def ask(bed: Bed, proxy: Proxy, target: str) -> tuple[int, bytes]:
    """The status of an exec by WebSocket; and its output, or the body of the refusal."""
    alice = bed.nodes["alice"]
    with Connection.open(proxy.node.dns_name, proxy.port, through=alice, ca=proxy.ca) as connection:
        answer = WebSocket(connection, target)
        return answer.status, answer.channels().get(1, b"") if answer.status == 101 else answer.body


def path_of(pod: str) -> str:
    return f"/api/v1/namespaces/default/pods/{pod}/exec?stdout=1&"


@pytest.mark.parametrize(
    "query", ["command=echo&command=harmless;&command=REAL", "command=echo&command=x%zz", "command=id;command=ls"]
)
def test_two_commands_in_one_query(
    record: Record, sink: Sink, bed: Bed, shared_proxy: Proxy, web: str, tmp_path: Path, query: str
) -> None:
    record(sink.address, enforce=True)
    mark = tmp_path / "mark"
    status, body = ask(bed, shared_proxy, f"{path_of(web)}container=main&{in_query('mkdir', str(mark))}&{query}")
    assert status == 400 and b"can be read in two ways" in body
    assert not mark.exists() and not sink.kept


def test_the_command_that_ran(record: Record, sink: Sink, bed: Bed, shared_proxy: Proxy, web: str) -> None:
    record(sink.address, enforce=True)
    query = "command=printf&%63ommand=%25s%5Cn&Command=no&command[]=no&command=a%3Bb+c&container=main&container=no"
    assert ask(bed, shared_proxy, path_of(web) + query) == (101, b"a;b c\n")
    header = sink.ended().cast.header
    assert (header["command"], header["kubernetes"]["Container"]) == ("printf %s\\n a;b c", "main")


def test_a_name_with_an_escape(record: Record, sink: Sink, bed: Bed, shared_proxy: Proxy, web: str) -> None:
    """urllib3 writes users/~ so. It is the same pod to the API server, and the same in the recording."""
    record(sink.address, enforce=True)
    path = path_of(web).replace(f"/{web}/", f"/%{ord(web[0]):02x}{web[1:]}/")
    assert ask(bed, shared_proxy, f"{path}command=echo&command=ok&container=main") == (101, b"ok\n")
    assert sink.ended().cast.header["kubernetes"]["PodName"] == web
    assert ask(bed, shared_proxy, f"{path.replace('exec', '%65xec')}command=echo")[0] == 400


@pytest.mark.parametrize("character", ["%01", "%22", "%F0%9F%98%80"])
def test_a_container_that_is_none(
    record: Record, sink: Sink, bed: Bed, shared_proxy: Proxy, web: str, character: str
) -> None:
    """The API server knows no such container; there is nothing to record, and nobody else is any the worse."""
    record(sink.address, enforce=True)
    much = character * (60_000 // len(character))
    # By the API server; or by the proxy, where the container's name makes that answer longer than an error is.
    assert ask(bed, shared_proxy, f"{path_of(web)}command=true&container=%3B{much}")[0] in (400, 403)
    assert ask(bed, shared_proxy, f"{path_of(web)}command=echo&command=ok&container=main") == (101, b"ok\n")
    assert sink.ended(2).cast.header["command"] == "echo ok"


@pytest.mark.parametrize("character", ["x", "\x01", '"'])
def test_a_command_that_is_longer_than_a_header(
    record: Record, sink: Sink, bed: Bed, shared_proxy: Proxy, web: str, character: str
) -> None:
    record(sink.address, enforce=True)
    words = ["sh", "-c", "echo it ran", character * 15_000, "the end"]
    assert ask(bed, shared_proxy, f"{path_of(web)}container=main&{in_query(*words)}") == (101, b"it ran\n")
    header = sink.ended().cast.header
    whole = " ".join(words).encode()
    assert header["command"].startswith("sh -c echo it ran ") and header["command"].endswith(" the end")
    if character == "x":
        assert header["command"].encode() == whole and "truncated" not in header
    else:
        cut = {"bytes": len(whole), "sha256": hashlib.sha256(whole).hexdigest()}
        assert header["truncated"] == {"command": cut}
