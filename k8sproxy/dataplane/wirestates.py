"""The lives of a wire: one of each of its two sides, which end apart, and one of the look for an end that nobody told.

OpenSSL can have to write before it reads on, and to read before it writes on (TLS 1.2: a new handshake; TLS 1.3: new
keys). Such a side goes on when the socket is ready for the other one.
"""

from __future__ import annotations

from typing import Final

from k8sproxy.common.states import State, table


class Reading(State):
    """What is read. The loop tells of bytes in READING and NEEDS_WRITE alone.

    PAUSED          the owner wants nothing                                -> READING, BROKEN, CLOSED
    READING         what comes goes to the owner                           -> PAUSED, NEEDS_WRITE, IN_ROW, ENDING,
                                                                              BROKEN, CLOSED
    NEEDS_WRITE     OpenSSL must write first                               -> PAUSED, READING, IN_ROW, ENDING,
                                                                              BROKEN, CLOSED
    IN_ROW          it is in full flow, and waits for its payer's turn     -> READING, PAUSED_IN_ROW, BROKEN, CLOSED
    PAUSED_IN_ROW   it waits, and will not be read when its turn comes     -> PAUSED, IN_ROW, BROKEN, CLOSED
    ENDING          the end has been seen; the owner gets the last bytes   -> ENDED, BROKEN, CLOSED
    ENDED           the owner knows of a clean end                         -> BROKEN, CLOSED
    BROKEN          the owner knows of an error                            -> CLOSED
    CLOSED          the socket is closed                                   -> (final)
    """

    PAUSED = "paused"
    READING = "reading"
    NEEDS_WRITE = "needs_write"
    IN_ROW = "in_row"
    PAUSED_IN_ROW = "paused_in_row"
    ENDING = "ending"
    ENDED = "ended"
    BROKEN = "broken"
    CLOSED = "closed"


# Final: mypyc then reads the member where it would look a name up.
PAUSED: Final = Reading.PAUSED
READING: Final = Reading.READING
NEEDS_WRITE: Final = Reading.NEEDS_WRITE
IN_ROW: Final = Reading.IN_ROW
PAUSED_IN_ROW: Final = Reading.PAUSED_IN_ROW
ENDING: Final = Reading.ENDING
ENDED: Final = Reading.ENDED
BROKEN: Final = Reading.BROKEN
table(
    {
        PAUSED: (READING, BROKEN, Reading.CLOSED),
        READING: (PAUSED, NEEDS_WRITE, IN_ROW, ENDING, BROKEN, Reading.CLOSED),
        NEEDS_WRITE: (PAUSED, READING, IN_ROW, ENDING, BROKEN, Reading.CLOSED),
        IN_ROW: (READING, PAUSED_IN_ROW, BROKEN, Reading.CLOSED),
        PAUSED_IN_ROW: (PAUSED, IN_ROW, BROKEN, Reading.CLOSED),
        ENDING: (ENDED, BROKEN, Reading.CLOSED),
        ENDED: (BROKEN, Reading.CLOSED),
        BROKEN: (Reading.CLOSED,),
        Reading.CLOSED: (),
    }
)


class Writing(State):
    """What is written. The loop tells of room in BLOCKED, NEEDS_READ and SHUTTING.

    OPEN         what is written goes to the socket                        -> BLOCKED, NEEDS_READ, SHUTTING, SHUT,
                                                                              CLOSED
    BLOCKED      the socket is full: what is written is kept               -> OPEN, NEEDS_READ, SHUT, CLOSED
    NEEDS_READ   OpenSSL must read first; what is written is kept          -> OPEN, BLOCKED, SHUT, CLOSED
    SHUTTING     our end is being said: close_notify, and FIN behind it    -> SHUT, CLOSED
    SHUT         our end has been said, or the other side takes no more:
                 what is written goes nowhere                              -> CLOSED
    CLOSED       the socket is closed                                      -> (final)
    """

    OPEN = "open"
    BLOCKED = "blocked"
    NEEDS_READ = "needs_read"
    SHUTTING = "shutting"
    SHUT = "shut"
    CLOSED = "closed"


OPEN: Final = Writing.OPEN
BLOCKED: Final = Writing.BLOCKED
NEEDS_READ: Final = Writing.NEEDS_READ
SHUTTING: Final = Writing.SHUTTING
SHUT: Final = Writing.SHUT
table(
    {
        OPEN: (BLOCKED, NEEDS_READ, SHUTTING, SHUT, Writing.CLOSED),
        BLOCKED: (OPEN, NEEDS_READ, SHUT, Writing.CLOSED),
        NEEDS_READ: (OPEN, BLOCKED, SHUT, Writing.CLOSED),
        SHUTTING: (SHUT, Writing.CLOSED),
        SHUT: (Writing.CLOSED,),
        Writing.CLOSED: (),
    }
)


class Look(State):
    """Whether there may be an end that the loop did not tell of (Wire.look).

    NEEDLESS   no byte has come since the last look                        -> DUE
    DUE        bytes have come: an end may hide behind them                -> ASKED
    ASKED      the next turn of the loop looks, unless it tells of
               something before                                            -> DUE, NEEDLESS
    """

    NEEDLESS = "needless"
    DUE = "due"
    ASKED = "asked"


NEEDLESS: Final = Look.NEEDLESS
DUE: Final = Look.DUE
ASKED: Final = Look.ASKED
table({NEEDLESS: (DUE,), DUE: (ASKED,), ASKED: (DUE, NEEDLESS)})
