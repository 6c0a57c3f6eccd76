"""Content that is not the API server's own: what pods, services and nodes answer behind a proxy subresource.

It comes by the API's own origin. A page that a pod serves there could do in a browser whatever the person who opens it
may do in the cluster, and a field of its answer could change what the browser does with the whole origin. So:

    every answer from there   says `Content-Security-Policy: sandbox` without allow-same-origin: its pages are of an
                              origin that nothing else is of, and what they send is a stranger's (browsers). It says
                              frame-ancestors 'none' and nosniff as well. What the application says itself of these
                              stays beside it: of several policies each holds.
    fields for the origin     are taken out (_ORIGIN_WIDE). A cookie keeps its name and value, and gets the path of its
                              own proxy subresource; where it can't have that, it is taken out too.
    documents of the rest     get the same policy: an aggregated API may have ways to others' content of its own.

Which requests are such: `RequestInfo.foreign` (is_foreign_path). Programs see nothing of this but the lines.
"""

from __future__ import annotations

import re
from typing import NamedTuple

# What a page of an application may do in its sandbox. Not allow-same-origin, which would end it, not
# allow-popups-to-escape-sandbox and not allow-top-navigation.
_MAY = b"allow-downloads allow-forms allow-modals allow-popups allow-scripts"
GUARD_FIELDS = (
    b"Content-Security-Policy: sandbox " + _MAY + b"; frame-ancestors 'none'\r\nX-Content-Type-Options: nosniff\r\n"
)

# What a browser keeps for a whole origin, or for more than it, whichever path said so; and what whole families of
# fields do so. Alt-Svc never goes on (http1).
_ORIGIN_WIDE = frozenset(
    (
        b"accept-ch",  # which hints every later request carries; Critical-CH makes it send them at once
        b"accept-ch-lifetime",
        b"critical-ch",
        b"activate-storage-access",  # asks for the cookies that the browser keeps from a frame
        b"observe-browsing-topics",
        b"shared-storage-write",
        b"clear-site-data",  # logs people out, and unregisters service workers
        b"expect-ct",
        b"nel",  # has every failed request of the origin, and of names below it, told to a collector
        b"origin-agent-cluster",
        b"origin-isolation",  # what it was called before
        b"origin-trial",
        b"refresh",  # leads the page on, past what a sandbox says of navigation
        b"report-to",
        b"reporting-endpoints",
        b"service-worker-allowed",  # lets a service worker answer for paths above its own
        b"set-cookie2",
        b"set-login",
        b"strict-transport-security",  # shuts out everything on the host that speaks plain HTTP, for years
        b"use-as-dictionary",  # a compression dictionary for paths that it names
        # A password is asked for in the API's name; no answer to it would reach the application, for the API server
        # takes Authorization off.
        b"www-authenticate",
        b"x-content-type-options",  # ours stands for it
    )
)
_FAMILIES = (
    b"access-control-",  # who else may read the answers; the API server takes these off as well (upgradeaware.go)
    b"ad-auction-",  # what the browser tells of the origin's visitors, and to whom
    b"attribution-reporting-",
    b"public-key-pins",
    b"sec-session-",  # device-bound sessions are the site's
    b"secure-session-",
)
# RFC 6265 and the browsers' additions, but Path, which is set, and Domain, which would reach other hosts.
_COOKIE_ATTRIBUTES = frozenset(
    (b"expires", b"max-age", b"secure", b"httponly", b"samesite", b"partitioned", b"priority")
)
_COOKIE_PATH = re.compile(r"[A-Za-z0-9._~:/-]+")
_SNIFFING = re.compile(rb"^x-content-type-options:[^\r\n]*\r\n", re.IGNORECASE | re.MULTILINE)
_LINE = re.compile(rb"([^:\r\n]+):([^\r\n]*)\r\n")


class Guard(NamedTuple):
    """What becomes of the fields of an answer. foreign: those for the origin are taken out, and cookies get cookie_path
    (b"" where they can't have one)."""

    foreign: bool
    cookie_path: bytes = b""

    def fields(self, block: bytes) -> bytes:
        """The field lines that go on, of those that came (each with its CRLF)."""
        block = _harmless(block, self.cookie_path) if self.foreign else _SNIFFING.sub(b"", block)
        return block + GUARD_FIELDS

    def interim(self, block: bytes) -> bytes:
        """The same for a head that no document has: of an interim response, or of a switch of protocols."""
        return _harmless(block, self.cookie_path) if self.foreign else block


DOCUMENT = Guard(foreign=False)


def is_foreign_path(path: str, rest: tuple[str, ...], *, resource: bool, verb: str, subresource: str) -> bool:
    """Whether what stands at a path is others' content. rest: the path's parts from the resource on.

    Of an aggregated API every part counts that is called `proxy`, wherever it stands. `/logs/` is the API server's own
    folder of log files, which serves them by their names' types, HTML among them.
    """
    if resource:
        return subresource == "proxy" or verb == "proxy" or "proxy" in rest[2:]
    return path == "/logs" or path.startswith("/logs/")


def guard_of(root: str) -> Guard:
    """The guard of answers of foreign content. root: RequestInfo.root."""
    return Guard(True, root.encode("ascii") if _COOKIE_PATH.fullmatch(root) else b"")


def _harmless(block: bytes, cookie_path: bytes) -> bytes:
    lines = []
    for match in _LINE.finditer(block):
        name = match[1].lower()
        if name in _ORIGIN_WIDE or name.startswith(_FAMILIES):
            continue
        if name == b"set-cookie":
            if cookie_path:
                lines.append(b"Set-Cookie: " + _own_cookie(match[2], cookie_path) + b"\r\n")
            continue
        lines.append(match[0])
    return b"".join(lines)


def _own_cookie(value: bytes, path: bytes) -> bytes:
    pair, *attributes = (part.strip(b" \t") for part in value.split(b";"))
    kept = [item for item in attributes if item.partition(b"=")[0].strip(b" \t").lower() in _COOKIE_ATTRIBUTES]
    return b"; ".join((pair, *kept, b"Path=" + path))
