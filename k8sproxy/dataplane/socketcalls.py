"""What a wire needs of its socket beside what the modules ssl and socket offer."""

from __future__ import annotations

import os
import socket
import ssl
import struct
from collections.abc import Callable

# struct tcp_info (linux/tcp.h): 8 bytes, then 32-bit words: the fifth is tcpi_unacked, the thirteenth, in milliseconds,
# tcpi_last_ack_recv.
_INFO = getattr(socket, "TCP_INFO", 0)
_TCP_INFO = struct.Struct("@8x16xI28xI")


def calls(
    sock: socket.socket,
) -> tuple[Callable[[int, memoryview], int], Callable[[bytes | memoryview], int], Callable[[], int]]:
    """How a socket is read (at most so many bytes, into), written, and asked for decrypted bytes that wait.

    For TLS these are the calls of the _ssl object that every method of SSLSocket ends in: their Python wrappers, which
    check what a Wire knows anyway, are a tenth of the CPU of a small request. Where a Python hides the object, the
    methods themselves serve.
    """
    if not isinstance(sock, ssl.SSLSocket):
        return lambda size, view: sock.recv_into(view, size), sock.send, lambda: 0
    inner = getattr(sock, "_sslobj", None)
    if inner is None:
        return sock.read, sock.send, sock.pending  # type: ignore[return-value]  # read() into a buffer gives a number
    return inner.read, inner.write, inner.pending


def close_notify(sock: ssl.SSLSocket) -> bytes:
    """OpenSSL's close_notify as the bytes to send, with the reading side left usable.

    The module ssl always calls SSL_shutdown twice, and the second call reads the socket: application data that waits
    there is lost with an error. So for the length of the call the descriptor is another one, an empty socket pair:
    the alert is caught there, and the second call finds nothing to read. The loop is not given control in between,
    and the connection itself stays open through `original`.
    """
    fileno = sock.fileno()
    mine, theirs = socket.socketpair()
    with mine, theirs:
        mine.setblocking(False)
        theirs.setblocking(False)
        original = os.dup(fileno)
        try:
            os.dup2(theirs.fileno(), fileno, inheritable=False)
            try:
                sock.unwrap()
            except (ssl.SSLError, OSError):
                pass
            finally:
                os.dup2(original, fileno, inheritable=False)
            return mine.recv(4096)
        finally:
            os.close(original)


def unheard(sock: socket.socket) -> float:
    """Seconds since the last acknowledgement while packets wait for one, 0.0 where none wait.

    None waits where the other side is well and just does not read: bytes behind a closed window are not in flight.
    """
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return 0.0
    try:
        unacked, quiet = _TCP_INFO.unpack(sock.getsockopt(socket.IPPROTO_TCP, _INFO, _TCP_INFO.size))
    except (OSError, struct.error):  # No such option here: the kernel's own patience it is.
        return 0.0
    return quiet / 1000 if unacked else 0.0
