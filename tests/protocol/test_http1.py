"""Request heads: what clients really send, every way to smuggle that we know of, and what h11 and llhttp make of it."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from k8sproxy.common.errors import ProtocolError
from k8sproxy.protocol.body import request_body
from k8sproxy.protocol.http1 import (
    METHODS,
    Fields,
    RequestHead,
    head_end,
    origin_form,
    parse_fields,
    parse_request_line,
)
from tests.protocol.oracles import Other, h11_request, llhttp_requests
from tests.strategies import mutations

NEXT = b"GET /next HTTP/1.1\r\nHost: n\r\n\r\n"
LINE = b"GET / HTTP/1.1\r\n"


def parse(head: bytes, max_count: int = 100) -> RequestHead:
    assert head_end(head) == len(head)
    method, target, start = parse_request_line(head)
    fields = parse_fields(head[start:], max_count=max_count)
    return RequestHead(method, origin_form(target, fields.host), fields)


def head(*lines: str | bytes, start: bytes = LINE, host: bytes = b"Host: a\r\n") -> bytes:
    encoded = [line if isinstance(line, bytes) else line.encode("latin-1") for line in lines]
    return start + host + b"".join(line + b"\r\n" for line in encoded) + b"\r\n"


def fields(*lines: str | bytes) -> Fields:
    return parse(head(*lines)).fields


def refused(data: bytes, status: int = 400, words: str | None = None) -> None:
    with pytest.raises(ProtocolError, match=words) as caught:
        parse(data)
    assert caught.value.status == status


# -- where a head ends


def test_a_head_ends_with_an_empty_line() -> None:
    whole = head("A: b")
    assert head_end(whole) == len(whole)
    assert head_end(whole + NEXT) == len(whole)
    assert head_end(bytearray(whole)) == len(whole)
    for cut in range(len(whole)):
        assert head_end(whole[:cut]) == -1
        # However far earlier calls have looked, the end is not missed.
        assert head_end(whole + b"rest", cut) == len(whole)


@pytest.mark.parametrize(
    "data", [b"", b"\r\n", b"GET / HTTP/1.1\n\n", b"GET / HTTP/1.1\r\n\n", b"a\r\n\rb", b"a\n\r\n"]
)
def test_only_two_whole_line_ends_are_an_end(data: bytes) -> None:
    assert head_end(data) == -1


# -- what clients send

KUBECTL = head(
    "User-Agent: kubectl/v1.36.0 (linux/amd64) kubernetes/0123abc",
    "Accept: application/json;as=Table;v=v1;g=meta.k8s.io,application/json",
    "Kubectl-Command: kubectl get",
    "Accept-Encoding: gzip",
    start=b"GET /api/v1/namespaces/default/pods?limit=500 HTTP/1.1\r\n",
    host=b"Host: k8s.tail1.ts.net:8443\r\n",
)
EXEC_SPDY = head(
    "User-Agent: kubectl/v1.29.0 (linux/amd64) kubernetes/0123abc",
    "Content-Length: 0",
    "Connection: Upgrade",
    "Upgrade: SPDY/3.1",
    "X-Stream-Protocol-Version: v4.channel.k8s.io",
    "X-Stream-Protocol-Version: v3.channel.k8s.io",
    start=b"POST /api/v1/namespaces/d/pods/web/exec?command=sh&stdin=true HTTP/1.1\r\n",
)
EXEC_WEBSOCKET = head(
    "Upgrade: websocket",
    "Connection: keep-alive, Upgrade",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Protocol: v5.channel.k8s.io,v4.channel.k8s.io",
    start=b"GET /api/v1/namespaces/d/pods/web/exec?command=sh HTTP/1.1\r\n",
)
APPLY = head(
    "Content-Type: application/apply-patch+yaml",
    "Content-Length: 12",
    "Expect: 100-continue",
    start=b"PATCH /api/v1/namespaces/d/configmaps/a?fieldManager=kubectl HTTP/1.1\r\n",
)
CHUNKED = head("Transfer-Encoding: chunked", "TE: trailers", "Trailer: X-Sum", start=b"POST /api/v1/x HTTP/1.1\r\n")
# java.net.http over plain HTTP, and curl --http2
JAVA = head(
    "Connection: Upgrade, HTTP2-Settings",
    "Content-Length: 0",
    "HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA",
    "Upgrade: h2c",
    "User-Agent: Java-http-client/21",
)
REAL = [KUBECTL, EXEC_SPDY, EXEC_WEBSOCKET, APPLY, CHUNKED, JAVA]


def test_kubectl() -> None:
    found = parse(KUBECTL)
    assert (found.method, found.target) == ("GET", "/api/v1/namespaces/default/pods?limit=500")
    assert found.fields.host == b"k8s.tail1.ts.net:8443"
    assert found.fields.items[1] == (b"user-agent", b"kubectl/v1.36.0 (linux/amd64) kubernetes/0123abc")
    assert found.fields.get(b"accept-encoding") == b"gzip"
    assert found.fields.get(b"accept-language") == b""
    assert found.fields.content_length is None
    assert not (found.fields.chunked or found.fields.close or found.fields.upgrade or found.fields.connection)


def test_upgrades() -> None:
    spdy = parse(EXEC_SPDY).fields
    assert (spdy.upgrade, spdy.content_length, spdy.connection) == ("spdy/3.1", 0, frozenset({b"upgrade"}))
    assert spdy.get(b"x-stream-protocol-version") == b"v4.channel.k8s.io"
    websocket = parse(EXEC_WEBSOCKET).fields
    assert (websocket.upgrade, websocket.content_length) == ("websocket", None)
    assert websocket.connection == {b"keep-alive", b"upgrade"}
    for upgrade in ("WebSocket", "WEBSOCKET", "spdy/3.1", "Spdy/3.1"):
        for connection in ("Upgrade", "upgrade", "UPGRADE", "keep-alive , upgrade", ",upgrade,,", "close,\tUpgrade"):
            found = fields(f"Connection: {connection}", f"Upgrade: {upgrade}")
            assert found.upgrade == upgrade.lower()
    assert fields("Connection: keep-alive", "Upgrade: websocket", "Connection: upgrade").upgrade == "websocket"


def test_bodies() -> None:
    assert parse(APPLY).fields.content_length == 12
    assert parse(CHUNKED).fields.chunked
    for value in ("chunked", "Chunked", "CHUNKED", " \t chunked \t"):
        assert fields(f"Transfer-Encoding:{value}").chunked
    for value, length in (("0", 0), (" 7 ", 7), ("\t7", 7), ("007", 7), ("9" * 18, 10**18 - 1)):
        assert fields(f"Content-Length:{value}").content_length == length
    # A body where the method usually has none, and none where it has one.
    assert parse(head("Content-Length: 2", start=b"GET / HTTP/1.1\r\n")).fields.content_length == 2
    assert parse(head(start=b"POST / HTTP/1.1\r\n")).fields.content_length is None


def test_connection() -> None:
    assert fields("Connection: close").close
    assert fields("Connection: Keep-Alive, Close").close
    assert fields("Connection: x", "connection: CLOSE").connection == {b"x", b"close"}
    assert not fields("Connection: keep-alive", "Keep-Alive: timeout=5").close
    assert not fields("X-Connection: close").close


def test_values_are_as_they_were_without_blanks_around() -> None:
    found = fields(
        "Empty:",
        "Blank: \t ",
        "Inner:  a \t b  ",
        b"Obs-Text: caf\xc3\xa9 \xff",
        "Colon: a:b: c",
        "'^`|~!#$%&*+.-_9: odd",
    )
    assert found.items[1:] == (
        (b"empty", b""),
        (b"blank", b""),
        (b"inner", b"a \t b"),
        (b"obs-text", b"caf\xc3\xa9 \xff"),
        (b"colon", b"a:b: c"),
        (b"'^`|~!#$%&*+.-_9", b"odd"),
    )


@pytest.mark.parametrize("method", sorted(METHODS))
def test_methods(method: str) -> None:
    assert parse(head(start=method.encode() + b" /a HTTP/1.1\r\n")).method == method


@pytest.mark.parametrize(
    "host",
    ["a", "k8s.tail1.ts.net", "a.", "a:443", "a:", "127.0.0.1:8443", "[fd7a::1]", "[fd7a::1]:443", "k8s_proxy", "%61"],
)
def test_hosts(host: str) -> None:
    for line in (f"Host: {host}", f"hOsT:{host} \t"):
        assert parse(head(line, host=b"")).fields.host == host.encode()


def test_absolute_form_to_the_same_host() -> None:
    for target, path in (
        ("http://A.b:80/x?y", "/x?y"),
        ("HTTPS://a.B:80", "/"),
        ("https://a.b:80?x=/y", "/?x=/y"),
        ("https://a.b:80//x", "//x"),
    ):
        assert parse(head(start=f"GET {target} HTTP/1.1\r\n".encode(), host=b"Host: a.b:80\r\n")).target == path


def test_repeats_of_a_head_are_equal_and_hide_their_values() -> None:
    first, second = fields("Authorization: Bearer secret"), fields("Authorization: Bearer secret")
    first.memo["x"] = 1
    assert first == second and hash(first) == hash(second)
    assert "secret" not in repr(RequestHead("GET", "/", first))


def test_h2c_is_passed_over() -> None:
    found = parse(JAVA).fields
    assert found.upgrade == "" and found.offers_upgrade
    assert found.connection == {b"upgrade", b"http2-settings"}
    # With a body too: it is sent as usual where the offer is passed over.
    assert fields("Connection: Upgrade", "Upgrade: H2C", "Content-Length: 5").content_length == 5
    assert fields("Upgrade: h2c").upgrade == ""
    assert not fields("Connection: keep-alive").offers_upgrade


@pytest.mark.parametrize(
    "offer",
    [
        ("Connection: Upgrade", "Upgrade: TLS/1.2"),  # httpclient5, to every server
        ("Connection: Upgrade", "Upgrade: TLS/1.0"),
        ("Connection: upgrade, keep-alive", "Upgrade: HTTP/2.0, SHTTP/1.3, IRC/6.9, RTA/x11"),  # RFC 9110, 7.8
        ("Connection: Upgrade", "Upgrade: h2c, TLS/1.2"),
        ("Connection: Upgrade", "Upgrade: h2c", "Upgrade: TLS/1.2"),
        ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c, h2", "HTTP2-Settings: AAMAAABkAAQ"),
        ("Connection: Upgrade", "Upgrade: connect-udp"),
        ("Connection: Upgrade", "Upgrade: \xe9"),
        ("Upgrade: TLS/1.2",),
        ("Connection: close, Upgrade", "Upgrade: x"),
        # Nothing is offered: nginx with `Connection "upgrade"` for every request says this of most of them.
        ("Connection: Upgrade",),
        ("Connection: keep-alive, upgrade",),
        ("Connection: Upgrade", "Upgrade:"),
        ("Connection: Upgrade", "Upgrade: ,"),
        ("Upgrade: ",),
    ],
)
def test_an_offer_that_is_not_understood_is_passed_over(offer: tuple[str, ...]) -> None:
    found = fields(*offer)
    assert found.upgrade == "" and found.offers_upgrade
    assert fields(*offer, "Content-Length: 5").content_length == 5
    # With what belongs to a session's upgrade it is half of one.
    for other in ("Sec-WebSocket-Key: x", "Sec-WebSocket-Version: 13", "X-Stream-Protocol-Version: v4.channel.k8s.io"):
        with pytest.raises(ProtocolError) as caught:
            fields(*offer, other)
        assert caught.value.status == 400


# -- hostile heads

LINES: list[str] = [
    *("GET  / HTTP/1.1", "GET /  HTTP/1.1", " GET / HTTP/1.1", "GET / HTTP/1.1 ", "GET\t/ HTTP/1.1", "GET /\tHTTP/1.1"),
    *("GET / http/1.1", "GET / HTTP/1.10", "GET / HTTP/01.1", "GET / HTTP/1,1", "GET / HTTPS/1.1", "GET / HTTP/+1.1"),
    *("GET /", "GET", "GET / ", "GET HTTP/1.1", " / HTTP/1.1", "/ HTTP/1.1", "GET / x HTTP/1.1", "GET / HTTP/1.1 x"),
    *("GET /\x00 HTTP/1.1", "GET /\x7f HTTP/1.1", "GET /\xe9 HTTP/1.1", "GET /\x0b HTTP/1.1", "GET /\xa0 HTTP/1.1"),
    *("G(T / HTTP/1.1", "GET: / HTTP/1.1", "G\x00T / HTTP/1.1", "\xefET / HTTP/1.1", "GET /\rX: y HTTP/1.1"),
    *("", "\x16\x03\x01", "GET / HTTP/1.1\r", "GET / HTTP/1.1\rX: y", "GET /\nX: y HTTP/1.1", "HTTP/1.1 200 OK"),
]
VERSIONS = [
    "GET / HTTP/1.0",
    "GET / HTTP/0.9",
    "GET / HTTP/2.0",
    "PRI * HTTP/2.0",
    "GET / HTTP/1.2",
    "TRACE / HTTP/1.0",
]
UNSERVED = ["TRACE / HTTP/1.1", "CONNECT a:443 HTTP/1.1", "get / HTTP/1.1", "Get / HTTP/1.1", "PROPFIND / HTTP/1.1"]
TARGETS: list[str] = [
    *(
        "*",
        "a",
        "a:443",
        "a/b",
        "?a",
        "http:/a",
        "http:a",
        "http//a",
        "ftp://a/",
        "http://b/",
        "http://a:80/",
        "http://",
    ),
    *(
        "http:///",
        "http://x@a/",
        "http://a@b/",
        "http://a%00/",
        "https://a.b/",
        "\\",
        "http:\\\\a/",
        "#",
        "file:///etc",
    ),
]
FIELDS: list[str | bytes] = [
    # RFC 9112, 5: no blank before the colon, no folding, nothing but tokens and a colon
    *("X : y", "X\t: y", " X: y", "\tX: y", "X: y\r\n z", "X: y\r\n\tz", "no colon", ":", ": y", "X Y: z", "(X): y"),
    *(b"X\xc3\xa9: y", b"\xefX: y", "X\x00: y", "\x00: y", "X;Y: z", "X@Y: z", "X/Y: z", "X[0]: z", '"X": y', "X,Y: z"),
    # 2.2 and 5.5: bare CR, bare LF, NUL, other controls
    *(
        "X: y\rZ: a",
        "X: y\nZ: a",
        "X: y\n",
        "X: y\r",
        "\nX: y",
        "X: a\x00b",
        "X: a\x0bb",
        "X: a\x0c",
        "X: \x01",
        "X: \x7f",
    ),
    *("X: y\nContent-Length: 5", "X: y\rTransfer-Encoding: chunked", "X: y\n\nGET /admin HTTP/1.1", "X\r\nY: z"),
    # 6.3: Content-Length
    *("Content-Length: 5\r\nContent-Length: 5", "Content-Length: 5\r\nContent-Length: 6", "Content-Length: 5, 5"),
    *("Content-Length: 5,", "Content-Length: +5", "Content-Length: -5", "Content-Length: 0x5", "Content-Length: 5a"),
    *("Content-Length: 5.0", "Content-Length: 5e1", "Content-Length: 1_0", "Content-Length: 5 5", "Content-Length:"),
    *("Content-Length: '5'", 'Content-Length: "5"', "Content-Length: " + "9" * 19, "Content-Length: " + "0" * 30),
    *(b"Content-Length: \xd9\xa5", b"Content-Length: \xb2", "Content-Length: 5\x0b", "Content-Length : 5"),
    *("content-length: 0\r\nCONTENT-LENGTH: 0", "Content-Length: 5;q=1", "Content-Length: chunked"),
    # 6.1: both
    *("Transfer-Encoding: chunked\r\nContent-Length: 5", "Content-Length: 0\r\nTransfer-Encoding: chunked"),
    *(
        "Transfer-Encoding: identity\r\nContent-Length: 5",
        "Connection: Content-Length\r\nContent-Length: 5\r\nTransfer-Encoding: chunked",
    ),
    # framing that hides
    *("Transfer-Encoding : chunked", " Transfer-Encoding: chunked", "X: y\r\n Transfer-Encoding: chunked"),
    *(
        "Transfer-Encoding\x00: chunked",
        "Transfer-Encoding: chunked\x00",
        "Transfer-Encoding: \x0bchunked",
        "\x0bTransfer-Encoding: chunked",
    ),
    # RFC 9110, 7.2: Host
    *("Host: a", "Host: b", "Host : a", "host: a"),
    # 7.8: half an upgrade, other protocols, several, and one with a body
    "Upgrade: websocket",
    *("Connection: Upgrade\r\nSec-WebSocket-Key: x", "Upgrade:\r\nX-Stream-Protocol-Version: v4.channel.k8s.io"),
    *("Connection: Upgrade\r\nUpgrade: TLS/1.2, SPDY/3.1", "Connection: Upgrade\r\nUpgrade: h2c, websocket"),
    *("Upgrade: spdy", "Connection: Upgrade\r\nUpgrade: x-websocket", "Connection: Upgrade\r\nUpgrade: ,spdy"),
    "Connection: Upgrade\r\nUpgrade: TLS/1.2\r\nUpgrade: WebSocket",
    *(
        "Connection: Upgrade\r\nUpgrade: websocket, SPDY/3.1",
        "Connection: Upgrade\r\nUpgrade: SPDY/3.0",
        "Upgrade: h2c\r\nUpgrade: websocket\r\nConnection: upgrade",
    ),
    *("Connection: Upgrade\r\nUpgrade: websocket\r\nUpgrade: websocket", "Connection: xupgrade\r\nUpgrade: websocket"),
    *(
        "Connection: Upgrade\r\nUpgrade: websocket/13",
        "Connection: Upgrade;x\r\nUpgrade: websocket",
        'Connection: "upgrade"\r\nUpgrade: websocket',
    ),
    "Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 5",
    "Connection: Upgrade\r\nUpgrade: websocket\r\nTransfer-Encoding: chunked",
]
CODINGS: list[str] = [
    *(
        "identity",
        "gzip",
        "gzip, chunked",
        "chunked, gzip",
        "chunked, chunked",
        "chunked, identity",
        "chunked,",
        ",chunked",
    ),
    *(
        "chunked;q=1",
        '"chunked"',
        "'chunked'",
        "xchunked",
        "chunked x",
        "chunk",
        "",
        "chunked\r\nTransfer-Encoding: chunked",
    ),
    *("chunked\r\nTransfer-Encoding: identity", "x\r\nTransfer-Encoding: chunked", "chun\tked", "chunked/1"),
]
HOSTS: list[str | bytes] = [
    *(
        "",
        "a b",
        "a,b c",
        "a@b",
        "x@a",
        "a/b",
        "/",
        "a?",
        "a#",
        "a\\b",
        "[",
        "[]",
        "[a",
        "a]",
        "[::1]x",
        "[::1]:x",
        "[fe80::1%25eth0]",
    ),
    *(
        "a:b",
        "a:1:2",
        "::1",
        ":80",
        "a:123456",
        "http://a",
        "%zz",
        "%6",
        "a\x00",
        b"\xc3\xa9",
        '"a"',
        "<a>",
        "a|b",
        "{a}",
    ),
]


@pytest.mark.parametrize("line", LINES)
def test_malformed_request_lines(line: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        parse_request_line(line.encode("latin-1") + b"\r\nHost: a\r\n\r\n")
    assert caught.value.status == 400


@pytest.mark.parametrize("line", VERSIONS)
def test_other_versions(line: str) -> None:
    with pytest.raises(ProtocolError, match=r"HTTP/1\.1") as caught:
        parse_request_line(line.encode() + b"\r\n\r\n")
    assert caught.value.status == 505


@pytest.mark.parametrize("line", UNSERVED)
def test_methods_that_are_not_forwarded(line: str) -> None:
    refused(head(start=line.encode() + b"\r\n"), 405, "not served")


def test_a_method_is_repeated_in_part_only() -> None:
    with pytest.raises(ProtocolError) as caught:
        parse_request_line(b"X" * 5000 + b" / HTTP/1.1\r\n\r\n")
    assert len(caught.value.message) < 100


@pytest.mark.parametrize("target", TARGETS)
def test_targets_that_are_no_path_here(target: str) -> None:
    refused(head(start=f"GET {target} HTTP/1.1\r\n".encode()), words="target")


@pytest.mark.parametrize("lines", FIELDS)
def test_hostile_fields(lines: str | bytes) -> None:
    with pytest.raises(ProtocolError) as caught:
        parse_fields(head("A: b", lines, "C: d")[len(LINE) :], max_count=100)
    assert caught.value.status == 400
    with pytest.raises(ProtocolError):
        parse_fields(head(lines)[len(LINE) :], max_count=100)


@pytest.mark.parametrize("coding", CODINGS)
def test_transfer_codings_other_than_chunked(coding: str) -> None:
    refused(head(f"Transfer-Encoding: {coding}"), 501, "chunked")


@pytest.mark.parametrize("host", HOSTS)
def test_hosts_that_are_none(host: str | bytes) -> None:
    raw = host if isinstance(host, bytes) else host.encode()
    refused(head(host=b"Host: " + raw + b"\r\n"))


def test_no_host() -> None:
    refused(head(host=b""), words="Host")
    refused(LINE + b"\r\n", words="Host")
    refused(head("Host: b"), words="Host")


def test_faults_are_told_apart() -> None:
    refused(head("X: y\rz"), words="bare CR or LF")
    refused(head("X: y\n"), words="bare CR or LF")
    refused(head("X: y\r\n z"), words="folded")
    refused(head(" Host: x", host=b""), words="folded")
    refused(head("X : y"), words="malformed")


def test_expectations() -> None:
    assert fields("Expect: 100-Continue").get(b"expect") == b"100-Continue"
    for value in ("", "200-ok", "100-continue, x", "100-continue=1"):
        refused(head(f"Expect: {value}"), 417, "100-continue")


def test_the_number_of_fields_is_limited() -> None:
    lines = [f"X-{number}: y" for number in range(9)]
    assert len(parse(head(*lines), max_count=10).fields.items) == 10
    with pytest.raises(ProtocolError, match="10") as caught:
        parse(head(*lines, "Z: y"), max_count=10)
    assert caught.value.status == 431


@pytest.mark.parametrize(
    "block", [b"", b"\r", b"A: b\r\n", b"A: b", b"\r\n\r\n", b"A: b\r\n\r\nC: d\r\n\r\n", b"\r\nA: b\r\n\r\n"]
)
def test_a_field_block_is_whole_and_alone(block: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse_fields(block, max_count=10)


# -- hypothesis and the oracles

_ANY_LINE = (
    st.sampled_from([line if isinstance(line, bytes) else line.encode("latin-1") for line in FIELDS])
    | st.sampled_from(CODINGS).map(lambda coding: b"Transfer-Encoding: " + coding.encode("latin-1"))
    | st.sampled_from(
        [
            *(b"Content-Length: 3", b"content-length:003 ", b"Content-Length: 0", b"Transfer-Encoding: chunked"),
            *(b"TRANSFER-ENCODING:\tCHUNKED ", b"Connection: close", b"Connection: Upgrade", b"Upgrade: websocket"),
            *(
                b"Upgrade: h2c",
                b"Expect: 100-continue",
                b"X: \xff",
                b"Connection: transfer-encoding, host",
                b"Te: trailers",
            ),
        ]
    )
)
_ANY_HEAD = (
    st.sampled_from(REAL)
    | st.lists(_ANY_LINE, max_size=4).map(lambda lines: head(*lines))
    | st.sampled_from(LINES + VERSIONS + UNSERVED).map(lambda line: head(start=line.encode("latin-1") + b"\r\n"))
    | st.sampled_from(TARGETS).map(lambda target: head(start=f"GET {target} HTTP/1.1\r\n".encode()))
)


@given(_ANY_HEAD | _ANY_HEAD.flatmap(mutations))
@example(KUBECTL)
@example(EXEC_SPDY)
@example(EXEC_WEBSOCKET)
@example(APPLY)
@example(CHUNKED)
@example(JAVA)
def test_what_is_accepted_others_read_alike(data: bytes) -> None:
    end = head_end(data)
    if end < 0:
        return
    raw = data[:end]
    try:
        found = parse(raw)
    except ProtocolError:
        return
    found_fields = found.fields
    if found_fields.content_length is not None and found_fields.content_length > 4096:
        return
    payload = b"abc" if found_fields.chunked else b"x" * (found_fields.content_length or 0)
    coded = b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\n" if found_fields.chunked else payload
    body = request_body(found_fields.content_length, found_fields.chunked)
    assert body.done or body.take(memoryview(coded + NEXT)) == len(coded)
    target = raw.split(b" ")[1]

    message = h11_request(raw + coded + NEXT)
    assert message.start == (found.method.encode(), target)
    assert (message.body, message.rest) == (payload, NEXT)
    expected = [pair for pair in found_fields.items if pair[0] not in (b"content-length", b"transfer-encoding")]
    theirs = [pair for pair in message.fields if pair[0] not in (b"content-length", b"transfer-encoding")]
    assert theirs == expected

    try:
        messages = llhttp_requests(raw + coded + NEXT)
    except Other:
        # llhttp knows fewer targets, and takes no second request behind one that says close.
        assert found_fields.close or not target.startswith(b"/"), raw
        return
    first = messages[0]
    assert first.start == (found.method.encode(), target)
    assert [(name, value.rstrip(b" \t")) for name, value in first.fields] == list(found_fields.items)
    if first.rest:
        # At an upgrade it stops behind the head, whatever the body.
        assert found_fields.upgrade or b"upgrade" in found_fields.connection
        assert first.rest == coded + NEXT
    else:
        assert not found_fields.upgrade
        assert first.body == payload
        assert messages[1].start == (b"GET", b"/next")


@given(st.binary(max_size=120).map(lambda noise: LINE + b"Host: a\r\n" + noise + b"\r\n\r\n"))
def test_noise_is_a_head_or_a_protocol_error(data: bytes) -> None:
    try:
        parse(data[: head_end(data)])
    except ProtocolError as error:
        assert error.status in (400, 417, 431, 501)


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=30) | st.sampled_from(TARGETS))
def test_any_target_becomes_a_path_or_a_protocol_error(target: str) -> None:
    try:
        assert origin_form(target, b"a").startswith("/")
    except ProtocolError as error:
        assert error.status == 400
