"""How much of a turn of the loop one connection, one peer and all of them may spend on reading frames.

Most bytes cost next to nothing: a payload is passed on as it came. But 64 KiB of pings, of empty frames, of compressed
header blocks or of one-byte chunks are the loop's work for 10 to 200 ms, in which nobody else is served. So readers
count their work (a unit is about a microsecond), and whoever feeds them does it here:

    Turns   one for a loop. It grants units for bytes that have just come, up to TURN a turn of the loop for all
            connections together, and GRANT for one. What is not read by then waits in a row: in every turn of the loop
            another ROW units are spent on the rows, one owner (a peer) after the other, and one of an owner's
            connections after the other. Requests and TLS handshakes have a price too, and wait in the same rows.
    Pace    one direction of one connection. While bytes of it wait, its wire is not read; so a connection holds what
            one turn of its wire brings; that is SMALL bytes from then on, and twice as much whenever it was read.

So what is dear takes a bounded part of a turn of the loop however many connections there are, and a peer that sends it
waits in its own row. What is cheap has a price only in full flow: a wire that brought FLOW bytes in its last turn pays
wire.BULK units for the next one, and waits in its owner's row where there are none. So a turn reads some twenty such
wires, and as many that were not in full flow before as there are. Nothing is refused and nothing is measured: a slow
machine takes longer for a unit of everybody's.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from k8sproxy.dataplane.wire import TURN as WIRE_TURN
from k8sproxy.dataplane.wire import Wire

# Units that a turn of the loop spends on what has just come, and on what has to wait. A request takes up to eight turns
# of the loop, so that it is delayed by less than 20 ms, also where a unit takes somewhat longer than it should.
TURN = 1000
ROW = 500
# Units at once for one connection: a hundred frames or so. A person's terminal sends one or two in a turn.
GRANT = 250
# Bytes that are shown to a reader in one step where their cost is not known before; at the dearest (terminal sizes of
# two bytes) they cost 700 units, which is how far a grant may be overdrawn.
STEP = 512
# Units of a small request, from its head to its answer, and of a TLS handshake with its signature.
REQUEST = 60
HANDSHAKE = 500
# Bytes of a head that are parsed in a unit (128 field lines in 60 KiB take 0.7 ms), and characters of its target that
# are understood in one. Units of a percent escape: 600 of them in a path take 1.2 ms, 500 broken ones in a query 0.4.
HEAD_BYTES = 64
TARGET_CHARACTERS = 8
ESCAPE = 2
# Bytes that a wire reads in a turn while its connection is in a row.
SMALL = 4 * 1024

# Goes on reading with so many units, and gives how many it has spent.
Resume = Callable[[int], int]


def price_of(target: str) -> int:
    """Units of a request, by its target."""
    return REQUEST + len(target) // TARGET_CHARACTERS + ESCAPE * target.count("%")


class Turns:
    """The budget of one loop's turns. waiting: connections in the rows.

    A budget is made whole at the next turn once half of it has been spent. What was spent before may be of several
    turns, which errs on the safe side.
    """

    __slots__ = ("_armed", "_left", "_loop", "_rows")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._left = TURN
        self._rows: dict[str, deque[Resume]] = {}  # by owner; the next one is in front
        self._armed = False

    @property
    def waiting(self) -> int:
        return sum(map(len, self._rows.values()))

    def grant(self) -> int:
        """Units for bytes that have just come; 0 where this turn has none left."""
        return min(GRANT, self._left)

    def spend(self, units: int) -> None:
        """Take units that were granted from this turn's, and more than those where it came to more."""
        if units > 0:
            self._left = max(0, self._left - units)
            if self._left < TURN // 2:
                # Not before: a callback more in each turn would cost bulk a tenth.
                self._arm()

    def begin(self, units: int) -> bool:
        """Whether something that costs so many units may begin at once, as it may as long as there are some left; they
        are spent then. Whoever may not waits for its `turn`."""
        left = self._left - units
        if left >= TURN // 2:
            self._left = left  # most requests: the turn need not be begun anew
            return True
        if self._left <= 0:
            return False
        self.spend(units)
        return True

    async def turn(self, owner: str, units: int) -> None:
        """Wait for the turn of something that costs so many units: not at all where it may `begin`."""
        if self.begin(units):
            return
        future: asyncio.Future[None] = self._loop.create_future()

        def resume(_: int) -> int:
            if future.done():
                return 0  # cancelled: who wanted it has gone
            future.set_result(None)
            return units

        self.wait(owner, resume)
        await future

    def wait(self, owner: str, resume: Resume) -> None:
        """Have `resume` called once, in its turn."""
        row = self._rows.get(owner)
        if row is None:
            row = self._rows[owner] = deque()
        row.append(resume)
        self._arm()

    def _arm(self) -> None:
        if not self._armed:
            self._armed = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        """A turn of the loop has ended, and another one begins."""
        self._armed = False
        self._left = TURN
        left = ROW
        rows = self._rows
        while rows and left > 0:
            owner = next(iter(rows))
            row = rows.pop(owner)
            resume = row.popleft()
            if row:
                rows[owner] = row  # behind the others
            try:
                left -= max(1, resume(min(GRANT, left)))
            except Exception as error:
                # A fault of ours ends its connection (Pace), not the rows.
                self._loop.call_exception_handler({"message": "a reader failed in its turn", "exception": error})
        if rows:
            self._arm()


class Pace:
    """One direction's bytes on the way to their reader.

    wire: what they come from. read: is given bytes and units, and gives (how many of the bytes it has used, what it
    has spent); where it leaves bytes it had no units left for them. may: whether there is a place for what is read just
    now; whoever makes place calls `resume`. failed: is told of an exception of `read` in a later turn.
    """

    __slots__ = ("_behind", "_dropped", "_failed", "_in_row", "_may", "_read", "_rest", "_turns", "_wire", "owner")

    def __init__(
        self,
        turns: Turns,
        owner: str,
        wire: Wire,
        read: Callable[[memoryview, int], tuple[int, int]],
        *,
        may: Callable[[], bool],
        failed: Callable[[Exception], None],
    ) -> None:
        self.owner = owner
        self._turns = turns
        self._wire = wire
        self._read = read
        self._may = may
        self._failed = failed
        self._rest = b""
        self._in_row = False
        self._dropped = False
        self._behind: Callable[[], None] | None = None

    @property
    def waiting(self) -> int:
        """Bytes that wait."""
        return len(self._rest)

    def receive(self, view: memoryview) -> None:
        """What has come: a wire's receiver."""
        turns = self._turns
        if self._rest:
            # A wire that is not read may still hand over what it had.
            self._rest += view
            return
        used, spent = self._read(view, turns.grant())
        turns.spend(spent)
        if used < len(view) and not self._dropped:
            self._rest = bytes(view[used:])
            self._wire.pause()
            self._wire.most = SMALL
            self._line_up()
        elif self._wire.most < WIRE_TURN:
            self._wire.most = min(2 * self._wire.most, WIRE_TURN)

    def resume(self) -> None:
        """Go on, if there is a place for what comes: with what waits, else with what the wire has."""
        if not self._dropped and self._may():
            if self._rest:
                self._line_up()
            else:
                self._wire.resume()

    def behind(self, then: Callable[[], None]) -> bool:
        """Whether bytes wait; if so, `then` is called once they have been read. What was given before stays."""
        if self._rest and not self._dropped:
            self._behind = self._behind or then
            return True
        return False

    def drop(self) -> None:
        """Forget what waits; nothing is read or resumed from here on."""
        self._dropped = True
        self._rest = b""
        self._behind = None
        self._wire.most = WIRE_TURN
        # Its owner's methods, which hold the owner, which holds this.
        self._read, self._may, self._failed = _reads_nothing, _never, _untold

    def _line_up(self) -> None:
        if not self._in_row:
            self._in_row = True
            self._turns.wait(self.owner, self._turn)

    def _turn(self, units: int) -> int:
        self._in_row = False
        if self._dropped or not self._may():
            return 0
        rest = self._rest
        failed = self._failed
        try:
            used, spent = self._read(memoryview(rest), units)
        except Exception as error:
            failed(error)
            raise
        if self._dropped:
            return spent
        self._rest = rest = self._rest[used:]
        if rest:
            if self._may():
                self._line_up()
            return spent
        then, self._behind = self._behind, None
        if then is not None:
            then()
        else:
            self.resume()
        return spent


def _reads_nothing(view: memoryview, units: int) -> tuple[int, int]:
    return len(view), 0


def _never() -> bool:
    return False


def _untold(error: Exception) -> None:
    return None
