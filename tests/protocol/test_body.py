"""Where bodies end: lengths, chunked coding by RFC 9112, 7.1 with every trick, and who has which counter."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from k8sproxy.common.errors import ProtocolError
from k8sproxy.protocol.body import (
    MAX_CHUNK_LINE,
    MAX_TRAILERS,
    Body,
    ChunkedBody,
    LengthBody,
    UntilClose,
    request_body,
    response_body,
)
from tests.protocol.oracles import Other, h11_request, llhttp_requests
from tests.strategies import mutations, splits

HEAD = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
NEXT = b"GET /next HTTP/1.1\r\nHost: a\r\n\r\n"


def feed(body: Body, data: bytes) -> int:
    return body.take(memoryview(data))


def one_by_one(data: bytes) -> tuple[int, bool]:
    body, taken = ChunkedBody(), 0
    for offset in range(len(data)):
        if body.done:
            break
        assert feed(body, data[offset : offset + 1]) == 1
        taken += 1
    return taken, body.done


GOOD = [
    pytest.param(b"0\r\n\r\n", b"", id="empty"),
    pytest.param(b"5\r\nhello\r\n0\r\n\r\n", b"hello", id="one chunk"),
    pytest.param(b"1\r\na\r\n2\r\nbc\r\n0\r\n\r\n", b"abc", id="two chunks"),
    pytest.param(b"A\r\n0123456789\r\na\r\n0123456789\r\n000\r\n\r\n", b"01234567890123456789", id="hex, zeros"),
    pytest.param(b"000000000000005\r\nhello\r\n0\r\n\r\n", b"hello", id="fifteen digits"),
    pytest.param(b"2\r\n\r\n\r\n0\r\n\r\n", b"\r\n", id="data that looks like an end"),
    pytest.param(b"7\r\n0\r\n\r\nGE\r\n0\r\n\r\n", b"0\r\n\r\nGE", id="data that looks like the last chunk"),
    pytest.param(b"5;a=b;c\r\nhello\r\n0;x\r\n\r\n", b"hello", id="extensions"),
    pytest.param(b"5;" + b"x" * (MAX_CHUNK_LINE - 2) + b"\r\nhello\r\n0\r\n\r\n", b"hello", id="longest line"),
    pytest.param(b"1\r\na\r\n0\r\nGrpc-Status: 0\r\nX-Sum:\r\n\r\n", b"a", id="trailers"),
    pytest.param(b"0\r\nX: " + b"v" * (MAX_TRAILERS - 5) + b"\r\n\r\n", b"", id="longest trailers, over by the CRLF"),
    pytest.param(b"0\r\nX: " + b"v" * (MAX_TRAILERS - 3) + b"\r\n\r\n", b"", id="longest trailer line"),
]

CODED: list[bytes] = [param.values[0] for param in GOOD if isinstance(param.values[0], bytes)]

SIZES = [
    *(b"", b" ", b" 5", b"\t5", b"5 ", b"5\t", b"5 ;a", b"+5", b"-5", b"-1", b"0x5", b"0X5", b"5h", b"g", b"5_0"),
    *(b"5,5", b"5 5", b"5.0", b"\x0b5", b"5\x0c", b"5\x00", b"\xd9\xa5", b"\xef\xbc\x95", b"5\r", b"5;a\rb", b"5;\x00"),
    *(
        b"5;a\x7f",
        b"0000000000000005",
        b"10000000000000005",
        b"ffffffffffffffffff",
        b";a",
        b"5;" + b"x" * MAX_CHUNK_LINE,
    ),
]
TRAILERS = [
    *(b"Host: b", b"Content-Length: 5", b"content_length: 5", b"Transfer-Encoding: chunked", b"Connection: close"),
    *(b"Impersonate-User: admin", b"impersonate_group: system:masters", b"IMPERSONATE-EXTRA-x: y", b"Upgrade: h2c"),
    *(b"X-Remote-User: admin", b"X_Remote_Group: a", b"Authorization: Bearer x", b"X-Forwarded-For: 1.2.3.4", b"TE: a"),
    *(b"Forwarded: for=1", b"X-Real-Ip: 1.2.3.4", b"Tailscale-User-Login: a@b", b"Cookie: a=b", b"Set-Cookie: a=b"),
    *(b"Sec-WebSocket-Protocol: base64url.bearer.authorization.k8s.io.x", b"Trailer: x", b"Expect: 100-continue"),
    *(b"Proxy-Authorization: Basic x", b"Proxy-Connection: close", b"Content-Type: text/html", b"Keep-Alive: 1"),
    *(
        b"no colon",
        b": no name",
        b"X : space",
        b" X: fold",
        b"\tX: fold",
        b"X: a\x00",
        b"X: a\rb",
        b"X\xe9: a",
        b"(: a",
    ),
    *(b"X: " + b"v" * MAX_TRAILERS, b"X: v\r\n" * (MAX_TRAILERS // 6 + 2)),
]
BAD = [
    *[pytest.param(size + b"\r\nhello\r\n0\r\n\r\n", id=f"size {size[:20]!r}") for size in SIZES],
    *[pytest.param(b"0\r\n" + line + b"\r\n\r\n", id=f"trailer {line[:30]!r}") for line in TRAILERS],
    pytest.param(b"5\nhello\r\n0\r\n\r\n", id="bare LF behind the size"),
    pytest.param(b"5;a\nhello\r\n0\r\n\r\n", id="bare LF behind an extension (CVE-2025-22871)"),
    pytest.param(b"5\rhello\r\n0\r\n\r\n", id="bare CR behind the size"),
    pytest.param(b"5\r\r\nhello\r\n0\r\n\r\n", id="CR CR LF"),
    pytest.param(b"\r\n5\r\nhello\r\n0\r\n\r\n", id="an empty line first"),
    pytest.param(b"\n5\r\nhello\r\n", id="LF first"),
    pytest.param(b"5\r\nhello0\r\n\r\n", id="no CRLF behind the data"),
    pytest.param(b"5\r\nhello!\r\n0\r\n\r\n", id="longer than its size"),
    pytest.param(b"5\r\nhell\r\n0\r\n\r\n", id="shorter than its size"),
    pytest.param(b"5\r\nhello\n0\r\n\r\n", id="bare LF behind the data"),
    pytest.param(b"5\r\nhello\r0\r\n\r\n", id="bare CR behind the data"),
    pytest.param(b"5\r\nhello\rX0\r\n\r\n", id="CR and anything behind the data"),
    pytest.param(b"5\r\nhelloX\n0\r\n\r\n", id="anything and LF behind the data"),
    pytest.param(b"0\r\nX: a\n\r\n", id="bare LF behind a trailer"),
    pytest.param(b"0\r\n\n", id="bare LF at the end"),
    pytest.param(b"0\r\n\rX", id="bare CR at the end"),
    pytest.param(b"0\n\r\n", id="bare LF behind the last size"),
]


def test_a_length() -> None:
    body = LengthBody(5)
    assert not body.done and not body.at_boundary
    assert feed(body, b"he") == 2
    assert feed(body, b"") == 0
    assert not body.done
    assert feed(body, b"lloGET") == 3
    assert body.done and not body.at_boundary
    assert feed(body, b"GET") == 0


def test_a_length_of_zero_is_done() -> None:
    body = LengthBody(0)
    assert body.done
    assert feed(body, b"GET") == 0


def test_until_close_takes_all() -> None:
    body = UntilClose()
    assert feed(body, b"anything") == 8
    assert not body.done and not body.at_boundary


@pytest.mark.parametrize(("data", "payload"), GOOD)
def test_chunked(data: bytes, payload: bytes) -> None:
    for behind in (b"", NEXT, b"\r\n", b"0"):
        body = ChunkedBody()
        assert feed(body, data + behind) == len(data)
        assert body.done
        assert feed(body, NEXT) == 0
    assert one_by_one(data + NEXT) == (len(data), True)
    for cut in range(len(data)):
        body = ChunkedBody()
        assert feed(body, data[:cut]) == cut
        assert not body.done
        assert feed(body, data[cut:] + NEXT) == len(data) - cut
        assert body.done
    found = h11_request(HEAD + data + NEXT)
    assert (found.body, found.rest) == (payload, NEXT)
    first, second = llhttp_requests(HEAD + data + NEXT)
    assert (first.body, second.start) == (payload, (b"GET", b"/next"))


@pytest.mark.parametrize("data", BAD)
def test_malformed_chunked_coding(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        feed(ChunkedBody(), data)
    with pytest.raises(ProtocolError):
        one_by_one(data)


@pytest.mark.parametrize("data", [b"X" * 4096, b"5;" + b"x" * 4096, b"0\r\nX: " + b"v" * 65536, b"5\r\nhelloXXX"])
def test_a_line_that_never_ends_is_refused_before_it_does(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        feed(ChunkedBody(), data)
    with pytest.raises(ProtocolError):
        one_by_one(data)


def test_trailers_are_limited_together() -> None:
    line = b"X: v\r\n"
    most = MAX_TRAILERS // len(line)
    assert feed(ChunkedBody(), b"0\r\n" + line * most + b"\r\n") == 5 + len(line) * most
    with pytest.raises(ProtocolError):
        feed(ChunkedBody(), b"0\r\n" + line * (most + 2) + b"\r\n")


def test_a_body_may_be_cut_between_chunks_only() -> None:
    body = ChunkedBody()
    boundaries = []
    data = b"1\r\na\r\n5;x\r\nhello\r\n0\r\nX: a\r\n\r\n"
    for offset in range(len(data)):
        if body.at_boundary:
            boundaries.append(offset)
        feed(body, data[offset : offset + 1])
    assert boundaries == [0, 6, 18]
    assert body.done and not body.at_boundary
    whole = ChunkedBody()
    assert feed(whole, data[:18]) == 18
    assert whole.at_boundary


chunk_data = st.lists(st.binary(min_size=1, max_size=40), max_size=6)


def chunked(parts: list[bytes]) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


@given(chunk_data, st.binary(max_size=20), st.data())
def test_any_chunks_at_any_split(parts: list[bytes], behind: bytes, data: st.DataObject) -> None:
    coded = chunked(parts)
    body, taken = ChunkedBody(), 0
    for piece in data.draw(splits(coded + behind)):
        step = feed(body, piece)
        assert step == len(piece) or body.done
        taken += step
    assert body.done
    assert taken == len(coded)


@given(st.sampled_from(CODED).flatmap(mutations) | st.binary(max_size=60), st.data())
@example(b"5\r\nhelloX\n0\r\n\r\n", None)
def test_what_is_accepted_others_read_alike(coded: bytes, data: st.DataObject | None) -> None:
    body = ChunkedBody()
    try:
        taken = feed(body, coded)
        error = False
    except ProtocolError:
        taken, error = 0, True
    if data is not None and coded:
        # However it arrives, it is the same.
        again, sum_taken, error_again = ChunkedBody(), 0, False
        try:
            for piece in data.draw(splits(coded)):
                sum_taken += feed(again, piece)
        except ProtocolError:
            error_again = True
        assert (error, error or taken, body.done or error) == (error_again, error or sum_taken, again.done or error)
    if error or not body.done:
        return
    found = h11_request(HEAD + coded[:taken] + NEXT)
    assert found.rest == NEXT
    try:
        first, second = llhttp_requests(HEAD + coded[:taken] + NEXT)
    except Other:
        return  # stricter on extensions
    assert (first.body, second.start) == (found.body, (b"GET", b"/next"))


@pytest.mark.parametrize(
    ("length", "chunked_coding", "kind", "done"),
    [
        (None, False, LengthBody, True),
        (0, False, LengthBody, True),
        (3, False, LengthBody, False),
        (None, True, ChunkedBody, False),
    ],
)
def test_a_requests_body(length: int | None, chunked_coding: bool, kind: type, done: bool) -> None:
    body = request_body(length, chunked_coding)
    assert type(body) is kind
    assert body.done is done


@pytest.mark.parametrize(
    ("method", "status", "length", "chunked_coding", "kind", "done"),
    [
        ("GET", 200, None, False, UntilClose, False),
        ("GET", 200, 7, False, LengthBody, False),
        ("GET", 200, 0, False, LengthBody, True),
        ("GET", 200, None, True, ChunkedBody, False),
        ("GET", 205, None, False, UntilClose, False),
        ("HEAD", 200, 7, False, LengthBody, True),
        ("HEAD", 200, None, True, LengthBody, True),
        ("HEAD", 404, None, False, LengthBody, True),
        ("GET", 304, 7, False, LengthBody, True),
        ("GET", 304, None, True, LengthBody, True),
        ("DELETE", 204, None, True, LengthBody, True),
        ("DELETE", 204, 7, False, LengthBody, True),
    ],
)
def test_a_responses_body(
    method: str, status: int, length: int | None, chunked_coding: bool, kind: type, done: bool
) -> None:
    body = response_body(method, status, length, chunked_coding)
    assert type(body) is kind
    assert body.done is done


def test_the_rest_of_a_chunk_costs_next_to_nothing_unless_it_is_dear() -> None:
    body = ChunkedBody()
    assert body.run == 0
    feed(body, b"5\r\nab")
    assert body.run == 3
    body.dear = True
    assert body.run == 0
    body.dear = False
    feed(body, b"cde")
    assert body.run == 0
