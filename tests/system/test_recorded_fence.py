"""Clients that are no kubectl, where recording is enforced: whatever they send, what has run has been recorded."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from k8sproxy.protocol.spdy import data_frame
from tests.bed import Bed
from tests.system.raw import BINARY, CONTINUATION, PING, Connection, Spdy, WebSocket, frame, in_query
from tests.system.recorders import Sink, dead_port

Connect = Callable[[], contextlib.AbstractContextManager[Connection]]
EXEC = "/api/v1/namespaces/default/pods/web/exec"
STDIN, RESIZE = b"\0", b"\4"


@pytest.fixture
def recorded(record: Callable[..., None], sink: Sink, web: str) -> Sink:
    """The recorder that alice's grant enforces."""
    record(sink.address, enforce=True)
    return sink


# -- subprotocols: what is offered, and whether there is a session then

PROTOCOLS: dict[str | None, bool] = {
    "v5.channel.k8s.io": True,
    "v4.channel.k8s.io": True,
    "channel.k8s.io": True,
    "base64.channel.k8s.io": True,
    "v4.base64.channel.k8s.io": True,
    None: True,  # servers take it for the oldest one
    "v5.channel.k8s.io, v4.channel.k8s.io": True,
    "v4.base64.channel.k8s.io,channel.k8s.io": True,
    "v9.channel.k8s.io, v4.channel.k8s.io": True,  # what can't be read is not passed on
    "v9.channel.k8s.io": False,
    "SPDY/3.1+portforward.k8s.io": False,
    "V4.CHANNEL.K8S.IO": False,
    "v5.channel.k8s.io;q=1": False,
}


@pytest.mark.parametrize("offered", PROTOCOLS)
def test_every_websocket_subprotocol(recorded: Sink, connect: Connect, tmp_path: Path, offered: str | None) -> None:
    mark = tmp_path / "mark"
    with connect() as connection:
        client = WebSocket(connection, f"{EXEC}?stdout=1&{in_query('mkdir', '-v', str(mark))}", offered)
        assert (client.status == 101) == PROTOCOLS[offered]
        if client.status == 101:
            assert client.channels()[1].startswith(b"mkdir: created directory")
    assert mark.exists() == PROTOCOLS[offered]
    if mark.exists():
        kept = recorded.ended()
        assert kept.end == "clean"
        assert kept.cast.output().startswith(b"mkdir: created directory")
    else:
        assert client.status in (400, 403)


@pytest.mark.parametrize("offered", PROTOCOLS)
def test_no_websocket_without_a_recorder(
    record: Callable[..., None], web: str, connect: Connect, tmp_path: Path, offered: str | None
) -> None:
    mark = tmp_path / "mark"
    with dead_port() as nobody:
        record(nobody, enforce=True)
        with connect() as connection:
            client = WebSocket(connection, f"{EXEC}?stdout=1&{in_query('mkdir', str(mark))}", offered)
    assert client.status == 403
    # No recorder took it, or the protocol can't be recorded: whichever is found first.
    assert re.search("must be recorded|can be recorded", json.loads(client.body)["message"])
    assert not mark.exists()


def test_an_extension_is_not_passed_on(recorded: Sink, connect: Connect) -> None:
    headers = {"Sec-WebSocket-Extensions": "permessage-deflate; client_max_window_bits"}
    with connect() as connection:
        client = WebSocket(connection, f"{EXEC}?stdout=1&{in_query('echo', 'plain')}", headers=headers)
        assert client.status == 101
        assert "sec-websocket-extensions" not in client.headers
        assert client.channels()[1] == b"plain\n"
    assert recorded.ended().cast.output() == b"plain\n"


def test_a_clients_own_audit_id_is_dropped(recorded: Sink, connect: Connect, bed: Bed) -> None:
    with connect() as connection:
        client = WebSocket(connection, f"{EXEC}?stdout=1&{in_query('true')}", headers={"Audit-ID": "forged-by-client"})
        client.channels()
    session = recorded.ended().cast.header["sessionID"]
    audited = {event["auditID"] for event in bed.cluster.audit_events()}
    assert session in audited
    assert "forged-by-client" not in audited


# -- sizes


def _size(columns: int, rows: int) -> bytes:
    return b'{"Width":%d,"Height":%d}' % (columns, rows)


SIZED = "until [ \"$(stty size)\" = '31 101' ]; do sleep 0.02; done; echo sized"


def test_two_sizes_in_one_read(recorded: Sink, connect: Connect) -> None:
    target = f"{EXEC}?stdin=1&stdout=1&tty=1&{in_query('sh', '-c', SIZED)}"
    with connect() as connection:
        client = WebSocket(connection, target)
        first, second = (frame(BINARY, RESIZE + _size(*size)) for size in ((100, 30), (101, 31)))
        connection.sock.sendall(first + second)
        assert client.channels()[1] == b"sized\r\n"
    cast = recorded.ended().cast
    assert cast.sizes == [(100, 30), (101, 31)]
    assert cast.output() == b"sized\r\n"


def test_two_sizes_in_one_read_over_spdy(recorded: Sink, connect: Connect) -> None:
    target = f"{EXEC}?stdin=1&stdout=1&tty=1&{in_query('sh', '-c', SIZED)}"
    with connect() as connection:
        client = Spdy(connection, target)
        _, _, _, resize = (client.open(kind) for kind in ("error", "stdin", "stdout", "resize"))
        connection.sock.sendall(b"".join(data_frame(resize, _size(*size)) for size in ((100, 30), (101, 31))))
        assert client.said()["stdout"] == b"sized\r\n"
    assert recorded.ended().cast.sizes == [(100, 30), (101, 31)]


def test_a_client_that_never_says_a_size(recorded: Sink, connect: Connect, tmp_path: Path) -> None:
    """Its output does not wait for one, and neither does its recording, for long."""
    script = f"echo at once; until [ -e {tmp_path}/go ]; do sleep 0.05; done"
    with connect() as connection:
        client = WebSocket(connection, f"{EXEC}?stdin=1&stdout=1&tty=1&{in_query('sh', '-c', script)}")
        shown = b""
        for _, payload in client.frames():
            shown += payload[1:]
            if shown == b"at once\r\n":
                break
        kept = recorded.wait(lambda: next((kept for kept in recorded.kept if b"at once" in kept.body), None), "it")
        assert not kept.end
        (tmp_path / "go").touch()
        client.channels()
    assert recorded.ended().cast.sizes == [(80, 24)]


# -- frames without end

MANY = 10_000
NOTHING = {
    "empty messages": frame(BINARY) * MANY,
    "input of no bytes": frame(BINARY, STDIN) * MANY,
    "sizes of no bytes": frame(BINARY, RESIZE) * MANY,
    "pings": frame(PING, b"p") * MANY,
    "empty fragments": frame(BINARY, STDIN, final=False)
    + frame(CONTINUATION, final=False) * (MANY - 2)
    + frame(CONTINUATION),
}
ECHO = in_query("sh", "-c", "read line; echo got $line")


@pytest.mark.parametrize("name", NOTHING)
def test_ten_thousand_frames_of_nothing(recorded: Sink, connect: Connect, name: str) -> None:
    """Whatever the kubelet makes of them, output and recording agree; and nobody stumbles."""
    with connect() as connection:
        client = WebSocket(connection, f"{EXEC}?stdin=1&stdout=1&{ECHO}")
        connection.sock.sendall(NOTHING[name] + frame(BINARY, STDIN + b"this\n"))
        said = client.channels()
    assert said[1] == b"got this\n"
    kept = recorded.ended()
    assert kept.end == "clean"
    assert kept.cast.output() == b"got this\n"


def test_ten_thousand_frames_of_nothing_over_spdy(recorded: Sink, connect: Connect) -> None:
    with connect() as connection:
        client = Spdy(connection, f"{EXEC}?stdin=1&stdout=1&{ECHO}")
        _, stdin, _ = (client.open(kind) for kind in ("error", "stdin", "stdout"))
        connection.sock.sendall(data_frame(stdin, b"") * MANY + data_frame(stdin, b"this\n"))
        assert client.said()["stdout"] == b"got this\n"
    assert recorded.ended().cast.output() == b"got this\n"


# -- what can't be read


def test_a_frame_that_is_none_ends_the_session(recorded: Sink, connect: Connect) -> None:
    script = "echo begun; read line; echo $line"
    with connect() as connection:
        client = WebSocket(connection, f"{EXEC}?stdin=1&stdout=1&{in_query('sh', '-c', script)}")
        connection.sock.sendall(b"\xff\xff\xff\xff")
        said = client.channels()
    assert b"cannot be: what the client sends can't be read" in said[3]
    kept = recorded.ended()
    assert kept.end == "clean" and b"what the client sends can't be read" in kept.cast.output()


def test_a_second_output_stream_ends_the_session(recorded: Sink, connect: Connect) -> None:
    """The kubelet would write to the last one."""
    with connect() as connection:
        client = Spdy(connection, f"{EXEC}?stdin=1&stdout=1&{ECHO}")
        for kind in ("error", "stdin", "stdout", "stdout"):
            client.open(kind)
        said = client.said()
    assert said.get("stdout", b"") == b""
    kept = recorded.ended()
    assert kept.end == "clean" and b"a second stream of one type" in kept.cast.output()
