"""A tailscaled of our own: the part of the LocalAPI that is in use, on a unix socket, with faults on request.

    async with FakeTailscaled(path) as daemon:
        daemon.peers["100.64.0.7"] = user_whois("ana@example.com", "laptop", "100.64.0.7", caps)
        daemon.faults["whois"] = "hang"        # until it is deleted again
        daemon.notify()                        # something has changed

What it answers is shaped like the answers of tailscale.com v1.102.5: tabs for indents, fields that nobody here reads,
"no match for IP:port" with a 404, 403 to a wrong Host.

The faults, by endpoint (whois, status, cert, watch-ipn-bus):

    hang       takes the question and never answers             close     closes the connection instead
    hold       answers after `release()`                        garbage   200, and text that is not JSON
    nonsense   bytes that are not HTTP                          half       half an answer, then the end
    denied     403                                              failing   500
    oversize   an answer without end                            missing   Go's 404 for a path that nobody serves
    empty      200 and nothing                                  busy      429
"""

from __future__ import annotations

import asyncio
import datetime
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from k8sproxy.common.tailnet.changes import Changes

TAILNET = "tail1234.ts.net"
KUBERNETES = "tailscale.com/cap/kubernetes"

Answer = dict[str, Any]
Caps = Mapping[str, list[Any] | None]
Peers = dict[str, Answer] | Callable[[str, int], Answer | None]


def user_whois(login: str, name: str, ip: str, caps: Caps | None = None) -> Answer:
    """WhoIs of a node that belongs to a user. name: the node's, without its tailnet; ip: its tailnet address."""
    user = {
        "ID": sum(login.encode()) + 7_000_000_000_000_000,
        "LoginName": login,
        "DisplayName": login.partition("@")[0].title(),
        "ProfilePicURL": "",
    }
    return {"Node": _node(name, ip, user["ID"]), "UserProfile": user, "CapMap": dict(caps) if caps else None}


def tagged_whois(name: str, tags: list[str], ip: str, caps: Caps | None = None) -> Answer:
    """WhoIs of a tagged node: its user is the daemon's stand-in for all of them."""
    user = {"ID": 2155_1973_1955, "LoginName": "tagged-devices", "DisplayName": "Tagged Devices"}
    node = {**_node(name, ip, user["ID"]), "Tags": tags}
    return {"Node": node, "UserProfile": user, "CapMap": dict(caps) if caps else None}


def groups(*names: str, **rule: Any) -> dict[str, list[Any] | None]:
    """Capabilities of one Kubernetes rule: its groups, and any other field of it."""
    return {KUBERNETES: [{"impersonate": {"groups": list(names)}, **rule}]}


def _node(name: str, ip: str, user: object) -> Answer:
    number = sum(name.encode()) * 1000 + len(name)
    return {
        "ID": number,
        "StableID": f"n{name.replace('-', '')}CNTRL",
        "Name": f"{name}.{TAILNET}.",
        "User": user,
        "Key": "nodekey:" + f"{number:064x}",
        "KeyExpiry": "2027-05-01T10:00:00Z",
        "DiscoKey": "discokey:" + f"{number:064x}",
        "Addresses": [f"{ip}/{128 if ':' in ip else 32}"],
        "AllowedIPs": [f"{ip}/{128 if ':' in ip else 32}"],
        "Hostinfo": {"OS": "linux", "Hostname": name},
        "Created": "2026-01-01T10:00:00Z",
        "Cap": 131,
        "Online": True,
        "MachineAuthorized": True,
        "ComputedName": name,
        "ComputedNameWithHost": name,
    }


def make_certificate(
    domain: str, not_before: datetime.datetime | None = None, not_after: datetime.datetime | None = None
) -> tuple[bytes, bytes]:
    """A key and a certificate that it has signed itself, in PEM; valid for 90 days from now if not told otherwise."""
    not_before = not_before or datetime.datetime.now(datetime.UTC)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, domain)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(not_before)
        .not_valid_after(not_after or not_before + datetime.timedelta(days=90))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(domain)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return (
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        ),
        certificate.public_bytes(serialization.Encoding.PEM),
    )


class FakeTailscaled:
    """A daemon on the unix socket `path`, from entering to leaving its context.

    peers: WhoIs answers by IP or "IP:PORT" (the latter first), or a function of both. certificates: (key, chain) by
    name, made by `renew` when asked for. asked: how often each endpoint was; queries: what it was asked, in order.
    refused_masks: watch-ipn-bus masks that are a 400. streams: how many watchers there are.
    """

    def __init__(self, path: str | os.PathLike[str], peers: Peers | None = None) -> None:
        self.path = os.fspath(path)
        self.peers: Peers = {} if peers is None else peers
        self.faults: dict[str, str] = {}
        self.backend_state = "Running"
        self.name = f"k8s.{TAILNET}."
        self.addresses = ["100.100.1.2", "fd7a:115c:a1e0::2"]
        self.cert_domains: list[str] | None = [f"k8s.{TAILNET}"]
        self.tun = True
        self.certificates: dict[str, tuple[bytes, bytes]] = {}
        self.renew: Callable[[str, float], tuple[bytes, bytes]] = lambda domain, min_validity: make_certificate(domain)
        self.asked: Counter[str] = Counter()
        self.queries: list[tuple[str, dict[str, str]]] = []
        self.refused_masks: set[str] = set()
        self._changes = Changes()  # a question, or a watcher that comes or goes
        self._streams: set[asyncio.Transport] = set()
        self._release = asyncio.Event()
        self._stopping = asyncio.Event()
        self._runner: web.AppRunner | None = None
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> FakeTailscaled:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        app = web.Application()
        app.router.add_get("/localapi/v0/{endpoint}", self._serve)
        app.router.add_get("/localapi/v0/{endpoint}/{rest}", self._serve)
        self._stopping = asyncio.Event()
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0, handler_cancellation=True)
        await self._runner.setup()
        assert self._runner.server is not None
        self._server = await asyncio.get_running_loop().create_unix_server(self._runner.server, self.path)

    async def stop(self) -> None:
        """Stops like a daemon that dies: every connection ends where it is. `start` makes it come back."""
        self._stopping.set()
        self.release()
        self.end_streams()
        if self._server is not None:
            # asyncio leaks a connection that is taken in the very turn in which its server closes (3.11); so nothing
            # is taken from here on, and what has been taken gets its turns first.
            for listener in self._server.sockets:
                asyncio.get_running_loop().remove_reader(listener.fileno())
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            self._server.close()
            self._server = None
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        if os.path.exists(self.path):
            os.unlink(self.path)

    @property
    def streams(self) -> int:
        return len(self._streams)

    def notify(self, message: Mapping[str, Any] | None = None) -> None:
        """Tells all watchers of the bus that something has changed."""
        line = json.dumps({"Version": "1.102.5", **(message or {"PeersChanged": [{"ID": 1}]})}).encode() + b"\n"
        self.push(line)

    def push(self, data: bytes) -> None:
        """Sends these very bytes to all watchers of the bus."""
        for stream in self._streams:
            stream.write(b"%x\r\n%s\r\n" % (len(data), data))

    def end_streams(self) -> None:
        """Drops all watchers, as the daemon does with one that reads too slowly."""
        for stream in tuple(self._streams):
            stream.close()

    def release(self) -> None:
        """Answers whatever is held, and from now on holds anew."""
        self._release.set()
        self._release = asyncio.Event()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Waits until `condition` holds, looking at it whenever a question or a watcher comes or goes."""
        while not condition():
            await self._changes.wait_changed(self._changes.generation)

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        endpoint = request.match_info["endpoint"]
        if request.host != "local-tailscaled.sock" or "Referer" in request.headers or "Origin" in request.headers:
            return web.Response(status=403, text="invalid localapi request\n")
        self.asked[endpoint] += 1
        self.queries.append((endpoint, dict(request.query)))
        self._changes.bump()
        fault = self.faults.get(endpoint)
        if fault == "hold":
            await self._release.wait()
        elif fault is not None:
            return await self._fail(fault, request)
        match endpoint:
            case "whois":
                return self._whois(request)
            case "status":
                return _json(self._status())
            case "cert":
                return self._cert(request)
            case "watch-ipn-bus":
                return await self._watch(request)
        return web.Response(status=404, text="404 page not found\n")

    async def _fail(self, fault: str, request: web.Request) -> web.StreamResponse:
        transport = request.transport
        match fault:
            case "hang":
                await self._stopping.wait()
            case "close":
                pass
            case "garbage":
                return web.Response(text="<html>not what you asked for")
            case "empty":
                return web.Response()
            case "nonsense":
                if transport is not None:
                    transport.write(b"SSH-2.0-OpenSSH_9.9\r\n")
            case "half":
                if transport is not None:
                    transport.write(b'HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{"Node": {')
            case "denied":
                return web.Response(status=403, text=f"{request.match_info['endpoint']} access denied\n")
            case "failing":
                return web.Response(status=500, text="something broke\x1b[31m\n")
            case "busy":
                return web.Response(status=429, text="rate limited\n")
            case "missing":
                return web.Response(status=404, text="404 page not found\n")
            case "oversize":
                response = web.StreamResponse()
                await response.prepare(request)
                try:
                    while True:
                        await response.write(b" " * 65536)
                except ConnectionError:
                    return response
            case _:
                raise AssertionError(f"no such fault: {fault}")
        if transport is not None:
            transport.close()
        return web.Response()

    def _whois(self, request: web.Request) -> web.Response:
        ip, _, port = request.query.get("addr", "").rpartition(":")
        ip = ip.strip("[]")
        if not ip or not port.isdigit():
            return web.Response(status=400, text="invalid 'addr' parameter\n")
        if callable(self.peers):
            answer = self.peers(ip, int(port))
        else:
            answer = self.peers.get(f"{ip}:{port}") or self.peers.get(ip)
        if answer is None:
            return web.Response(status=404, text="no match for IP:port\n")
        return _json(answer)

    def _status(self) -> Answer:
        return {
            "Version": "1.102.5-test",
            "TUN": self.tun,
            "BackendState": self.backend_state,
            "HaveNodeKey": True,
            "AuthURL": "",
            "TailscaleIPs": self.addresses or None,
            "Self": {
                "ID": "nk8sCNTRL",
                "PublicKey": "nodekey:" + "0" * 64,
                "HostName": "k8s",
                "DNSName": self.name,
                "OS": "linux",
                "TailscaleIPs": self.addresses or None,
                "Online": True,
            },
            "Health": [],
            "MagicDNSSuffix": TAILNET,
            "CertDomains": self.cert_domains,
            "Peer": None,
            "User": {},
        }

    def _cert(self, request: web.Request) -> web.Response:
        domain = request.match_info["rest"]
        if domain not in (self.cert_domains or ()):
            return web.Response(status=500, text=f"invalid domain {domain!r}; must be one of the node's\n")
        min_validity = float(request.query.get("min_validity", "0s").removesuffix("s"))
        if min_validity or domain not in self.certificates:
            self.certificates[domain] = self.renew(domain, min_validity)
        key, chain = self.certificates[domain]
        return web.Response(body=key + chain, content_type="text/plain")

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        if request.query.get("mask") in self.refused_masks:
            return web.Response(status=400, text="NotifyRateLimit can't be combined with that\n")
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        transport = request.transport
        if transport is None:
            return response
        self._streams.add(transport)
        self._changes.bump()
        try:
            await self._stopping.wait()
        finally:
            self._streams.discard(transport)
            self._changes.bump()
        return response


def _json(answer: Answer) -> web.Response:
    return web.Response(text=json.dumps(answer, indent="\t"), content_type="application/json")
