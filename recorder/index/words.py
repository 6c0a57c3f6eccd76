"""Words: what the text of a screen is cut into, what a question asks for, and where it stands.

Both databases are handed words that were made here, so that both find the same. A word is a run of letters, digits and
underscores, folded (`fold`), at most 64 characters of it; a character of a script that is written without spaces, and
an emoji, is a word of its own. Everything else parts words.

Folded, a text is in lower case and without accents: `resume` finds résumé, `Müller` finds Muller, and `ss` finds ß. Of
the marks that stand on letters those of Unicode's blocks for diacritics go; what other scripts
write as marks, vowels and the voicing of kana, stays as it is.

A question is terms, and a recording must have all of them somewhere on its screen or in its command. A term is a run
of text without blanks, or whatever stands between double quotes. A term of several words (`web-0`, `10.0.3.17`,
"rm -rf") is a phrase: they stand one behind the other in a line. The last word of a term may go on (`deploy` finds
deployment) unless the term is in quotes.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import zstandard

from recorder.index.rows import Hit
from recorder.screen import MARK, Segment, Unseen

WORD = 64  # characters: a SHA-256 in hex fits; what is longer is data, and its beginning finds it
MOST_TERMS = 16  # in one question; each is a look-up of its own
MOST_QUESTION = 1000  # characters: a pasted line, not a pasted page
_AROUND = 60  # characters of a line on each side of what was found
_BODY = 1024 * 1024  # bytes: far more than a segment has; what claims more is not ours

_ALONE = (
    "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\u0e00-\u0e7f"
    "\u2600-\u27bf\U0001f1e6-\U0001f1ff\U0001f300-\U0001faff"  # emoji
)
_WORDS = re.compile(rf"[{_ALONE}]|[^\W{_ALONE}]+")
_IS_ALONE = re.compile(f"[{_ALONE}]")
_TERMS = re.compile(r'"([^"]*)"?|(\S+?)(?=["\s]|$)')


_MARKS = re.compile("[\u0300-\u036f\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]")
# Letters whose stroke or slash is no mark to Unicode.
_STROKES = {
    **{"ø": "o", "ł": "l", "đ": "d", "ħ": "h", "ŧ": "t", "ı": "i", "ð": "d"},
    **{"æ": "ae", "œ": "oe", "þ": "th"},
}
_MOST_FOLDS = 20_000  # characters whose folding is remembered: more than all alphabets have


class _Folds(dict[int, str]):
    """What each character becomes, worked out when it is met."""

    def __missing__(self, code: int) -> str:
        bare = _MARKS.sub("", unicodedata.normalize("NFD", chr(code).casefold()))
        folded = unicodedata.normalize("NFC", "".join(_STROKES.get(character, character) for character in bare))
        if len(self) < _MOST_FOLDS:
            self[code] = folded
        return folded


_FOLDS = _Folds()


@dataclass(frozen=True, slots=True)
class Term:
    """Words that stand one behind the other. prefix: the last one may go on."""

    words: tuple[str, ...]
    prefix: bool


def fold(text: str) -> str:
    """The text by which words are found. A line stays a line."""
    return text.lower() if text.isascii() else unicodedata.normalize("NFC", text).translate(_FOLDS)


def words(text: str) -> list[str]:
    """The words of a text, in order."""
    return [word[:WORD] for word in _WORDS.findall(fold(text))]


def terms(question: str) -> tuple[Term, ...]:
    """What a question asks for; nothing where it has no words. Raises ValueError for one that is too long."""
    if len(question) > MOST_QUESTION:
        raise ValueError(f"a search has at most {MOST_QUESTION} characters")
    found: dict[Term, None] = {}
    for match in _TERMS.finditer(question):
        quoted, plain = match.groups()
        if parts := tuple(words(quoted if plain is None else plain)):
            found[Term(parts, prefix=plain is not None)] = None
    if len(found) > MOST_TERMS:
        raise ValueError(f"a search has at most {MOST_TERMS} terms")
    return tuple(found)


def pack(segment: Segment) -> bytes:
    """A segment as it is kept: its times (JSON), a line feed and its text, compressed."""
    times = json.dumps([round(time, 3) for time, _ in segment.lines], separators=(",", ":"))
    return zstandard.compress(f"{times}\n{segment.text}".encode("utf-8", "replace"))


def unpack(body: bytes) -> tuple[str, str]:
    """Its times as JSON, and its text with a line for each."""
    times, _, text = zstandard.decompress(body, max_output_size=_BODY).decode().partition("\n")
    return times, text


def lines_of_words(body: bytes) -> Iterator[list[str]]:
    """The words of a kept segment, line by line. Whoever changes what comes out of here for the same body needs a
    migration: SQLite's full text can only be taken out by saying again what was put in."""
    return (words(line.rpartition(MARK)[2]) for line in unpack(body)[1].split("\n"))


def unseen(bodies: Iterable[bytes], most: int) -> list[Unseen]:
    """What kept segments have that a terminal would not have shown; at most so many pieces, in order of time."""
    found: list[Unseen] = []
    for body in bodies:
        times, text = unpack(body)
        if MARK in text:
            for time, line in zip(json.loads(times), text.split("\n"), strict=True):
                if line.startswith(MARK):
                    _, kind, said = line.split(MARK, 2)
                    found.append(Unseen(time, kind, said))
    return sorted(found, key=lambda piece: piece.time)[:most]


def hits(bodies: Iterable[bytes], asked: tuple[Term, ...], most: int) -> tuple[Hit, ...]:
    """The first lines of a recording that have one of the terms; at most `most`."""
    return tuple(islice(_hits(bodies, asked), most))


def _hits(bodies: Iterable[bytes], asked: tuple[Term, ...]) -> Iterator[Hit]:
    finders = [_Finder(term) for term in asked]
    for body in bodies:
        packed, text = unpack(body)
        if not text.isascii():
            text = unicodedata.normalize("NFC", text)
        folded = fold(text)
        times: list[float] = []
        lines: list[str] = []
        for number, start, end in _candidates(folded, [finder.first for finder in finders]):
            lines = lines or text.split("\n")
            line, found_in = lines[number], folded[start:end]
            kind = ""
            if line.startswith(MARK):
                kind, line = line[1:].split(MARK, 1)
                found_in = found_in.rpartition(MARK)[2]
            if places := [place for finder in finders if (place := finder.find(found_in))]:
                times = times or json.loads(packed)
                first, behind = min(places)
                if len(line) != len(found_in):
                    first, behind = _unfolded(line, first, behind)
                yield Hit(times[number], _snippet(line, first, behind), kind)


def _unfolded(line: str, start: int, end: int) -> tuple[int, int]:
    """Where in a line a stretch of its folded text is."""
    at = [place for place, character in enumerate(line) for _ in _FOLDS[ord(character)]]
    at.append(len(line))
    return at[start], max(at[end], at[end - 1] + 1)


class _Finder:
    """Finds one term in a folded line. Its first word is searched plainly and the rest matched there: a pattern for all
    of it, with classes of characters at its ends, takes longer to compile than a page of lines to look through."""

    def __init__(self, term: Term) -> None:
        self.first = term.words[0]
        self._term = term
        way = ""
        for number, word in enumerate(term.words):
            if number:  # something is between two words, unless one of them is a character that stands alone
                way += r"\W*" if _IS_ALONE.match(word) or _IS_ALONE.match(term.words[number - 1]) else r"\W+"
            way += re.escape(word)
        open_end = (term.prefix and not _IS_ALONE.match(term.words[-1])) or len(term.words[-1]) == WORD
        self._rest = re.compile(way + (r"\w*" if open_end else ""))
        self._whole = not open_end

    def find(self, folded: str) -> tuple[int, int] | None:
        """From where to where it is in the line."""
        at = folded.find(self.first)
        while at >= 0:
            match = None if _joined(folded, at) else self._rest.match(folded, at)
            if match and not (self._whole and _joined(folded, match.end())):
                return match.span()
            at = folded.find(self.first, at + 1)
        return None


def _joined(line: str, at: int) -> bool:
    """Whether the characters on both sides belong to one word."""
    if not 0 < at < len(line):
        return False
    return all((side.isalnum() or side == "_") and not _IS_ALONE.match(side) for side in line[at - 1 : at + 1])


def _candidates(folded: str, first: list[str]) -> Iterator[tuple[int, int, int]]:
    """Lines that hold one of the words in whatever way: number, start and end."""
    number, at = 0, 0
    ahead = {word: folded.find(word) for word in first}
    while True:
        for word, place in ahead.items():
            if 0 <= place < at:
                ahead[word] = folded.find(word, at)
        nearest = min((place for place in ahead.values() if place >= 0), default=-1)
        if nearest < 0:
            return
        start = folded.rfind("\n", 0, nearest) + 1
        number += folded.count("\n", at, start)
        end = folded.find("\n", nearest)
        end = len(folded) if end < 0 else end
        yield number, start, end
        at, number = end + 1, number + 1


def _snippet(line: str, start: int, end: int) -> tuple[tuple[str, bool], ...]:
    before = line[max(0, start - _AROUND) : start]
    if start > _AROUND:
        before = "…" + before
    end = min(end, start + 2 * _AROUND)
    after = line[end : end + _AROUND]
    if len(line) > end + _AROUND:
        after += "…"
    return tuple(piece for piece in ((before, False), (line[start:end], True), (after, False)) if piece[0])
