"""What passes to a terminal and what does not."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recorder.cli.tame import RESTORE, Tame


def tamed(text: str) -> str:
    return Tame().feed(text)


@pytest.mark.parametrize(
    "text",
    [
        "hello\r\n\tworld\b\x07",
        "\x1b[1;31mred\x1b[0m \x1b[38:2::1:2:3m\x1b[38;5;9m",
        "\x1b[2J\x1b[H\x1b[3;4H\x1b[K\x1b[?25l\x1b[?1049h\x1b[?1;25h\x1b[4h",
        "\x1b7\x1b8\x1bD\x1bM\x1b(0lqk\x1b(B\x1b=\x1b>",
        "\x1b[5;10r\x1b[2L\x1b[3P\x1b[9999b\x1b[2 q",
        "ünïcödé 日本 🙂",
    ],
)
def test_what_draws_passes(text: str) -> None:
    assert tamed(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "\x1b[c",  # who are you
        "\x1b[>c",
        "\x1b[=c",
        "\x1b[6n",  # where is the cursor
        "\x1b[?6n",
        "\x1b[5n",
        "\x05",  # ENQ: the answerback
        "\x1b[21t",  # report the title
        "\x1b[8;1;1t",
        "\x1b]0;title\x07",
        "\x1b]52;c;cm0gLXJmIC8=\x1b\\",  # the clipboard
        "\x1b]8;;file:///etc/passwd\x1b\\",
        "\x9d52;c;eA==\x9c",
        '\x1bP$q"p\x1b\\',  # DECRQSS
        "\x90+q544e\x9c",
        "\x1b_Gi=1\x1b\\",
        "\x1b^x\x1b\\",
        "\x1bXx\x1b\\",
        "\x1b[?1000h",  # the mouse
        "\x1b[?1004h",
        "\x1b[?2004h",
        "\x1b[?25;1000h",
        "\x1b[?1003$p",
        "\x1b[x",
        "\x1b[!p",
        "\x1bc",  # reset
        "\x1bZ",
        "\x1b[99999999b",
        "\x1b[5i",  # print the screen
        "\x9b6n",
        "\x1b%G",
        "\x00\x11\x13\x7f\x84\x85\x8d",
        "\x1b[>4;2m",
    ],
)
def test_what_acts_does_not(text: str) -> None:
    assert tamed(text) == ""
    assert Tame().feed("a" + text + "b") == "ab"


def test_a_sequence_in_eight_bits_is_one_in_seven() -> None:
    assert tamed("\x9b31mred") == "\x1b[31mred"


def test_time_is_linear_in_what_comes() -> None:
    # One event may have 4 MiB; where each sequence copies the rest this takes a quarter of an hour.
    for hostile in ("\x9b", "\x9b1m", "\x1b[", "\x1b]", "\x1b(", "\x9d"):
        started = time.process_time()
        tamed(hostile * 500_000)
        assert time.process_time() - started < 5, ascii(hostile)


def test_a_sequence_within_a_sequence() -> None:
    assert tamed("\x1b[\x1b[31mx") == "\x1b[31mx"
    assert tamed("\x1b]0;a\x1b[31mx") == "\x1b[31mx"
    assert tamed("\x1b\x1b]0;a\x07x") == "x"
    assert tamed("\x1b[3\n1mx") == "\n1mx"


def test_the_terminal_is_put_back_without_moving_the_cursor() -> None:
    # DECSTBM homes it, and leaving the other screen takes it to where it was saved (xterm's ctlseqs).
    for moving in ("\x1b[?1049l", "\x1b[r"):
        assert f"\x1b7{moving}" in RESTORE
    assert "\x1b7\x1b[r\x1b8" in RESTORE
    assert RESTORE.endswith("\r\n") and "\x1b[H" not in RESTORE and "\x1b[?6" not in RESTORE


def test_odd_characters() -> None:
    assert tamed("a\U0010fe80b\ud800c") == "a\ufffdb\ufffdc"


def test_a_string_without_an_end_is_not_held() -> None:
    tame = Tame()
    assert tame.feed("\x1b]" + "x" * (1 << 20)) == ""
    assert tame.feed("y") == "y"
    assert Tame().feed("\x1b[" + "1" * 300 + "m").endswith("1m")


PIECES = st.lists(
    st.one_of(
        st.sampled_from(
            ["\x1b", "\x1b[", "\x1b]", "\x9b", "\x9d", "\x90", "\x1b\\", "\x07", "m", "?1000h", "6n", ";", "0"]
        ),
        st.text(max_size=5),
    ),
    max_size=30,
)
ALLOWED = re.compile(
    r"(?:[^\x00-\x1f\x7f-\x9f\ud800-\udfff]|[\x07-\x0f]"
    r"|\x1b\[[0-9;:]*[@A-HIJKLMPSTXZ`abdefgrmsu]|\x1b\[\?[012]?J|\x1b\[\??[0-9;]*[hl]|\x1b\[\d+ q"
    r"|\x1b[78DEHM=>]|\x1b[()*+][0AB])*\Z"
)


@settings(max_examples=300, deadline=None)
@given(PIECES, st.data())
def test_nothing_else_ever_passes_wherever_it_is_cut(pieces: list[str], data: st.DataObject) -> None:
    text = "".join(pieces)
    whole = tamed(text)
    assert ALLOWED.match(whole), ascii(whole)
    tame, parts, position = Tame(), [], 0
    while position < len(text):
        size = data.draw(st.integers(1, 4))
        parts.append(tame.feed(text[position : position + size]))
        position += size
    assert "".join(parts) == whole
