"""The one reader of queries: what the API server and the kubelet read, which is Go's url.ParseQuery.

    pairs(query)            every pair with what it means, and whether Go reads it at all
    values(query)           url.URL.Query(): the values of each name, in order
    second_reading(query)   why another reader may take the query otherwise, None where all read the same

Classification, recording, events and redaction all read queries through here: with two readers, a client shows one
command to the recorder and runs another. Pairs are separated by `&` alone. Go drops a pair that has a raw `;` or a
broken percent escape, and reads nothing of a query of more than 10,000 pairs (net/url since Go 1.25.6; earlier versions
read all of them). Other readers split at `;`, keep the escape as it is, or read on, so a query like that has a second
reading. A session (exec, attach, port-forward) that comes with one is refused (requestinfo).

How a value is understood is Kubernetes' conversion of queries (k8s.io/apimachinery, pkg/runtime/conversion.go at
v1.36): of several values the first counts, and a switch is on unless its value is "0" or "false" in any case.
"""

from __future__ import annotations

import re
from binascii import a2b_qp
from collections.abc import Iterator
from urllib.parse import unquote_to_bytes

# Pairs, the empty ones included (net/url, defaultMaxParams).
MAX_PAIRS = 10_000

_BROKEN_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")


# One pair of a query: its name, "=" or "", and its value as they were sent; name and value decoded, as far as that can
# be done; and whether Go reads the pair. One that Go drops may still mean something to others. (A plain tuple: a named
# one doubles what a query of thousands of pairs costs.)
Pair = tuple[str, str, str, str, str, bool]


def pairs(query: str, errors: str = "replace", *, dropped: bool = True) -> Iterator[Pair]:
    """The pairs in their order, the empty ones included. errors: of decoding bytes that are not UTF-8. dropped: whether
    those that Go drops are wanted as well; broken escapes are expensive to decode."""
    if not query:
        return
    few = query.count("&") < MAX_PAIRS
    for pair in query.split("&"):
        raw_name, equals, raw_value = pair.partition("=")
        if "%" in pair or "+" in pair:
            sound = "%" not in pair or _BROKEN_ESCAPE.search(pair) is None
            read = few and sound and ";" not in pair
            if not (read or dropped):
                continue
            decoded = _decoded if sound else _decoded_somehow
            yield raw_name, equals, raw_value, decoded(raw_name, errors), decoded(raw_value, errors), read
        else:
            yield raw_name, equals, raw_value, raw_name, raw_value, few and pair != "" and ";" not in pair


def values(query: str, errors: str = "replace") -> dict[str, list[str]]:
    """The values of each name as Go reads them. errors: of decoding bytes that are not UTF-8."""
    found: dict[str, list[str]] = {}
    for _, _, _, name, value, read in pairs(query, errors, dropped=False):
        if read:
            found.setdefault(name, []).append(value)
    return found


def first(found: dict[str, list[str]], name: str) -> str:
    """The value that counts where one is wanted; "" where there is none."""
    return found.get(name, _NONE)[0]


def switch(found: dict[str, list[str]], name: str) -> bool:
    """A boolean, as the API server reads it: off where it is missing, and on for whatever is not "0" or "false"."""
    value = found.get(name, _OFF)[0]
    # strings.EqualFold: the long s (U+017F) folds to an s there as here.
    return value != "0" and value.casefold() != "false"


_NONE = [""]
_OFF = ["0"]


def second_reading(query: str) -> str | None:
    """Why the query means something else to another reader than to Go's, as the end of a sentence about it."""
    if query.count("&") >= MAX_PAIRS:
        return f"has more than {MAX_PAIRS} parameters, of which some servers read none"
    if ";" in query:
        return "has a semicolon, which some servers read as a separator; write %3B"
    if _BROKEN_ESCAPE.search(query) is not None:
        return "has a broken percent escape, for which some servers drop the parameter; write %25 for a percent sign"
    return None


def _decoded(text: str, errors: str) -> str:
    """A text whose escapes are whole. Quoted-printable has the same escapes with another sign, and its decoder is in C:
    64 KiB of escapes take 0.1 ms here, and 6 ms in unquote_to_bytes."""
    text = text.replace("+", " ")
    if "%" not in text:
        return text
    if "\n" in text or "\r" in text:
        return _decoded_somehow(text, errors)
    return a2b_qp(text.replace("=", "%3D").replace("%", "=").encode()).decode(errors=errors)


def _decoded_somehow(text: str, errors: str) -> str:
    """Any text: a percent sign without two digits behind it stands for itself."""
    if "%" not in text:
        return text.replace("+", " ")
    if "\n" in text or "\r" in text:
        return unquote_to_bytes(text.replace("+", " ")).decode(errors=errors)
    return _decoded(_BROKEN_ESCAPE.sub("%25", text), errors)
