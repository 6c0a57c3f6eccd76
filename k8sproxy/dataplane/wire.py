"""One socket of the data plane, plain or TLS, without a layer between it and OpenSSL.

The socket is non-blocking; the event loop only tells when it is readable or writable. With TLS, OpenSSL reads and
writes the descriptor itself instead of memory buffers that a transport fills and empties: about half the CPU for
bulk, a third less for a small request, and no buffers for an idle connection.

Reading: all wires of a loop read into one buffer, one after the other, and hand their `receiver` a view of it that is
only good during the call. A turn reads at most TURN bytes, so that one fast connection does not starve the others.
After a turn that may have left decrypted bytes inside OpenSSL (they make no descriptor readable), the next turn is
asked for by hand; the same on resume.

Writing: what is written goes to the socket at once; what the socket does not take is kept, `blocked` is True until
it is gone, and then `drained` is called. Whoever feeds the wire pauses its source meanwhile: that is the whole of
backpressure. OpenSSL wants a write that was cut short repeated with the same bytes, so a kept piece stays one piece.

The end: `end` is called once, with None for a clean end (FIN on a plain socket, close_notify on TLS) or the error.
After a clean end the wire can still be written. A TLS stream cut without close_notify is an error, never an end.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from collections import deque
from collections.abc import Callable

# Bytes read in a turn: four TLS records. More makes bulk hardly cheaper and others wait longer.
TURN = 64 * 1024
_RECORD = 16 * 1024  # the largest TLS record's plaintext (RFC 8446, 5.1)
# A piece to be written is given to OpenSSL whole; all of it is copied if the socket does not take it.

Receiver = Callable[[memoryview], None]
Ender = Callable[[Exception | None], None]


class ReadBuffer:
    """The buffer that all wires of one loop read into; a view into it is good until its receiver returns."""

    def __init__(self) -> None:
        self.view = memoryview(bytearray(TURN + _RECORD))


def _ignore() -> None:
    return None


class Wire:
    """A connected non-blocking socket. `receiver`, `end` and `drained` are set by whoever owns the wire at the time."""

    __slots__ = (
        "_buffer",
        "_kept",
        "_loop",
        "_paused",
        "_read_wants_write",
        "_reading",
        "_resuming",
        "_sock",
        "_tls",
        "_write_wants_read",
        "blocked",
        "closed",
        "drained",
        "end",
        "ended",
        "receiver",
        "sent_end",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket, buffer: ReadBuffer) -> None:
        self._loop = loop
        self._sock = sock
        self._tls = isinstance(sock, ssl.SSLSocket)
        self._buffer = buffer.view
        self._kept: deque[bytes] | None = None
        self._reading = False
        self._paused = True
        self._resuming: asyncio.Handle | None = None
        self._read_wants_write = False
        self._write_wants_read = False
        self.blocked = False
        self.closed = False
        self.ended = False  # the other side has ended, or the wire broke
        self.sent_end = False
        self.receiver: Receiver | None = None
        self.end: Ender | None = None
        self.drained: Callable[[], None] = _ignore

    # -- reading

    def resume(self) -> None:
        """Read (again). Bytes that OpenSSL already holds are delivered on the next turn of the loop."""
        if not self._paused or self.closed or self.ended:
            return
        self._paused = False
        self._loop.add_reader(self._sock.fileno(), self._readable)
        self._reading = True
        if self._pending() and self._resuming is None:
            self._resuming = self._loop.call_soon(self._resume_turn)

    def pause(self) -> None:
        """Stop reading. Bytes read in this turn may still be delivered to the current receiver's caller, not more."""
        if self._paused or self.closed:
            return
        self._paused = True
        if self._reading:
            self._loop.remove_reader(self._sock.fileno())
            self._reading = False

    def _pending(self) -> int:
        return self._sock.pending() if isinstance(self._sock, ssl.SSLSocket) else 0

    def _resume_turn(self) -> None:
        self._resuming = None
        if not self._paused and not self.closed and not self.ended:
            self._readable()

    def _readable(self) -> None:
        if self._write_wants_read:
            self._write_wants_read = False
            self._flush()
        if self._paused or self.closed or self.ended:
            return
        view = self._buffer
        got = 0
        broken: Exception | None = None
        ended = more = False
        try:
            if self._tls:
                while True:
                    step = self._sock.recv_into(view[got:], _RECORD)
                    if not step:
                        ended = True
                        break
                    got += step
                    pending = self._sock.pending()  # type: ignore[attr-defined]  # an SSLSocket has it
                    if got >= TURN:
                        more = pending > 0
                        break
                    if step < _RECORD and not pending:
                        break
            else:
                got = self._sock.recv_into(view, TURN)
                ended = not got
        except (BlockingIOError, InterruptedError, ssl.SSLWantReadError):
            pass
        except ssl.SSLWantWriteError:
            self._read_wants_write = True
            self._watch_writable()
        except (OSError, ValueError) as error:
            broken = error
        if got and self.receiver is not None:
            self.receiver(view[:got])
        if broken is not None:
            self._finish(broken)
        elif ended:
            self._finish(None)
        elif more and not self._paused and not self.closed and self._resuming is None:
            self._resuming = self._loop.call_soon(self._resume_turn)

    def _finish(self, error: Exception | None) -> None:
        if self.ended or self.closed:
            return
        self.ended = True
        self.pause()
        if self.end is not None:
            self.end(error)

    # -- writing

    def write(self, data: bytes | memoryview) -> None:
        """Send `data`, in order after what was written before. Never raises: a broken wire calls `end`."""
        if self.closed or self.sent_end:
            return
        if self._kept is not None:
            self._kept.append(bytes(data))
            return
        size = len(data)
        if not size:
            return
        try:
            sent = self._sock.send(data)
        except (BlockingIOError, InterruptedError, ssl.SSLWantWriteError):
            sent = 0
        except ssl.SSLWantReadError:
            sent = 0
            self._write_wants_read = True
        except (OSError, ValueError) as error:
            self._loop.call_soon(self._write_failed, error)
            return
        if sent < size:
            self._kept = deque((bytes(data[sent:]),))
            self.blocked = True
            self._watch_writable()

    def _watch_writable(self) -> None:
        self._loop.add_writer(self._sock.fileno(), self._writable)

    def _writable(self) -> None:
        if self._read_wants_write:
            self._read_wants_write = False
            if self._kept is None:
                self._loop.remove_writer(self._sock.fileno())
            self._readable()
            if self.closed:
                return
        self._flush()

    def _flush(self) -> None:
        kept = self._kept
        if kept is None or self.closed:
            return
        try:
            while kept:
                piece = kept[0]
                sent = self._sock.send(piece)
                if sent < len(piece):
                    kept[0] = piece[sent:]
                    return
                kept.popleft()
        except (BlockingIOError, InterruptedError, ssl.SSLWantWriteError):
            return
        except ssl.SSLWantReadError:
            self._write_wants_read = True
            return
        except (OSError, ValueError) as error:
            self._kept = None
            self.blocked = False
            self._loop.remove_writer(self._sock.fileno())
            self._write_failed(error)
            return
        self._kept = None
        self.blocked = False
        self._loop.remove_writer(self._sock.fileno())
        self.drained()

    def _write_failed(self, error: Exception) -> None:
        """The other side takes no more. What it said before it went (an early response) may still be there to read."""
        self._readable()
        self._finish(error)

    def write_end(self) -> None:
        """End the sending side alone (FIN, close_notify); the other side can still be read. The wire must not be
        blocked. A failure is left to the reading side to find."""
        if self.closed or self.sent_end:
            return
        self.sent_end = True
        try:
            if isinstance(self._sock, ssl.SSLSocket):
                self._sock.setblocking(False)
                _send_close_notify(self._sock)
            socket.socket.shutdown(self._sock, socket.SHUT_WR)
        except (OSError, ValueError):
            return

    # -- closing

    def idle_alive(self) -> bool:
        """Whether a wire that nobody reads or writes just now is still open with nothing to read: one system call."""
        if self.closed or self.ended:
            return False
        if self._pending():
            return False
        try:
            # MSG_PEEK on the descriptor: SSLSocket.recv takes no flags, and it must not be decrypted here.
            socket.socket.recv(self._sock, 1, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            return True
        except (OSError, ValueError):
            return False
        # TLS 1.3 servers send session tickets on their own; they are no end, the ordinary read takes them.
        return False

    def close(self) -> None:
        """Close at once; what is kept is lost. With nothing kept a TLS wire says close_notify first."""
        if self.closed:
            return
        fileno = self._sock.fileno()
        self._loop.remove_reader(fileno)
        self._loop.remove_writer(fileno)
        if self._resuming is not None:
            self._resuming.cancel()
            self._resuming = None
        if isinstance(self._sock, ssl.SSLSocket) and self._kept is None and not self.sent_end:
            # Nobody reads any more: that unwrap() trips over data after our close_notify is no concern.
            with contextlib.suppress(OSError, ValueError):
                self._sock.unwrap()
        self.closed = True
        self._kept = None
        self.blocked = False
        self.receiver = None
        self.end = None
        self.drained = _ignore
        self._sock.close()

    def abort(self) -> None:
        """Close with a reset and without close_notify, so that the other side cannot take it for a clean end."""
        if self.closed:
            return
        # SO_LINGER with zero seconds: RST instead of FIN (tcp(7)).
        with contextlib.suppress(OSError):
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.cut()

    def cut(self) -> None:
        """Close without close_notify: what was sent arrives, and a body that needed more is seen to be cut short."""
        self.sent_end = True
        self.close()

    @property
    def peername(self) -> tuple[str, int]:
        """(IP, port) of the other side."""
        name = self._sock.getpeername()
        return (name[0], name[1]) if isinstance(name, tuple) else ("", 0)


def _send_close_notify(sock: ssl.SSLSocket) -> None:
    """Send close_notify and keep the reading side usable.

    The module ssl always calls SSL_shutdown twice, and the second call reads the socket: application data that waits
    there is lost with an error. So for the length of the call the descriptor is another one, an empty socket pair:
    the alert is caught there, the second call finds nothing to read, and the alert is then sent by hand. The loop
    is not given control in between, and the connection itself stays open through `original`.
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
            except (ssl.SSLWantReadError, ssl.SSLError, OSError):
                pass
            finally:
                os.dup2(original, fileno, inheritable=False)
            alert = mine.recv(4096)
            while alert:
                alert = alert[socket.socket.send(sock, alert) :]
        finally:
            os.close(original)
