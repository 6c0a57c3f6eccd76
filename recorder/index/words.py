"""Words: what the text of a screen is cut into, what a question asks for, and where it stands.

Both databases are handed words that were made here, so that both find the same. A word is a run of letters, digits and
underscores, in lower case, at most 64 characters of it; a character of a script that is written without spaces is a
word of its own. Everything else parts words.

A question is terms, and a recording must have all of them somewhere on its screen or in its command. A term is a run
of text without blanks, or whatever stands between double quotes. A term of several words (`web-0`, `10.0.3.17`,
"rm -rf") is a phrase: they stand one behind the other in a line. The last word of a term may go on (`deploy` finds
deployment) unless the term is in quotes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import zstandard

from recorder.index.rows import Hit
from recorder.screen import Segment

WORD = 64  # characters: a SHA-256 in hex fits; what is longer is data, and its beginning finds it
MOST_TERMS = 16  # in one question; each is a look-up of its own
MOST_QUESTION = 1000  # characters: a pasted line, not a pasted page
_AROUND = 60  # characters of a line on each side of what was found
_BODY = 1024 * 1024  # bytes: far more than a segment has; what claims more is not ours

_ALONE = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\u0e00-\u0e7f"
_WORDS = re.compile(rf"[{_ALONE}]|[^\W{_ALONE}]+")
_TERMS = re.compile(r'"([^"]*)"?|(\S+?)(?=["\s]|$)')


@dataclass(frozen=True, slots=True)
class Term:
    """Words that stand one behind the other. prefix: the last one may go on."""

    words: tuple[str, ...]
    prefix: bool


def words(text: str) -> list[str]:
    """The words of a text, in order."""
    return [word[:WORD] for word in _WORDS.findall(text.lower())]


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


def pattern(asked: Iterable[Term]) -> re.Pattern[str]:
    """What finds any of the terms in a text as it was on the screen."""
    alone = re.compile(f"[{_ALONE}]")
    ways = []
    for term in asked:
        way = "" if alone.match(term.words[0]) else r"(?<![^\W" + _ALONE + "])"
        for number, word in enumerate(term.words):
            # Between two words there is something, unless one of them is a character that stands alone.
            if number:
                way += r"\W*" if alone.match(word) or alone.match(term.words[number - 1]) else r"\W+"
            way += re.escape(word) + (r"\w*" if len(word) == WORD else "")
        if term.prefix:
            way += "" if alone.match(term.words[-1]) else rf"[^\W{_ALONE}]*"
        elif not alone.match(term.words[-1]):
            way += rf"(?![^\W{_ALONE}])"
        ways.append(way)
    return re.compile("|".join(ways), re.IGNORECASE)


def pack(segment: Segment) -> bytes:
    """A segment as it is kept: its times (JSON), a line feed and its text, compressed."""
    times = json.dumps([round(time, 3) for time, _ in segment.lines], separators=(",", ":"))
    return zstandard.compress(f"{times}\n{segment.text}".encode("utf-8", "replace"))


def unpack(body: bytes) -> tuple[list[float], str]:
    """Its times, and its text with a line for each."""
    times, _, text = zstandard.decompress(body, max_output_size=_BODY).decode().partition("\n")
    return json.loads(times), text


def lines_of_words(body: bytes) -> Iterator[list[str]]:
    """The words of a kept segment, line by line. Whoever changes what comes out of here for the same body needs a
    migration: SQLite's full text can only be taken out by saying again what was put in."""
    return map(words, unpack(body)[1].split("\n"))


def hits(bodies: Iterable[bytes], asked: tuple[Term, ...], most: int) -> tuple[Hit, ...]:
    """The first lines of a recording that have one of the terms; at most `most`."""
    return tuple(islice(_hits(bodies, asked), most))


def _hits(bodies: Iterable[bytes], asked: tuple[Term, ...]) -> Iterator[Hit]:
    search = pattern(asked)
    sure = [term.words[0] for term in asked]
    for body in bodies:
        times, text = unpack(body)
        folded = text.lower()
        if not any(word in folded for word in sure):  # many times faster than the pattern, and says no to most
            continue
        for time, line in zip(times, text.split("\n"), strict=False):
            if match := search.search(line):
                yield Hit(time, _snippet(line, match.start(), match.end()))


def _snippet(line: str, start: int, end: int) -> tuple[tuple[str, bool], ...]:
    before = line[max(0, start - _AROUND) : start]
    if start > _AROUND:
        before = "…" + before
    end = min(end, start + 2 * _AROUND)
    after = line[end : end + _AROUND]
    if len(line) > end + _AROUND:
        after += "…"
    return tuple(piece for piece in ((before, False), (line[start:end], True), (after, False)) if piece[0])
