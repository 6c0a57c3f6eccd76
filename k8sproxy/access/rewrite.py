"""The head that goes upstream: the client's, less everything it may not say, plus who it is.

The order is the defence (a `Connection: Impersonate-User` takes away what was set before it, never after): first the
fields named by Connection's tokens, then hop-by-hop fields, then whatever speaks of identity or origin; only then is
the identity of the Decision set. Framing is written anew from what was parsed, so that both sides agree on it. All but
the request line is the same for as long as client, fields and credentials are, and is remembered with the fields.

Dropped as identity or origin, in either mode: X-Remote-* (the API server's front-proxy authenticator), X-Forwarded-*,
Forwarded and X-Real-Ip (the source addresses of its audit log), Tailscale-* (what `tailscale serve` sets). In
impersonate mode also Authorization and a bearer token hidden in Sec-WebSocket-Protocol (the API server takes both as
credentials), while Impersonate-* is refused, even where Connection names it: a client that asks to be somebody else
must not be told "yes" and be itself. An underscore counts as a hyphen, since servers that map fields to variables
cannot tell them apart.

The connection is the identity, so a web page that its user looks at has it too. Requests that change something, and
upgrades (exec by WebSocket is no matter of CORS), are refused where the browser says that another site is behind them
(browsers). Content of pods, services and nodes (foreign) is not reached by a page's leading there either.

A session (exec and its kin) has an id, which stands in the proxy's log, in the recording and, as Audit-ID, in the API
server's audit log; one that the client sends is dropped there. Where the session is read, only streaming protocols that
can be read are offered to upstream, and no extension of WebSocket, which would change its frames.

In passthrough mode the client's own credentials go on, Impersonate-* with them, and no identity is set.
"""

from __future__ import annotations

import re
from collections.abc import Set
from functools import lru_cache
from typing import Final, NamedTuple, final

from k8sproxy.access.decision import Decision
from k8sproxy.access.grants import Impersonation
from k8sproxy.common.errors import ProtocolError, Refusal
from k8sproxy.protocol.http1 import Fields, RequestHead
from k8sproxy.request.browsers import NO_ORIGINS, is_cross_site, is_led_in

_HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"upgrade",
        b"http2-settings",
        # Written anew below, from what was parsed:
        b"host",
        b"content-length",
        b"transfer-encoding",
    }
)
_ORIGIN = (b"x-remote-", b"x-forwarded-", b"tailscale-")
_ORIGIN_NAMES = frozenset({b"forwarded", b"x-real-ip", b"x-forwarded", b"x-remote"})
# k8s.io/apiserver/pkg/authentication/request/websocket: a subprotocol with this prefix is a bearer token. Looked for
# anywhere in it: the API server takes off blanks before it looks, those of Unicode too.
_BEARER_SUBPROTOCOL = b"base64url.bearer.authorization.k8s.io."
# RFC 9110, 9.2.1. A request of these methods without a body may be sent again if its connection died under it. Not
# DELETE and PUT: a controller may have made the object anew in between. And no upgrade: exec runs a command by GET.
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
# Values that the proxy itself sets: visible ASCII and inner blanks.
_OWN_VALUE = re.compile(rb"[!-~]++(?: ++[!-~]++)*+")


class _Maker:
    """The right to make an UpstreamHead, as in decision.py."""

    __slots__ = ()


_MAKER: Final = _Maker()


@final
class UpstreamHead:
    """What upstream is sent, and what the relay has to know of it. Only rewrite() makes one.

    data: the whole head. upgrade: the protocol asked for, lower-case, empty without. repeatable: the request has no
    body, a safe method and no upgrade, so that it may be tried once more where nothing of an answer came.
    """

    __slots__ = ("chunked", "content_length", "data", "method", "repeatable", "upgrade")

    def __init__(self, maker: _Maker, data: bytes, method: str, fields: Fields) -> None:
        if maker is not _MAKER:
            raise TypeError("only rewrite() makes an UpstreamHead")
        self.data: Final = data
        self.method: Final = method
        self.content_length: Final = fields.content_length
        self.chunked: Final = fields.chunked
        self.upgrade: Final = fields.upgrade
        self.repeatable: Final = method in _SAFE and not (fields.chunked or fields.content_length or fields.upgrade)

    def __repr__(self) -> str:
        # The head carries the proxy's credentials.
        return f"UpstreamHead({self.method}, {len(self.data)} bytes)"


class Streaming(NamedTuple):
    """What a session's head is given and spared.

    id: its Audit-ID (at most 64 characters, or the API server cuts it). protocols: what may be offered in
    Sec-WebSocket-Protocol and X-Stream-Protocol-Version; None where anything may.
    """

    id: str
    protocols: frozenset[str] | None = None


def rewrite(
    head: RequestHead,
    decision: Decision,
    *,
    target: str,
    host: bytes,
    authorization: bytes | None,
    streaming: Streaming | None = None,
    origins: Set[bytes] = NO_ORIGINS,
    foreign: bool = False,
) -> UpstreamHead:
    """The head for upstream, as the Decision has it.

    target: the canonical origin-form target. host: upstream's authority. authorization: the proxy's own credentials
    as the value of an Authorization field, None where its client certificate (or passthrough mode) does without.
    streaming: set for a session. origins: whose pages may act as the client (browsers). foreign: of RequestInfo. Raises
    Refusal for a client that sends Impersonate-* in impersonate mode, and for what a page of another site may not do.
    """
    fields = head.fields
    known = None if streaming is not None else fields.memo.get("upstream")
    if (
        known is None
        or known[0] is not decision
        or known[1] != host
        or known[2] != authorization
        or known[5] is not origins
    ):
        known = (
            decision,
            host,
            authorization,
            _field_block(fields, decision, host, authorization, streaming),
            decision.impersonation is not None and is_cross_site(fields, origins),
            origins,
            decision.impersonation is not None and is_led_in(fields),
        )
        if streaming is None:
            fields.memo["upstream"] = known
    method = head.method
    if known[4] and (fields.upgrade or method not in _SAFE):
        raise Refusal(
            403,
            "cross_site",
            "a web page of another site may not send this request with your identity (Origin, Sec-Fetch-Site); "
            "to allow a gateway of your own, add its origin to allowOrigins in the proxy's configuration",
        )
    if known[6] and foreign:
        raise Refusal(
            403,
            "cross_site",
            "the proxy does not show content of pods, services and nodes in a frame or after a link from another site; "
            "enter its address in the browser, or use kubectl port-forward",
        )
    return UpstreamHead(_MAKER, f"{method} {target} HTTP/1.1\r\n".encode("ascii") + known[3], method, fields)


def _field_block(
    fields: Fields, decision: Decision, host: bytes, authorization: bytes | None, streaming: Streaming | None
) -> bytes:
    """All that follows the request line, the empty line included."""
    impersonation = decision.impersonation
    if impersonation is None:
        authorization = None
    parts = [
        _own_fields(impersonation, decision.caller.address, host, authorization),
        _end_to_end(fields, streaming, passthrough=impersonation is None),
    ]
    if streaming is not None:
        parts.append(b"Audit-ID: " + streaming.id.encode("ascii") + b"\r\n")
    if fields.chunked:
        parts.append(b"Transfer-Encoding: chunked\r\n")
    elif fields.content_length is not None:
        parts.append(b"Content-Length: %d\r\n" % fields.content_length)
    if fields.upgrade:
        parts.append(b"Connection: Upgrade\r\nUpgrade: " + _spell(fields.upgrade) + b"\r\n")
    parts.append(b"\r\n")
    return b"".join(parts)


@lru_cache(maxsize=1024)  # one entry for each peer in use; 2 KiB each, where the proxy's token is 1 KiB
def _own_fields(impersonation: Impersonation | None, address: str, host: bytes, authorization: bytes | None) -> bytes:
    """The fields that the proxy sets, whatever the client sent."""
    block = b""
    for name, value in (b"Host", host), (b"X-Forwarded-For", address.encode()), (b"Authorization", authorization):
        if value is None:
            continue
        if _OWN_VALUE.fullmatch(value) is None:
            raise Refusal(500, "internal", f"the proxy has no usable value for the field {name.decode()}")
        block += name + b": " + value + b"\r\n"
    return block if impersonation is None else block + identity_fields(impersonation)


def _spell(upgrade: str) -> bytes:
    return b"SPDY/3.1" if upgrade == "spdy/3.1" else upgrade.encode("ascii")


_OFFERS = frozenset({b"sec-websocket-protocol", b"x-stream-protocol-version"})


def _end_to_end(fields: Fields, streaming: Streaming | None, *, passthrough: bool) -> bytes:
    """The client's field lines that go on."""
    lines = []
    for name, value in fields.items:
        plain = name.replace(b"_", b"-")
        if not passthrough and plain.startswith(b"impersonate-"):
            raise Refusal(
                403,
                "client_impersonation",
                "Impersonate-* (kubectl --as) is not accepted here: the connection is the identity",
            )
        if name in fields.connection or plain in _HOP_BY_HOP:
            continue
        if plain.startswith(_ORIGIN) or plain in _ORIGIN_NAMES:
            continue
        if not passthrough:
            if plain == b"authorization":
                continue
            if plain == b"sec-websocket-protocol":
                value = _without_bearer(value)
                if not value:
                    continue
        if streaming is not None:
            if plain == b"audit-id":
                continue
            if streaming.protocols is not None:
                if plain == b"sec-websocket-extensions":
                    continue
                if plain in _OFFERS:
                    value = _narrowed(value, streaming.protocols)
                    if not value:
                        continue
        lines.append(name + b": " + value + b"\r\n")
    return b"".join(lines)


def _without_bearer(value: bytes) -> bytes:
    protocols = [protocol.strip(b" \t") for protocol in value.split(b",")]
    return b", ".join(p for p in protocols if p and _BEARER_SUBPROTOCOL not in p.lower())


def _narrowed(value: bytes, protocols: frozenset[str]) -> bytes:
    """An offer of protocols, less those that can't be read. A bearer token (passthrough) is no protocol, and stays."""
    offered = [protocol.strip(b" \t") for protocol in value.split(b",")]
    kept = [p for p in offered if p.decode("latin-1") in protocols or _BEARER_SUBPROTOCOL in p.lower()]
    return b", ".join(p for p in kept if p)


def check_offer(fields: Fields) -> None:
    """Raises ProtocolError where a session is asked for by an offer that is passed over: the session would not be one.

    To be asked of sessions alone; other requests are served as if nothing had been offered.
    """
    if fields.offers_upgrade and not fields.upgrade:
        raise ProtocolError("an upgrade to a session needs Upgrade: websocket or Upgrade: SPDY/3.1")


def offered_protocols(fields: Fields) -> tuple[str, ...]:
    """The streaming protocols that a request offers, in its order."""
    values = [value for name, value in fields.items if name.replace(b"_", b"-") in _OFFERS]
    names = [name.strip(b" \t") for value in values for name in value.split(b",")]
    return tuple(name.decode("latin-1") for name in names if name and _BEARER_SUBPROTOCOL not in name.lower())


def identity_fields(impersonation: Impersonation) -> bytes:
    """The Impersonate-User and Impersonate-Group lines. The policy has checked the values; a value that could end its
    line or mean another name is refused here once more, because this is the last place that could."""
    values = [(b"Impersonate-User: ", impersonation.user)]
    values += [(b"Impersonate-Group: ", group) for group in impersonation.groups]
    lines = []
    for name, value in values:
        raw = value.encode("utf-8", "replace")
        if not raw or raw != raw.strip() or raw.decode() != value or any(byte < 0x20 or byte == 0x7F for byte in raw):
            raise Refusal(403, "malformed_identity", "the identity of this connection cannot be impersonated")
        lines.append(name + raw + b"\r\n")
    return b"".join(lines)
