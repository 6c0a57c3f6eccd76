"""Bytes that wait for the wire, and what they take of all that may wait. What a session makes of it: test_buffers."""

from __future__ import annotations

from k8sproxy.recording.buffers import FLOOR, Buffers
from k8sproxy.recording.row import Row


def test_what_is_put_in_is_taken_in_order_and_counted() -> None:
    buffers = Buffers()
    row = Row(100, buffers)
    row.owner = "ana"
    row.put(b"hello ")
    row.put(b"world")
    pieces: list[bytes | memoryview] = []
    assert row.take(8, pieces) == 8 and b"".join(pieces) == b"hello wo"
    assert (row.size, row.written, buffers.of("ana"), buffers.used) == (3, 11, 3, 3)
    assert row.take(8, pieces) == 3 and b"".join(pieces) == b"hello world"
    row.put(b"x" * 10)
    row.hold(7)
    row.hold(5)
    assert buffers.used == 15
    row.clear()
    assert (row.size, row.held, buffers.used) == (0, 0, 0)


def test_it_has_drained_once_half_of_its_limit_is_free() -> None:
    row = Row(100, Buffers())
    row.put(b"x" * 99)
    assert not row.blocked and row.room == 1 and not row.has_drained()
    row.put(b"x" * 101)
    assert row.blocked and not row.room and row.overfull
    row.take(149, [])
    assert not row.blocked and not row.has_drained()
    row.take(1, [])
    assert row.has_drained() and not row.has_drained()


def test_a_share_that_is_used_up_blocks_all_but_the_floor() -> None:
    buffers = Buffers(share=2 * FLOOR)
    other = Row(1 << 20, buffers)
    other.put(b"x" * 2 * FLOOR)
    row = Row(1 << 20, buffers)
    assert not row.blocked and row.room == FLOOR
    row.put(b"x" * FLOOR)
    assert row.blocked and not row.overfull and buffers.limited == {"total": 0, "peer": 2}
    row.hold(FLOOR)
    assert row.crowded
