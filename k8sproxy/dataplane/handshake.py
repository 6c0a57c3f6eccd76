"""What happens to a socket before it carries HTTP: connecting and the TLS handshake, on either side.

These are the only places that wait on a bare descriptor; afterwards a Wire owns it. Both close the socket themselves
when they fail or are cancelled, so that a caller holds either a ready socket or nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import weakref
from collections import deque
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

from k8sproxy.common.sockets import join_address
from k8sproxy.common.tasks import Tasks, left_to_waiter

# An address family, and what socket.connect takes for it: (IP address, port, ..).
Address = tuple[int, tuple[Any, ...]]

# Seconds after which the next address is tried beside one that has not answered: the "Connection Attempt Delay" that
# RFC 8305, section 5, recommends.
ATTEMPT_DELAY = 0.25

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

# Contexts that report a cut stream. To ask each time would take 14 us of every handshake.
_strict: weakref.WeakSet[ssl.SSLContext] = weakref.WeakSet()


class ConnectError(OSError):
    """None of the addresses took a connection. failures: each address with its error; the text names them all."""

    def __init__(self, failures: Sequence[tuple[Address, OSError]]) -> None:
        super().__init__("; ".join(f"{join(address)}: {_words(error)}" for address, error in failures))


def join(address: Address) -> str:
    """An address as people read it: "IP:PORT", IPv6 in brackets."""
    return join_address(*address[1][:2])


def _words(error: OSError) -> str:
    """What happened, without the address that asyncio puts into the text of its own errors."""
    return os.strerror(error.errno).lower() if error.errno else type(error).__name__


def prepare(sock: socket.socket) -> None:
    """Set what every TCP connection here gets: no delay, keep-alive, non-blocking.

    What a listening socket accepts has its delay and keep-alive (Linux: sk_clone_lock), and is blocking again.
    """
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


async def resolve(loop: asyncio.AbstractEventLoop, host: str, port: int) -> list[Address]:
    """The addresses of `host`, in the order in which they should be tried. Raises OSError.

    The system's order (RFC 6724) with the two families in turn (RFC 8305, 4), so that one family that leads nowhere
    costs one attempt and not all of its addresses.
    """
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    unique = dict.fromkeys((family, address) for family, _, _, _, address in found)
    first = [entry for entry in unique if entry[0] == found[0][0]]
    second = [entry for entry in unique if entry[0] != found[0][0]]
    return [entry for pair in zip_longest(first, second) for entry in pair if entry is not None]


async def connect(loop: asyncio.AbstractEventLoop, addresses: Sequence[Address]) -> socket.socket:
    """Connect to whichever address answers first (RFC 8305, 5). Raises ConnectError, which has every failure.

    The next address is tried as soon as an attempt fails, and side by side with those that are silent after
    ATTEMPT_DELAY. The first connection wins; the other attempts are given up.
    """
    if len(addresses) == 1:
        try:
            return await _attempt(loop, addresses[0])
        except OSError as error:
            raise ConnectError([(addresses[0], error)]) from None
    waiting = deque(addresses)
    attempts = Tasks()
    running: dict[asyncio.Task[socket.socket], Address] = {}
    failures: list[tuple[Address, OSError]] = []
    try:
        while waiting or running:
            if waiting:
                address = waiting.popleft()
                running[attempts.start(_attempt(loop, address), "connect", failed=left_to_waiter)] = address
            done, _ = await asyncio.wait(
                running, timeout=ATTEMPT_DELAY if waiting else None, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                failure = task.exception()
                if failure is None:
                    del running[task]
                    return task.result()
                if not isinstance(failure, OSError):
                    raise failure
                failures.append((running.pop(task), failure))
    finally:
        for task in running:
            task.cancel()
            task.add_done_callback(_close_late)
    raise ConnectError(failures)


def _close_late(task: asyncio.Task[socket.socket]) -> None:
    """Close the connection of an attempt that was given up and succeeded in the same moment."""
    if not task.cancelled() and task.exception() is None:
        task.result().close()


async def _attempt(loop: asyncio.AbstractEventLoop, address: Address) -> socket.socket:
    sock = socket.socket(address[0], socket.SOCK_STREAM)
    try:
        prepare(sock)
        await loop.sock_connect(sock, address[1])
    except BaseException:
        sock.close()
        raise
    return sock


async def handshake(
    loop: asyncio.AbstractEventLoop,
    sock: socket.socket,
    context: ssl.SSLContext,
    *,
    server_name: str | None,
    ticket: ssl.SSLSession | None = None,
) -> ssl.SSLSocket:
    """Do the TLS handshake: as the client towards `server_name`, or as the server where it is None. ticket: what the
    client resumes by, if the server likes it.

    Raises ssl.SSLError or OSError. The returned socket owns the descriptor; `sock` is spent.
    """
    try:
        if context not in _strict:
            # A stream that ends without close_notify has been cut: OpenSSL 3 says so unless told to ignore it.
            context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
            _strict.add(context)
        tls = context.wrap_socket(
            sock,
            server_side=server_name is None,
            server_hostname=server_name,
            do_handshake_on_connect=False,
            suppress_ragged_eofs=False,
            session=ticket,
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
