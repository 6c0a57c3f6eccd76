"""What stands before every handler, and what is on every answer.

A browser asks for whoever sits at it, and the tailnet knows that person by the connection alone, so another site's page
must not be able to make it ask. What holds that: the Host must be one of the site's names (or an IP address, which no
foreign name server can hand out), an Origin must be the site itself, and Sec-Fetch-Site must say "same-origin" or
"none"; only a link on another site that leads a person to a page may come from elsewhere. Nothing is changed by any
request but the book of looks, and there is no method but GET and HEAD.

Recorded output is hostile, and so are the names in it. The policy on every page allows what comes from this site and
nothing inline. Trusted Types forbid scripts to make elements out of text everywhere but on pages with a player, which
makes its own of constants; and only there WebAssembly may be compiled, which is what the player's terminal is.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from weakref import WeakKeyDictionary, finalize

import structlog
from aiohttp import web

from k8sproxy.common.errors import Refusal
from k8sproxy.common.tailnet.peer import Peer
from k8sproxy.common.tailnet.whois import ClientKey, WhoIs
from recorder.index import IndexFailure
from recorder.store import StoreError
from recorder.web.site import ACCESS, SITE, Find

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_OWN = "img-src 'self'; style-src 'self'; font-src 'self'; connect-src 'self'; form-action 'self'"
_CLOSED = "base-uri 'none'; frame-ancestors 'none'"
PAGE_POLICY = (
    f"default-src 'none'; script-src 'self'; {_OWN}; {_CLOSED}; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
PLAYER_POLICY = f"default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; {_OWN}; {_CLOSED}"
DATA_POLICY = f"default-src 'none'; {_CLOSED}; form-action 'none'; sandbox"

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "X-Frame-Options": "DENY",
    "X-Robots-Tag": "noindex",
}

_METHODS = ("GET", "HEAD")

API = "/api/"
STATIC = "/static/"

_log = structlog.get_logger(__name__)


def whois_finder(whois: WhoIs) -> Find:
    """Who is at the other end, by the local tailscaled: asked once a connection, then as `WhoIs` keeps it."""
    keys: WeakKeyDictionary[object, ClientKey] = WeakKeyDictionary()

    async def find(request: web.Request) -> Peer:
        transport = request.transport
        name = transport.get_extra_info("peername") if transport is not None else None
        if not isinstance(name, tuple):
            raise Refusal(403, "peer_unknown", "the connection has no IP address")
        try:
            key = keys.get(transport)
            if key is None:
                key = keys[transport] = whois.open(name[0], name[1])
                finalize(transport, whois.close, key)
        except TypeError:  # a transport without weak references: the answer is kept for this request only
            key = whois.open(name[0], name[1])
            try:
                return await whois.ask(key)
            finally:
                whois.close(key)
        return await whois.ask(key)

    return find


def host_of(value: str) -> str:
    """The name or address in a Host field, without its port and final dot. Raises ValueError."""
    if value.startswith("["):
        address, bracket, port = value[1:].partition("]")
        if not bracket or (port and not (port.startswith(":") and port[1:].isdigit())):
            raise ValueError("not a host")
        return str(ipaddress.IPv6Address(address))
    host, colon, port = value.partition(":")
    if not host or (colon and not port.isdigit()):
        raise ValueError("not a host")
    return host.lower().removesuffix(".")


def _is_ours(host: str, names: tuple[str, ...]) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host in (name.lower().removesuffix(".") for name in names)
    return True


def check_origin(request: web.Request, hosts: tuple[str, ...]) -> None:
    """Whether the request is one that this site's own pages, a person or a program makes. Raises Refusal."""
    if request.method not in _METHODS:
        raise Refusal(405, "method", "only GET and HEAD are served here")
    field = request.headers.getall("Host", [])
    try:
        known = len(field) == 1 and _is_ours(host_of(field[0]), hosts)
    except ValueError:
        known = False
    if not known:
        raise Refusal(421, "host", "this site is not served under that name")
    foreign = Refusal(403, "cross_site", "a page of another site sent this request")
    origin = request.headers.get("Origin")
    if origin is not None and origin != f"{request.scheme}://{field[0]}":
        raise foreign
    site = request.headers.get("Sec-Fetch-Site", "none")
    if site not in ("none", "same-origin"):
        followed = (request.headers.get("Sec-Fetch-Mode"), request.headers.get("Sec-Fetch-Dest")) == (
            "navigate",
            "document",
        )
        if not followed or request.path.startswith(API):
            raise foreign


async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Signal of every response, streams and errors included."""
    response.headers.update(_HEADERS)
    if "Content-Security-Policy" not in response.headers:
        page = response.content_type == "text/html"
        response.headers["Content-Security-Policy"] = PAGE_POLICY if page else DATA_POLICY
    if "Cache-Control" not in response.headers:
        response.headers["Cache-Control"] = "no-store"
    response.headers.pop("Server", None)


def guard(answer: Callable[[web.Request, Refusal], web.Response]) -> Callable[..., Awaitable[web.StreamResponse]]:
    """The middleware. answer: makes the page or the document of a refusal."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        site = request.app[SITE]
        try:
            check_origin(request, site.config.hosts)
            if not request.path.startswith(STATIC):  # stylesheets and scripts say nothing, and a refusal uses them
                request[ACCESS] = await site.access(request)
            return await handler(request)
        except Refusal as refusal:
            response = answer(request, refusal)
            if refusal.status == 405:
                response.headers["Allow"] = ", ".join(_METHODS)  # RFC 9110, 15.5.6
            return response
        except web.HTTPNotFound:
            return answer(request, Refusal(404, "not_found", "nothing is served at this path"))
        except web.HTTPException as error:
            if error.status < 400:
                raise
            return answer(request, Refusal(error.status, "request", HTTPStatus(error.status).description or "refused"))
        except (StoreError, IndexFailure) as error:
            what = "store" if isinstance(error, StoreError) else "index"
            _log.warning(f"{what}_failed", path=request.path, error=str(error))
            return answer(request, Refusal(503, what, f"the {what} cannot be read now", retry_after=5))
        except Exception:
            _log.exception("web_failed", path=request.path)
            return answer(request, Refusal(500, "internal", "an internal error of the recorder; its log has more"))

    return middleware
