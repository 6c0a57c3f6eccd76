"""Terminal sizes, against what Go's decoder makes of the same bytes (tests/protocol/gosizes has asked it)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k8sproxy.protocol.sizes import Sizes
from tests.protocol.gosizes.__main__ import LARGE
from tests.strategies import splits

TABLE = [(bytes.fromhex(text), sizes) for text, sizes in json.loads((Path(__file__).parent / "sizes.json").read_text())]
SIZE = b'{"Width":80,"Height":24}'


def read(*parts: bytes) -> list[tuple[int, int]]:
    sizes = Sizes()
    return [size for part in parts for size in sizes.feed(part)]


@pytest.mark.parametrize(("text", "sizes"), TABLE, ids=range(len(TABLE)))
def test_as_go_reads_them(text: bytes, sizes: list[list[int]]) -> None:
    expected = [tuple(size) for size in sizes if all(size)]
    assert read(text) == expected
    assert read(*(text[at : at + 1] for at in range(len(text)))) == expected


@given(st.data())
def test_in_any_pieces(data: st.DataObject) -> None:
    text = b"".join(text for text, sizes in data.draw(st.lists(st.sampled_from(TABLE), max_size=4)))
    assert read(*data.draw(splits(text))) == read(text)


@given(st.binary(max_size=60))
def test_any_bytes(text: bytes) -> None:
    sizes = Sizes()
    sizes.feed(text)
    before = sizes.copy()
    assert sizes.feed(SIZE) == before.feed(SIZE)
    assert sizes.stopped == before.stopped


@pytest.mark.parametrize(("text", "count"), LARGE, ids=range(len(LARGE)))
def test_large_ones_are_not_held(text: bytes, count: int) -> None:
    sizes = Sizes()
    assert len(sizes.feed(text[:-1])) + len(sizes.feed(text[-1:])) == count
    assert len(sizes._name) < 50 and len(sizes._number) < 10 and len(sizes._stack) <= 10_001


def test_a_copy_is_apart() -> None:
    sizes = Sizes()
    sizes.feed(SIZE[:9])
    other = sizes.copy()
    other.feed(b"x")
    assert other.stopped and not sizes.stopped
    assert sizes.feed(SIZE[9:]) == [(80, 24)]
    sizes.stop()
    assert sizes.feed(SIZE) == []


@pytest.mark.parametrize("number", [b"-", b"1.", b"1e", b"1E+", b"-.5", b"1.e5"])
def test_a_number_that_is_not_whole_ends_the_sizes(number: bytes) -> None:
    text = b'{"x":%s,"Width":80,"Height":24}' % number
    for parts in ([text], [text[at : at + 1] for at in range(len(text))]):
        sizes = Sizes()
        assert [size for part in parts for size in sizes.feed(part)] == []
        assert sizes.stopped
