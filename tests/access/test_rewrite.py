"""What goes upstream: one Host, one framing, the identity of the Decision and nothing that could be another."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from k8sproxy.access.caller import tailnet_caller
from k8sproxy.access.decision import Decision, Snapshot, authorize, decide
from k8sproxy.access.grants import CAPABILITY, Impersonation
from k8sproxy.access.rewrite import UpstreamHead, identity_fields, rewrite
from k8sproxy.common.errors import ProtocolError, Refusal
from k8sproxy.common.tailnet.peer import Peer
from k8sproxy.protocol.http1 import Fields, RequestHead, parse_fields, parse_request_line
from k8sproxy.request.requestinfo import request_info
from tests.protocol.oracles import h11_request, llhttp_requests
from tests.strategies import mutations

HOST = b"10.0.0.1:6443"
TOKEN = b"Bearer proxy.token"


def peer(*groups: str, login: str = "ann@example.com", address: str = "100.64.0.7") -> Peer:
    return Peer(
        address=address,
        stable_id="n7",
        node_name="laptop.tail1.ts.net.",
        login_name=login,
        capabilities={CAPABILITY: ({"impersonate": {"groups": list(groups)}},)},
    )


def decision(who: Peer, *, impersonate: bool = True) -> Decision:
    return decide(
        authorize(tailnet_caller(who), Snapshot(impersonate=impersonate)), request_info("GET", "/version"), 0.0
    )


ANN = decision(peer("dev", "ops team"))
PASSTHROUGH = decision(peer("dev"), impersonate=False)


def head(*lines: str | bytes, method: str = "GET", target: str = "/version") -> RequestHead:
    encoded = [line if isinstance(line, bytes) else line.encode("latin-1") for line in lines]
    block = b"".join(line + b"\r\n" for line in (b"Host: k8s.tail1.ts.net", *encoded)) + b"\r\n"
    return RequestHead(method, target, parse_fields(block, max_count=100))


def upstream(found: RequestHead, by: Decision = ANN, authorization: bytes | None = TOKEN) -> UpstreamHead:
    return rewrite(found, by, target=found.target, host=HOST, authorization=authorization)


def lines(
    *sent: str | bytes, by: Decision = ANN, method: str = "GET", authorization: bytes | None = TOKEN
) -> list[str]:
    """The field lines that go upstream, sorted, without those that always go."""
    data = upstream(head(*sent, method=method), by, authorization).data
    assert data.startswith(method.encode() + b" /version HTTP/1.1\r\n") and data.endswith(b"\r\n\r\n")
    found = data[:-4].decode("latin-1").split("\r\n")[1:]
    for line in ALWAYS if by is ANN else ALWAYS[:2]:
        if authorization is not None or not line.startswith("Authorization"):
            found.remove(line)
    return sorted(found)


ALWAYS = [
    "Host: 10.0.0.1:6443",
    "X-Forwarded-For: 100.64.0.7",
    "Authorization: Bearer proxy.token",
    "Impersonate-User: ann@example.com",
    "Impersonate-Group: dev",
    "Impersonate-Group: ops team",
]


# -- what goes on


def test_a_whole_head() -> None:
    found = upstream(
        head(
            *("User-Agent: kubectl/v1.36.0", "Accept:application/json ", "Content-Type: application/json"),
            *("Content-Length: 007", "Expect: 100-continue"),
            method="PATCH",
            target="/api/v1/namespaces/d/configmaps/a?fieldManager=x",
        )
    )
    assert found.data == (
        b"PATCH /api/v1/namespaces/d/configmaps/a?fieldManager=x HTTP/1.1\r\nHost: 10.0.0.1:6443\r\n"
        b"X-Forwarded-For: 100.64.0.7\r\nAuthorization: Bearer proxy.token\r\nImpersonate-User: ann@example.com\r\n"
        b"Impersonate-Group: dev\r\nImpersonate-Group: ops team\r\nuser-agent: kubectl/v1.36.0\r\n"
        b"accept: application/json\r\ncontent-type: application/json\r\nexpect: 100-continue\r\n"
        b"Content-Length: 7\r\n\r\n"
    )
    assert (found.method, found.content_length, found.chunked, found.upgrade) == ("PATCH", 7, False, "")


def test_the_target_given_is_the_target_sent() -> None:
    found = rewrite(head(), ANN, target="/k8s/clusters/c1/version", host=HOST, authorization=None)
    assert found.data.startswith(b"GET /k8s/clusters/c1/version HTTP/1.1\r\n")
    assert b"uthorization" not in found.data


def test_framing_is_written_anew() -> None:
    assert lines("Transfer-Encoding:  CHUNKED", method="POST") == ["Transfer-Encoding: chunked"]
    assert lines("Content-Length: 00", method="POST") == ["Content-Length: 0"]
    assert lines() == []
    assert upstream(head("Transfer-Encoding: chunked")).chunked
    # Named by Connection, or spelt for servers that map fields to variables: no second framing.
    assert lines("Connection: content-length, host", "Content-Length: 3") == ["Content-Length: 3"]
    assert lines("Connection: transfer-encoding", "Transfer-Encoding: chunked") == ["Transfer-Encoding: chunked"]
    assert lines("Content_Length: 5", "Transfer_Encoding: chunked", "Content-Length: 3") == ["Content-Length: 3"]


@pytest.mark.parametrize(
    ("sent", "spelt"), [("SPDY/3.1", "SPDY/3.1"), ("spdy/3.1", "SPDY/3.1"), ("WebSocket", "websocket")]
)
def test_an_upgrade_is_spelt_as_servers_expect(sent: str, spelt: str) -> None:
    found = lines("Connection: keep-alive, upgrade", f"Upgrade: {sent}", "Content-Length: 0", method="POST")
    assert found == ["Connection: Upgrade", "Content-Length: 0", f"Upgrade: {spelt}"]
    assert upstream(head("Connection: upgrade", f"Upgrade: {sent}")).upgrade == sent.lower()


def test_an_offer_of_h2c_goes_no_further() -> None:
    found = lines("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQ", "X: y")
    assert found == ["x: y"]
    assert lines("HTTP2-Settings: AAMAAABkAAQ") == []
    assert lines("Upgrade: h2c") == []


def test_an_offer_that_is_not_understood_goes_no_further() -> None:
    for offer in ("TLS/1.2", "TLS/1.2, HTTP/2.0", "anything"):
        assert lines("Connection: Upgrade", f"Upgrade: {offer}", "X: y") == ["x: y"]
        assert not upstream(head("Connection: Upgrade", f"Upgrade: {offer}")).upgrade


def test_hop_by_hop_fields_go_no_further() -> None:
    assert lines(
        *("Connection: close, X-Hop,,  x-other", "Keep-Alive: timeout=5", "Proxy-Connection: close", "TE: trailers"),
        *(
            "Proxy-Authorization: Basic x",
            "Proxy-Authenticate: x",
            "X-Hop: 1",
            "X-OTHER: 2",
            "x-hop: 3",
            "Trailer: X-Sum",
        ),
    ) == ["trailer: X-Sum"]


def test_fields_that_are_repeated_or_empty_stay_so() -> None:
    assert lines("X: b", "X: a", "X:", b"X: caf\xc3\xa9") == ["x: ", "x: a", "x: b", "x: caf\xc3\xa9"]


# -- identity


@pytest.mark.parametrize(
    "line",
    [
        *("X-Remote-User: admin", "X-Remote-Group: system:masters", "X-Remote-Extra-Scopes: x", "x_remote_user: admin"),
        *("X-Remote_Group: system:masters", "X-REMOTE-UID: 1", "X-Forwarded-For: 1.2.3.4", "X-Forwarded-Host: a"),
        *("X-Forwarded-Proto: http", "X_Forwarded_For: 1.2.3.4", "X-Forwarded: for=1", "Forwarded: for=1.2.3.4"),
        *(
            "X-Real-Ip: 1.2.3.4",
            "X_Real_IP: 1.2.3.4",
            "Tailscale-User-Login: admin@x",
            "tailscale_user_name: a",
            "X-Remote: a",
        ),
    ],
)
def test_what_speaks_of_identity_or_origin_goes_no_further(line: str) -> None:
    assert lines(line) == []
    assert lines(line, by=PASSTHROUGH, authorization=None) == []
    assert lines("Connection: " + line.split(":")[0], line) == []


@pytest.mark.parametrize("line", ["Authorization: Bearer admin", "AUTHORIZATION: Basic x", "authorization:"])
def test_the_clients_credentials_go_no_further(line: str) -> None:
    assert lines(line, line) == []
    assert lines(line, authorization=None) == []
    assert lines("Connection: authorization", line) == []


@pytest.mark.parametrize(
    ("sent", "left"),
    [
        ("base64url.bearer.authorization.k8s.io.dG9r, v4.channel.k8s.io", "v4.channel.k8s.io"),
        (
            "v5.channel.k8s.io,BASE64URL.Bearer.Authorization.k8s.io.dG9r,\tv4.channel.k8s.io",
            "v5.channel.k8s.io, v4.channel.k8s.io",
        ),
        ("base64url.bearer.authorization.k8s.io.dG9r", None),
        # Go's strings.TrimSpace takes off U+00A0, U+0085 and U+2003 (here in UTF-8) as well.
        ("\xc2\xa0base64url.bearer.authorization.k8s.io.dG9r, v5", "v5"),
        ("v5,\xc2\x85 \xe2\x80\x83base64url.bearer.authorization.k8s.io.dG9r", "v5"),
        (",,base64url.bearer.authorization.k8s.io.", None),
        ("", None),
        ("SPDY/3.1+portforward.k8s.io", "SPDY/3.1+portforward.k8s.io"),
        ("base64.channel.k8s.io", "base64.channel.k8s.io"),
    ],
)
def test_a_bearer_token_among_subprotocols_goes_no_further(sent: str, left: str | None) -> None:
    for name in ("Sec-WebSocket-Protocol", "sec_websocket_protocol"):
        expected = [f"{name.lower()}: {left}"] if left else []
        assert lines(f"{name}: {sent}") == expected
        assert lines(f"{name}: x", f"{name}: {sent}") == sorted([*expected, f"{name.lower()}: x"])


@pytest.mark.parametrize(
    "name",
    [
        *("Impersonate-User", "impersonate-group", "Impersonate-Uid", "IMPERSONATE-EXTRA-scopes", "Impersonate_User"),
        *("impersonate-", "Impersonate-User-", "Impersonate_Extra-x"),
    ],
)
def test_a_client_that_impersonates_is_refused(name: str) -> None:
    # Connection's tokens, in either order, do not make it go by unseen.
    for sent in (
        [f"{name}: admin"],
        [f"Connection: {name}", f"{name}: admin"],
        [f"{name}:", f"Connection: close, {name}"],
    ):
        for _ in range(2):
            with pytest.raises(Refusal) as caught:
                upstream(head(*sent))
            assert (caught.value.status, caught.value.cause) == (403, "client_impersonation")


@pytest.mark.parametrize(
    "token", ["Impersonate-User", "Impersonate-Group", "Authorization", "Host", "X-Forwarded-For", "Upgrade, upgrade"]
)
def test_connection_takes_nothing_away_that_the_proxy_sets(token: str) -> None:
    assert lines(f"Connection: {token}, close", *(["Upgrade: websocket"] if "Upgrade" in token else [])) == (
        ["Connection: Upgrade", "Upgrade: websocket"] if "Upgrade" in token else []
    )


WEBSOCKET = ("Connection: Upgrade", "Upgrade: websocket")


@pytest.mark.parametrize(
    "said",
    [
        ("Origin: https://evil.example",),
        ("Origin: null",),
        ("Origin: https://k8s.tail1.ts.net.evil.example",),
        ("Origin: https://k8s.tail1.ts.net:8443",),
        ("Origin: k8s.tail1.ts.net",),
        ("Sec-Fetch-Site: cross-site",),
        ("Sec-Fetch-Site: same-site", "Origin: https://k8s.tail1.ts.net"),
        ("SEC-FETCH-SITE: anything",),
    ],
)
def test_a_page_of_another_site_is_not_the_user(said: tuple[str, ...]) -> None:
    for found in head(*said, method="POST"), head(*said, method="DELETE"), head(*said, *WEBSOCKET):
        for _ in range(2):  # the second time from memory
            with pytest.raises(Refusal) as caught:
                upstream(found)
            assert (caught.value.status, caught.value.cause) == (403, "cross_site")
    # To read without being shown the answer harms nobody; and the client's own credentials are not sent by themselves.
    assert upstream(head(*said))
    assert upstream(head(*said, method="POST"), decision(peer(), impersonate=False))


@pytest.mark.parametrize(
    "said",
    [
        (),
        ("Origin:",),
        ("Origin: https://k8s.tail1.ts.net",),
        ("Origin: https://K8s.tail1.ts.net:443",),
        ("Origin: http://k8s.tail1.ts.net:80",),
        ("Sec-Fetch-Site: none",),
        ("Sec-Fetch-Site: same-origin", "Origin: http://localhost:8001"),  # a page behind `kubectl proxy`
    ],
)
def test_whoever_is_no_page_of_another_site_is_served(said: tuple[str, ...]) -> None:
    assert upstream(head(*said, method="POST"))
    assert upstream(head(*said, *WEBSOCKET))


def test_an_allowed_origin_may_act() -> None:
    found = head("Origin: http://127.0.0.1:8001", *WEBSOCKET)
    origins = frozenset({b"http://127.0.0.1:8001"})

    def made(allowed: frozenset[bytes]) -> UpstreamHead:
        return rewrite(found, ANN, target="/version", host=HOST, authorization=TOKEN, origins=allowed)

    for _ in range(2):  # what is remembered of the fields is of one list of origins
        assert made(origins)
        with pytest.raises(Refusal, match="another site"):
            made(frozenset())


def test_content_of_others_is_not_shown_where_a_page_leads() -> None:
    led = ("Sec-Fetch-Mode: navigate", "Sec-Fetch-Site: cross-site")

    def made(*said: str, foreign: bool, by: Decision = ANN) -> UpstreamHead:
        return rewrite(head(*said), by, target="/version", host=HOST, authorization=TOKEN, foreign=foreign)

    with pytest.raises(Refusal, match="port-forward") as caught:
        made(*led, foreign=True)
    assert (caught.value.status, caught.value.cause) == (403, "cross_site")
    assert made(*led, foreign=False)
    assert made(foreign=True)
    assert made(*led, foreign=True, by=PASSTHROUGH)


def test_passthrough() -> None:
    sent = [
        "Authorization: Bearer mine",
        "Impersonate-User: bob",
        "Sec-WebSocket-Protocol: base64url.bearer.authorization.k8s.io.x",
    ]
    assert lines(*sent, by=PASSTHROUGH) == sorted(
        line.partition(":")[0].lower() + ":" + line.partition(":")[2] for line in sent
    )
    # The proxy's own credentials are never lent to a client without any.
    assert b"proxy.token" not in upstream(head(), PASSTHROUGH).data
    assert lines("Connection: close, x", "X: y", "X-Remote-User: a", "TE: x", by=PASSTHROUGH) == []


def test_a_peer_without_groups() -> None:
    found = upstream(head(), decision(peer()))
    assert found.data.count(b"Impersonate-") == 1


def test_names_beyond_ascii_are_utf_8() -> None:
    assert identity_fields(Impersonation("zoë@example.com", ("día",))) == (
        b"Impersonate-User: zo\xc3\xab@example.com\r\nImpersonate-Group: d\xc3\xada\r\n"
    )


@pytest.mark.parametrize("name", ["", " ", "a\r\nX: y", "a\nb", "a\0", "a\tb", " a", "a ", "\x7f", "a\ud800", "\n"])
def test_names_that_could_be_others_are_refused_once_more(name: str) -> None:
    for identity in (Impersonation(name), Impersonation("ann", ("dev", name))):
        with pytest.raises(Refusal) as caught:
            identity_fields(identity)
        assert (caught.value.status, caught.value.cause) == (403, "malformed_identity")
        assert name not in caught.value.message or not name.strip()


@pytest.mark.parametrize("value", [b"", b"a\r\nX: y", b"a\n", b" a", b"a ", b"a\0b", b"\xff", b"a\tb"])
def test_values_of_the_proxy_that_could_end_their_line_are_refused(value: bytes) -> None:
    for host, authorization, address in (
        (value, TOKEN, "100.64.0.7"),
        (HOST, value, "100.64.0.7"),
        (HOST, TOKEN, value.decode("latin-1")),
    ):
        by = decision(peer(address=address))
        with pytest.raises(Refusal) as caught:
            rewrite(head(), by, target="/", host=host, authorization=authorization)
        assert (caught.value.status, caught.value.cause) == (500, "internal")


# -- what is remembered


def test_what_is_remembered_holds_for_its_decision_host_and_credentials_alone() -> None:
    fields = head("A: b").fields
    bob = decision(peer(login="bob@example.com", address="100.64.0.8"))
    seen = []
    for by, host, authorization in (
        (ANN, HOST, TOKEN),
        (ANN, HOST, b"Bearer renewed"),
        (ANN, b"other:1", b"Bearer renewed"),
        (bob, b"other:1", b"Bearer renewed"),
        (PASSTHROUGH, b"other:1", b"Bearer renewed"),
        (ANN, HOST, None),
        (ANN, HOST, TOKEN),
    ):
        again = [
            rewrite(RequestHead("GET", target, fields), by, target=target, host=host, authorization=authorization).data
            for target in ("/a", "/b", "/a")
        ]
        fresh = rewrite(
            RequestHead("GET", "/a", head("A: b").fields), by, target="/a", host=host, authorization=authorization
        ).data
        assert again == [fresh, fresh.replace(b"GET /a", b"GET /b"), fresh]
        seen.append(fresh)
    assert len(set(seen)) == 6 and seen[0] == seen[-1]


def test_a_refusal_is_not_remembered_as_something_else() -> None:
    fields = head("Impersonate-User: admin").fields
    assert b"impersonate-user: admin" in upstream(RequestHead("GET", "/", fields), PASSTHROUGH).data
    with pytest.raises(Refusal):
        upstream(RequestHead("GET", "/", fields))


def test_credentials_stay_out_of_the_repr() -> None:
    assert "proxy.token" not in repr(upstream(head()))


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"])
def test_what_may_be_sent_twice(method: str) -> None:
    safe = method in ("GET", "HEAD", "OPTIONS")
    assert upstream(head(method=method)).repeatable is safe
    assert upstream(head("Content-Length: 0", method=method)).repeatable is safe
    assert not upstream(head("Content-Length: 1", method=method)).repeatable
    assert not upstream(head("Transfer-Encoding: chunked", method=method)).repeatable
    # A GET that opens a session runs a command.
    assert not upstream(head("Connection: upgrade", "Upgrade: websocket", method=method)).repeatable


# -- any head, any decision

_NAMES = st.sampled_from(
    [
        *(
            "Impersonate-User",
            "impersonate_group",
            "Authorization",
            "X-Remote-User",
            "x_remote_group",
            "X-Forwarded-For",
        ),
        *(
            "Forwarded",
            "Sec-WebSocket-Protocol",
            "Content_Length",
            "Transfer_Encoding",
            "Cookie",
            "Te",
            "Trailer",
            "X-Hop",
        ),
        *(
            "HTTP2-Settings",
            "Tailscale-User-Login",
            "X-Real-IP",
            "Keep-Alive",
            "Accept",
            "Proxy-Authorization",
            "_",
            "X",
        ),
    ]
)
_VALUES = st.sampled_from(
    ["", "a", "chunked", "5", "admin", "base64url.bearer.authorization.k8s.io.x, v5", "a, b", "\xff"]
)
_LINES = st.one_of(
    st.tuples(_NAMES, _VALUES).map(lambda pair: f"{pair[0]}: {pair[1]}"),
    _NAMES.map(lambda name: f"Connection: {name}"),
    st.sampled_from(
        [
            *(
                "Content-Length: 3",
                "Content-Length: 0",
                "Transfer-Encoding: chunked",
                "Connection: close",
                "Upgrade: h2c",
            ),
            *("Connection: Upgrade", "Upgrade: websocket", "Upgrade: SPDY/3.1", "Connection: content-length, host"),
        ]
    ),
)
_BLOCKS = st.lists(_LINES, max_size=6).map(
    lambda sent: b"".join(line.encode("latin-1") + b"\r\n" for line in ["Host: a", *sent]) + b"\r\n"
)
_NAMES_OF_PEOPLE = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zs"]), min_size=1, max_size=8).map(
    "u{}".format
)


def test_only_rewrite_makes_a_head() -> None:
    found = head()
    # mypy refuses each of these as well: it counts an ignore without a fault as a fault.
    with pytest.raises(TypeError):
        UpstreamHead(b"", "GET", found.fields)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        UpstreamHead(None, b"", "GET", found.fields)  # type: ignore[arg-type]
    shown = repr(upstream(found, authorization=b"Bearer secret"))
    assert shown.startswith("UpstreamHead(GET, ")
    assert "secret" not in shown


@st.composite
def decisions(draw: st.DrawFn) -> Decision:
    who = peer(*draw(st.lists(_NAMES_OF_PEOPLE, max_size=3)), login=draw(_NAMES_OF_PEOPLE))
    try:
        return decision(who, impersonate=draw(st.sampled_from([True, True, False])))
    except Refusal:
        return ANN


@given(_BLOCKS | _BLOCKS.flatmap(mutations), decisions(), st.sampled_from([None, TOKEN]))
@example(b"Host: a\r\nConnection: Impersonate-User\r\n\r\n", ANN, TOKEN)
def test_any_head_with_any_decision(block: bytes, by: Decision, authorization: bytes | None) -> None:
    try:
        fields = parse_fields(block, max_count=100)
        found = upstream(RequestHead("POST", "/a?b", fields), by, authorization)
    except ProtocolError:
        return
    except Refusal as refusal:
        assert (refusal.cause, by.impersonation is None) == ("client_impersonation", False)
        return
    _check_with_our_parser(found, fields, by, authorization)
    _check_with_oracles(found)


def _check_with_our_parser(found: UpstreamHead, sent: Fields, by: Decision, authorization: bytes | None) -> None:
    method, target, start = parse_request_line(found.data)
    again = parse_fields(found.data[start:], max_count=400)
    assert (method, target, again.host) == ("POST", "/a?b", HOST)
    assert (again.content_length, again.chunked, again.upgrade) == (sent.content_length, sent.chunked, sent.upgrade)
    assert (found.content_length, found.chunked, found.upgrade) == (sent.content_length, sent.chunked, sent.upgrade)
    assert again.connection == (frozenset({b"upgrade"}) if sent.upgrade else frozenset())
    assert not again.close
    names = Counter(name.replace(b"_", b"-") for name, _ in again.items)
    assert names[b"host"] == names[b"x-forwarded-for"] == 1
    assert names[b"content-length"] + names[b"transfer-encoding"] <= 1
    assert again.get(b"x-forwarded-for") == b"100.64.0.7"
    assert not [name for name in names if name.startswith((b"x-remote-", b"tailscale-"))]
    assert [name for name in names if name.startswith(b"x-forwarded-")] == [b"x-forwarded-for"]
    for name in (b"x-real-ip", b"forwarded", b"te", b"keep-alive", b"http2-settings", b"proxy-authorization"):
        assert name not in names
    if by.impersonation is None:
        return
    identity = [(name, value) for name, value in again.items if name.replace(b"_", b"-").startswith(b"impersonate-")]
    assert identity == [
        (b"impersonate-user", by.impersonation.user.encode()),
        *((b"impersonate-group", group.encode()) for group in by.impersonation.groups),
    ]
    credentials = [value for name, value in again.items if name == b"authorization"]
    assert credentials == ([] if authorization is None else [authorization])
    protocols = [value for name, value in again.items if name.replace(b"_", b"-") == b"sec-websocket-protocol"]
    assert not [value for value in protocols if b"base64url.bearer.authorization.k8s.io." in value.lower()]


def _check_with_oracles(found: UpstreamHead) -> None:
    payload = b"abc" if found.chunked else b"x" * (found.content_length or 0)
    if len(payload) > 4096:
        return
    coded = b"3\r\nabc\r\n0\r\n\r\n" if found.chunked else payload
    after = b"GET /next HTTP/1.1\r\nHost: n\r\n\r\n"
    message = h11_request(found.data + coded + after)
    assert (message.start, message.body, message.rest) == ((b"POST", b"/a?b"), payload, after)
    first, *others = llhttp_requests(found.data + coded + after)
    assert first.start == (b"POST", b"/a?b")
    if found.upgrade:
        assert first.rest == coded + after
    else:
        assert first.body == payload
        assert [other.start for other in others] == [(b"GET", b"/next")]
