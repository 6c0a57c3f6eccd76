"""Texts and lists that are cut: to their limit whatever characters they are made of, and with what they were."""

from __future__ import annotations

import hashlib
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k8sproxy.common.formats.bounds import Truncation, bounded, bounded_list, json_size

# What takes one, two, three, four and six bytes in JSON.
TEXTS = st.text(st.sampled_from('a\x01"\\é日\U0001f600\n\ud800\x7f'), max_size=400)


def digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


@given(TEXTS, st.integers(64, 400), st.sampled_from([0, 1, 40]))
def test_any_text_is_kept_or_cut_to_its_limit(text: str, limit: int, tail: int) -> None:
    limit += tail
    kept, cut = bounded(text, limit, tail)
    assert json_size(kept) <= limit
    if json_size(text) <= limit:
        assert (kept, cut) == (text, None)
        return
    assert cut == Truncation(len(text.encode("utf-8", "replace")), digest(text))
    assert kept != text
    if not tail:
        assert kept.endswith("…") and text.startswith(kept[:-1])
        assert json_size(text[: len(kept)]) > limit - 3  # not one character more had room
        return
    match = re.fullmatch(r"(.*?)… \[(\d+) bytes left out\] …(.*)", kept, re.DOTALL)
    assert match is not None
    head, missing, end = match[1], int(match[2]), match[3]
    assert text.startswith(head) and text.endswith(end) and json_size(end) <= tail
    assert missing == cut.bytes - len((head + end).encode("utf-8", "replace")) > 0


def test_size_in_json() -> None:
    for text in ("", "a", '"\\', "\x00\x1f\n", "é日\U0001f600"):
        assert json_size(text) == len(json.dumps(text, ensure_ascii=False).encode()) - 2


@pytest.mark.parametrize("character", ['"', "\\", "\x01", "\n", "é", "\U0001f600", "\ud800", "u", "\\u", "\x00\\"])
def test_a_text_of_one_character_is_cut_between_two_of_them(character: str) -> None:
    text = character * 300
    for limit in range(64, 130):
        kept, _ = bounded(text, limit)
        assert text.startswith(kept[:-1]) and kept[-1] == "…"
        assert limit - 3 - 6 < json_size(kept[:-1]) <= limit - 3
        kept, _ = bounded(text, limit + 64, 64)
        head, tail = kept.split("…")[0], kept.split("…")[-1]
        assert text.startswith(head) and text.endswith(tail) and tail


def test_a_long_command_keeps_its_head_and_its_tail() -> None:
    kept, cut = bounded("sh -c " + "x" * 5000 + " | sh /tmp/really", 1000, 200)
    assert kept.startswith("sh -c xxx") and kept.endswith("x | sh /tmp/really")
    assert cut is not None and cut.bytes == 5023


@given(st.lists(TEXTS, max_size=12), st.integers(70, 1000))
def test_any_list_is_kept_or_cut_to_its_limit(texts: list[str], limit: int) -> None:
    kept, cut = bounded_list(texts, limit, 64)
    assert len(json.dumps(kept, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")) <= limit
    if cut is None:
        assert list(kept) == texts
        return
    joined = "\n".join(texts)
    assert cut == Truncation(len(joined.encode("utf-8", "replace")), digest(joined))
    assert all(entry == text or entry.endswith("…") for entry, text in zip(kept, texts, strict=False))


@pytest.mark.parametrize("texts", [[], ["a"], ["a", "b" * 60]])
def test_a_list_that_fits_is_kept(texts: list[str]) -> None:
    assert bounded_list(texts, 100, 64) == (tuple(texts), None)
