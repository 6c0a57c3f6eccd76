"""The head that goes upstream: the client's, less everything it may not say, plus who it is.

The order is the defence (a `Connection: Impersonate-User` takes away what was set before it, never after): first the
fields named by Connection's tokens, then hop-by-hop fields, then whatever speaks of identity or origin; only then is
the identity of the Decision set. Framing is written anew from what was parsed, so that both sides agree on it.

Dropped as identity or origin, in either mode: X-Remote-* (the API server's front-proxy authenticator), X-Forwarded-*,
Forwarded and X-Real-Ip (the source addresses of its audit log), Tailscale-* (what `tailscale serve` sets). In
impersonate mode also Authorization and a bearer token hidden in Sec-WebSocket-Protocol (the API server takes both as
credentials), while Impersonate-* is refused: a client that asks to be somebody else must not be told "yes" and be
itself. An underscore counts as a hyphen, since servers that map fields to variables cannot tell them apart.

In passthrough mode the client's own credentials go on, Impersonate-* with them, and no identity is set.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from k8sproxy.errors import Refusal
from k8sproxy.policy.decision import Decision
from k8sproxy.policy.grants import Impersonation
from k8sproxy.protocol.http1 import Fields, RequestHead

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
# k8s.io/apiserver/pkg/authentication/request/websocket: a subprotocol with this prefix is a bearer token.
_BEARER_SUBPROTOCOL = b"base64url.bearer.authorization.k8s.io."
# RFC 9110, 9.2.2. A request of these methods without a body may be sent again if its connection died under it.
_IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE"})


@dataclass(frozen=True, slots=True)
class UpstreamHead:
    """What upstream is sent, and what the relay has to know of it. Only rewrite() makes one.

    data: the whole head. upgrade: the protocol asked for, lower-case, empty without. repeatable: the request has no
    body and an idempotent method, so that it may be tried once more where nothing of an answer came.
    """

    data: bytes
    method: str
    content_length: int | None
    chunked: bool
    upgrade: str
    repeatable: bool


def rewrite(
    head: RequestHead, decision: Decision, *, target: str, host: bytes, authorization: bytes | None
) -> UpstreamHead:
    """The head for upstream, as the Decision has it.

    target: the canonical origin-form target. host: upstream's authority. authorization: the proxy's own credentials
    as the value of an Authorization field, None where its client certificate (or passthrough mode) does without.
    Raises Refusal for a client that sends Impersonate-* in impersonate mode.
    """
    fields = head.fields
    impersonation = decision.impersonation
    parts = [
        head.method.encode("ascii"),
        b" ",
        target.encode("ascii"),
        b" HTTP/1.1\r\nHost: ",
        host,
        b"\r\n",
        _end_to_end(fields, passthrough=impersonation is None),
    ]
    if fields.chunked:
        parts.append(b"Transfer-Encoding: chunked\r\n")
    elif fields.content_length is not None:
        parts.append(b"Content-Length: %d\r\n" % fields.content_length)
    if fields.upgrade:
        parts.append(b"Connection: Upgrade\r\nUpgrade: " + _spell(fields.upgrade) + b"\r\n")
    if impersonation is not None:
        parts.append(identity_fields(impersonation))
        if authorization is not None:
            parts.append(b"Authorization: " + authorization + b"\r\n")
    parts.append(b"X-Forwarded-For: " + decision.peer.address.encode("ascii") + b"\r\n\r\n")
    return UpstreamHead(
        data=b"".join(parts),
        method=head.method,
        content_length=fields.content_length,
        chunked=fields.chunked,
        upgrade=fields.upgrade,
        repeatable=head.method in _IDEMPOTENT and not fields.chunked and not fields.content_length,
    )


def _spell(upgrade: str) -> bytes:
    return b"SPDY/3.1" if upgrade == "spdy/3.1" else upgrade.encode("ascii")


def _end_to_end(fields: Fields, *, passthrough: bool) -> bytes:
    """The client's field lines that go on. Remembered with the Fields: it depends on nothing else."""
    known = fields.memo.get(passthrough)
    if known is not None:
        return known
    lines = []
    for name, value in fields.items:
        if name in _HOP_BY_HOP or name in fields.connection:
            continue
        plain = name.replace(b"_", b"-")
        if plain.startswith(_ORIGIN) or plain in _ORIGIN_NAMES:
            continue
        if not passthrough:
            if plain.startswith(b"impersonate-"):
                raise Refusal(
                    403,
                    "client_impersonation",
                    "Impersonate-* (kubectl --as) is not accepted here: the connection is the identity",
                )
            if plain == b"authorization":
                continue
            if plain == b"sec-websocket-protocol":
                value = _without_bearer(value)
                if not value:
                    continue
        lines.append(name + b": " + value + b"\r\n")
    block = b"".join(lines)
    fields.memo[passthrough] = block
    return block


def _without_bearer(value: bytes) -> bytes:
    protocols = [protocol.strip(b" \t") for protocol in value.split(b",")]
    return b", ".join(p for p in protocols if p and not p.lower().startswith(_BEARER_SUBPROTOCOL))


@lru_cache(maxsize=1024)  # one entry an identity in use; a few hundred bytes each
def identity_fields(impersonation: Impersonation) -> bytes:
    """The Impersonate-User and Impersonate-Group lines. The policy has checked the values; a value that could end
    its line is refused here once more, because this is the last place that could."""
    values = [(b"Impersonate-User: ", impersonation.user)]
    values += [(b"Impersonate-Group: ", group) for group in impersonation.groups]
    lines = []
    for name, value in values:
        raw = value.encode("utf-8")
        if not raw or raw != raw.strip() or any(byte < 0x20 or byte == 0x7F for byte in raw):
            raise Refusal(403, "malformed_identity", "the identity of this connection cannot be impersonated")
        lines.append(name + raw + b"\r\n")
    return b"".join(lines)
