"""A TCP connection to an address that may be on the tailnet, whichever way the daemon's mode needs.

Where the daemon has a TUN device, the kernel routes 100.64.0.0/10 and fd7a:115c:a1e0::/48 and a plain connect does.
Where it is userspace-only, the kernel knows nothing of them, and the connection is asked of the LocalAPI: POST
/localapi/v0/dial, which answers 101 and is the connection from then on (ipn/localapi, serveDial). Addresses that are
not the tailnet's are always connected to directly. The mode is asked for once, and again after a failure: a daemon may
have been restarted in the other one.

What comes out is a plain non-blocking socket. The 101's head is read by looking first (MSG_PEEK) and taking no byte
behind it, so that nothing the other end has said by then is lost.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from ipaddress import ip_address

from k8sproxy.common.errors import ProtocolError, Refusal
from k8sproxy.common.sockets import join_address
from k8sproxy.common.tailnet.localapi import HOST, LocalAPI
from k8sproxy.common.tailnet.peer import is_tailnet
from k8sproxy.protocol.http1 import head_end, parse_response_head

# Seconds for the whole of a dial. A tailnet path that has been idle may take a second to come up through a relay.
DIAL_TIMEOUT = 5.0
# Bytes of the answer's head: the status line and two or three fields; an error's comes with one line of text.
_MAX_HEAD = 8 * 1024


class DialError(OSError):
    """There is no connection; the text is a sentence that says why."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class Dialer:
    """Connects. localapi: the daemon's, for its mode and its socket. timeout: seconds, may be changed later."""

    def __init__(self, localapi: LocalAPI, *, timeout: float = DIAL_TIMEOUT) -> None:
        self.timeout = timeout
        self._localapi = localapi
        self._tun: bool | None = None  # None: not asked yet, or no longer believed

    async def __call__(self, host: str, port: int) -> socket.socket:
        """A connected, non-blocking stream socket to (host, port); host is an IP address. Raises DialError."""
        try:
            async with asyncio.timeout(self.timeout):
                if await self._direct(host):
                    return await _connect(host, port)
                return await self._through(host, port)
        except TimeoutError:
            # Not the mode's fault where the other end is silent, but only asking tells.
            self._tun = None
            raise DialError(
                f"{join_address(host, port)} did not accept a connection within {self.timeout:g} s"
            ) from None
        except Refusal as refusal:
            raise DialError(refusal.message) from None
        except DialError:
            self._tun = None
            raise
        except OSError as error:
            self._tun = None
            raise DialError(f"{join_address(host, port)}: {_words(error)}") from None

    async def _direct(self, host: str) -> bool:
        try:
            tailnet = is_tailnet(ip_address(host))
        except ValueError:
            raise DialError("only IP addresses are dialled") from None
        if not tailnet:
            return True
        tun = self._tun
        if tun is None:
            tun = self._tun = (await self._localapi.status()).tun
        return tun

    async def _through(self, host: str, port: int) -> socket.socket:
        path = self._localapi.socket
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.setblocking(False)
            loop = asyncio.get_running_loop()
            try:
                await loop.sock_connect(sock, path)
            except OSError as error:
                raise DialError(f"no connection to tailscaled on {path}: {_words(error)}") from None
            request = (
                f"POST /localapi/v0/dial HTTP/1.1\r\nHost: {HOST}\r\nUpgrade: ts-dial\r\nConnection: upgrade\r\n"
                f"Dial-Host: {host}\r\nDial-Port: {port}\r\nContent-Length: 0\r\n\r\n"
            )
            await loop.sock_sendall(sock, request.encode())
            await _switched(sock, join_address(host, port))
        except BaseException:
            sock.close()
            raise
        return sock


async def _connect(host: str, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, (host, port))
    except BaseException:
        sock.close()
        raise
    return sock


async def _switched(sock: socket.socket, address: str) -> None:
    """Takes the answer's head off the socket, and nothing behind it. Raises DialError unless it is a 101."""
    head = b""
    while True:
        await _readable(sock)
        try:
            seen = sock.recv(_MAX_HEAD, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            continue
        if not seen:
            raise DialError("tailscaled closed the connection instead of dialling")
        end = head_end(head + seen, len(head))
        if end >= 0:
            sock.recv(end - len(head))
            head = (head + seen)[:end]
            break
        sock.recv(len(seen))
        head += seen
        if len(head) > _MAX_HEAD:
            raise DialError("tailscaled's answer makes no sense: a head that does not end")
    try:
        answer = parse_response_head(head)
    except ProtocolError:
        raise DialError("tailscaled's answer makes no sense: it is not HTTP") from None
    if answer.status == 101 and answer.upgrade.lower() == b"ts-dial":
        return
    raise DialError(f"tailscaled does not dial {address}: HTTP {answer.status}{_reason(sock, answer.status)}")


def _reason(sock: socket.socket, status: int) -> str:
    """The first of the daemon's own words with an error, where they came with its head; as printable text."""
    if status < 400:
        return ""
    try:
        text = sock.recv(300).decode(errors="replace").strip()
    except OSError:
        return ""
    text = "".join(character if character.isprintable() else " " for character in text)
    return f" ({text})" if text else ""


async def _readable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    readable: asyncio.Future[None] = loop.create_future()

    def ready() -> None:
        if not readable.done():
            readable.set_result(None)

    loop.add_reader(sock, ready)
    try:
        await readable
    finally:
        loop.remove_reader(sock)


def _words(error: OSError) -> str:
    if error.errno in (errno.EACCES, errno.EPERM):
        return "no permission"
    if error.errno == errno.ENETUNREACH:
        return "no route to it; is tailscaled running?"
    return os.strerror(error.errno).lower() if error.errno else type(error).__name__
