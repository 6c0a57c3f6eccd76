"""A stand-in for a tailnet: people, told apart by the loopback address that they come from.

Each person has a SOCKS5 server (RFC 1928) on a port of 127.0.0.1, for a kubeconfig's `proxy-url`. It connects to one
place only, the proxy's tailnet name, which it maps to the proxy's listener on loopback, and binds the person's own
source address (127.0.0.11, .12, ..; Linux has all of 127.0.0.0/8) before it connects. WhoIs then finds the person by
the source of the connection, as tailscaled does by its WireGuard key.

A source address on loopback proves nothing by itself: any process of the machine may bind it, and where a userspace
tailscaled runs, every loopback port is reachable from its tailnet. So WhoIs knows a person by address *and port*, and
only while a connection from this very SOCKS5 server is open there; and the SOCKS5 servers want the password of this run
(RFC 1929), which stands in kubeconfigs that only their owner can read. The demo's cluster hands out shells: this is
what keeps them to whoever started it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import socket
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass

from standins.tailscaled import TAILNET, Answer, groups, tagged_whois, user_whois

HOST = f"k8s.{TAILNET}"
"""The proxy's name on the stand-in tailnet."""
ADDRESS = "100.100.1.2"
"""The proxy's address there. Nothing listens on it: it is a name that SOCKS5 maps, like HOST."""
PORT = 443

# Reply codes, RFC 1928 section 6.
_OK, _FAILED, _NOT_ALLOWED, _REFUSED, _BAD_COMMAND, _BAD_ADDRESS = 0, 1, 2, 5, 7, 8
_USERNAME_PASSWORD, _NO_METHOD = 2, 0xFF
_CHUNK = 64 * 1024  # bytes a read: what asyncio's own buffer holds, and a socket's usual send buffer takes
_HANDSHAKE_TIMEOUT = 10.0  # seconds from connect to a SOCKS5 request: kubectl takes milliseconds


@dataclass(frozen=True)
class Person:
    """Somebody on the tailnet. address: where they connect from; groups: what their grant impersonates, None for a
    person without a grant; tags: not empty for a tagged node; known: whether WhoIs knows them at all."""

    name: str
    address: str
    about: str
    login: str = ""
    tags: tuple[str, ...] = ()
    groups: tuple[str, ...] | None = None
    known: bool = True

    @property
    def identity(self) -> str:
        """Who they are to a reader: their login name, or their tags."""
        return self.login or ", ".join(self.tags) or "unknown"

    def whois(self) -> Answer | None:
        """The LocalAPI's WhoIs answer about this person, None for a 404."""
        capabilities = None if self.groups is None else groups(*self.groups)
        tailnet_address = self.address.replace("127.0.0.", "100.64.0.")
        if not self.known:
            return None
        if self.tags:
            return tagged_whois(self.name, list(self.tags), tailnet_address, capabilities)
        return user_whois(self.login, f"{self.name}-laptop", tailnet_address, capabilities)


PEOPLE = (
    Person("alice", "127.0.0.11", "may do everything", login="alice@example.com", groups=("system:masters",)),
    Person("bob", "127.0.0.12", "may look, not touch", login="bob@example.com", groups=("demo:viewers",)),
    Person("carol", "127.0.0.13", "is known, but has no grant", login="carol@example.com"),
    Person("ci", "127.0.0.14", "is a tagged node that deploys", tags=("tag:ci",), groups=("demo:deployers",)),
    Person("stranger", "127.0.0.15", "is nobody that WhoIs knows", known=False),
)


class _Refused(Exception):
    """A SOCKS5 request that gets this reply code instead of a connection."""

    def __init__(self, code: int) -> None:
        super().__init__(f"SOCKS5 reply {code}")
        self.code = code


class Tailnet:
    """The SOCKS5 servers of `people`, and WhoIs about the connections that they make.

    target: the proxy's listener on loopback, (address, port). password: what SOCKS5 clients have to send, with the
    person's name. Use as an async context manager; `ports` is filled then: a person's name -> SOCKS5 port.
    """

    def __init__(self, people: Iterable[Person], target: tuple[str, int], password: str) -> None:
        self._people = tuple(people)
        self._target = target
        self._password = password
        self._open: dict[tuple[str, int], Person] = {}
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self.ports: dict[str, int] = {}

    async def __aenter__(self) -> Tailnet:
        try:
            for person in self._people:
                await self._listen(person)
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Stops listening and ends every connection."""
        for server in self._servers:
            server.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._servers.clear()

    def whois(self, ip: str, port: int) -> Answer | None:
        """The WhoIs answer about the connection from ip:port; None where it isn't one of ours, or is a stranger's."""
        person = self._open.get((ip, port))
        return person.whois() if person else None

    def proxy_url(self, person: Person) -> str:
        """The proxy-url of this person's kubeconfig, password included."""
        return f"socks5://{person.name}:{self._password}@127.0.0.1:{self.ports[person.name]}"

    async def _listen(self, person: Person) -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            # asyncio.Server holds this task only by its protocol: keep it, so that close() can end it.
            task = asyncio.current_task()
            assert task is not None  # noqa: S101  (asyncio calls back in a task of its own)
            self._tasks.add(task)
            try:
                async with _closing(writer):
                    await self._serve(person, reader, writer)
            finally:
                self._tasks.discard(task)

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        self._servers.append(server)
        self.ports[person.name] = server.sockets[0].getsockname()[1]

    async def _serve(self, person: Person, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_HANDSHAKE_TIMEOUT):
                if not await self._authenticate(person, reader, writer):
                    return
                try:
                    _check_target(*await _read_request(reader))
                    upstream = await self._connect(person)
                except _Refused as refused:
                    writer.write(_reply(refused.code))
                    await writer.drain()
                    return
        except (asyncio.IncompleteReadError, ConnectionError, TimeoutError):
            return  # the client went, or isn't one
        far_reader, far_writer, source = upstream
        try:
            async with _closing(far_writer):
                writer.write(_reply(_OK))
                async with asyncio.TaskGroup() as group:
                    group.create_task(_copy(reader, far_writer))
                    group.create_task(_copy(far_reader, writer))
        except* ConnectionError:
            pass  # one side broke: ending both tells the other
        finally:
            del self._open[source]

    async def _authenticate(self, person: Person, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        version, count = await reader.readexactly(2)
        methods = await reader.readexactly(count)
        if version != 5 or _USERNAME_PASSWORD not in methods:
            writer.write(bytes([5, _NO_METHOD]))
            await writer.drain()
            return False
        writer.write(bytes([5, _USERNAME_PASSWORD]))
        await reader.readexactly(1)  # the version of RFC 1929's exchange, 1
        name = await reader.readexactly((await reader.readexactly(1))[0])
        password = await reader.readexactly((await reader.readexactly(1))[0])
        good = hmac.compare_digest(password, self._password.encode()) and name == person.name.encode()
        writer.write(bytes([1, 0 if good else 1]))
        await writer.drain()
        return good

    async def _connect(self, person: Person) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, tuple[str, int]]:
        """A connection from the person's address to the proxy, and its source, which WhoIs knows from here on."""
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        source: tuple[str, int] | None = None
        try:
            sock.setblocking(False)
            sock.bind((person.address, 0))
            source = sock.getsockname()
            # Before connecting: the proxy may ask WhoIs sooner than this task hears that the connection stands.
            self._open[source] = person
            await asyncio.get_running_loop().sock_connect(sock, self._target)
            return *await asyncio.open_connection(sock=sock), source
        except BaseException as error:
            sock.close()
            if source is not None:
                self._open.pop(source, None)
            if isinstance(error, ConnectionRefusedError):
                raise _Refused(_REFUSED) from None
            if isinstance(error, OSError) and not isinstance(error, TimeoutError):
                raise _Refused(_FAILED) from None
            raise


async def _read_request(reader: asyncio.StreamReader) -> tuple[str, int]:
    """A CONNECT request's host and port (RFC 1928, section 4)."""
    version, command, _, kind = await reader.readexactly(4)
    if version != 5:
        raise _Refused(_FAILED)
    if kind == 1:
        host = str(ipaddress.IPv4Address(await reader.readexactly(4)))
    elif kind == 3:
        host = (await reader.readexactly((await reader.readexactly(1))[0])).decode("latin-1")
    else:
        raise _Refused(_BAD_ADDRESS)
    port = int.from_bytes(await reader.readexactly(2), "big")
    if command != 1:
        raise _Refused(_BAD_COMMAND)
    return host, port


def _check_target(host: str, port: int) -> None:
    if host.lower().removesuffix(".") not in (HOST, ADDRESS) or port != PORT:
        raise _Refused(_NOT_ALLOWED)


def _reply(code: int) -> bytes:
    # The bound address that follows is of no use to anybody here: 0.0.0.0:0.
    return bytes([5, code, 0, 1, 0, 0, 0, 0, 0, 0])


@contextlib.asynccontextmanager
async def _closing(writer: asyncio.StreamWriter) -> AsyncIterator[None]:
    """Closes a connection: at once after a fault or a cancel, else when all is sent."""
    try:
        yield
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
    finally:
        writer.transport.abort()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Moves bytes until the end, then hands the half-close on."""
    while data := await reader.read(_CHUNK):
        writer.write(data)
        await writer.drain()
    with contextlib.suppress(OSError):  # gone already
        writer.write_eof()
