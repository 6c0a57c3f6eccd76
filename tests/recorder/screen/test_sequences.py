"""Escape sequences in any pieces, and the table of their states."""

from __future__ import annotations

import pytest

from recorder.screen.sequences import ESCAPE, GROUND, PIECE, Found, Reading, Sequences
from tests.lives import assert_documented


def test_the_docstring_has_the_table() -> None:
    assert_documented(Reading)


def read(text: str, size: int) -> tuple[list[Found], str]:
    """What is found behind an ESC, in pieces of that size; and what is left as text."""
    sequences, found, rest = Sequences(), [], ""
    sequences.escape()
    for start in range(0, len(text), size):
        piece, position = text[start : start + size], 0
        while position < len(piece):
            if sequences.state is GROUND:
                if piece[position] == "\x1b":
                    sequences.escape()
                else:
                    rest += piece[position]
                position += 1
                continue
            position, one = sequences.read(piece, position)
            found += [one] if one is not None else []
    return found, rest


@pytest.mark.parametrize("size", [1, 2, 100])
@pytest.mark.parametrize(
    ("text", "found", "rest"),
    [
        ("[1;31mx", [("csi", "m", "1;31")], "x"),
        ("[2\x7f;5Hx", [("csi", "H", "2;5")], "x"),
        ("[?25lx", [("csi", "l", "?25")], "x"),
        ("[12\x01x", [], "\x01x"),  # dropped, and the control counts
        ("[" + "1;" * 40 + "Hx", [], "x"),  # too long to matter
        ("(0x", [("escape", "0", "(")], "x"),
        ("#8x", [("escape", "8", "#")], "x"),
        ("#\nx", [], "\nx"),
        ("\x1bMx", [("escape", "M", "")], "x"),
        ("]0;a title\x07x", [("string", "\x9d", "0;a title")], "x"),
        ("_hidden\x1b\\x", [("string", "\x9f", "hidden"), ("escape", "\\", "")], "x"),
    ],
)
def test_sequences(text: str, found: list[Found], rest: str, size: int) -> None:
    assert read(text, size) == (found, rest)


def test_a_string_is_kept_in_part_and_given_up_in_the_end() -> None:
    found, rest = read("]" + "a" * (PIECE + 10) + "\x07", 1000)
    assert len(found[0][2]) < PIECE + 1000 and rest == ""
    found, rest = read("]" + "a" * (1 << 20) + "b" * 2000, 1000)
    assert len(found) == 1 and 0 < len(rest) <= 2000


def test_the_end_of_the_output_ends_a_string() -> None:
    sequences = Sequences()
    assert sequences.finish() is None
    sequences.introduce("\x9d")
    assert sequences.read("0;x", 0) == (3, None)
    assert sequences.finish() == ("string", "\x9d", "0;x")
    sequences.escape()
    assert sequences.finish() is None and sequences.state is ESCAPE
