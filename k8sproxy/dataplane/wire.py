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

States: the two sides have a life each, and so has the look for an end that the loop did not tell of (wirestates). One
method moves each of them, and it alone tells the loop what to watch.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import socket
import ssl
import termios
from collections import deque
from collections.abc import Callable
from typing import Protocol

from k8sproxy.dataplane.socketcalls import calls, close_notify, unheard
from k8sproxy.dataplane.wirestates import (
    ASKED,
    BLOCKED,
    BROKEN,
    DUE,
    ENDED,
    ENDING,
    IN_ROW,
    NEEDLESS,
    NEEDS_READ,
    NEEDS_WRITE,
    OPEN,
    PAUSED,
    PAUSED_IN_ROW,
    READING,
    SHUT,
    SHUTTING,
    Look,
    Reading,
    Writing,
)

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


class Wire:
    """A connected non-blocking socket. Whoever owns the wire at the time sets `receiver`, `end`, `drained`, `payer` and
    `most`.

    paused: nothing is read, and `resume` would change that while it is not `ended`. ended: the other side has ended, or
    the wire broke or is closed. blocked: what is written is kept.

    It has more than fifteen attributes: seven are what every turn needs of the socket and the loop, five are the
    owner's, three are the states, and four belong to one of these. The other three, which were named first, are the
    states as others ask for them, several times in a request: the moves keep them, so that asking costs no call.
    """

    __slots__ = (
        "_alert",
        "_buffer",
        "_by_hand",
        "_flowing",
        "_kept",
        "_look",
        "_loop",
        "_pending",
        "_read",
        "_reading",
        "_sock",
        "_tls",
        "_write",
        "_writing",
        "blocked",
        "drained",
        "end",
        "ended",
        "most",
        "paused",
        "payer",
        "receiver",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket, buffer: ReadBuffer) -> None:
        self._loop = loop
        self._sock = sock
        self._tls = isinstance(sock, ssl.SSLSocket)
        self._read, self._write, self._pending = calls(sock)
        self._buffer = buffer.view
        self._reading: Reading = PAUSED
        self._writing: Writing = OPEN
        self._look: Look = NEEDLESS
        self.paused = True
        self.ended = False
        self.blocked = False
        self._flowing = False  # the last turn brought FLOW bytes
        self._by_hand: asyncio.Handle | None = None  # the next turn, where it was asked for by hand
        self._kept: deque[bytes] | None = None  # what the socket did not take, while blocked
        self._alert = b""  # what is left to send of our close_notify, while SHUTTING
        self.most = TURN
        self.payer: Payer | None = None
        self.receiver: Receiver | None = None
        self.end: Ender | None = None
        self.drained: Callable[[], None] = _ignore

    @property
    def closed(self) -> bool:
        """Whether the socket is closed."""
        return self._writing is Writing.CLOSED

    @property
    def broken(self) -> bool:
        """Whether `end` was called with an error."""
        return self._reading is BROKEN

    @property
    def sent_end(self) -> bool:
        """Whether what is written goes nowhere: our end was said, or the other side takes no more."""
        return self._writing is not OPEN and not self.blocked

    # -- the moves

    def _move_reading(self, following: Reading) -> None:
        before = self._reading
        self._reading = following = before.to(following)
        self.paused = following not in (READING, NEEDS_WRITE, IN_ROW, ENDING)
        self.ended = following in (ENDING, ENDED, BROKEN, Reading.CLOSED)
        told = before is READING or before is NEEDS_WRITE
        if following is READING or following is NEEDS_WRITE:
            if not told:
                self._loop.add_reader(self._sock.fileno(), self._readable)
        elif told:
            self._loop.remove_reader(self._sock.fileno())
        if before is NEEDS_WRITE or following is NEEDS_WRITE:
            self._watch_room()

    def _move_writing(self, following: Writing) -> None:
        self._writing = self._writing.to(following)
        self.blocked = following is BLOCKED or following is NEEDS_READ
        self._watch_room()

    def _watch_room(self) -> None:
        if self.blocked or self._writing is SHUTTING or self._reading is NEEDS_WRITE:
            self._loop.add_writer(self._sock.fileno(), self._writable)
        else:
            self._loop.remove_writer(self._sock.fileno())

    def _move_look(self, following: Look) -> None:
        """The turn that was asked for is the look's while it is ASKED."""
        if self._look is ASKED and self._by_hand is not None:
            self._by_hand.cancel()
            self._by_hand = None
        self._look = self._look.to(following)
        if following is ASKED:
            self._by_hand = self._loop.call_soon(self._look_turn)

    # -- reading

    def resume(self) -> None:
        """Read (again). Bytes that OpenSSL already holds are delivered on the next turn of the loop."""
        if not self.paused or self.ended:
            return
        self._move_reading(READING if self._reading is PAUSED else IN_ROW)
        if self._pending():
            self._read_on()

    def pause(self) -> None:
        """Stop reading. Bytes read in this turn may still be delivered to the current receiver's caller, not more."""
        if self.paused or self.ended:
            return
        self._move_reading(PAUSED_IN_ROW if self._reading is IN_ROW else PAUSED)

    def _read_on(self) -> None:
        """Ask for a turn by hand."""
        if self._by_hand is None:
            self._by_hand = self._loop.call_soon(self._turn_by_hand)

    def _turn_by_hand(self) -> None:
        self._by_hand = None
        self._readable()

    def _readable(self, paid: bool = False) -> None:
        """Take a turn. paid: its owner has come up in the row, and has paid for it."""
        if self._writing is NEEDS_READ:
            self._move_writing(BLOCKED)
            self._flush()
        if self._reading is not READING and self._reading is not NEEDS_WRITE:
            return
        if self._flowing and not paid and not self._may_flow():
            return
        if self._look is ASKED:
            self._move_look(DUE)  # the loop has told: the next look is the clock's
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
            if self._reading is READING:
                self._move_reading(NEEDS_WRITE)
        except (OSError, ValueError) as error:
            broken = error.with_traceback(None)  # which would hold this frame, which holds the error
        self._flowing = got >= FLOW
        if ended or broken is not None:
            self._move_reading(ENDING)  # before the last bytes are handed over, so that what comes of them knows
        if got and self.receiver is not None:
            if self._look is NEEDLESS:
                self._move_look(DUE)
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
        elif more and not self.paused and not self.ended:
            self._read_on()

    def _may_flow(self) -> bool:
        """Whether a wire in full flow may be read now. If not, it waits in its row."""
        if self.payer is None or self.payer.budget.begin(BULK):
            return True
        self._move_reading(IN_ROW)
        self.payer.budget.wait(self.payer.owner, self._in_turn)
        return False

    def _in_turn(self, units: int) -> int:
        """Read on, in the owner's turn; what that costs."""
        if self._reading is IN_ROW:
            self._move_reading(READING)
            self._readable(paid=True)
            return BULK
        if self._reading is PAUSED_IN_ROW:
            self._move_reading(PAUSED)
        return 0

    def look(self) -> None:
        """Find an end that the loop did not tell of; called by the clock.

        libuv tells of an error on a socket once and then watches it no more (uv__poll_io), while bytes that came ahead
        of a reset are read first: where they took the one turn there was, nobody would call again. Only a wire that
        has been read since the last look can be in that state, and not one that the loop still tells of: a wire in full
        flow would be read by both, every turn.
        """
        if self._look is DUE and self._by_hand is None:
            self._move_look(ASKED)

    def _look_turn(self) -> None:
        self._by_hand = None
        self._move_look(NEEDLESS)
        self._readable()
        if not self.paused:
            self.look()  # until there is nothing

    def _finish(self, error: Exception | None) -> None:
        if self._reading in (BROKEN, Reading.CLOSED) or (self._reading is ENDED and error is None):
            return
        self._move_reading(ENDED if error is None else BROKEN)
        if self.end is not None:
            self.end(error)

    # -- writing

    def write(self, data: bytes | memoryview) -> None:
        """Send `data`, in order after what was written before. Never raises: a broken wire calls `end`."""
        if self._writing is not OPEN:
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
            self._kept = deque((bytes(data),))
            self._move_writing(NEEDS_READ)
            return
        except (OSError, ValueError) as error:
            self._loop.call_soon(self._write_failed, error)
            return
        if sent < size:
            self._kept = deque((bytes(data[sent:]),))
            self._move_writing(BLOCKED)

    def _writable(self) -> None:
        if self._reading is NEEDS_WRITE:
            self._move_reading(READING)
            self._readable()
        if self._writing is SHUTTING:
            self._end_sending()
        else:
            self._flush()

    def _flush(self) -> None:
        kept = self._kept
        if kept is None:
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
            if self._writing is BLOCKED:
                self._move_writing(NEEDS_READ)
            return
        except (OSError, ValueError) as error:
            self._write_failed(error)
            return
        self._kept = None
        self._move_writing(OPEN)
        self.drained()

    def _write_failed(self, error: Exception) -> None:
        """The other side takes no more; what is kept, or written from now on, goes nowhere. A socket whose connection
        is gone stays readable until its end has been read, so the reading side finds it, after what is there to read.
        """
        if self.closed:
            return
        waited = self.blocked
        self._kept = None
        if waited or self._writing is OPEN:
            self._move_writing(SHUT)
        if self.ended or not isinstance(error, ConnectionError | ssl.SSLEOFError):
            self._finish(error)
        else:
            if self._look is NEEDLESS:
                self._move_look(DUE)
            self.look()
        if waited:
            self.drained()

    def write_end(self) -> None:
        """End the sending side alone (FIN, close_notify); the other side can still be read. The wire must not be
        blocked. A failure is left to the reading side to find."""
        if self.sent_end:
            return
        self._move_writing(SHUTTING)
        if isinstance(self._sock, ssl.SSLSocket):
            # Out of descriptors, FIN goes alone: the other side sees a cut, which is better than no end.
            with contextlib.suppress(OSError, ValueError):
                self._alert = close_notify(self._sock)
        self._end_sending()

    def _end_sending(self) -> None:
        """Send what is left of close_notify, past OpenSSL, and FIN behind it."""
        try:
            while self._alert:
                self._alert = self._alert[socket.socket.send(self._sock, self._alert) :]
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._alert = b""
        self._move_writing(SHUT)
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._sock, socket.SHUT_WR)

    # -- closing

    def quiet(self) -> bool:
        """Whether nothing has come that was not read yet; one system call. An end does not count as something."""
        if self.ended or self._pending():
            return False
        try:
            return fcntl.ioctl(self._sock.fileno(), termios.FIONREAD, _NO_BYTES) == _NO_BYTES
        except (OSError, ValueError):
            return False

    def idle_alive(self) -> bool:
        """Whether a wire that nobody reads or writes just now is still open with nothing to read: one system call."""
        if self.ended or self._pending():
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
        if self._by_hand is not None:
            self._by_hand.cancel()
            self._by_hand = None
        if isinstance(self._sock, ssl.SSLSocket) and self._writing is OPEN:
            # Nobody reads any more: that unwrap() trips over data after our close_notify is no concern.
            with contextlib.suppress(OSError, ValueError):
                self._sock.unwrap()
        self._move_reading(Reading.CLOSED)
        self._move_writing(Writing.CLOSED)
        self._kept = None
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
        if self.blocked or self._writing is OPEN:
            self._move_writing(SHUT)
        self.close()

    def unheard(self) -> float:
        """Seconds since the last acknowledgement while packets wait for one (socketcalls.unheard)."""
        return 0.0 if self.closed else unheard(self._sock)

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
