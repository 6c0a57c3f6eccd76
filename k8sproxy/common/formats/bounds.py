"""How long the texts and lists are that a recorder is told, and how it is said that one was cut.

    bounded("text", 1024)             the text, None; or the front of it, and what it was
    bounded(command, 24576, 8192)     front and tail, with how much is missing between them
    bounded_list(groups, 12288)       the first entries that there is room for

A limit counts bytes as they stand in JSON, where one control character takes six, so that a line that is put together
of bounded members has a bound that no choice of characters can break. What is cut is marked in the text itself, so that
it never equals another name, and described by a Truncation: how long it was, and its SHA-256, by which somebody who has
the whole of it (the API server's audit log has) can show that it is the same.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from typing import NamedTuple

_ELLIPSIS = "…"
# An escape at the end of a text in JSON that is not whole: a backslash without a partner, or a part of \\uXXXX.
_CUT_ESCAPE = re.compile(r"(?:^|[^\\])(?:\\\\)*+(\\(?:u[0-9a-f]{0,3})?)$")


class Truncation(NamedTuple):
    """What was there before it was cut, in UTF-8; of a list, its entries joined by line feeds.

    bytes: how many. sha256: of them, in hexadecimal digits.
    """

    bytes: int
    sha256: str

    def values(self) -> dict[str, int | str]:
        """As JSON values."""
        return {"bytes": self.bytes, "sha256": self.sha256}


def json_size(text: str) -> int:
    """Bytes of a text in JSON (without ASCII escapes), its quotes left out. A lone surrogate counts as three."""
    return len(_json(text)) - 2


def _json(text: str) -> bytes:
    return json.dumps(text, ensure_ascii=False).encode("utf-8", "surrogatepass")


def bounded(text: str, limit: int, tail: int = 0) -> tuple[str, Truncation | None]:
    """The text in at most `limit` bytes of JSON, and what it was where it had to be cut.

    tail: how many of the bytes are kept of its end; 0: the front alone is kept, and an ellipsis behind it. limit must
    leave room for the mark, 64 bytes.
    """
    if 6 * len(text) <= limit or (len(text) <= limit and json_size(text) <= limit):
        return text, None
    whole = text.encode("utf-8", "replace")
    cut = Truncation(len(whole), hashlib.sha256(whole).hexdigest())
    if not tail:
        return _front(text, limit - len(_ELLIPSIS.encode())) + _ELLIPSIS, cut
    room = limit - 64  # of the mark, whose number has at most 20 digits
    head = _front(text, room - tail)
    end = _front(text[len(head) :][-tail:][::-1], tail)[::-1]
    missing = cut.bytes - len(head.encode("utf-8", "replace")) - len(end.encode("utf-8", "replace"))
    return f"{head}{_ELLIPSIS} [{missing} bytes left out] {_ELLIPSIS}{end}", cut


def bounded_list(texts: Iterable[str], limit: int, entry: int) -> tuple[tuple[str, ...], Truncation | None]:
    """The first texts that fit into `limit` bytes of a JSON list, and what the list was where it had to be cut.

    entry: bytes of JSON of one text, which is cut where it has more.
    """
    whole = tuple(texts)
    kept: list[str] = []
    size = 2
    for text in whole:
        told, _ = bounded(text, entry)
        size += json_size(told) + 3  # quotes and comma
        if size > limit:
            break
        kept.append(told)
    if tuple(kept) == whole:
        return whole, None
    joined = "\n".join(whole).encode("utf-8", "replace")
    return tuple(kept), Truncation(len(joined), hashlib.sha256(joined).hexdigest())


def _front(text: str, limit: int) -> str:
    """The longest front of a text that has at most `limit` bytes in JSON."""
    written = _json(text[:limit])[1:-1]  # a character has at least one byte
    if len(written) <= limit:
        return text[:limit]
    while written[limit] & 0xC0 == 0x80:  # within a character
        limit -= 1
    kept = written[:limit].decode("utf-8", "surrogatepass")
    if (cut := _CUT_ESCAPE.search(kept)) is not None:
        kept = kept[: cut.start(1)]
    front: str = json.loads(f'"{kept}"')
    return front
