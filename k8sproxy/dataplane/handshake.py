"""What happens to a socket before it carries HTTP: connecting and the TLS handshake, on either side.

These are the only places that wait on a bare descriptor; afterwards a Wire owns it. Both close the socket themselves
when they fail or are cancelled, so that a caller holds either a ready socket or nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl

# Keep-alive: a peer that vanished without a word is noticed after 15 s + 4 * 5 s. Without it a dead connection holds a
# watch for a quarter of an hour. Not TCP_USER_TIMEOUT: it also ends connections whose other side is well and does not
# read for that long (tcp_probe_timer counts a closed window), such as `kubectl logs | less`; see Wire.unheard.
_KEEP_ALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, getattr(socket, "TCP_KEEPIDLE", 0), 15),
    (socket.IPPROTO_TCP, getattr(socket, "TCP_KEEPINTVL", 0), 5),
    (socket.IPPROTO_TCP, getattr(socket, "TCP_KEEPCNT", 0), 4),
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
)


def prepare(sock: socket.socket) -> None:
    """Set what every TCP connection here gets: no delay, keep-alive, non-blocking."""
    sock.setblocking(False)
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    for level, option, value in _KEEP_ALIVE:
        if option:
            with contextlib.suppress(OSError):
                sock.setsockopt(level, option, value)


async def wait_ready(loop: asyncio.AbstractEventLoop, sock: socket.socket, *, write: bool) -> None:
    """Wait until the descriptor is readable (or writable)."""
    ready: asyncio.Future[None] = loop.create_future()
    fileno = sock.fileno()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    if write:
        loop.add_writer(fileno, wake)
    else:
        loop.add_reader(fileno, wake)
    try:
        await ready
    finally:
        if write:
            loop.remove_writer(fileno)
        else:
            loop.remove_reader(fileno)


async def connect(loop: asyncio.AbstractEventLoop, host: str, port: int) -> socket.socket:
    """Connect to the first address of `host` that answers. Raises OSError, the last one's."""
    failure: OSError = OSError(f"no address for {host}")
    for family, kind, protocol, _, address in await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        sock = socket.socket(family, kind, protocol)
        try:
            prepare(sock)
            await loop.sock_connect(sock, address)
        except OSError as error:
            sock.close()
            failure = error.with_traceback(None)
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise failure


async def handshake(
    loop: asyncio.AbstractEventLoop, sock: socket.socket, context: ssl.SSLContext, *, server_name: str | None
) -> ssl.SSLSocket:
    """Do the TLS handshake: as the client towards `server_name`, or as the server where it is None.

    Raises ssl.SSLError or OSError. The returned socket owns the descriptor; `sock` is spent.
    """
    try:
        # A stream that ends without close_notify has been cut: OpenSSL 3 says so unless told to ignore it.
        context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
        tls = context.wrap_socket(
            sock,
            server_side=server_name is None,
            server_hostname=server_name,
            do_handshake_on_connect=False,
            suppress_ragged_eofs=False,
        )
    except BaseException:
        sock.close()
        raise
    try:
        while True:
            try:
                tls.do_handshake()
            except ssl.SSLWantReadError:
                await wait_ready(loop, tls, write=False)
            except ssl.SSLWantWriteError:
                await wait_ready(loop, tls, write=True)
            else:
                return tls
    except BaseException:
        tls.close()
        raise
