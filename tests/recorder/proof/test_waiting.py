"""What waits for its signature, and the states of a register."""

from __future__ import annotations

import asyncio
from pathlib import Path

from recorder.proof.register import Life, Register
from recorder.proof.waiting import HELD, Item, Waiting
from recorder.store.api import Kept
from tests.lives import assert_documented
from tests.recorder.proof.sealed import Stage, run


def test_the_docstring_has_the_table() -> None:
    assert_documented(Life)


def kept(number: int) -> Item:
    return Item(kept=Kept(f"events/2026-01-02/{number}", 1, "0" * 64))


def test_who_waits_goes_on_when_it_is_signed_or_when_nobody_is_to_wait() -> None:
    async def main() -> None:
        waiting = Waiting()
        items = [kept(number) for number in range(3)]
        tasks = [asyncio.ensure_future(waiting.wait_for(item)) for item in items]
        await asyncio.sleep(0)
        assert waiting.behind and waiting.wake.is_set() and waiting.items == items
        waiting.signed(2)
        assert [item.done.is_set() for item in items] == [True, True, False] and waiting.items == items[2:]
        waiting.add_found(["a", "b"])
        assert waiting.waits_for(0.0)
        waiting.signed_found(1)
        assert waiting.found == ["b"] and waiting.let_go() == 1
        await asyncio.gather(*tasks)
        assert waiting.items == items[2:] and not waiting.found and not waiting.waits_for(1e12)

    run(main())


def test_nobody_waits_behind_too_many() -> None:
    async def main() -> None:
        waiting = Waiting()
        for number in range(HELD):
            waiting.add(kept(number))
        await waiting.wait_for(kept(HELD))
        assert len(waiting.items) == HELD + 1

    run(main())


def test_a_register_goes_through_its_life(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "data")
    stage.root.mkdir()

    async def main() -> list[Life]:
        blobs = stage.blobs()
        register = Register(blobs, stage.signer)
        lives = [register.life]
        await register.open()
        lives.append(register.life)
        register.start()
        await register.aclose()
        lives.append(register.life)
        await register.aclose()
        await blobs.aclose()
        return lives

    assert run(main()) == [Life.NEW, Life.OPEN, Life.CLOSING]


def test_a_register_that_is_closed_before_it_could_be_opened_signs_nothing(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "none")

    async def main() -> Register:
        blobs = stage.blobs()
        register = Register(blobs, stage.signer)
        register.start()
        await register.settled()
        while register.fault is None:  # noqa: ASYNC110 - nothing waits, so nothing has moved
            await asyncio.sleep(0.001)
        register.put_in(Kept("looks/2026-01-02/x", 1, "0" * 64))
        await register.aclose()
        await blobs.aclose()
        return register

    register = run(main())
    assert register.life is Life.LEAVING and register.signed == 0 and register.behind
