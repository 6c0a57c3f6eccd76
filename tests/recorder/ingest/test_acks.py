"""recorder/ingest/acks.py: a few acks go at once, many together, none to a sender that does not read."""

from __future__ import annotations

import asyncio

import pytest

from recorder.ingest.acks import FEW, Acks, Telling
from tests.lives import assert_documented
from tests.recorder.store.storing import run

MANY = FEW + 1


def test_the_table() -> None:
    assert_documented(Telling)


def test_acks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recorder.ingest.acks.ACK_SECONDS", 1000.0)
    monkeypatch.setattr("recorder.ingest.acks.MAX_ACK_SECONDS", 1000.0)

    async def main() -> None:
        told: list[list[int]] = []
        acks = Acks(lambda numbers: told.append(list(numbers)), lambda: 1)

        async def add(*numbers: int) -> list[list[int]]:
            for number in numbers:
                acks.add(number)
            for _ in range(5):  # a timer that is due goes off in the next turn
                await asyncio.sleep(0)
            found = told[:]
            told.clear()
            return found

        assert await add(1, 2, 1) == [[1, 2]] and await add(3) == [[3]]
        assert await add(*range(MANY)) == []  # too soon after the last ones
        acks.forget(4)
        acks.now()
        assert told.pop() == [number for number in range(MANY) if number != 4]
        acks.put_off(5)
        assert await add() == []
        acks.look()
        assert await add() == [[5]]
        acks.add(6)
        acks.hold()
        assert acks.held and await add(7) == []
        acks.now()
        acks.hold()
        acks.go_on()
        assert not acks.held and await add() == [[6, 7]]
        acks.add(8)
        acks.close()
        acks.hold()
        acks.go_on()
        acks.now()
        assert await add(9) == []

    run(main())
