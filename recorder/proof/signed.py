"""Documents of two lines, the second of which signs the first; and the values that stand in them. Pure.

The first line is a JSON object, and these very bytes, with their line feed, are what is signed; nothing has to be made
canonical. The second is {"key": NAME, "signature": BASE64}. `type` keeps a document of one kind from standing for
another.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from recorder.proof.keys import Anchor, PublicKeys, Signer

_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
# No moment is later: the end of what a calendar has (year 9999).
_MOST_SECONDS = 253402300800


class ForgedError(Exception):
    """A document that is not signed by a key that is trusted, or makes no sense."""


class UnknownKeyError(ForgedError):
    """It says that it is signed by a key that was not given."""


def digest(data: bytes) -> str:
    """SHA-256, as hex."""
    return hashlib.sha256(data).hexdigest()


def sign_document(value: Mapping[str, Any], signer: Signer) -> bytes:
    """The two lines."""
    line = json.dumps(value, separators=(",", ":")).encode() + b"\n"
    return line + seal_line(line, signer)


def seal_line(line: bytes, signer: Signer) -> bytes:
    """The line that seals another."""
    signature = base64.b64encode(signer.sign(line)).decode()
    return json.dumps({"key": signer.id, "signature": signature}, separators=(",", ":")).encode() + b"\n"


def open_seal(line: bytes, seal: bytes, keys: PublicKeys) -> str:
    """By which key a line is sealed. Raises ForgedError."""
    try:
        outer = json.loads(seal)
        name, signature = read_text(outer["key"]), base64.b64decode(read_text(outer["signature"]), validate=True)
    except (ValueError, KeyError, TypeError, RecursionError, binascii.Error):
        raise ForgedError("it has no signature") from None
    if name not in keys:
        raise UnknownKeyError(f"it is signed with the key {name[:16]!a}, which is not one of those given")
    if not keys.good(name, signature, line):
        raise ForgedError("its signature is wrong")
    return name


def signed_by(data: bytes) -> str:
    """The key that a file of two lines says it is signed with; what was read without a fault is. Raises ForgedError."""
    try:
        return read_text(json.loads(data[data.find(b"\n") + 1 :])["key"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ForgedError("it has no signature") from None


def open_document(data: bytes, keys: PublicKeys, kind: str) -> Mapping[str, Any]:
    """What the two lines say. kind: the type that it must be. Raises ForgedError."""
    feed = data.find(b"\n") + 1
    line = data[:feed]
    open_seal(line, data[feed:], keys)
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        raise ForgedError("it is signed, but it cannot be understood") from None
    if not isinstance(value, dict) or value.get("type") != kind or value.get("version") != 1:
        raise ForgedError(f"it is signed, but it is not a {kind} of version 1")
    return value


def head_values(head: Anchor) -> dict[str, Any]:
    """The end of a chain as JSON values."""
    return {"number": head.number, "sha256": head.sha256}


def read_head(value: Mapping[str, Any]) -> Anchor:
    """The end of a chain. Raises KeyError, TypeError, ValueError; so do the others below."""
    return Anchor(read_whole(value["number"]), read_sha256(value["sha256"]))


def read_text(value: object) -> str:
    """Text."""
    if not isinstance(value, str):
        raise TypeError("not text")
    return value


def read_seconds(value: object) -> float:
    """When something was signed, in unix seconds."""
    if not 0 <= (seconds := read_number(value)) < _MOST_SECONDS:
        raise ValueError("not a moment")
    return seconds


def read_number(value: object) -> float:
    """Any number: when a recording ended is what its recording.json says, which somebody else may have written."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError("not a number")
    try:
        return float(value)
    except OverflowError:
        raise ValueError("too large") from None


def read_whole(value: object) -> int:
    """A whole number from 0 on."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise TypeError("not a number")
    return value


def read_sha256(value: object) -> str:
    """A hash as hex."""
    text = read_text(value)
    if not _SHA256.match(text):
        raise ValueError("not a SHA-256")
    return text
