"""Response heads: whatever comes, the client must see the framing that we count, and nothing of our connection."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from k8sproxy.common.errors import ProtocolError
from k8sproxy.protocol.body import ChunkedBody, LengthBody, response_body
from k8sproxy.protocol.http1 import ResponseHead, parse_response_head
from tests.protocol.oracles import Other, client_response, h11_response, llhttp_responses
from tests.strategies import mutations

NEXT = b"HTTP/1.1 299 Next\r\nContent-Length: 0\r\n\r\n"


def head(*lines: str | bytes, start: bytes = b"HTTP/1.1 200 OK\r\n") -> bytes:
    encoded = [line if isinstance(line, bytes) else line.encode("latin-1") for line in lines]
    return start + b"".join(line + b"\r\n" for line in encoded) + b"\r\n"


def parse(*lines: str | bytes, start: bytes = b"HTTP/1.1 200 OK\r\n") -> ResponseHead:
    return parse_response_head(head(*lines, start=start))


def refused(data: bytes) -> None:
    with pytest.raises(ProtocolError) as caught:
        parse_response_head(data)
    assert caught.value.status == 502


APISERVER = head(
    "Audit-Id: 0a1b2c3d-1111-2222-3333-444455556666",
    "Cache-Control: no-cache, private",
    "Content-Type: application/json",
    "X-Kubernetes-Pf-Flowschema-Uid: 0a1b2c3d-1111-2222-3333-444455556666",
    "Date: Mon, 02 Nov 2026 10:00:00 GMT",
    "Content-Length: 3",
)


def test_the_api_servers_head_goes_on_as_it_is() -> None:
    found = parse_response_head(APISERVER)
    assert found == ResponseHead(200, b"HTTP/1.1 200 OK\r\n", APISERVER[17:-2], 3, False, False, b"")
    watch = parse("Content-Type: application/json", "Transfer-Encoding: chunked", "Date: x")
    assert watch.fields == b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\nDate: x\r\n"
    assert (watch.content_length, watch.chunked) == (None, True)


def test_a_head_without_framing_or_without_fields() -> None:
    found = parse("Content-Type: text/plain", "Trailer: X", "Upgraded: y", "Teapot: z", "Alt-Svcs: a", "Prox: b")
    assert (found.content_length, found.chunked, found.close) == (None, False, False)
    assert found.fields.count(b"\r\n") == 6
    assert parse() == ResponseHead(200, b"HTTP/1.1 200 OK\r\n", b"", None, False, False, b"")


@pytest.mark.parametrize(
    "line",
    [b"HTTP/1.1 200", b"HTTP/1.1 200 ", b"HTTP/1.1 599 Caf\xc3\xa9 \xff", b"HTTP/1.1 404 a\tb", b"HTTP/1.0 200 OK"],
)
def test_status_lines(line: bytes) -> None:
    found = parse("A: b", start=line + b"\r\n")
    assert found.status == int(line[9:12])
    assert found.status_line == line + b"\r\n"
    assert found.close is (line[7:8] == b"0")


@pytest.mark.parametrize(
    "line",
    [
        *(b"", b"HTTP/1.1", b"HTTP/1.1 ", b"HTTP/1.1 20", b"HTTP/1.1 2000", b"HTTP/1.1 600 x", b"HTTP/1.1 099 x"),
        *(
            b"HTTP/1.1  200 OK",
            b"HTTP/1.1\t200 OK",
            b"HTTP/1.1 200\tOK",
            b"HTTP/2 200 OK",
            b"HTTP/1.2 200 OK",
            b"HTTP/0.9 200 OK",
        ),
        *(
            b"http/1.1 200 OK",
            b"ICY 200 OK",
            b" HTTP/1.1 200 OK",
            b"HTTP/1.1 200 a\0b",
            b"HTTP/1.1 200 a\rb",
            b"HTTP/1.1 200 a\nb",
        ),
        *(
            b"HTTP/1.1 200 a\x7f",
            b"HTTP/1.1 +20 OK",
            b"HTTP/1.1 \xb2\xb2\xb2 OK",
            b"\r\nHTTP/1.1 200 OK",
            b"HTTP/1.1 200 OK\n",
        ),
    ],
)
def test_malformed_status_lines(line: bytes) -> None:
    refused(line + b"\r\nA: b\r\n\r\n")


@pytest.mark.parametrize(
    "line",
    [
        *(
            "no colon",
            ": no name",
            "A : b",
            "A\t: b",
            " A: b",
            "A: b\r\n c",
            "A: b\r\n\tc",
            "A: b\rc",
            "A: b\nc",
            "A: b\n",
        ),
        *(
            "A: \x00",
            "A\x00: b",
            "A B: c",
            b"A\xe9: b",
            "\x0bContent-Length: 5",
            "Content-Length : 5",
            "Content-Length\x0b: 5",
        ),
        *(
            "Transfer-Encoding : chunked",
            "Transfer-Encoding\t: chunked",
            " Transfer-Encoding: chunked",
            "Connection : close",
        ),
        *(
            "Content-Length: 5\nX: y",
            "X: y\nContent-Length: 5",
            "X: y\rContent-Length: 5",
            "A: b\r\n\r\nHTTP/1.1 200 OK",
        ),
    ],
)
def test_malformed_fields(line: str | bytes) -> None:
    refused(head(line))
    refused(head("A: b", line, "C: d"))


@pytest.mark.parametrize(
    "lines",
    [
        *(["Transfer-Encoding: chunked", "Content-Length: 5"], ["Content-Length: 5", "Transfer-Encoding: chunked"]),
        *(
            ["Transfer-Encoding: gzip, chunked"],
            ["Transfer-Encoding: identity"],
            ["Transfer-Encoding: chunked, chunked"],
        ),
        *(
            ["Transfer-Encoding: chunked", "Transfer-Encoding: chunked"],
            ["Transfer-Encoding: chunked", "Transfer-Encoding: x"],
        ),
        *(["Transfer-Encoding:"], ["Transfer-Encoding: chunked;a=b"], ["Transfer-Encoding: \x0bchunked"]),
        *(
            ["Content-Length: 5", "Content-Length: 6"],
            ["Content-Length: 5", "Content-Length: 05"],
            ["Content-Length: 5, 5"],
        ),
        *(
            ["Content-Length: -1"],
            ["Content-Length: +1"],
            ["Content-Length: 0x1"],
            ["Content-Length:"],
            ["Content-Length: 1 1"],
        ),
        *(
            ["Content-Length: " + "9" * 19],
            ["Content-Length: " + "9" * 5000],
            ["Content-Length: 5\x0b"],
            ["Content-Length: \xb2"],
        ),
        *(
            ["Connection: Content-Length", "Content-Length: 5", "Transfer-Encoding: chunked"],
            ["Content-Length: a", "Connection: x"],
        ),
    ],
)
def test_ambiguous_framing(lines: list[str]) -> None:
    for status in (b"200", b"304", b"206", b"500"):
        refused(head(*lines, start=b"HTTP/1.1 " + status + b" x\r\n"))


def test_chunked_coding_in_http_1_0() -> None:
    refused(head("Transfer-Encoding: chunked", start=b"HTTP/1.0 200 OK\r\n"))


def test_http_1_0_closes_and_keeps_its_length() -> None:
    found = parse("Content-Length: 5", "Connection: keep-alive", start=b"HTTP/1.0 200 OK\r\n")
    assert (found.close, found.content_length, found.fields) == (True, 5, b"Content-Length: 5\r\n")


@pytest.mark.parametrize(
    ("lines", "fields", "length", "chunked"),
    [
        (["Content-Length: 5", "Content-Length: 5"], b"Content-Length: 5\r\n", 5, False),
        (["content-length:\t007 "], b"Content-Length: 7\r\n", 7, False),
        (["Content-Length: 5 "], b"Content-Length: 5\r\n", 5, False),
        (["TRANSFER-ENCODING:  Chunked "], b"Transfer-Encoding: chunked\r\n", None, True),
        (["Connection: content-length", "Content-Length: 5"], b"Content-Length: 5\r\n", 5, False),
        (
            ["Connection: Transfer-Encoding", "Transfer-Encoding: chunked"],
            b"Transfer-Encoding: chunked\r\n",
            None,
            True,
        ),
    ],
)
def test_unusual_framing_is_written_anew(lines: list[str], fields: bytes, length: int | None, chunked: bool) -> None:
    found = parse("A: b", *lines)
    assert (found.fields, found.content_length, found.chunked) == (b"A: b\r\n" + fields, length, chunked)


def test_what_speaks_of_one_connection_ends_here() -> None:
    found = parse(
        *("A: b", "Connection: Close, X-Hop", "X-Hop: 1", "Keep-Alive: timeout=5", "Upgrade: h2c", "TE: trailers"),
        *('Alt-Svc: h3=":443"', "Proxy-Authenticate: Basic", "proxy-connection: close", "C:d", "x-hop: 2"),
    )
    assert found.fields == b"A: b\r\nC:d\r\n"
    assert found.close
    assert parse("Connection: keep-alive").close is False
    assert parse("CONNECTION: x, CLOSE").close is True
    # Each of the names alone is enough.
    for line in ("Keep-Alive: 5", "Upgrade: x", "te: x", "alt-svc: x", "Proxy-X: y", "Connection: z"):
        assert parse("A: b", line, "Content-Length: 0").fields == b"A: b\r\nContent-Length: 0\r\n"


def test_a_switch_of_protocols() -> None:
    start = b"HTTP/1.1 101 Switching Protocols\r\n"
    found = parse(
        "Upgrade: SPDY/3.1", "Connection: Upgrade", "X-Stream-Protocol-Version: v4.channel.k8s.io", start=start
    )
    assert (found.status, found.upgrade) == (101, b"SPDY/3.1")
    assert found.fields == b"X-Stream-Protocol-Version: v4.channel.k8s.io\r\n"
    # Some servers of applications send framing fields with it, which mean nothing.
    for line in ("Content-Length: 0", "Content-Length: 7", "Transfer-Encoding: chunked", "Content-Length: x"):
        found = parse("Connection: upgrade", line, "Upgrade:websocket ", start=start)
        assert found == ResponseHead(101, start, b"", None, False, False, b"websocket")
    assert parse("Upgrade: a", "Upgrade: b", start=start).upgrade == b""
    assert parse(start=start).upgrade == b""


def test_interim_responses() -> None:
    for start in (b"HTTP/1.1 100 Continue\r\n", b"HTTP/1.1 103 Early Hints\r\n"):
        found = parse("Link: </a>", start=start)
        assert found.fields == b"Link: </a>\r\n"
        for line in ("Content-Length: 0", "Content-Length: 5", "Transfer-Encoding: chunked"):
            refused(head(line, start=start))
            refused(head("Connection: x", line, start=start))
    refused(head(start=b"HTTP/1.0 100 Continue\r\n"))
    refused(head(start=b"HTTP/1.0 101 x\r\n"))


def test_no_content_has_no_framing() -> None:
    for line in ("Content-Length: 5", "Content-Length: 0", "Transfer-Encoding: chunked"):
        found = parse("A: b", line, start=b"HTTP/1.1 204 No Content\r\n")
        assert found == ResponseHead(204, b"HTTP/1.1 204 No Content\r\n", b"A: b\r\n", None, False, False, b"")


def test_not_modified_may_say_the_length_of_what_it_does_not_send() -> None:
    start = b"HTTP/1.1 304 Not Modified\r\n"
    found = parse("Content-Length: 5", start=start)
    assert (found.fields, found.content_length) == (b"Content-Length: 5\r\n", 5)
    # http.client (and so the Python client) would wait for the chunks.
    found = parse("A: b", "Transfer-Encoding: chunked", start=start)
    assert (found.fields, found.chunked) == (b"A: b\r\n", False)


_LINES = st.sampled_from(
    [
        *(
            b"Content-Length: 3",
            b"content-length:3",
            b"Content-Length: 03 ",
            b"Content-Length: 0",
            b"Content-Length: 4",
        ),
        *(
            b"Transfer-Encoding: chunked",
            b"transfer-encoding:CHUNKED ",
            b"Transfer-Encoding: gzip",
            b"Transfer-Encoding:",
        ),
        *(
            b"Connection: close",
            b"Connection: content-length",
            b"Connection: x, transfer-encoding",
            b"Connection: upgrade",
        ),
        *(
            b"Upgrade: websocket",
            b"X: y",
            b"X:",
            b"X: \xff\x85\xa0",
            b"X: \x1c",
            b"X: \x01\x0b\x0c",
            b"Trailer: X",
            b"Keep-Alive: 5",
        ),
        *(
            b"Content-Length : 3",
            b" Content-Length: 3",
            b"Content-Length: 3, 3",
            b"Content-Length: +3",
            b"Alt-Svc: clear",
        ),
        *(b"X", b"X: y\nContent-Length: 3", b"X: y\rContent-Length: 3", b"Set-Cookie: a=b", b"Content_Length: 3"),
    ]
)
_STARTS = st.sampled_from(
    [
        *[b"HTTP/1.1 %d x\r\n" % status for status in (200, 200, 200, 204, 304, 205, 206, 404, 500, 101, 100, 103)],
        *(
            b"HTTP/1.1 200\r\n",
            b"HTTP/1.1 200 \r\n",
            b"HTTP/1.1 200 \xff\r\n",
            b"HTTP/1.0 200 OK\r\n",
            b"HTTP/1.0 204 x\r\n",
        ),
    ]
)
_HEADS = st.tuples(st.lists(_LINES, max_size=4), _STARTS).map(lambda pair: head(*pair[0], start=pair[1]))


@given(_HEADS | _HEADS.flatmap(mutations) | mutations(APISERVER), st.sampled_from(["GET", "HEAD", "POST"]))
@example(APISERVER, "GET")
@example(APISERVER, "HEAD")
@example(head("Content-Length: 3", start=b"HTTP/1.1 204 x\r\n"), "GET")
def test_the_client_sees_the_framing_that_is_counted(data: bytes, method: str) -> None:
    try:
        found = parse_response_head(data)
    except ProtocolError as error:
        assert error.status == 502
        return
    if (found.content_length or 0) > 4096 or found.status < 200:
        return
    body = response_body(method, found.status, found.content_length, found.chunked)
    if isinstance(body, ChunkedBody):
        coded, payload = b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\n", b"abc"
    elif isinstance(body, LengthBody):
        coded = payload = b"" if body.done else b"x" * (found.content_length or 0)
    else:
        coded = payload = b"until the end"
    # What the relay writes to the client.
    sent = b"HTTP/1.1" + found.status_line[8:] + found.fields + b"\r\n"
    closing = not isinstance(body, ChunkedBody | LengthBody)
    behind = b"" if closing else NEXT

    stream = sent + coded + behind
    for oracle in (h11_response, client_response):
        message = oracle(stream, method, ended=closing)
        assert (message.start, message.body) == (found.status, payload)
    if method == "GET":
        try:
            messages = llhttp_responses(stream)
        except Other:
            return
        if not closing:
            assert [m.start for m in messages] == [found.status, 299]
            assert messages[0].body == payload
        names = [name for name, _ in messages[0].fields] if messages else []
        assert names.count(b"content-length") + names.count(b"transfer-encoding") <= 1


@given(_HEADS.flatmap(mutations))
def test_a_head_that_goes_on_is_read_again_alike(data: bytes) -> None:
    """Nothing of the connection, and no second reading, is left in what is passed on."""
    try:
        found = parse_response_head(data)
    except ProtocolError:
        return
    again = parse_response_head(b"HTTP/1.1" + found.status_line[8:] + found.fields + b"\r\n")
    assert again == found._replace(close=False, upgrade=b"", status_line=b"HTTP/1.1" + found.status_line[8:])
