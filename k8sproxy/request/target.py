"""The request target: one spelling for one place, or a ProtocolError.

The API server decodes a path, trims its slashes and routes what is left; a kubelet or an intermediary may also fold
`//` and dot segments. Whoever classifies a path that each of them reads differently can be talked round, so a path
that has more than one reading is refused instead of repaired:

- the path starts with `/` and has no empty and no dot segments (a slash at its end is judged by requestinfo);
- raw characters are those of RFC 3986, 3.3 (`pchar`), so no backslash, `#`, blank, control or non-ASCII character;
- an escape is whole, and never stands for a slash, a backslash, a percent sign (no object's name may hold one:
  apimachinery api/validation/path) or a control character. Reserved characters may be escaped: `system%3Anode`;
- a word that something is decided by (api, a group, a resource, a subresource, whatever names no resource) holds no
  escape of an unreserved character either: `%65xec` is exec to the API server. The name of a namespace or of an object
  may, since such an escape means the character itself to every reader (RFC 3986, 6.2.2.2), and clients write them:
  `users/%7E`. But no name is a dot segment, however it is written.

What stands behind pods/NAME/proxy, services/NAME/proxy and nodes/NAME/proxy is an application's own path, which it
may spell as it likes. There only what no HTTP path can hold is refused (controls, broken escapes), and dot segments
that climb out of the application: the API server stops them at the root, an intermediary might not.
"""

from __future__ import annotations

import re
from urllib.parse import unquote_to_bytes

from k8sproxy.common.errors import ProtocolError

# Characters. exec carries its command in the query, and Linux gives a local command at most 128 KiB an argument
# (MAX_ARG_STRLEN); the limit on a head is lower by default and is met first.
MAX_TARGET = 131_072
# Characters, before decoding. A resource's path has at most 9 segments of at most 253 characters, three times that
# where escaped; what runs behind a proxy subresource keeps to 8 KiB too, the custom of web servers.
MAX_PATH = 8192

_PCHAR = r"A-Za-z0-9\-._~!$&'()*+,;=:@"
_USUAL = re.compile(rf"(/[{_PCHAR}/]*)(?:\?([!\"$-~]*))?")
_VISIBLE = re.compile(r"[!\"$-~]*")  # every visible ASCII character but "#"
_CANONICAL = re.compile(rf"[{_PCHAR}/%]*")
_ESCAPE = re.compile(r"%([0-9A-Fa-f]{2})?")
_C1 = re.compile(r"[\x80-\x9f]")
_NEVER = frozenset(b"/\\%")
_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
# Where the names stand in a resource's path, as requestinfo reads it; the other segments are words.
_NAMES = re.compile(
    r"/(?:api/[^/]+|apis/[^/]+/[^/]+)/(?:(?:watch|proxy)/)?+"
    r"(?:namespaces/([^/]+)(?:/(?!(?:status|finalize)(?:/|\Z))[^/]+(?:/([^/]+))?)?|[^/]+/([^/]+))"
)
_APPLICATION = re.compile(r"/api/v1/(?:namespaces/[^/]+/(?:pods|services)|nodes)/[^/]+/proxy(?=/|\Z)")


def split_target(target: str) -> tuple[str, str, bool]:
    """The decoded path, the raw query (without its `?`) and whether the path was plain, of an origin-form target.

    Plain: no escape, no empty segment and none that starts with a dot, so that every reader reads the same path; what
    is not plain may still be canonical. Raises ProtocolError (400; 414 for an overlong target).
    """
    usual = _USUAL.fullmatch(target)
    if usual is not None and len(target) <= MAX_TARGET:
        path = usual[1]
        if "//" not in path and "/." not in path and len(path) <= MAX_PATH:
            return path, usual[2] or "", True
    return _split_unusual(target)


def _split_unusual(target: str) -> tuple[str, str, bool]:
    if len(target) > MAX_TARGET:
        raise ProtocolError(f"the request target is longer than {MAX_TARGET} characters", status=414)
    if not target.startswith("/"):
        raise ProtocolError("the request target does not start with a slash")
    if _VISIBLE.fullmatch(target) is None:
        raise ProtocolError("the request target has a character that must be percent-encoded")
    path, _, query = target.partition("?")
    if len(path) > MAX_PATH:
        raise ProtocolError(f"the path is longer than {MAX_PATH} characters", status=414)
    application = _APPLICATION.match(path)
    if application is None:
        return _decode_canonical(path), query, False
    end = application.end()
    return _decode_canonical(path[:end]) + _decode_application(path[end:]), query, False


def _decode_canonical(path: str) -> str:
    """A path that has one reading only, decoded; anything else raises ProtocolError."""
    if "//" in path:
        raise ProtocolError("the path has an empty segment (//)")
    if "/." in path and not {".", ".."}.isdisjoint(path.split("/")):
        raise ProtocolError("the path has a dot segment")
    if _CANONICAL.fullmatch(path) is None:
        raise ProtocolError("the path has a character that must be percent-encoded")
    for byte in _escaped_bytes(path):
        if byte in _NEVER:
            raise ProtocolError(f"the path has {chr(byte)!r} percent-encoded")
    _check_words(path)
    try:
        decoded = unquote_to_bytes(path).decode()
    except UnicodeDecodeError:
        raise ProtocolError("the path is not UTF-8") from None
    if _C1.search(decoded) is not None:
        raise ProtocolError("the path has a control character")
    return decoded


def _check_words(path: str) -> None:
    """No escape of an unreserved character outside names, and no name that is a dot segment. Raises ProtocolError."""
    words, at = [], 0
    if (names := _NAMES.match(path)) is not None:
        for start, end in (names.span(number) for number in (1, 2, 3) if names[number] is not None):
            if unquote_to_bytes(path[start:end]) in (b".", b".."):
                raise ProtocolError("the path has a dot segment")
            words.append(path[at:start])
            at = end
    for byte in _escaped_bytes("/".join((*words, path[at:]))):
        if byte in _UNRESERVED:
            raise ProtocolError(f"the path has {chr(byte)!r} percent-encoded where it names no object")


def _decode_application(path: str) -> str:
    """The part behind a proxy subresource, decoded once, for the information of readers; bytes of no UTF-8 replaced."""
    _escaped_bytes(path)
    decoded = unquote_to_bytes(path).decode(errors="replace")
    depth = 0
    for segment in decoded.split("/"):
        if segment == "..":
            depth -= 1
            if depth < 0:
                raise ProtocolError("the path climbs out of the proxy subresource")
        elif segment not in ("", "."):
            depth += 1
    return decoded


def _escaped_bytes(path: str) -> list[int]:
    """The bytes that stand percent-encoded, in order; a broken escape or a control character raises ProtocolError."""
    found = []
    for escape in _ESCAPE.finditer(path):
        if escape[1] is None:
            raise ProtocolError("the path has a broken percent escape")
        byte = int(escape[1], 16)
        if byte < 0x20 or byte == 0x7F:
            raise ProtocolError("the path has a control character")
        found.append(byte)
    return found
