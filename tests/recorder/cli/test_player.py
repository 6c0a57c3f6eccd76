"""The player, on a library of its own and with a clock of its own."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable

import pytest

from recorder.cli.library import Values
from recorder.cli.play import split_keys
from recorder.cli.player import Player
from recorder.cli.tame import CLEAR
from recorder.index.filters import Filter
from tests.recorder.proof.sealed import run

EVENTS: list[list[object]] = [[0.0, "o", "a"], [1.0, "o", "b"], [1.5, "r", "80x24"], [11.0, "o", "c"], [12.0, "e", "d"]]


class Windows:
    """Two events a window."""

    def __init__(self, events: list[list[object]]) -> None:
        self._events = events
        self.asked: list[tuple[float, str]] = []

    async def window(self, identifier: str, *, at: float = 0.0, position: str = "") -> AsyncGenerator[bytes, None]:
        self.asked.append((at, position))
        start = int(position or 0)
        yield b'{"version":2}\n'
        given = 0
        for number, event in enumerate(self._events[start:], start):
            if not position and float(str(event[0])) <= at:
                yield json.dumps(event).encode()
                continue
            if given == 2:
                yield json.dumps({"next": str(number)}).encode()
                return
            given += 1
            yield json.dumps(event).encode()
        yield b"no event\n"
        yield b'{"next":null}\n'

    async def sessions(self, wanted: Filter, limit: int, progress: Callable[[int, int], None]) -> list[Values]:
        raise NotImplementedError

    async def session(self, identifier: str) -> Values:
        raise NotImplementedError

    async def events(self, identifier: str) -> list[Values] | None:
        raise NotImplementedError

    def cast(self, identifier: str) -> AsyncGenerator[bytes, None]:
        raise NotImplementedError


class Stand:
    """keys: given one at a wait, "" for none; None of them left is none. waited: seconds of each wait."""

    def __init__(self, *keys: str, events: list[list[object]] | None = None) -> None:
        self.keys = list(keys)
        self.waited: list[float | None] = []
        self.output = b""
        self.library = Windows(EVENTS if events is None else events)

    async def wait(self, seconds: float | None) -> str:
        self.waited.append(seconds)
        return self.keys.pop(0) if self.keys else ""

    def write(self, data: bytes) -> None:
        self.output += data

    def play(self, start: float = 0.0, **more: float | bool | None) -> Stand:
        player = Player(self.library, "x", wait=self.wait, write=self.write, **more)  # type: ignore[arg-type]  # a test
        run(player.run(start))
        return self


def test_to_the_end_in_its_time() -> None:
    stand = Stand().play()
    assert stand.output == b"abcd"
    assert sum(filter(None, stand.waited)) == pytest.approx(12.0)
    assert stand.library.asked == [(0.0, ""), (0.0, "3")]


def test_speed_and_idle_limit() -> None:
    stand = Stand().play(speed=2.0, idle_limit=3.0)
    assert sum(filter(None, stand.waited)) == pytest.approx((1.0 + 0.5 + 3.0 + 1.0) / 2)


def test_from_the_middle_without_waiting_for_what_led_up_to_it() -> None:
    stand = Stand().play(start=11.0)
    assert stand.output == b"abcd"
    assert sum(filter(None, stand.waited)) == pytest.approx(1.0)


def test_quit() -> None:
    assert Stand("quit").play().output == b"a"


def test_pause_until_the_same_key() -> None:
    stand = Stand("pause", "faster", "pause").play()
    assert stand.output == b"abcd"
    assert stand.waited[:4] == [1.0, None, None, 0.5]


def test_quit_and_seek_while_paused() -> None:
    assert Stand("pause", "quit").play().output == b"a"
    stand = Stand("pause", "on", "quit").play()
    assert stand.output == b"a" + CLEAR.encode() + b"ab"


def test_seek() -> None:
    stand = Stand("", "on", "quit").play()
    # One second after its beginning, five on: what is there by second six is shown at once.
    assert stand.library.asked[1] == (6.0, "")
    assert stand.output == b"ab" + CLEAR.encode() + b"ab"
    back = Stand("back", "quit").play(start=11.5)
    assert back.library.asked[1] == (6.5, "")


def test_what_acts_is_left_out_unless_raw() -> None:
    events: list[list[object]] = [[0.0, "o", "\x1b]0;t"], [0.0, "o", "\x07x\U0010fe80"]]
    assert Stand(events=events).play().output == "x\ufffd".encode()
    assert Stand(events=events).play(raw=True).output == b"\x1b]0;t\x07x\x80"


def test_nonsense_is_passed_over() -> None:
    events: list[list[object]] = [
        [],
        [-1.0, "o", "x"],
        ["1", "o", "x"],
        [True, "o", "x"],
        [0.0, "o", 1],
        [0.0, "o", "y"],
    ]
    library = Windows([[0.0, "o", "y"]])

    async def window(identifier: str, *, at: float = 0.0, position: str = "") -> AsyncGenerator[bytes, None]:
        for event in events:
            yield json.dumps(event).encode()
        yield b"[" * 100_000

    library.window = window  # type: ignore[method-assign]  # a test's own
    stand = Stand()
    stand.library = library
    assert stand.play().output == b"y"


@pytest.mark.parametrize(
    ("data", "keys"),
    [
        (b" q", ["pause", "quit"]),
        (b"\x1b[C\x1b[D\x1bOC", ["on", "back", "on"]),
        (b"\x1b[A+\x1b[B-", ["faster", "faster", "slower", "slower"]),
        (b"x\x1b[F \x1b", ["pause"]),
        (b"", []),
    ],
)
def test_keys(data: bytes, keys: list[str]) -> None:
    assert split_keys(data) == keys
