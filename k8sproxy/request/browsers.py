"""What a browser says about the page behind a request, and when that page is a stranger.

The connection is the identity, so a web page that its user looks at has it too: a browser sends what any site asks it
to send. What the browser says about it stands in fields that no page can set: Sec-Fetch-Site (Fetch Metadata; only
to https and to loopback) and Origin. Programs send neither, or an Origin of their own.

`is_cross_site` follows Go's net/http.CrossOriginProtection: Sec-Fetch-Site decides where it is there, else Origin,
whose host and port must be those of Host. It is read as a URL, so one with a path (Headlamp sends its kubeconfig's
server URL) counts by its host; `null` has none, and is a stranger: every sandboxed frame of every site sends it. The
origins that a listener allows are compared whole. One difference, on the safe side: of a field that comes more
than once every value must be accepted, where Go reads the first one.
"""

from __future__ import annotations

import re
from collections.abc import Set

from k8sproxy.protocol.http1 import Fields

NO_ORIGINS: frozenset[bytes] = frozenset()

# Fetch Metadata, and what goes with the script of a service worker (Service Workers, 4.1 and 7.1).
_FETCH_FIELDS = frozenset((b"sec-fetch-site", b"sec-fetch-mode", b"sec-fetch-dest", b"service-worker"))
_FRAMES = frozenset((b"frame", b"iframe", b"fencedframe", b"embed", b"object", b"portal", b"serviceworker"))
_OWN_SITE = frozenset((b"same-origin", b"none"))
# net/url.Parse, as far as origins go: no userinfo, no blanks, no broken escapes in the path.
_URL = re.compile(rb"(?:([a-z][a-z0-9+.\-]*):)?//([^/?#@\s%]+)(?:[/?#](?:[!-$&-~]|%[0-9a-f]{2})*)?")
_DEFAULT_PORTS = {b"http": b":80", b"https": b":443"}


def is_cross_site(fields: Fields, origins: Set[bytes] = NO_ORIGINS) -> bool:
    """Whether a browser sends this for a page that does not come from here. origins: allowed ones (canonical_origin).

    For a request that changes nothing this does not matter: its answer is not shown to the page.
    """
    sites, sources = [], []
    for name, value in fields.items:
        if name == b"sec-fetch-site" and value:
            sites.append(value)
        elif name == b"origin" and value:
            sources.append(value)
    if sites:
        own = all(site in _OWN_SITE for site in sites)
    else:
        own = all(_is_host(source.lower(), fields.host.lower()) for source in sources)
    return not (own or (sources and origins and all(canonical_origin(source) in origins - {b""} for source in sources)))


def is_led_in(fields: Fields) -> bool:
    """Whether a page brings its visitor here: it is of another site and leads the browser here, or takes what is here
    into a frame of its own, or for a service worker. What a person types or has bookmarked is neither."""
    said = {name: value for name, value in reversed(fields.items) if name in _FETCH_FIELDS}
    if said.get(b"sec-fetch-dest") in _FRAMES or said.get(b"service-worker"):
        return True
    site = said.get(b"sec-fetch-site")
    return said.get(b"sec-fetch-mode") == b"navigate" and bool(site) and site not in _OWN_SITE


def opens_document(fields: Fields) -> bool:
    """Whether a browser asks for this to show it, or to load it into a page."""
    known = fields.memo.get("document")
    if known is None:
        known = fields.memo["document"] = any(
            name.startswith(b"sec-fetch-") or (name == b"accept" and b"text/html" in value)
            for name, value in fields.items
        )
    return bool(known)


def _is_host(origin: bytes, host: bytes) -> bool:
    match = _URL.fullmatch(origin)
    if match is None:
        return False
    port = _DEFAULT_PORTS.get(match[1], b"")
    return match[2].removesuffix(port) == host.removesuffix(port)


def canonical_origin(value: bytes) -> bytes:
    """scheme://host[:port] in lower case, without the scheme's own port; b"" for what is not an origin."""
    match = _URL.fullmatch(value.lower())
    if match is None or match[1] is None or match.span(2)[1] != len(value):
        return b""
    return match[1] + b"://" + match[2].removesuffix(_DEFAULT_PORTS.get(match[1], b""))
