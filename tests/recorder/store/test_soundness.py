"""recorder/store/soundness.py: what is decided of a line does not depend on how it is cut."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from k8sproxy.common.errors import ProtocolError
from k8sproxy.common.formats.asciicast import are_events, event_of, read_event
from recorder.store.soundness import Soundness
from tests.strategies import mutations

EVENTS = [
    b'[1.5,"o","text"]',
    b'[0,"r","80x24"]',
    b'[1e3, "m" ,\t"a mark" ]\r',
    b' [2.25,"o","\\u001b[0m\\n\\\\ \\" \\/"]',
    '[3,"e","é語😀\U0010feff"]'.encode(),
    b'[4,"o","\\ud83d\\ude00\\u00e9"]',
    b'[5,"\\u006f","x"]',
    b'[6,"o",""]',
    *(b'[1000000.0,"o","x"]', b'[-0.0,"i","x"]', b'[1.5,"r","80x24"]', b'[1.5,"Z","x"]'),
]
_WITH_WHOLE_SECONDS = [
    *(b"", b"   ", b"[", b"]", b"[]", b"nonsense", b'"o"', b"null", b'{"a":1}', b"[" * 3000, b"[1,2,3]"),
    *(b'[1,"o"]', b'[1,"o","x","y"]', b'[1,"o","x"]]', b'[[1,"o","x"]]', b'[1,"o","x"],[2,"o","y"]', b'[1,"o",["x"]]'),
    *(b'[true,"o","x"]', b'["1","o","x"]', b'[-1,"o","x"]', b'[01,"o","x"]', b'[1e7,"o","x"]', b'[1e999,"o","x"]'),
    *(
        b'[NaN,"o","x"]',
        b'[1,"oo","x"]',
        b'[1,"","x"]',
        b'[1,"1","x"]',
        b'[1,null,"x"]',
        b'[1,"r",""]',
        b'[1,"r","8x"]',
    ),
    *(
        b'[1,"\\u0072","x"]',
        b'[1,"o","\xff"]',
        b'[1,"o","\xe8\xaa"]',
        b'[1,"o","\\x"]',
        b'[1,"o","\\u00"]',
        b'[1,"o","\t"]',
    ),
    *(
        b'[1,"o","\\ud800"]',
        b'[1,"o","\\ude00\\ud83d"]',
        b'[1,"o","\\ud83d\\u0041"]',
        b'[1,"o","x" "y"]',
        b'[1,"o","x"]x',
    ),
    *(b'[1,["o"],"x"]', b'[1,{"o":1},"x"]', '[1,"é","x"]'.encode(), b'[1,"o",null]', b'[1,"o",1]', b'[1,"o",{}]'),
]
# A time with a fraction, which nearly all events have, is looked at in another way.
WRONG = [
    *_WITH_WHOLE_SECONDS,
    *(line.replace(b"[1,", b"[1.5,") for line in _WITH_WHOLE_SECONDS if b"[1," in line),
    *(b'[1000000.5,"o","x"]', b'[-1.5,"o","x"]', b'{"a":1,"o":2,"x":3}', b'"1ox"', b'[1.5,"o"]', b"[]", b"[1.5]"),
]


def is_event(line: bytes) -> bool:
    try:
        read_event(line, len(line))
    except ProtocolError:
        return False
    return True


def told(pieces: list[bytes]) -> tuple[bool, bool]:
    """Whether all lines that ended are events, and whether what stands behind the last is torn."""
    soundness = Soundness(b"")
    ended = [soundness.feed(piece) for piece in pieces]
    return all(ended), soundness.torn


@pytest.mark.parametrize("line", [*EVENTS, *WRONG])
def test_a_line(line: bytes) -> None:
    good = is_event(line)
    assert good is (line in EVENTS)
    assert are_events(line + b"\n") is good
    for cut in range(len(line) + 2):
        whole = line + b"\n"
        assert told([whole[:cut], whole[cut:]]) == (good, False), cut
    assert told([whole[at : at + 1] for at in range(len(whole))]) == (good, False)
    if line:
        assert told([line]) == (True, not good)
        assert told([line[:1], line[1:]]) == (True, not good)


@given(st.lists(st.sampled_from([*EVENTS, *EVENTS, *EVENTS, *WRONG]), max_size=8), st.data())
@example([b'[1,"o","a"],[2,"o","b"]', b'[3,"o","c]', b'[d"]'], None)
def test_any_pieces_of_any_lines(lines: list[bytes], data: st.DataObject | None) -> None:
    whole = b"".join(line + b"\n" for line in lines)
    good = all(map(is_event, lines))
    assert are_events(whole) is good or not lines
    assert are_events(b'[0.5,"o","%b"]\n' % (b"x" * 4096) + whole) is good or not lines
    assert told([whole]) == (good, False)
    if data is not None:
        cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=12)))
        pieces = [whole[start:end] for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
        assert told(pieces) == (good, False)


@given(st.sampled_from(EVENTS), st.data())
def test_mutated_lines(line: bytes, data: st.DataObject) -> None:
    mutated = data.draw(mutations(line))
    lines = mutated.split(b"\n")
    good = all(map(is_event, lines))
    assert are_events(mutated + b"\n") is good
    cut = data.draw(st.integers(0, len(mutated)))
    assert told([mutated[:cut], mutated[cut:] + b"\n"]) == (good, False)
    for one in lines:
        if is_event(one):  # whoever shows a cast shows every event of it
            assert event_of(one) == read_event(one, len(one))


def test_the_header_is_not_an_event() -> None:
    soundness = Soundness()
    assert soundness.feed(b'{"version":2,') and not soundness.torn
    assert soundness.feed(b'"x":[1,2]}\n') and not soundness.torn
    assert not soundness.feed(b'{"version":2}\n')


@pytest.mark.parametrize("line", [*EVENTS, *WRONG])
def test_it_goes_on_after_a_restart(line: bytes) -> None:
    """What stood before the crash is given again, and the rest comes as it came before."""
    for cut in range(1, len(line) + 1):
        assert Soundness(line[:cut]).feed(line[cut:] + b"\n") is is_event(line)


def test_what_is_shown_of_half_a_character() -> None:
    assert event_of(b'[1,"o","a\\ud800b"]') == (1.0, "o", "a\ufffdb")
    assert event_of(json.dumps([1, "o", "x" * 10]).encode()) == (1.0, "o", "x" * 10)


TEXTS = [
    *(
        b"x",
        b"\\n",
        b"\\\\",
        b'\\"',
        b"\\u001b[0m",
        b"\\u0000",
        b"\\ud83d\\ude00",
        "é".encode(),
        "語".encode(),
        "😀".encode(),
    ),
    *(b'"', b"\\", b"\\x", b"\\u00", b"\\ud83d", b"\x00", b"\n", b"\xff", b"\xe8", b'","', b'"]'),
]


@given(
    st.lists(st.tuples(st.sampled_from([*TEXTS[:10] * 4, *TEXTS]), st.integers(1, 900)), max_size=8),
    st.lists(st.integers(0, 10_000), max_size=4),
)
@example([(b"x", 900), (b"\\ud83d\\ude00", 300)], [1, 2000])
@example([(b"x", 900), (b"\\", 301), (b'"]x', 1)], [])
@example([("語".encode(), 900)], [2000])
def test_long_data_in_any_pieces(runs: list[tuple[bytes, int]], cuts: list[int]) -> None:
    """Pieces of it that are long are looked at in another way."""
    whole = b'[1.5,"o","%b"]\n' % b"".join(text * count for text, count in runs)
    good = all(map(is_event, whole[:-1].split(b"\n")))
    places = [0, *sorted(min(cut, len(whole)) for cut in cuts), len(whole)]
    assert told([whole[start:end] for start, end in pairwise(places)]) == (good, False)
