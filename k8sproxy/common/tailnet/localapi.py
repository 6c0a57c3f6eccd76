"""The local tailscaled's LocalAPI: HTTP/1.1 over a unix socket, four questions of it.

    whois(address)         who is at the other end                     GET /localapi/v0/whois
    status()               what this node is                           GET /localapi/v0/status
    certificate(domain)    the node's certificate and its key          GET /localapi/v0/cert/DOMAIN
    watch()                that something has changed, as a stream     GET /localapi/v0/watch-ipn-bus

Source: ipn/localapi/{localapi,cert}.go of tailscale.com v1.102.5. The daemon takes no Host but its own name, and lets
root (or its operator) read; whoever else connects is told 403.

Every question has a time limit over the whole of it, waiting for a connection included, and a limit on the bytes of its
answer. How it gets there and back is `transport`'s business, what an answer says `answers`'. Whatever fails becomes one
`Refusal` in `map_exceptions`, and no other exception leaves this file. Its cause is `whois_` or `localapi_` followed by
one of

    denied         the daemon says that this process may not ask
    unavailable    no socket, no permission to open it, nobody listening, connection lost, the daemon's own failure
    timeout        no whole answer in time
    malformed      an answer that is none: not HTTP, not JSON, wrong types, too large

or `peer_unknown` (403), the daemon's "no such peer". The others are 503: they say nothing about the client.
"""

from __future__ import annotations

import asyncio
import errno
import re
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from urllib.parse import quote, urlencode

from k8sproxy.common.errors import Refusal
from k8sproxy.common.tailnet.answers import CertificatePair, Malformed, NodeStatus, read_pair, read_status, read_whois
from k8sproxy.common.tailnet.peer import Peer
from k8sproxy.common.tailnet.transport import MAX_WORDS, Answer, Stream, Transport

DEFAULT_SOCKET = "/var/run/tailscale/tailscaled.sock"
HOST = "local-tailscaled.sock"  # apitype.LocalAPIHost

# Seconds. The daemon answers out of memory, in about a millisecond; for a loopback port that it does not know it waits
# 180 ms first, holding its lock (proxymap.WhoIsIPPort). Past five seconds the user has noticed, and a refusal tells
# them more than a wait does.
ANSWER_TIMEOUT = 5.0
# Seconds. A certificate that has to be made takes an ACME order with a DNS challenge: a minute is common.
CERTIFICATE_TIMEOUT = 300.0

# Bytes. One node, its user and its grants: a few KiB; thousands of groups, a few hundred KiB.
MAX_WHOIS = 4 << 20
# Bytes. Asked without peers, a few KiB; a daemon that sends them all the same takes about 1 KiB each, so this is a
# tailnet of some ten thousand nodes.
MAX_STATUS = 64 << 20
# Bytes. A key and a chain of three or four certificates: under 16 KiB.
MAX_CERTIFICATE = 1 << 20

# Connections to the daemon at once: one question for each new peer in a burst, while two streams and a certificate that
# is being made hold one each. It serves them from one lock, so that more of them would only queue there.
_MAX_CONNECTIONS = 16
_KEEP_ALIVE = 30.0  # seconds, a few times the time that a WhoIs answer is kept: a busy proxy never connects anew

# ipn.NotifyWatchOpt, the first that the daemon takes (400 for those it can't combine): peer changes without netmaps;
# netmaps at most every few seconds; whatever it sends on its own.
_WATCH_MASKS = (1 << 12 | 1 << 13, 1 << 8, 0)

# DNS names as Go's acme client has them; it goes into a path, so nothing else gets in.
_DOMAIN = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)+")


class _Complaint(Exception):
    """An answer with another status than 200, and the daemon's words."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(f"{status}: {words}")
        self.status = status
        self.words = words


class LocalAPI:
    """Asks the daemon behind one unix socket.

    Connections are made at the first question, inside the running loop, and kept; `aclose` ends them, and whatever is
    asked after it is refused. timeout: seconds for any question but a certificate. Both limits may be changed later.
    """

    def __init__(
        self,
        socket: str = DEFAULT_SOCKET,
        *,
        timeout: float = ANSWER_TIMEOUT,
        certificate_timeout: float = CERTIFICATE_TIMEOUT,
    ) -> None:
        self.socket = socket
        self.timeout = timeout
        self.certificate_timeout = certificate_timeout
        self._transport = Transport(socket, most=_MAX_CONNECTIONS, keep=_KEEP_ALIVE)

    async def whois(self, address: str, *, service: str | None = None, destination: str | None = None) -> Peer:
        """Who is at the other end of a TCP connection from `address` ("IP:PORT", "[IPv6]:PORT"; port 0 for a tailnet
        address whose port does not matter).

        The capabilities are what the peer may do to this node, or to the Tailscale Service `service` ("svc:NAME"), or
        to whatever has the address `destination`. Raises Refusal.
        """
        query = {"addr": address, "proto": "tcp"}
        if service is not None:
            query["svc_name"] = service
        elif destination is not None:
            query["dst_ip"] = destination
        with map_exceptions("whois", self.socket, self.timeout):
            try:
                body = await self._get("whois", query, MAX_WHOIS, self.timeout)
            except _Complaint as complaint:
                # Go's own 404, for a path that it does not serve, is not the daemon's word on this peer.
                if complaint.status == 404 and complaint.words != "404 page not found":
                    raise Refusal(403, "peer_unknown", f"tailscaled knows no peer at {address}") from None
                raise
            return read_whois(body, address)

    async def status(self) -> NodeStatus:
        """What this node is. Raises Refusal."""
        with map_exceptions("localapi", self.socket, self.timeout):
            return read_status(await self._get("status", {"peers": "false"}, MAX_STATUS, self.timeout))

    async def certificate(self, domain: str, min_validity: float = 0.0) -> CertificatePair:
        """The certificate for one of the node's own names, out of the daemon's store or newly made.

        min_validity: seconds that it must still be valid, or the daemon renews it before it answers; 0 takes what is
        there. Raises Refusal.
        """
        with map_exceptions("localapi", self.socket, self.certificate_timeout):
            if not _DOMAIN.fullmatch(domain):
                raise Malformed(f"{domain!r} is not a domain name that can have a certificate")
            query = {"type": "pair", "min_validity": f"{int(min_validity)}s"}
            return read_pair(
                await self._get(f"cert/{quote(domain, safe='')}", query, MAX_CERTIFICATE, self.certificate_timeout)
            )

    async def watch(self) -> AsyncGenerator[None, None]:
        """Yields once when the daemon has taken the subscription, then whenever it says anything: ask again.

        What it says is dropped as it comes, in pieces of any size, so a netmap of many megabytes costs no memory and
        yields more than once. Ends when the daemon ends the stream (it does so to whoever reads too slowly). The time
        limit is on the subscription; silence after that is no fault. Raises Refusal. Close it (contextlib.aclosing): it
        holds a connection.
        """
        with map_exceptions("localapi", self.socket, self.timeout):
            async with asyncio.timeout(self.timeout):
                stream = await self._subscribe()
            try:
                yield None
                while await stream.listen():
                    yield None
            finally:
                stream.close()

    async def aclose(self) -> None:
        """Ends all connections, and with them every question that is still waiting."""
        await self._transport.aclose()

    async def _subscribe(self) -> Stream:
        for mask in _WATCH_MASKS:
            response = await self._transport.stream(_request("watch-ipn-bus", {"mask": str(mask)}))
            if isinstance(response, Stream):
                return response
            complaint = _complaint(response)
            if complaint.status != 400:
                break
        raise complaint

    async def _get(self, path: str, query: dict[str, str], limit: int, seconds: float) -> bytes:
        async with asyncio.timeout(seconds):
            answer = await self._transport.get(_request(path, query), limit)
        if answer.status != 200:
            raise _complaint(answer)
        return answer.body


@contextmanager
def map_exceptions(question: str, socket: str, seconds: float) -> Iterator[None]:
    """Turns whatever goes wrong with one question to the daemon into a Refusal; this room's only edge.

    question: "whois" or "localapi", the first word of the cause. seconds: the limit, for the message.
    """
    try:
        yield
    except Refusal:
        raise
    except _Complaint as complaint:
        raise _complained(question, complaint) from None
    except TimeoutError:
        raise Refusal(
            503, f"{question}_timeout", f"tailscaled did not answer within {seconds:g} s", retry_after=1
        ) from None
    except (Malformed, ValueError) as error:
        # A ValueError may repeat the bytes that were not liked, which have no place in an answer to a client.
        detail = str(error) if isinstance(error, Malformed) else type(error).__name__
        raise Refusal(503, f"{question}_malformed", f"tailscaled's answer makes no sense: {detail}") from None
    except (OSError, RuntimeError) as error:
        # RuntimeError is what the event loop raises for a connection that is closed while it is being used.
        raise Refusal(503, f"{question}_unavailable", _why_unavailable(error, socket), retry_after=1) from None


def _complained(question: str, complaint: _Complaint) -> Refusal:
    if complaint.status in (401, 403):
        return Refusal(
            503,
            f"{question}_denied",
            f"tailscaled does not permit this process to ask ({complaint}); run it as root, or as the operator of the "
            "daemon (tailscale set --operator), or permit certificates (TS_PERMIT_CERT_UID)",
        )
    if complaint.status == 429 or complaint.status >= 500:
        return Refusal(503, f"{question}_unavailable", f"tailscaled failed: {complaint}", retry_after=1)
    return Refusal(503, f"{question}_malformed", f"tailscaled rejected the question: {complaint}")


def _why_unavailable(error: Exception, socket: str) -> str:
    """A sentence on an error of the connection that says what to do about it."""
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.EACCES, errno.EPERM):
        return f"no permission to open tailscaled's socket {socket}: run as a user who may, or give this user access"
    if number in (errno.ENOENT, errno.ENOTDIR):
        return f"there is no socket {socket}: is tailscaled running, and is tailnet.socket its --socket?"
    if number == errno.ECONNREFUSED:
        return f"no process listens on the socket {socket}: tailscaled has stopped"
    return f"the connection to tailscaled on {socket} was lost ({type(error).__name__})"


def _request(path: str, query: dict[str, str]) -> bytes:
    return f"GET /localapi/v0/{path}?{urlencode(query)} HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode("ascii")


def _complaint(answer: Answer) -> _Complaint:
    """An error of the daemon's, with the first of what it says, as one line of printable text."""
    text = answer.body[:MAX_WORDS].decode(errors="replace").strip()
    return _Complaint(answer.status, "".join(character if character.isprintable() else " " for character in text))
