"""What a terminal does not show is found, and what it shows is not taken for it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recorder.screen import MARK, CastText, Screen
from recorder.screen.colours import Colours, Ink
from recorder.screen.unseen import Unseen


def unseen(*output: str | tuple[float, str], columns: int = 80) -> list[tuple[str, str]]:
    """What is not shown of an output; a string comes a second after what was before."""
    terminal = Screen(columns=columns, rows=24)
    for number, piece in enumerate(output):
        time, text = (float(number), piece) if isinstance(piece, str) else piece
        terminal.feed(time, text)
    terminal.finish()
    return [(piece.kind, piece.text) for piece in terminal.unseen]


def apart(*output: str, by: float = 0.001) -> list[tuple[float, str]]:
    return [(number * by, text) for number, text in enumerate(output)]


@pytest.mark.parametrize(
    ("output", "kind", "text"),
    [
        ("\x1b_stolen secret\x1b\\", "APC", "stolen secret"),
        ("\x9fstolen secret\x9c", "APC", "stolen secret"),
        ("\x1b^stolen secret\x1b\\", "PM", "stolen secret"),
        ("\x1bXstolen secret\x1b\\", "SOS", "stolen secret"),
        ("\x1bPstolen secret\x1b\\", "DCS", "stolen secret"),
        ("\x1bPtmux;\x1b\x1b]0;x\x07\x1b\\", "DCS", "tmux;"),
        ("\x1b]52;c;c2VjcmV0\x07", "OSC", "52;c;c2VjcmV0"),
        ("\x1b]9999;stolen secret\x07", "OSC", "9999;stolen secret"),
        ("\x1b]stolen secret\x07", "OSC", "stolen secret"),
        ("\x1b]133;A;stolen secret\x07", "OSC", "133;A;stolen secret"),
        ("\x1b]4;1;stolen\x07", "OSC", "4;1;stolen"),
        ("\x1b]8;;http://x/secret\x1b\\link\x1b]8;;\x1b\\", "link", "8;;http://x/secret"),
        ("\x1b_ended by CAN\x18", "APC", "ended by CAN"),
        ("\x1b_two\r\nlines\x1b\\", "APC", "two lines"),
        ("\x1b[8mstolen secret\x1b[28m", "concealed", "stolen secret"),
        ("\x1b[8mstolen secret", "concealed", "stolen secret"),
        ("\x1b[1;31;8mstolen \x1b[32msecret\x1b[0m", "concealed", "stolen secret"),
        ("\x1b[0000008mstolen secret\x1b[m", "concealed", "stolen secret"),
        ("\x1b[" + "0;" * 28 + "8mstolen secret\x1b[m", "concealed", "stolen secret"),
        ("\x1b[" + "000;" * 28 + "8mstolen secret\x1b[m", "concealed", "stolen secret"),
        ("\x9b8mstolen secret\x9b0m", "concealed", "stolen secret"),
        ("\x1b[8m\x1b7\x1b[0m\x1b8stolen secret", "concealed", "stolen secret"),
        ("\x1b[8m\x1b[s\x1b[0m\x1b[ustolen secret", "concealed", "stolen secret"),
        ("\x1b[8m\x1b[?1048h\x1b[0m\x1b[?1048lstolen secret", "concealed", "stolen secret"),
        ("\x1b[30;40mstolen secret\x1b[0m", "same colour", "stolen secret"),
        ("\x1b[97;107mstolen secret\x1b[0m", "same colour", "stolen secret"),
        ("\x1b[41mred \x1b[31mstolen secret\x1b[39m", "same colour", "stolen secret"),
        ("\x1b[38;5;4m\x1b[44mstolen secret\x1b[0m", "same colour", "stolen secret"),
        ("\x1b[1;34;104mstolen secret\x1b[0m", "same colour", "stolen secret"),
        ("\x1b[38;5;16;48;2;0;0;0mstolen secret\x1b[0m", "same colour", "stolen secret"),
        ("\x1b[38:2::9:9:9;48:2:9:9:9mstolen secret\x1b[0m", "same colour", "stolen secret"),
        ("\x1b[30;48;2;3;3;3mstolen secret\x1b[0m", "same colour", "stolen secret"),
        ("\x1b[38;5;240m\x1b[48;5;240mstolen secret\x1b[0m", "same colour", "stolen secret"),
        ("\x1b[7;38;2;90;80;70;48;2;90;80;70mstolen secret\x1b[0m", "same colour", "stolen secret"),
        # The terminal's own colours are as the output has set them.
        ("\x1b]11;#102030\x07\x1b[38;2;16;32;48mstolen secret\x1b[0m", "same colour", "stolen secret"),
        ("\x1b]11;rgb:ff/80/0\x1b\\\x1b[38;2;255;128;0mstolen secret\x1b[0m", "same colour", "stolen secret"),
        ("\x1b]10;#123\x07\x1b]11;#102030\x07stolen secret\x1b]110\x07", "same colour", "stolen secret"),
        ("\x1b]10;#000;rgb:0000/0000/0000\x07stolen secret\x1b]111\x07", "same colour", "stolen secret"),
        ("\x1b]4;1;#222;2;#222\x07\x1b[31;42mstolen secret\x1b[0m", "same colour", "stolen secret"),
        ("\x1b]10;#ffffff\x07\x1b[107mstolen secret\x1b[0m", "same colour", "stolen secret"),
        ("\x1b[30mstolen secret\x1b[0m", "black without a background", "stolen secret"),
        ("\x1b[38;5;16mstolen secret\x1b[0m", "black without a background", "stolen secret"),
        ("\x1b[7;1;38;2;1;1;1mstolen secret\x1b[0m", "black without a background", "stolen secret"),
        ("stolen secret\r             \r", "erased at once", "stolen secret"),
        ("stolen secret\r\x1b[K", "erased at once", "stolen secret"),
        ("stolen secret\x1b[2K\r", "erased at once", "stolen secret"),
        ("stolen secret\x1b[1K\r", "erased at once", "stolen secret"),
        ("stolen secret\r\x1b[20P", "erased at once", "stolen secret"),
        ("stolen secret\r\x1b[20X", "erased at once", "stolen secret"),
        ("stolen secret\b\b\b\b\b\b\b\b\b\b\b\b\b\x1b[J", "erased at once", "stolen secret"),
        ("\x1b[5;5Hstolen secret\x1b[5;1H" + "x" * 30, "erased at once", "stolen secret"),
        ("stolen secret\x1b[2J\x1b[H", "erased at once", "stolen secret"),
        ("stolen secret\r\nmore\r\n\x1b[H\x1b[2J", "erased at once", "stolen secret"),
        ("stolen secret\r\n\x1bc", "erased at once", "stolen secret"),
        ("stolen secret\x1b#8", "erased at once", "stolen secret"),
        ("stolen secret\x1b[M\r", "erased at once", "stolen secret"),
        ("stolen secret\x1b[24M", "erased at once", "stolen secret"),
        ("\x1b[5Hstolen secret\x1b[H\x1b[99L", "erased at once", "stolen secret"),
        ("\x1b[5Hstolen secret\x1b[24S", "erased at once", "stolen secret"),
        ("\x1b[5Hstolen secret\x1b[24T", "erased at once", "stolen secret"),
        ("stolen secret\x1b[1;1;24;80$z", "erased at once", "stolen secret"),
        ("stolen secret\x1b[1;1;24;80${", "erased at once", "stolen secret"),
        ("\x1b[?1049hstolen secret\x1b[?1049l", "erased at once", "stolen secret"),
        ("\x1b[?25lstolen secret\rnothing to see.\x1b[?25h", "erased at once", "stolen secret"),
        ("".join(chr(0xE0000 + ord(c)) for c in "stolen secret"), "characters without a shape", "stolen secret"),
        ("\U0001f600" + "".join(chr(0xE0100 + ord(c) - 16) for c in "secret"), "characters without a shape", "secret"),
        ("\x1b(0stolen secret\x1b(B", "drawing characters", "stolen secret"),
        ("\x1b[?7l" + "x" * 80 + "stolen secret\x1b[?7h", "beyond the edge", "stolen secret"),
    ],
)
def test_it_is_found(output: str, kind: str, text: str) -> None:
    before, after = "$ echo hello\r\nhello\r\n", "\r\n$ bye\r\n"
    found = unseen((0.0, before), (1.0, output), (2.0, after))
    assert (kind, text) in found and Unseen(0, kind, "").marks
    assert (kind, text) in unseen((0.0, before), *[(1.0, character) for character in output], (2.0, after))


@pytest.mark.parametrize(
    "output",
    [
        "",
        "plain text\r\nof two lines\r\n",
        "\x1b[1;31mred\x1b[0m and \x1b[7minverse\x1b[27m and \x1b[30;47mblack on white\x1b[0m\r\n",
        "\x1b[38;5;8mgrey\x1b[38;2;1;2;3;48;2;200;200;200mother\x1b[0m",
        "\x1b[1;30mbright black\x1b[0;97mwhite\x1b[37mgrey\x1b[0m",
        "\x1b]11;#fff\x07\x1b[30mblack on white\x1b[0m\x1b]10;#000\x07and so\x1b]10;?\x07",
        "\x1b]11;#102030\x07\x1b]111\x07\x1b[38;2;16;32;48mset back\x1b[0m",
        "\x1b]4;1;#222;2;#222\x07\x1b]104;1\x07\x1b[31;42mset back\x1b[0m",
        "\x1b]4;1;#222;2;#222\x07\x1b]104\x07\x1b[31;42mset back\x1b[0m",
        "\x1b]11;#000\x07\x1bc\x1b[38;2;9;9;9mreset\x1b[0m",
        "\x1b[31;41m   \x1b[0m a bar of colour",
        "\x1b[8m   \x1b[28m",
        "\x1b7\x1b[8m\x1b8seen again \x1b[8m\x1b[!pand again",
        "\x1b[8m\x1bcand again",
        "\x1b[1;30;40mbold black is grey\x1b[0m",
        "\x1b]11;?\x07\x1b]10;rgb:ff/ff/ff\x1b\\\x1b]104\x07\x1b]133;A\x07\x1b]133;D;0\x07\x1b]9;4;1;50\x07",
        "\x1bP$q q\x1b\\\x1bP+q544e;524742\x1b\\\x1b[>4;2m\x1b[?4m",
        "10%\r20%\r100%\r\n",
        "Receiving objects: 1%\rReceiving objects: 50%\rReceiving objects: 100%, done.\r\n",
        "|\r/\r-\r\\\rdone\r\n",
        "\x1b[1m\x1b[7m%\x1b[27m\x1b[1m\x1b[0m" + " " * 79 + "\r \r$ ",
        "\x1b(0lqqqqqk\x1b(B\r\n\x1b(0x\x1b(B text \x1b(0x\x1b(B\r\n\x1b(0mqqqtqqqnqqqvqqqwqqj\x1b(B",
        "👍🏽 flag 🇩🇪 ideograph 葛\U000e0100",
    ],
)
def test_what_is_shown_is_not_taken_for_it(output: str) -> None:
    assert unseen(output) == []


def test_a_string_that_never_ends_is_told_at_the_end() -> None:
    assert unseen("\x1b_never", " ended") == [("APC", "never ended")]


def test_what_stood_has_been_seen() -> None:
    assert unseen("kubeclt", "\b\b\x1b[Ktl get\r\n") == []
    assert unseen(*apart("$ delete", "\r\x1b[K", "$ ", by=0.4)) == []
    assert unseen(*apart("Downloading", "\r\x1b[KExtracting", "\r\x1b[Kdone\r\n", by=0.4)) == []
    assert unseen(*apart("$ ", "stolen", " secret", "\r\x1b[K", "$ ")) == [("erased at once", "$ stolen secret")]
    # Behind what has stood for long, and in an update that is shown only at its end.
    assert unseen((0.0, "$ "), (5.0, "stolen\r\x1b[K")) == [("erased at once", "stolen")]
    held = [(0.0, "\x1b[?2026hstolen"), (3.0, "\r\x1b[K\x1b[?2026l")]
    assert unseen(*held) == [("erased at once", "stolen")]


def test_a_screen_that_was_seen_is_cleared() -> None:
    typed = [(1.0 + 0.2 * number, character) for number, character in enumerate("clear")]
    assert unseen((0.0, "a line\r\n$ "), *typed, (2.1, "\r\n"), (2.11, "\x1b[H\x1b[2J$ ")) == []
    assert unseen("before", "\x1b[2Jafter") == []
    assert unseen("$ vim\r\n\x1b[?1049h\x1b[2Jsome text", "more\x1b[5;1H:q", "\r\x1b[?1049l$ ") == []


def test_titles_are_kept_and_mark_nothing() -> None:
    terminal = Screen()
    for number in range(50):
        terminal.feed(float(number), "\x1b]0;ana@web-0: ~\x07\x1b]7;file://web-0/root\x1b\\$ ")
    terminal.finish()
    assert [(piece.time, piece.kind, piece.text) for piece in terminal.unseen] == [
        (0.0, "title", "ana@web-0: ~"),
        (0.0, "directory", "file://web-0/root"),
    ]
    assert not any(piece.marks for piece in terminal.unseen)


def test_a_cast_is_read_to_the_same() -> None:
    cast = CastText()
    lines = [
        {"version": 2, "width": 80, "height": 24},
        [1.0, "o", "on the screen\r\n\x1b_stolen "],
        [2.5, "o", "secret\x1b\\"],
    ]
    cast.feed("".join(json.dumps(line) + "\n" for line in lines).encode())
    segments = cast.finish()
    assert [line for segment in segments for line in segment.lines] == [
        (1.0, "on the screen"),
        (2.5, f"{MARK}APC{MARK}stolen secret"),
    ]
    assert cast.unseen == [Unseen(2.5, "APC", "stolen secret")]


@given(
    st.lists(
        st.sampled_from(["\x1b_", "\x1b\\", "\x1b[8m", "\x1b[0m", "a", "word", "\r", "\n", "\x1b[K", "\x1b]0;", "\x07"])
    )
)
def test_any_pieces_say_the_same(parts: list[str]) -> None:
    output = "".join(parts)
    assert unseen((0.0, output)) == unseen(*[(0.0, character) for character in output])


def test_it_is_bounded() -> None:
    terminal = Screen()
    for number in range(3000):
        terminal.feed(1.0, f"\x1b_{number} {'x' * 1000}\x1b\\\x1b[8m{number}{'y' * 1000}\x1b[0m{number}zzzz\r\x1b[K")
    terminal.feed(2.0, "\x1b_" + "z" * 3_000_000)
    terminal.finish()
    assert sum(len(piece.text) for piece in terminal.unseen) <= 256 * 1024
    assert terminal.full  # so that nobody takes the search for whole


@given(st.text(alphabet="0123456789;:", max_size=60))
def test_any_colours(parameters: str) -> None:
    ink = Ink()
    ink.set(parameters)
    assert ink.hides(Colours()) in ("", "concealed", "same colour", "black without a background")


def test_a_line_that_is_deleted_after_it_was_seen_is_a_line() -> None:
    terminal = Screen(columns=80, rows=24)
    terminal.feed(0.0, "stood for long")
    terminal.feed(5.0, "\x1b[M\rnext\x1b[24S")
    terminal.finish()
    assert "stood for long" in terminal.segments[0].text
    assert [(piece.kind, piece.text) for piece in terminal.unseen] == [("erased at once", "next")]
