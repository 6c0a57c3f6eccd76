"""One socket of the data plane, plain or TLS, without a layer between it and OpenSSL.

The socket is non-blocking; the event loop only tells when it is readable or writable. With TLS, OpenSSL reads and
writes the descriptor itself instead of memory buffers that a transport fills and empties: about half the CPU for
bulk, a third less for a small request, and no buffers for an idle connection.

Reading: all wires of a loop read into one buffer, one after the other, and hand their `receiver` a view of it that is
only good during the call. A turn reads at most `most` bytes (TURN, or less for one whose bytes are dear to read, see
turns), so that one fast connection does not starve the others.
After a turn that may have left decrypted bytes inside OpenSSL (they make no descriptor readable), the next turn is
asked for by hand; the same on resume. A short record ends a turn, since what comes behind a small answer is nothing,
and to find that out costs a system call. In full flow (FLOW bytes in the turn before) it does not: servers write a
frame in a short record and a long one, and read one by one they cost two rounds of everything that follows.

Bulk has a price, too. A wire in full flow whose turn of the loop has no units left (turns) is not read, and waits in
the row of its payer's owner; where hundreds of connections send as fast as they can, a turn reads some twenty of them.

Writing: what is written goes to the socket at once; what the socket does not take is kept, `blocked` is True until
it is gone, and then `drained` is called. Whoever feeds the wire pauses its source meanwhile: that is the whole of
backpressure. OpenSSL wants a write that was cut short repeated with the same bytes, so a kept piece stays one piece.

The end: `end` is called with None for a clean end (FIN on a plain socket, close_notify on TLS) or with the error.
After a clean end the wire can still be written; should that fail, `end` is called once more, with the error. A TLS
stream cut without close_notify is an error, never an end. A wire that can't be written any more is still read to its
end, since what the other side said before it went counts: an early response, the last output of a command.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import socket
import ssl
import struct
import termios
from collections import deque
from collections.abc import Callable
from typing import Protocol

# Bytes read in a turn: four TLS records. More makes bulk hardly cheaper and others wait longer.
TURN = 64 * 1024
# Bytes in a turn from which on a wire is taken to be in full flow: more than an ordinary answer.
FLOW = 24 * 1024
# Units (turns) that a turn of a wire in full flow costs: TURN bytes are decrypted, passed on and encrypted in about so
# many microseconds.
BULK = 64
_RECORD = 16 * 1024  # the largest TLS record's plaintext (RFC 8446, 5.1)
# Seconds without an acknowledgement after which what was sent is taken to be lost for good: as long as keep-alive takes
# (handshake), which does not look while bytes are in flight. The kernel alone would try for a quarter of an hour.
UNHEARD = 35.0
# struct tcp_info (linux/tcp.h): 8 bytes, then 32-bit words: the fifth is tcpi_unacked, the thirteenth, in milliseconds,
# tcpi_last_ack_recv.
_INFO = getattr(socket, "TCP_INFO", 0)
_TCP_INFO = struct.Struct("@8x16xI28xI")
# A piece to be written is given to OpenSSL whole; all of it is copied if the socket does not take it.

_NO_BYTES = b"\0\0\0\0"  # FIONREAD's int: zero

Receiver = Callable[[memoryview], None]
Ender = Callable[[Exception | None], None]


class Budget(Protocol):
    """What a Wire needs of the turns' budget (turns.Turns)."""

    def begin(self, units: int) -> bool: ...

    def wait(self, owner: str, resume: Callable[[int], int]) -> None: ...


class Payer(Protocol):
    """Who pays for what a wire reads in full flow."""

    owner: str

    @property
    def budget(self) -> Budget: ...


class ReadBuffer:
    """The buffer that all wires of one loop read into; a view into it is good until its receiver returns."""

    def __init__(self) -> None:
        self.view = memoryview(bytearray(TURN + _RECORD))


def _ignore() -> None:
    return None


def _calls(
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


class Wire:
    """A connected non-blocking socket. `receiver`, `end` and `drained` are set by whoever owns the wire at the time."""

    __slots__ = (
        "_alert",
        "_broken",
        "_buffer",
        "_deferred",
        "_end_told",
        "_flowing",
        "_heard",
        "_kept",
        "_loop",
        "_paid",
        "_pending",
        "_read",
        "_read_wants_write",
        "_resuming",
        "_sock",
        "_tls",
        "_told",
        "_write",
        "_write_wants_read",
        "blocked",
        "closed",
        "drained",
        "end",
        "ended",
        "most",
        "paused",
        "payer",
        "receiver",
        "sent_end",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket, buffer: ReadBuffer) -> None:
        self._loop = loop
        self._sock = sock
        self._tls = isinstance(sock, ssl.SSLSocket)
        self._read, self._write, self._pending = _calls(sock)
        self._buffer = buffer.view
        self.most = TURN
        self._kept: deque[bytes] | None = None
        self.paused = True
        self._resuming: asyncio.Handle | None = None
        self._read_wants_write = False
        self._write_wants_read = False
        self._alert = b""  # what is left to send of our close_notify
        self._broken = False
        self._end_told = False  # `end` has been called
        self._flowing = False  # the last turn brought FLOW bytes
        self._deferred = False  # waits in a row for its turn,
        self._paid = False  # which has come
        self.payer: Payer | None = None
        self._heard = False  # bytes have come since the last look
        self._told = False  # has been read since a look was asked for
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
        if not self.paused or self.closed or self.ended:
            return
        self.paused = False
        if not self._deferred:
            self._loop.add_reader(self._sock.fileno(), self._readable)
        if self._pending() and self._resuming is None:
            self._resuming = self._loop.call_soon(self._resume_turn)

    def pause(self) -> None:
        """Stop reading. Bytes read in this turn may still be delivered to the current receiver's caller, not more."""
        if self.paused or self.closed:
            return
        self.paused = True
        self._loop.remove_reader(self._sock.fileno())

    def _resume_turn(self) -> None:
        self._resuming = None
        if not self.paused and not self.closed and not self.ended:
            self._readable()

    def _readable(self) -> None:
        if self._write_wants_read:
            self._write_wants_read = False
            self._flush()
        if self.paused or self.closed or self.ended or (self._flowing and not self._may_flow()):
            return
        self._told = True
        view = self._buffer
        got = 0
        broken: Exception | None = None
        ended = more = False
        try:
            if self._tls:
                most = self.most
                record = most if most < _RECORD else _RECORD
                while True:
                    step = self._read(record, view[got:] if got else view)
                    if not step:
                        ended = True
                        break
                    got += step
                    if got >= most:
                        more = self._pending() > 0
                        break
                    if step < _RECORD and not self._flowing and not self._pending():
                        break
            else:
                got = self._read(self.most, view)
                ended = not got
        except (BlockingIOError, InterruptedError, ssl.SSLWantReadError):
            pass
        except ssl.SSLZeroReturnError:
            # close_notify; the module ssl returns 0 for it only where ours has not been sent.
            ended = True
        except ssl.SSLWantWriteError:
            self._read_wants_write = True
            self._watch_writable()
        except (OSError, ValueError) as error:
            broken = error.with_traceback(None)  # which would hold this frame, which holds the error
        self._flowing = got >= FLOW
        if ended or broken is not None:
            self.ended = True  # before the last bytes are handed over, so that what comes of them knows
        if got and self.receiver is not None:
            self._heard = True
            try:
                self.receiver(view[:got])
            except Exception as error:
                # A fault of ours must not leave the wire standing with nobody waiting for it.
                self._loop.call_exception_handler({"message": "a wire's receiver failed", "exception": error})
                broken = error.with_traceback(None)
        if broken is not None:
            self._finish(broken)
        elif ended:
            self._finish(None)
        elif more and not self.paused and not self.closed and self._resuming is None:
            self._resuming = self._loop.call_soon(self._resume_turn)

    def _may_flow(self) -> bool:
        """Whether a wire in full flow may be read now. If not, it waits in its row."""
        if self._deferred:
            return False
        if self._paid:
            self._paid = False
            return True
        if self.payer is None or self.payer.budget.begin(BULK):
            return True
        self._deferred = True
        self._loop.remove_reader(self._sock.fileno())
        self.payer.budget.wait(self.payer.owner, self._in_turn)
        return False

    def _in_turn(self, units: int) -> int:
        """Read on, in the owner's turn; what that costs."""
        self._deferred = False
        if self.paused or self.closed or self.ended:
            return 0
        self._loop.add_reader(self._sock.fileno(), self._readable)
        self._paid = True
        self._readable()
        return BULK

    def look(self) -> None:
        """Find an end that the loop did not tell of; called by the clock.

        libuv tells of an error on a socket once and then watches it no more (uv__poll_io), while bytes that came ahead
        of a reset are read first: where they took the one turn there was, nobody would call again. Only a wire that
        has been read since the last look can be in that state, and not one that the loop still tells of: a wire in full
        flow would be read by both, every turn.
        """
        if self._heard and self._resuming is None:
            self._told = False
            self._resuming = self._loop.call_soon(self._look_turn)

    def _look_turn(self) -> None:
        self._resuming = None
        if self._told:
            return  # by the loop, since this was asked for: the next look is the clock's
        self._heard = False
        if not (self.paused or self.closed or self.ended):
            self._readable()
            self.look()  # until there is nothing

    def _finish(self, error: Exception | None) -> None:
        if self.closed or self._broken or (self._end_told and error is None):
            return
        self.ended = self._end_told = True
        self._broken = error is not None
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
            sent = self._write(data)
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
        if self._alert:
            self._end_sending()
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
                sent = self._write(piece)
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
            self.drained()
            return
        self._kept = None
        self.blocked = False
        self._loop.remove_writer(self._sock.fileno())
        self.drained()

    def _write_failed(self, error: Exception) -> None:
        """The other side takes no more; what is written from now on goes nowhere. A socket whose connection is gone
        stays readable until its end has been read, so the reading side finds it, after what is there to read."""
        self.sent_end = True
        if self.ended or not isinstance(error, ConnectionError | ssl.SSLEOFError):
            self._finish(error)
            return
        self._heard = True
        self.look()

    def write_end(self) -> None:
        """End the sending side alone (FIN, close_notify); the other side can still be read. The wire must not be
        blocked. A failure is left to the reading side to find."""
        if self.closed or self.sent_end:
            return
        self.sent_end = True
        if isinstance(self._sock, ssl.SSLSocket):
            # Out of descriptors, FIN goes alone: the other side sees a cut, which is better than no end.
            with contextlib.suppress(OSError, ValueError):
                self._alert = _close_notify(self._sock)
        self._end_sending()

    def _end_sending(self) -> None:
        """Send what is left of close_notify, past OpenSSL, and FIN behind it."""
        try:
            while self._alert:
                self._alert = self._alert[socket.socket.send(self._sock, self._alert) :]
        except (BlockingIOError, InterruptedError):
            self._watch_writable()
            return
        except OSError:
            self._alert = b""
        self._loop.remove_writer(self._sock.fileno())
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._sock, socket.SHUT_WR)

    # -- closing

    def quiet(self) -> bool:
        """Whether nothing has come that was not read yet; one system call. An end does not count as something."""
        if self.closed or self.ended or self._pending():
            return False
        try:
            return fcntl.ioctl(self._sock.fileno(), termios.FIONREAD, _NO_BYTES) == _NO_BYTES
        except (OSError, ValueError):
            return False

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
        self.payer = None
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

    def unheard(self) -> float:
        """Seconds since the last acknowledgement while packets wait for one, 0.0 where none wait.

        None waits where the other side is well and just does not read: bytes behind a closed window are not in flight.
        """
        if self.closed or self._sock.family not in (socket.AF_INET, socket.AF_INET6):
            return 0.0
        try:
            unacked, quiet = _TCP_INFO.unpack(self._sock.getsockopt(socket.IPPROTO_TCP, _INFO, _TCP_INFO.size))
        except (OSError, struct.error):  # No such option here: the kernel's own patience it is.
            return 0.0
        return quiet / 1000 if unacked else 0.0

    @property
    def ticket(self) -> ssl.SSLSession | None:
        """What another connection to the same server may be resumed by; None without TLS, and once it is closed."""
        return self._sock.session if isinstance(self._sock, ssl.SSLSocket) else None

    def break_unheard(self) -> None:
        """Break the wire if nothing of what was sent has been acknowledged for UNHEARD seconds."""
        if self.unheard() > UNHEARD:
            self._finish(TimeoutError("the peer acknowledges nothing that was sent"))

    @property
    def peername(self) -> tuple[str, int]:
        """(IP, port) of the other side."""
        name = self._sock.getpeername()
        return (name[0], name[1]) if isinstance(name, tuple) else ("", 0)


def _close_notify(sock: ssl.SSLSocket) -> bytes:
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
