"""The text that was on a terminal's screen, out of a cast's events: what the index searches.

    cast -> terminal (the rows and the cursor) -> segments (lines, within bounds)
              |  sequences   escape sequences            pen, colours   what text is drawn with
              |  rows        one row                     hidden, unseen what a terminal would not show

Theory of operation. A terminal emulator knows what every cell shows at every moment; that is the player's business and
too slow for every session that ends. Search needs words and the second at which they stood there, so this is a
terminal of lines. One row is open: printable runs are written into it at the cursor, `\\r`, `\\b`, tabs, erasures and
cursor moves within the row do what a terminal does, so that a typed and corrected command, echoed character by
character, ends up as one line, and a progress bar as its last state. The row goes out as a line when a line feed
leaves it. Where a cursor move leaves it (full-screen programs, progress of several lines), it is laid aside under its
row number, picked up when the cursor comes back, and goes out when the screen is cleared or changed, when it stood for
`_STOOD` seconds before it is drawn over, or at the end. Long lines wrap at the terminal's width without being cut, so a
`\\r` goes back to the start of the screen row, as readline expects when it wraps what is typed.

Lines gather in segments; a line that a segment has already (`watch`, a redrawn screen) is not kept twice. What is kept
is bounded: characters a line, rows laid aside, characters a session. What a terminal would not show is gathered beside
the lines, with what hid it. Time is linear in the input whatever it holds.
"""

from recorder.screen.cast import CAST_LIMIT, CastText
from recorder.screen.segments import MARK, SEGMENT_CHARACTERS, TEXT_LIMIT, Segment, unseen_segments
from recorder.screen.terminal import Screen
from recorder.screen.unseen import Unseen

__all__ = [
    "CAST_LIMIT",
    "MARK",
    "SEGMENT_CHARACTERS",
    "TEXT_LIMIT",
    "CastText",
    "Screen",
    "Segment",
    "Unseen",
    "unseen_segments",
]
