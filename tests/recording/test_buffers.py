"""What may wait for slow recorders, of all sessions and of one owner's."""

from __future__ import annotations

from typing import Any

import pytest

from k8sproxy.access.ownrules import RecordingLevel
from k8sproxy.recording.buffers import FLOOR, Buffers
from tests.recording.scenes import CLOSED, OPEN, Scene, Spdy, WebSocket, scene, turns, until

MIB = 1 << 20
LINE = b"0123456789abcde\n" * 1024


def stalled(
    buffers: Buffers, owner: str, mode: RecordingLevel, speech: Any = WebSocket, *, flowing: bool = False
) -> Scene:
    """A session whose recorder takes nothing."""
    played = Scene(speech(), mode, flowing=flowing)
    assert played.recorder is not None
    played.recorder.upload.row.buffers = buffers
    facts = played.session.facts
    object.__setattr__(facts, "peer", type(facts.peer)("100.64.0.7", f"n-{owner}", "x.", login_name=owner))
    return played


async def talk(played: list[Scene], pieces: int = 400) -> None:
    """Everybody's command writes 16 KiB again and again, as long as it is read."""
    for _ in range(pieces):
        for one in played:
            if not one.upstream.paused and not one.over:
                one.down(one.speech.out(LINE))
        await turns(3)


async def the_end(played: list[Scene]) -> None:
    for one in played:
        assert one.recorder is not None
        one.recorder.open()
        one.session.end("stopping", "enough")
        await one.close()


def buffered(played: Scene) -> int:
    assert played.recorder is not None
    return played.recorder.upload.buffered


@pytest.mark.parametrize("mode", [OPEN, CLOSED], ids=["open", "closed"])
def test_stalled_recordings_of_one_owner_add_up_to_its_share(mode: RecordingLevel) -> None:
    """40 sessions of 4 MiB each were 164 MiB before."""

    @scene
    async def play() -> None:
        buffers = Buffers(total=64 * MIB, share=8 * MIB)
        played = [stalled(buffers, "ana@example.com", mode) for _ in range(40)]
        for one in played:
            await one.begin()
        await talk(played)
        held = sum(map(buffered, played))
        assert held == buffers.used == buffers.of("ana@example.com")
        # Each may have begun a line when the last byte of the share went.
        assert held <= 8 * MIB + 40 * (FLOOR + 32 * 1024), held / MIB
        assert buffers.limited["peer"] > 0 and not buffers.limited["total"]
        other = stalled(buffers, "ben@example.com", mode)
        await other.begin()
        await talk([other])
        assert buffered(other) >= 4 * MIB, "another owner's buffer is as large as ever"
        if mode is CLOSED:
            assert all(one.upstream.paused for one in played), "output waits"
        else:
            assert not any(one.upstream.paused for one in played), "output is left out"
        for one in (*played, other):
            assert one.recorder is not None
            one.recorder.open()
        await until(lambda: not buffers.used)
        await talk(played, 2)
        for one in (*played, other):
            await one.finish()
        if mode is OPEN:
            assert all(one.session.lost > 0 for one in played)
            assert "bytes of output are missing here" in "".join(played[0].cast.texts("m") + played[0].cast.texts("o"))
        else:
            assert not any(one.session.lost for one in played)
        assert not buffers.used and not buffers._owners

    play()


@scene
async def test_all_owners_together() -> None:
    buffers = Buffers(total=8 * MIB, share=4 * MIB)
    played = [stalled(buffers, f"user{number}@example.com", CLOSED) for number in range(20)]
    for one in played:
        await one.begin()
    await talk(played)
    assert buffers.used <= 8 * MIB + 20 * (FLOOR + 32 * 1024)
    assert buffers.limited["total"] > 0
    quiet = stalled(buffers, "quiet@example.com", CLOSED, flowing=True)
    await quiet.begin()
    quiet.down(quiet.speech.out(b"$ "))
    await turns()
    assert not quiet.session.blocked and quiet.shown.endswith(b"$ "), "a terminal goes on"
    await the_end([*played, quiet])
    assert not buffers.used


@scene
async def test_an_endless_frame_is_held_up_in_its_middle() -> None:
    """A frame of a terabyte has no end at which its output could wait."""
    buffers = Buffers(total=64 * MIB, share=MIB)
    played = [stalled(buffers, "ana@example.com", CLOSED, Spdy) for _ in range(4)]
    for one in played:
        await one.begin()
        one.down((5).to_bytes(4, "big") + b"\0\xff\xff\xff" + LINE)
    for _ in range(500):
        for one in played:
            if not one.upstream.paused:
                one.down(LINE)
        await turns(3)
    assert all(one.upstream.paused for one in played)
    assert buffers.used <= MIB + 4 * (5 * FLOOR + 64 * 1024), buffers.used / MIB
    await the_end(played)


def test_room() -> None:
    buffers = Buffers(total=1000 * 1024, share=300 * 1024)
    assert buffers.room("ana", 0) == 300 * 1024
    buffers.add("ana", 300 * 1024)
    assert buffers.room("ana", 0) == FLOOR and buffers.room("ana", FLOOR) == 0
    buffers.count("ana")
    assert buffers.room("ben", 0) == 300 * 1024
    buffers.add("ben", 699 * 1024)
    assert buffers.room("cas", FLOOR) == 1024
    buffers.add("cas", 1024)
    buffers.count("cas")
    assert buffers.limited == {"total": 1, "peer": 1}
    for owner, size in (("ana", 300), ("ben", 699), ("cas", 1)):
        buffers.add(owner, -size * 1024)
    assert buffers.used == 0 and not buffers._owners and buffers.of("ana") == 0
    buffers.add("ana", 0)
    assert not buffers._owners


@pytest.mark.parametrize("size", [16 << 10, 300 << 10], ids=["small messages", "messages larger than the floor"])
def test_what_waits_for_its_confirmation_counts(size: int) -> None:
    """40 acknowledged sessions held 512 KiB each, of which nobody knew."""

    @scene
    async def play() -> None:
        buffers = Buffers(total=64 * MIB, share=1 * MIB)
        played = [
            stalled(buffers, "ana@example.com", RecordingLevel.ACKNOWLEDGED, Spdy, flowing=True) for _ in range(12)
        ]
        for one in played:
            await one.begin()
            assert one.recorder is not None
            one.recorder.acks = False
        frames = played[0].speech.out(b"x" * size) * (900_000 // size)
        for one in played:
            pieces = iter(range(0, len(frames), 16_000))
            while not one.session.blocked:
                await until(lambda one=one: one.session.blocked or not one.switched._down.waiting)  # type: ignore[misc]
                if not one.session.blocked:
                    at = next(pieces)
                    one.down(frames[at : at + 16_000])
        assert all(one.session.blocked for one in played)
        held = sum(len(piece) for one in played for piece in one.switched._held)
        # The floor of its row, that of what waits beside it, and what came last.
        assert held <= buffers.used == buffers.of("ana@example.com") < 1 * MIB + len(played) * 3 * FLOOR
        for one in played:
            assert one.recorder is not None
            one.recorder.open()
        await until(lambda: not any(one.session.blocked or one.upstream.paused for one in played))
        await the_end(played)
        assert buffers.used == 0

    play()
