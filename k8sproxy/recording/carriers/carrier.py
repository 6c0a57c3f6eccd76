"""A socket to a recorder, without layers in between: what is to go out goes out in one sendmsg a turn of the loop.

A session's output arrives in pieces of some ten KiB, many in one turn. They are neither joined nor copied: framing puts
memoryviews of them in a row, and `sendmsg` takes the row as it is. What the kernel does not take stays here and goes
first once the socket is writable; while there is such a rest (`stalled`), nobody frames more, so that what is behind
can still be counted, reordered or dropped. Sending waits for the end of the turn (`wake`), in which the user's own
bytes have left already.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Sequence

# Bytes read at a time: acks, window updates and settings, a few dozen bytes each.
_READ_SIZE = 16 * 1024
# Seconds. A host that is gone without a word (no FIN) is found on an idle connection after 30 + 3 * 10.
_KEEPALIVE = (30, 10, 3)
# Buffers for one sendmsg: Linux' IOV_MAX.
_MAX_BUFFERS = 1024

Piece = bytes | memoryview


class Wire:
    """One connected, non-blocking stream socket, owned from here on.

    flush: called once a turn after `wake`, and when the socket has room again; it calls `send`. received: what came,
    never empty. lost: the connection has ended, with a few words why; called once, and not after `close`.
    """

    __slots__ = ("_flush", "_flushing", "_loop", "_lost", "_received", "_rest", "_sock", "_writing", "closed")

    def __init__(
        self,
        sock: socket.socket,
        *,
        flush: Callable[[], None],
        received: Callable[[bytes], None],
        lost: Callable[[str], None],
    ) -> None:
        self.closed = False
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._flush = flush
        self._received = received
        self._lost = lost
        self._flushing: asyncio.Handle | None = None
        self._writing = False
        self._rest: list[memoryview] = []
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if hasattr(socket, "TCP_KEEPIDLE"):
                idle, interval, count = _KEEPALIVE
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, interval)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, count)
        self._loop.add_reader(sock, self._on_readable)

    @property
    def stalled(self) -> bool:
        """Whether there is a rest that the kernel has not taken: don't frame more."""
        return bool(self._rest)

    def wake(self) -> None:
        """Has `flush` called at the end of this turn of the loop, once."""
        if self._flushing is None and not self._writing and not self.closed:
            self._flushing = self._loop.call_soon(self._on_turn)

    def send(self, pieces: Sequence[Piece], size: int) -> None:
        """Sends what has `size` bytes in all, or keeps what the kernel does not take."""
        if self.closed:
            return
        if self._rest:
            self._rest.extend(memoryview(piece) for piece in pieces)
            return
        try:
            sent = self._sock.sendmsg(pieces[:_MAX_BUFFERS] if len(pieces) > _MAX_BUFFERS else pieces)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError as error:
            # Reported by the reader's side of the loop, never in the middle of somebody's framing.
            self._loop.call_soon(self._on_broken, words_of(error))
            sent = size
        if sent < size:
            self._keep(pieces, sent)

    def close(self) -> None:
        """Ends the connection at once."""
        if self.closed:
            return
        self.closed = True
        if self._flushing is not None:
            self._flushing.cancel()
            self._flushing = None
        self._loop.remove_reader(self._sock)
        if self._writing:
            self._loop.remove_writer(self._sock)
            self._writing = False
        self._rest.clear()
        self._sock.close()

    def _keep(self, pieces: Sequence[Piece], sent: int) -> None:
        for piece in pieces:
            size = len(piece)
            if sent >= size:
                sent -= size
                continue
            self._rest.append(memoryview(piece)[sent:])
            sent = 0
        if not self._writing:
            self._writing = True
            self._loop.add_writer(self._sock, self._on_writable)

    def _on_turn(self) -> None:
        self._flushing = None
        if not self.closed:
            self._flush()

    def _on_writable(self) -> None:
        rest, self._rest = self._rest, []
        self.send(rest, sum(map(len, rest)))
        if not self._rest and not self.closed:
            self._loop.remove_writer(self._sock)
            self._writing = False
            self._flush()

    def _on_readable(self) -> None:
        try:
            data = self._sock.recv(_READ_SIZE)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._on_lost(words_of(error))
            return
        if data:
            self._received(data)
        else:
            self._on_lost("the recorder closed the connection")

    def _on_broken(self, why: str) -> None:
        """Nothing more can be sent: what the recorder has said before is read first, it may be the reason."""
        while not self.closed:
            try:
                data = self._sock.recv(_READ_SIZE)
            except OSError:
                break
            if not data:
                break
            self._received(data)
        self._on_lost(why)

    def _on_lost(self, why: str) -> None:
        if not self.closed:
            self.close()
            self._lost(why)


def words_of(error: BaseException) -> str:
    """A few words on an error of a connection, for logs and messages."""
    if isinstance(error, TimeoutError) and not error.args:
        return "timed out"
    if isinstance(error, OSError) and error.errno:
        words = os.strerror(error.errno)  # asyncio puts the address into its own
        return words[0].lower() + words[1:]
    return str(error) or type(error).__name__
