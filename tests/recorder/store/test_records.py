"""Batches of the journal: what is sealed reads back, wherever it was made."""

from __future__ import annotations

import pytest

from recorder.store.records import BATCH_HEAD, Kind, Reader, head, seal

ROOM = 512 << 10
ID = "0" * 26


def record(size: int) -> list[bytes]:
    return [head(Kind.DATA, ID, 7, size), b"x" * (size - size // 2), b"y" * (size // 2)]


@pytest.mark.parametrize("size", [3, 300 << 10, ROOM - BATCH_HEAD - 39, ROOM - BATCH_HEAD - 38, 2 * ROOM])
def test_a_batch_in_room_that_is_there_is_the_same(size: int) -> None:
    room = bytearray(b"\xff" * ROOM)  # of a batch before
    alone, reader = bytes(seal(1, record(size))), Reader()
    assert bytes(seal(1, record(size), room)) == alone
    ((read,),) = reader.feed(alone)
    assert (read.kind, read.offset, len(read.data)) == (Kind.DATA, 7, size) and not reader.damaged


def test_room_is_used_again_and_large_batches_have_their_own() -> None:
    room = bytearray(ROOM)
    first, second = seal(1, record(300 << 10), room), seal(2, record(300 << 10), room)
    assert first.obj is second.obj is room
    assert seal(3, record(3), room).obj is not room and seal(4, record(ROOM), room).obj is not room
    reader = Reader()
    assert [len(batch) for batch in reader.feed(bytes(second))] == [1]
