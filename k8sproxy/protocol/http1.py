"""HTTP/1.1 heads (RFC 9110, RFC 9112): whole heads in, what they say out.

A head is looked at only when all of it is here (`head_end` finds where it ends), so its grammar fits in a few
patterns and no parser state outlives a call. The patterns are possessive: they never backtrack, so no input makes
them slow. Request heads come from anybody and are held to the letter: a bare CR or LF, a folded line, a name that
is no token, a second Host or Content-Length, Transfer-Encoding beside Content-Length or other than "chunked" are
errors, since two parsers that read such a head differently are how requests are smuggled. A response comes from the
API server and is passed on as it came, apart from the lines that speak of one connection only; it is checked for
what could make the client see another frame than we do, and framing that is unusual is written anew.

llhttp, by its callbacks, costs as much CPU a head and forgives more; it and h11 are the oracles of the tests.
What is the same from request to request (clients repeat their field lines) is remembered by the caller: `Fields`
depends on nothing but the bytes of the field block.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

from k8sproxy.common.errors import ProtocolError

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
_VALUE = rb"[^\x00-\x08\x0a-\x1f\x7f]*+"  # field-value with obs-text, HTAB and SP; no other control character
_REQUEST_LINE = re.compile(rb"(" + _TOKEN + rb") ([!-~]++) HTTP/1\.1\r\n")
_FIELD_BLOCK = re.compile(rb"(?:" + _TOKEN + rb":" + _VALUE + rb"\r\n)*+\r\n")
_FIELD = re.compile(rb"(" + _TOKEN + rb"):[ \t]*+([^\r\n]*+)\r\n")
_LIST_ITEM = re.compile(rb"[^, \t]++")
_CONTENT_LENGTH = re.compile(rb"[0-9]{1,18}")  # 18 digits stay below 2^63: no client means more than an exbibyte
# RFC 3986 authority without userinfo: a name, an IPv4 address or a bracketed IPv6 address, and a port.
_HOST = re.compile(
    rb"(?:[A-Za-z0-9\-._~!$&'()*+,;=]|%[0-9A-Fa-f]{2})++(?::[0-9]{0,5})?|\[[0-9A-Fa-f:.]++\](?::[0-9]{0,5})?"
)
_ABSOLUTE_FORM = re.compile(r"https?://([^/?#]*)(.*)", re.IGNORECASE)

# Response lines that this side must read: the framing, what speaks of the connection (RFC 9110, 7.6.1), and Alt-Svc,
# which would lead the client past the proxy.
_FRAMING = frozenset({b"content-length", b"transfer-encoding"})
_NOT_FORWARDED = frozenset({b"connection", b"keep-alive", b"upgrade", b"te", b"alt-svc"})
_REASON = rb"(?: [^\x00-\x08\x0a-\x1f\x7f]*+)?"
# Held to the letter, so that no client can find a framing field where we saw none. Go's client, and so the API server
# where it proxies to an application, refuses the same.
_RESPONSE = re.compile(
    rb"(HTTP/1\.([01]) ([1-5][0-9][0-9])" + _REASON + rb"\r\n)((?:" + _TOKEN + rb":" + _VALUE + rb"\r\n)*+)\r\n"
)
_RESPONSE_FIELD = re.compile(rb"(" + _TOKEN + rb"):(" + _VALUE + rb")\r\n")
# Nearly every response: one framing field in canonical spelling, or none, and nothing to take out. One match reads it.
_OTHER_FIELDS = (
    rb"(?:(?!(?i:connection|content-length|transfer-encoding|upgrade|keep-alive|te|alt-svc|proxy-[a-z-]+):)"
    + (_TOKEN + rb":" + _VALUE + rb"\r\n)*+")
)
_USUAL_RESPONSE = re.compile(
    rb"(HTTP/1\.1 ([1-5][0-9][0-9])"
    + (_REASON + rb"\r\n)" + _OTHER_FIELDS)
    + rb"(?:(?i:content-length):[ \t]*+(0|[1-9][0-9]{0,17}+)\r\n|(?i:transfer-encoding):[ \t]*+(?i:(chunked))\r\n)?+"
    + (_OTHER_FIELDS + rb"\r\n")
)

# What an Upgrade field says that may mean a session (in whatever version or list), and the fields that go with one.
_SESSION_WORDS = (b"websocket", b"spdy")
_SESSION_FIELDS = frozenset({b"sec-websocket-key", b"sec-websocket-version", b"sec-websocket-protocol"}) | {
    b"x-stream-protocol-version"
}

# What is forwarded at all. TRACE echoes credentials, CONNECT is another protocol, and the API server serves no others.
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


@dataclass(frozen=True, slots=True)
class Fields:
    """The field block of a request head.

    items: (lower-case name, value without surrounding blanks), in order. content_length: bytes, None where there is
    none. chunked: the body has chunked coding. connection: the lower-case tokens of Connection. upgrade: the one
    protocol asked for, lower-case, empty without an upgrade. close: the client wants this to be the last request.
    memo: what others derive from these fields, kept as long as they are.
    """

    items: tuple[tuple[bytes, bytes], ...] = field(repr=False)  # credentials among them
    host: bytes
    content_length: int | None
    chunked: bool
    connection: frozenset[bytes]
    upgrade: str
    close: bool
    memo: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def offers_upgrade(self) -> bool:
        """Whether an upgrade is offered, be it one that is passed over (then `upgrade` is empty)."""
        return b"upgrade" in self.connection or any(name == b"upgrade" for name, _ in self.items)

    def get(self, name: bytes) -> bytes:
        """The first value of the field with this lower-case name, empty without one."""
        for key, value in self.items:
            if key == name:
                return value
        return b""


class RequestHead(NamedTuple):
    """A request's head. target: origin-form ("/path?query"), as it was sent."""

    method: str
    target: str
    fields: Fields


class ResponseHead(NamedTuple):
    """A response's head. fields: the field lines to pass on, each ended by CRLF, without the empty line.

    status_line: with its CRLF. content_length: None where there is none. close: upstream ends the connection after
    this response. upgrade: the protocol switched to, as it was sent, for a 101.
    """

    status: int
    status_line: bytes
    fields: bytes
    content_length: int | None
    chunked: bool
    close: bool
    upgrade: bytes


def head_end(data: bytes | bytearray, start: int = 0) -> int:
    """Where the head at the front of `data` ends (the index behind its empty line), or -1 while it is not whole.

    start: how far earlier calls have looked; the last three bytes before it are looked at again.
    """
    end = data.find(b"\r\n\r\n", start - 3 if start > 3 else 0)
    return -1 if end < 0 else end + 4


def parse_request_line(head: bytes) -> tuple[str, str, int]:
    """(method, target, index where the field block starts) of a whole head, or ProtocolError."""
    end = head.find(b"\r\n") + 2
    line = head[:end]
    method, target = _known_line(line) if end <= _CACHED_LINE else _read_line(line)
    return method, target, end


def _read_line(line: bytes) -> tuple[str, str]:
    match = _REQUEST_LINE.fullmatch(line)
    if match is None:
        raise _request_line_fault(line)
    method = match[1].decode("ascii")
    if method not in METHODS:
        raise ProtocolError(f"the method {method[:32]} is not served here", status=405)
    return method, match[2].decode("ascii")


# Polls, discovery and leases ask for the same again and again. Entries, and bytes a line: at most 6 MiB in all.
_CACHED_LINE = 512
_known_line = lru_cache(4096)(_read_line)


def _request_line_fault(head: bytes) -> ProtocolError:
    line = head.split(b"\r\n", 1)[0]
    words = line.split(b" ")
    if len(words) == 3 and re.fullmatch(rb"HTTP/[0-9]\.[0-9]", words[2]) and words[2] != b"HTTP/1.1":
        return ProtocolError("only HTTP/1.1 is served here", status=505)
    return ProtocolError("the request line is malformed")


def parse_fields(block: bytes, *, max_count: int) -> Fields:
    """Read a field block: its lines and the empty line that ends it. max_count: how many lines are accepted.

    Raises ProtocolError: 400 for anything ambiguous, 417 for an unknown Expect, 431 for too many lines, 501 for a
    transfer coding other than chunked.
    """
    if _FIELD_BLOCK.fullmatch(block) is None:
        raise _field_fault(block)
    items = tuple((name.lower(), value.rstrip(b" \t")) for name, value in _FIELD.findall(block))
    if len(items) > max_count:
        raise ProtocolError(f"more than {max_count} header fields", status=431)
    hosts: list[bytes] = []
    lengths: list[bytes] = []
    codings: list[bytes] = []
    upgrades: list[bytes] = []
    connection: set[bytes] = set()
    for name, value in items:
        if name == b"host":
            hosts.append(value)
        elif name == b"content-length":
            lengths.append(value)
        elif name == b"transfer-encoding":
            codings.append(value.lower())
        elif name == b"connection":
            connection.update(_LIST_ITEM.findall(value.lower()))
        elif name == b"upgrade":
            upgrades.append(value)
        elif name == b"expect" and value.lower() != b"100-continue":
            raise ProtocolError("the only expectation served is 100-continue", status=417)
    if len(hosts) != 1 or _HOST.fullmatch(hosts[0]) is None:
        raise ProtocolError("exactly one valid Host field is needed")
    length = _content_length(lengths, codings)
    upgrade = ""
    if upgrades or b"upgrade" in connection:
        upgrade = _upgrade(upgrades, connection, {name for name, _ in items})
    if upgrade and (length or codings):
        raise ProtocolError("an upgrade can't have a body")
    return Fields(
        items=items,
        host=hosts[0],
        content_length=length,
        chunked=bool(codings),
        connection=frozenset(connection),
        upgrade=upgrade,
        close=b"close" in connection,
    )


def _content_length(lengths: list[bytes], codings: list[bytes]) -> int | None:
    if codings:
        if lengths:
            raise ProtocolError("both Transfer-Encoding and Content-Length")
        if codings != [b"chunked"]:
            raise ProtocolError("the only transfer coding served is chunked", status=501)
        return None
    if not lengths:
        return None
    if len(lengths) > 1 or _CONTENT_LENGTH.fullmatch(lengths[0]) is None:
        raise ProtocolError("Content-Length is not one decimal number")
    return int(lengths[0])


def _upgrade(upgrades: list[bytes], connection: set[bytes], names: set[bytes]) -> str:
    """The protocol asked for, "" without one. names: of all fields of the head.

    An offer of protocols that are not understood is passed over, as RFC 9110, 7.8 has it: h2c, which java.net.http and
    `curl --http2` offer to every server without TLS, TLS/1.2 (RFC 2817) and whatever else; and a Connection that names
    an Upgrade field which is empty or not there (7.6.1), as gateways send it that set it for every request. Nothing of
    it goes upstream, and the request is an ordinary one. Half an upgrade to a session is refused, since servers differ
    on it: a session's protocol without the Connection field, in another spelling or among others, or the other fields
    of a session's upgrade without it.
    """
    offer = b",".join(upgrades).lower()
    if not any(word in offer for word in _SESSION_WORDS):
        if _SESSION_FIELDS.isdisjoint(names):
            return ""
        raise ProtocolError("the fields of a session's upgrade, without an Upgrade field that offers its protocol")
    if len(upgrades) != 1 or b"upgrade" not in connection:
        raise ProtocolError("an upgrade needs one Upgrade field and the upgrade token in Connection")
    if offer not in (b"websocket", b"spdy/3.1"):
        raise ProtocolError("the only upgrades served are websocket and SPDY/3.1")
    return offer.decode("ascii")


def _field_fault(block: bytes) -> ProtocolError:
    if b"\n" in block.replace(b"\r\n", b"") or b"\r" in block.replace(b"\r\n", b""):
        return ProtocolError("a bare CR or LF in the head")
    if re.search(rb"(?:^|\r\n)[ \t]", block):
        return ProtocolError("a folded header field line")
    return ProtocolError("a malformed header field line")


def origin_form(target: str, host: bytes) -> str:
    """The target as origin-form. Absolute-form (RFC 9112, 3.2.2) must name the same host as the Host field."""
    if target.startswith("/"):
        return target
    match = _ABSOLUTE_FORM.fullmatch(target)
    if match is None:
        raise ProtocolError("the request target is neither a path nor a URL")
    if match[1].lower().encode("ascii") != host.lower():
        raise ProtocolError("the request target and the Host field name different hosts")
    rest = match[2]
    return rest if rest.startswith("/") else "/" + rest


def parse_response_head(head: bytes) -> ResponseHead:
    """Read a whole response head (its empty line included). Raises ProtocolError, status 502."""
    match = _USUAL_RESPONSE.fullmatch(head)
    if match is not None:
        status_line, digits, length, chunked = match.groups()
        status = int(digits)
        if (status >= 200 and status != 204 and status != 304) or (length is None and chunked is None):
            fields = head[len(status_line) : -2]
            size = None if length is None else int(length)
            return ResponseHead(status, status_line, fields, size, chunked is not None, False, b"")
    return _unusual_response(head)


def _unusual_response(head: bytes) -> ResponseHead:
    match = _RESPONSE.fullmatch(head)
    if match is None:
        raise ProtocolError("upstream sent a malformed head", status=502)
    status_line, version, digits, block = match.groups()
    status = int(digits)
    old = version == b"0"
    items = [(name, name.lower(), value) for name, value in _RESPONSE_FIELD.findall(block)]
    lengths = [value.strip(b" \t") for _, key, value in items if key == b"content-length"]
    codings = [value.strip(b" \t").lower() for _, key, value in items if key == b"transfer-encoding"]
    upgrades = [value.strip(b" \t") for _, key, value in items if key == b"upgrade"]
    connection = {item for _, key, value in items if key == b"connection" for item in _LIST_ITEM.findall(value.lower())}
    drop = _NOT_FORWARDED | _FRAMING | connection
    lines = [
        name + b":" + value + b"\r\n" for name, key, value in items if key not in drop and not key.startswith(b"proxy-")
    ]
    length: int | None = None
    if status < 200 or status == 204:
        # RFC 9110, 8.6 and RFC 9112, 6.1: framing fields mean nothing here, and are kept from a client that thinks
        # otherwise. An interim response is passed on as it came, so it must not have any.
        if status < 200 and (old or (status != 101 and (lengths or codings))):
            raise ProtocolError("upstream sent a malformed interim response", status=502)
        codings = []
    elif codings:
        if lengths or codings != [b"chunked"] or old:
            raise ProtocolError("upstream's framing is ambiguous", status=502)
        if status == 304:
            # It may say how the body would have come; http.client then waits for it.
            codings = []
        else:
            lines.append(b"Transfer-Encoding: chunked\r\n")
    elif lengths:
        if len(set(lengths)) > 1 or _CONTENT_LENGTH.fullmatch(lengths[0]) is None:
            raise ProtocolError("upstream's Content-Length is not one decimal number", status=502)
        length = int(lengths[0])
        lines.append(b"Content-Length: %d\r\n" % length)
    return ResponseHead(
        status=status,
        status_line=status_line,
        fields=b"".join(lines),
        content_length=length,
        chunked=bool(codings),
        close=old or b"close" in connection,
        upgrade=upgrades[0] if len(upgrades) == 1 else b"",
    )
