from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recorder.web import exports
from recorder.web.exports import PlainText, document
from recorder.web.words import clock, instant, length, size, visible


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("plain", "plain"),
        ("a\r\nb\n", "a\nb\n"),
        ("a\r\r\nb", "a\nb"),
        ("10%\r20%\r\n", "10%\n20%\n"),
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07x\x1b]8;;http://a\x1b\\link\x1b]8;;\x1b\\", "xlink"),
        ("\x1bPq#0~\x1b\\after", "after"),
        ("\x1b(Bx\x1b=y\x1b7z", "xyz"),
        ("\x9b2Jx\x9d0;t\x9cy", "xy"),
        ("tab\tbell\x07back\x08", "tab\tbellback"),
        ("not UTF-8: \U0010fe80", "not UTF-8: \ufffd"),
        ("cut \x1b[3", "cut "),
        ("\r\rprompt\r\n", "prompt\n"),
        ("end\r", "end\n"),
    ],
)
def test_plain_text_whole_and_by_character(output: str, expected: str) -> None:
    plain = PlainText()
    assert plain.feed(output) + plain.finish() == expected
    plain = PlainText()
    assert "".join(map(plain.feed, output)) + plain.finish() == expected


@settings(max_examples=200)
@given(st.lists(st.text(st.sampled_from("ab\x1b[]0;m\r\n\x07\\P\x9b\x9d\x18"), max_size=8), max_size=8))
def test_pieces_do_not_matter_and_nothing_acts(pieces: list[str]) -> None:
    split, whole = PlainText(), PlainText()
    text = "".join(map(split.feed, pieces)) + split.finish()
    assert text == whole.feed("".join(pieces)) + whole.finish()
    assert not set(text) & set("\x1b\x07\x9b\x9d\r\x18")


def test_an_endless_sequence_is_not_kept_for_ever() -> None:
    plain = PlainText()
    plain.feed("\x1b]0;")
    total = sum(len(plain.feed("x" * 10000)) for _ in range(200))
    assert total > 900000


def test_a_document_of_nothing_is_json() -> None:
    async def pieces(*values: bytes) -> AsyncGenerator[bytes, None]:
        for value in values:
            yield value

    async def check() -> None:
        for values in ((), (b"{}\n",), (b"bad\n", b"bad\n", b"[1]\n"), (b"{}\n[1]\n[2]\nnope\n[NaN]\n",)):
            text = b"".join([part async for part in document({"id": "x"}, pieces(*values))])
            assert set(json.loads(text)) == {"session", "header", "events"}

    asyncio.run(check())


@pytest.mark.parametrize("form", ["text", "document"])
@pytest.mark.parametrize("count", [1, 20_000], ids=["one line", "many lines"])
def test_others_get_their_turn(form: str, count: int) -> None:
    output = "\x1b[1mx\r\n" * (100_000 // count)

    async def pieces() -> AsyncIterator[bytes]:  # all of it at hand, so that nothing is waited for
        yield b"{}\n" + (json.dumps([1.0, "o", output]).encode() + b"\n") * count

    async def check() -> None:
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        task = asyncio.ensure_future(other())
        parts = [part async for part in (exports.text(pieces()) if form == "text" else document({}, pieces()))]
        task.cancel()
        assert parts and turns > (20 if form == "text" or count > 1 else 0)

    asyncio.run(check())


def test_words() -> None:
    assert visible("a\u202eb\x1b[\u200d\n\U0010fe80") == "a\\u{202e}b\\u{1b}[\\u{200d} \\u{10fe80}"
    assert visible("e" + "\u0301" * 50) == "e" + "\u0301" * 3
    assert visible("ana\u3164\u1160 日本\u3000한") == "ana\\u{3164}\\u{1160} 日本\u3000한"
    assert visible("x" * 500) == "x" * 300 + "…"
    assert [clock(seconds) for seconds in (0, 7.9, 754, 3723)] == ["0:00", "0:07", "12:34", "1:02:03"]
    assert [instant(seconds) for seconds in (0, 0.1, 0.3, 61.5, 48.24, 48.201)] == [
        "0.0",
        "0.1",
        "0.3",
        "61.5",
        "48.3",
        "48.3",
    ]
    assert [length(seconds) for seconds in (0.44, 12, 200, 180, 7500)] == [
        "0.4 s",
        "12 s",
        "3 min 20 s",
        "3 min",
        "2 h 5 min",
    ]
    assert [size(count) for count in (812, 1258291, 2**41)] == ["812 B", "1.2 MiB", "2048.0 GiB"]
