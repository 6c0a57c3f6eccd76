"""recorder/ingest/frames.py: the same frames however their bytes are cut, and bounds before anything is kept."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recorder.ingest.budgets import Budget
from recorder.ingest.frames import MAX_FRAME, MAX_SETTINGS, At, Frames, FramesError
from recorder.ingest.site import MAX_HEAD
from tests.lives import assert_documented
from tests.recorder.ingest.test_floods import raw

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, SETTINGS, PING, CONTINUATION = 0, 1, 4, 6, 9
END_HEADERS = 4
PLAIN = 1  # the stream whose DATA is plain


class Told:
    """A Receiver that remembers what it was told; the pieces of a body as one."""

    def __init__(self) -> None:
        self.all: list[object] = []
        self._body = bytearray()

    def books(self, number: int, size: int) -> bool:
        if number == PLAIN:
            self._body = bytearray()
            self.all.append(("body", size, self._body))
        return number == PLAIN

    def body(self, number: int, data: bytes) -> None:
        assert number == PLAIN
        self._body += data

    def frame(self, data: bytes) -> None:
        self.all.append(data)

    def block_turned(self, begun: bool) -> None:
        self.all.append(begun)


def told(pieces: list[bytes], *, whole: float = 1e9) -> list[object]:
    """What comes of them; the error's message last where there is one."""

    async def main() -> list[object]:
        receiver = Told()
        frames = Frames(receiver, Budget(whole, 0, 0.0))
        try:
            for piece in pieces:
                more = frames.receive(piece)
                while more:
                    more = frames.receive(b"")
        except FramesError as error:
            receiver.all.append(str(error))
        return receiver.all

    return asyncio.run(main())


FRAMES = [
    raw(SETTINGS, 0, 0, b""),
    raw(HEADERS, 0, 1, b"some"),
    raw(CONTINUATION, 0, 1, b"more"),
    raw(CONTINUATION, END_HEADERS, 1, b"last"),
    raw(DATA, 0, PLAIN, b"x" * 30),
    raw(DATA, 0, PLAIN, b""),
    raw(DATA, 1, PLAIN, b"end"),
    raw(PING, 0, 0, b"12345678"),
    raw(DATA, 0, 3, b"not plain"),
    raw(HEADERS, END_HEADERS, 5, b"all"),
]
WHOLE = PREFACE + b"".join(FRAMES)
EXPECTED = [
    PREFACE, FRAMES[0], True, FRAMES[1], FRAMES[2], False, FRAMES[3], ("body", 30, b"x" * 30), *FRAMES[5:]
]  # fmt: skip


def test_the_table() -> None:
    assert_documented(At)


def test_frames() -> None:
    assert told([WHOLE]) == EXPECTED
    assert told([WHOLE[at : at + 1] for at in range(len(WHOLE))]) == EXPECTED


@given(st.lists(st.integers(0, len(WHOLE)), max_size=10))
def test_frames_however_they_are_cut(cuts: list[int]) -> None:
    places = [0, *sorted(cuts), len(WHOLE)]
    assert told([WHOLE[start:end] for start, end in itertools.pairwise(places)]) == EXPECTED


def test_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recorder.ingest.frames.TURN", 1)
    assert told([WHOLE]) == EXPECTED


def test_data_inside_of_a_block_is_not_plain() -> None:
    assert told([PREFACE + FRAMES[1] + FRAMES[4]])[-1] == FRAMES[4]


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (raw(DATA, 0, 3, bytes(MAX_FRAME + 1))[:9], "an overlong frame"),
        (raw(PING, 0, 0, bytes(MAX_HEAD + 1))[:9], "an overlong frame"),
        (raw(HEADERS, 0, 1, bytes(MAX_HEAD + 1))[:9], "a head of more than 16384 bytes"),
        (raw(HEADERS, 0, 1, bytes(MAX_HEAD)) + raw(CONTINUATION, 0, 1, b"x")[:9], "a head of more than 16384 bytes"),
        (raw(SETTINGS, 0, 0, bytes(6 * 17))[:9], "a frame of more than 16 settings"),
        (raw(SETTINGS, 0, 0, b"") * (MAX_SETTINGS + 1), f"more than {MAX_SETTINGS} frames of settings"),
        (raw(PING, 0, 0, b"12345678") * 3000, "more frames without data than a connection may send"),
    ],
)  # fmt: skip
def test_what_may_not_come(data: bytes, why: str) -> None:
    assert told([PREFACE + data])[-1] == why


def test_the_sender_has_spent_it_all_elsewhere() -> None:
    found = told([PREFACE + FRAMES[7] * 5], whole=3)
    assert found[:-1] == [PREFACE, *FRAMES[7:8] * 3]
    assert found[-1] == "more frames without data than a sender may send on all of its connections"
