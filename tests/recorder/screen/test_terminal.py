"""What a session shows, as lines: typed text, redrawn lines, full screens, and output that means harm."""

from __future__ import annotations

import json
import string
from itertools import pairwise

import pyte
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recorder import screen
from recorder.screen import CastText, Screen, Segment


def show(*output: str | tuple[float, str], columns: int = 80, rows: int = 24) -> list[str]:
    """The lines of an output; a string comes a second after what was before."""
    terminal = Screen(columns=columns, rows=rows)
    for number, piece in enumerate(output):
        time, text = (float(number), piece) if isinstance(piece, str) else piece
        terminal.feed(time, text)
    terminal.finish()
    return [line for segment in terminal.segments for _, line in segment.lines]


@pytest.mark.parametrize(
    ("output", "lines"),
    [
        ("", []),
        ("one\r\ntwo\r\n", ["one", "two"]),
        ("one\ntwo", ["one", "two"]),
        ("\x1b[1;31mred\x1b[0m and \x1b[38;2;1;2;3mmore\x1b[m\r\n", ["red and more"]),
        ("\x1b]0;title\x07$ ls\r\n", ["$ ls"]),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\ after", ["link after"]),
        ("\x1bP1$r0m\x1b\\a\x1b_apc\x1b\\b\x1b^pm\x9cc\x1bXsos\x1b\\d", ["abcd"]),
        ("\x9d0;title\x9ca\x9b31mb", ["ab"]),
        ("10%\r20%\r100%\r\n", ["100%"]),
        ("Loading...\rok\x1b[K\r\n", ["ok"]),
        ("abc\rX\r\n", ["Xbc"]),
        ("kubeclt\b\b\x1b[Ktl get\r\n", ["kubectl get"]),
        ("lss\b \b -la\r\n", ["ls -la"]),
        ("ac\x1b[Db\x1b[1@\r\n", ["ab"]),
        ("ac\b\x1b[@b\r\n", ["abc"]),
        ("abxc\x1b[2D\x1b[P\r\n", ["abc"]),
        ("abxc\x1b[2D\x1b[X\r\n", ["ab c"]),
        ("gone\x1b[2K\rkept", ["kept"]),
        ("abcdef\x1b[3D\x1b[1K\r\n", ["ef"]),
        ("a\tb\tc\r\n", ["a  b  c"]),
        ("\x1b(0lqqqk\x1b(B text \x1b(0x\x1b(B\r\n", ["text"]),
        ("\x1b)0\x0eqq\x0fplain", ["plain"]),
        ("a\x1b[5Cb", ["a  b"]),
        ("\x1b[3;1Hthird\x1b[1;1Hfirst\x1b[2;5Hsecond", ["first", "second", "third"]),
        ("\x1b[5Gx\x1b[1Gy", ["y  x"]),
        ("before\x1b[2Jafter", ["before", "after"]),
        ("before\x1b[Hover\x1b[Jx", ["overx"]),
        ("shell\x1b[?1049hvi\x1b[2;1Htext\x1b[?1049lshell again", ["shell", "vi", "text", "shell again"]),
        ("\x1b[31", []),
        ("\x1b[31\x1b[1mok", ["ok"]),
        ("\x1b[3\x18ok", ["ok"]),
        ("\x1b\x1b[1mok", ["ok"]),
        ("a\x1b[1\nb", ["a", "b"]),
        ("a\x1b7b\x1b8c\x1b=d\x1b#5e\x1b%Gf", ["abcdef"]),
        ("zero\u200bwidth soft\xadhyphen", ["zerowidth softhyphen"]),
        ("raw\U0010feffbyte \ud800", ["raw\ufffdbyte \ufffd"]),
        ("NUL\0BEL\x07DEL\x7fEND", ["NULBELDELEND"]),
        ("a\x85b\x84c", ["a", "b", "c"]),
        ("up\r\nhere\x1bMback", ["up", "back", "here"]),
    ],
)
def test_lines(output: str, lines: list[str]) -> None:
    assert show(output) == lines
    assert show(*output) == lines  # one character at a time


def test_typed_with_echo_and_corrections() -> None:
    assert show("$ ", *"kubectl", " ", *"dele", *["\b \b"] * 2, *"lete pod\r\n", "pod deleted\r\n$ ") == [
        "$ kubectl delete pod",
        "pod deleted",
        "$",
    ]


def test_what_is_typed_over_the_edge_stays_one_line() -> None:
    # As bash's readline does it: the last column, then a blank and a return to take the cursor to the next row.
    assert show("$ ", *"echo abc", " \r", *"defghijklm", " \r", *"no\r\n", columns=10) == ["$ echo abcdefghijklmno"]


def test_progress_of_several_lines_is_told_once() -> None:
    rounds = [(0.1 * n, f"\x1b[2A\r\x1b[Ka: {n}%\x1b[B\r\x1b[Kb: {n}%\x1b[B\r") for n in range(1, 40)]
    assert show((0.0, "a: 0%\r\nb: 0%\r\n"), *rounds, (4.0, "done\r\n")) == [
        *("a: 0%", "b: 0%"),
        *("done", "a: 39%", "b: 39%"),
    ]


def test_a_screen_that_stands_is_told_before_it_is_drawn_over() -> None:
    screens = [(3.0 * n, f"\x1b[H\x1b[Kload {n}\x1b[2;1H\x1b[Kuptime") for n in range(3)]
    assert show(*screens) == ["load 0", "uptime", "load 1", "load 2"]


def test_an_editor() -> None:
    lines = show(
        "\x1b[?1049h\x1b[1;24r\x1b[?12h\x1b[?25h\x1b[H\x1b[2J",
        '\x1b[1;1HapiVersion: v1\r\nkind: Secret\r\n\x1b[94m~\x1b[3;1H~\x1b[24;1H"file" 2L\x1b[1;1H',
        "\x1b[2;7H\x1b[KConfigMap",
        "\x1b[24;1H\x1b[K:wq\r\x1b[?1049l",
    )
    assert lines[:2] == ["apiVersion: v1", "kind: Secret"]
    assert {"ConfigMap", ":wq", '"file" 2L'} <= set(lines)


def test_times_and_segments() -> None:
    terminal = Screen(columns=80, rows=24)
    for second in range(1000):
        terminal.feed(float(second), f"line {second % 10} of many\r\n")
    terminal.feed(5.0, "late\r\n")  # a clock that goes back
    terminal.finish()
    assert [segment.start for segment in terminal.segments] == [0.0, 301.0, 602.0, 903.0]
    assert [len(segment.lines) for segment in terminal.segments] == [10, 10, 10, 11]  # the same line once a segment
    assert terminal.segments[-1].lines[-1] == (999.0, "late")
    assert terminal.segments[0].text.startswith("line 0 of many\nline 1 of")
    big = Screen()
    big.feed(1.0, "".join(f"{number:0100}\n" for number in range(200)))
    big.finish()
    assert all(len(segment.text) <= screen.SEGMENT_CHARACTERS for segment in big.segments)
    assert sum(len(segment.lines) for segment in big.segments) == 200


def test_the_limit() -> None:
    terminal = Screen(limit=100)
    for number in range(100):
        terminal.feed(float(number), f"{number:09}\n")
    terminal.finish()
    assert terminal.full
    assert sum(len(line) + 1 for segment in terminal.segments for _, line in segment.lines) == 100


@pytest.mark.parametrize(
    "hostile",
    [
        "\x1b[" * 50_000,
        "\x1b[" + "1;" * 100_000,
        "\x1b]" * 50_000,
        "\x1b]0;" + "x" * 200_000,
        "\x1b[9999;9999H" * 10_000,
        "x\x1b[9999b" * 10_000,
        "\x1b[9999Gx" * 10_000,
        "abc\r\x1b[9999@" * 10_000,
        "".join(f"\x1b[{n % 9999};{n % 80}Hw{n}" for n in range(20_000)),
        "x" * 500_000,
        "\t" * 100_000,
        "\b" * 100_000,
        "\x1b[A" * 30_000 + "\x1b[B" * 30_000,
        "\n\x1b[99A" * 20_000,
    ],
    ids=lambda hostile: repr(hostile[:12]),
)
def test_hostile_output_is_bounded(hostile: str) -> None:
    """Not the time, which is linear by construction, but all that is held meanwhile."""
    terminal = Screen(limit=10_000, columns=80, rows=24)
    for start in range(0, len(hostile), 5000):
        terminal.feed(0.0, hostile[start : start + 5000])
        held = [terminal._row, *terminal._aside.values()]
        assert len(held) <= 257
        assert all(len(row.text) <= 4096 for row in held)
        assert len(terminal._sequences._parameters) <= 64
        assert terminal._column <= 4096
    terminal.finish()
    assert sum(len(line) for segment in terminal.segments for _, line in segment.lines) <= 10_000


def test_a_string_that_never_ends_hides_no_more_than_its_limit() -> None:
    terminal = Screen()
    terminal.feed(0.0, "\x1b]0;")
    for _ in range(5):
        terminal.feed(0.0, "x" * (512 * 1024))
    terminal.feed(0.0, "\nseen\n")
    terminal.finish()
    assert "seen" in terminal.segments[-1].text


PIECES = st.sampled_from(
    [
        *(
            "\x1b",
            "[",
            "]",
            "P",
            "\x07",
            "\\",
            ";",
            "1",
            "24",
            "H",
            "J",
            "K",
            "m",
            "A",
            "B",
            "C",
            "D",
            "P",
            "@",
            "?",
            "h",
        ),
        *(
            "\x1b[2J",
            "\x1b[1;1H",
            "\x1b[3A",
            "\x1b[?1049h",
            "\r",
            "\n",
            "\r\n",
            "\b",
            "\t",
            "word",
            "語",
            "\x9b",
            "\x18",
        ),
        *("\x1b(0", "\x0e", "\x1b[;;;;5;mm", "\x1b[999999999999999999999C", "\U0010fe80", "\ud800", "\0"),
    ]
)


@settings(max_examples=150, deadline=None)
@given(st.lists(PIECES, max_size=60), st.lists(st.integers(0, 400), max_size=5))
def test_pieces_make_no_difference(parts: list[str], cuts: list[int]) -> None:
    output = "".join(parts)
    edges = [0, *sorted(min(cut, len(output)) for cut in cuts), len(output)]
    whole = show((1.0, output))
    assert show(*((1.0, output[start:end]) for start, end in pairwise(edges))) == whole
    assert show(*((1.0, character) for character in output)) == whole
    assert all(line and "\x1b" not in line and "\n" not in line for line in whole)


SIMPLE = st.lists(
    st.one_of(
        st.text(string.ascii_letters + "  ", min_size=1, max_size=12),
        st.sampled_from(
            ["\r", "\b", "\x1b[K", "\x1b[1K", "\x1b[2K", "\x1b[D", "\x1b[2C", "\x1b[P", "\x1b[2@", "\x1b[X", "\x1b[4G"]
        ),
    ),
    max_size=25,
)


@settings(max_examples=150, deadline=None)
@given(SIMPLE)
def test_a_row_is_what_a_terminal_shows(parts: list[str]) -> None:
    """Against pyte, for all that stays within one row."""
    output = "".join(parts)
    oracle = pyte.Screen(400, 5)
    pyte.Stream(oracle).feed(output)
    shown = " ".join(oracle.display[0].split())
    found = show((1.0, output), columns=400, rows=5)
    assert [" ".join(line.split()) for line in found] == ([shown] if shown else [])


HEADER = {"version": 2, "width": 10, "height": 5}


def cast(*events: object) -> bytes:
    return "".join(json.dumps(line) + "\n" for line in (HEADER, *events)).encode()


def text_of(data: bytes, **options: int) -> tuple[list[Segment], bool]:
    reader = CastText(**options)
    reader.feed(data)
    return reader.finish(), reader.truncated


def test_a_cast() -> None:
    data = cast(
        [0.5, "o", "$ echo 178"],
        [1, "o", " \r90\r\n"],
        [1.5, "i", "typed\r"],
        [2, "e", "error: not found\r\n"],
        [2.5, "r", "40x10"],
        [3, "m", "marker"],
        [3.5, "o", "x" * 30 + "\rY"],
    )
    segments, truncated = text_of(data)
    assert segments == [Segment(((1.0, "$ echo 17890"), (2.0, "error: not found"), (3.5, "Y" + "x" * 29)))]
    assert not truncated
    reader = CastText()
    for byte in data:
        reader.feed(bytes([byte]))
    assert reader.finish() == segments
    assert text_of(data[:-1])[0] == segments  # the last line without its line feed


@pytest.mark.parametrize(
    "line",
    [
        *(b"", b"nonsense", b"{}", b"[]", b"null", b'[1,"o"]', b'["1","o","x"]', b'[1,"o",2]', b'[NaN,"o","lost"]'),
        *(b'[1,"r","axb"]', b'[1,"r","9x"]', b'[1e999,"o","lost"]', b"[" * 100_000, b"1" * 5000, b"\xff\xfe"),
        *(b'{"width":true,"height":null}', b'{"width":1e99,"height":-5}', b'[1,"o","\\ud800"]'),
    ],
)
def test_lines_that_are_no_events_are_skipped(line: bytes) -> None:
    segments, _ = text_of(cast([0.5, "o", "before\r\n"]) + line + b"\n" + cast([1, "o", "after\r\n"]))
    lines = [text for segment in segments for _, text in segment.lines]
    assert lines[0] == "before"
    assert lines[-1].endswith("after")
    assert "lost" not in lines[-1]
    json.dumps([time for segment in segments for time, _ in segment.lines], allow_nan=False)


def test_limits_of_a_cast() -> None:
    long = cast(*([n, "o", f"line {n}\r\n"] for n in range(100)))
    assert text_of(long, limit=100)[1]
    assert not text_of(long, limit=10_000)[1]
    reader = CastText(cast_limit=500)
    reader.feed(long)
    assert reader.done
    reader.feed(long)
    assert reader.truncated


def test_a_line_without_end_is_not_held() -> None:
    reader = CastText()
    reader.feed(cast([1, "o", "before\r\n"]))
    for _ in range(9):
        reader.feed(b'[1,"o","' + b"x" * 1_000_000)
        assert len(reader._rest) <= 5_000_000
    reader.feed(b'"]\n' + cast([2, "o", "after\r\n"]))
    assert [segment.text for segment in reader.finish()] == ["before\nafter"]
