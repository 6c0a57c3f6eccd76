"""Asciicast v2: a line of JSON for the header, then a line for each event (docs.asciinema.org, "asciicast v2").

    {"version":2,"width":80,"height":24,"timestamp":1700000000,..}
    [0.25,"o","text that the terminal was sent"]      "e" the same for stderr, where the reader knows "e"
    [1.5,"r","COLSxROWS"]                             [2.0,"m","a marker"]

The header's members are those of Tailscale's recorders (tailscale.com/sessionrecording, CastHeader, v1.102) with their
Go types, so that readers of either kind decode it; what is added has names that are in no Go struct there, which
encoding/json passes over. Every member is bounded, and so is the line: MAX_HEADER_LINE is what a recorder takes, and no
header that is written here is longer, whatever a client puts into a name or a command. A member that had to be cut says
so in `truncated`, {"command": {"bytes": 70000, "sha256": ".."}} (bounds).

**Output is bytes, and JSON is text.** Most output is UTF-8, cut anywhere, so an `OutputEncoder` a stream carries the
first bytes of a character over to the next piece. A byte 0xNN that is not part of UTF-8 is written as the character
U+10FENN (U+10FE80 to U+10FEFF, the private end of Unicode), and where output itself holds a character of that range,
each of its four bytes is written so. Thus a character of the range in a cast is always one byte, and `decode_output`
gives back exactly what was sent. The usual ways are worse: U+FFFD loses the byte, and a lone surrogate (Python's
surrogateescape) is text that strict JSON readers, serde among them, refuse.

How it is done at the speed of memcpy, nearly: surrogateescape decodes the byte 0xNN as U+DCNN, whose bytes under
surrogatepass are ED B2 80..BF or ED B3 80..BF, while those of U+10FENN are F4 8F BA 80..BF or F4 8F BB 80..BF with the
same last byte. So two bytes.replace() turn one into the other. ED is a lead byte, and is followed by A0..BF in
surrogates alone, so no other text is hit; F4 is a lead byte too. A piece that is mostly not UTF-8 (a tar archive out of
`kubectl cp`) has every byte from 0x80 on written as U+10FENN, through a table of 256 characters.

JSON is written in C, since of a session's output every byte goes through it (nanoseconds a byte of 64 KiB, decoding
included): ASCII by orjson, 0.1 to 0.6 (the standard library's encoder takes 1.4 to 2.5); other UTF-8 by pydantic_core,
0.8, which takes it as bytes, while orjson needs a str and makes UTF-8 of it again, 1.1 to 2; and what is not UTF-8 as
above, 6. Long runs of NUL (sparse files, padded archives) are the costliest, 5, and are laid down whole instead.
"""

from __future__ import annotations

import codecs
import json
import re
import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import orjson
from pydantic_core import PydanticSerializationError, to_json

from k8sproxy.common.errors import ProtocolError
from k8sproxy.common.formats.bounds import Truncation, bounded, bounded_list
from k8sproxy.common.formats.strictjson import finite, no_constant

# Bytes of a cast's first line, its line feed included, for sender and receiver. It is what Go's bufio.Scanner reads as
# one line, and some recorders may read with that.
MAX_HEADER_LINE = 64 << 10
# Bytes of any other line, for both. The longest that is written here is of 192 KiB of output (a batch of the outbox and
# the turn that filled it), all of it NUL, which takes six bytes each; other senders may write more at once.
MAX_LINE = 4 << 20
# Bytes that a member of the header takes in JSON: a name (the longest of Kubernetes and of DNS have 253 characters, a
# login name at most 512 bytes), all tags, all groups, and the command, of which so many bytes are kept of its end: what
# stands behind a long script is what it is run with. With what is said of what was cut this makes less than 60 KiB.
MAX_TEXT = 1 << 10
MAX_TAGS = 4 << 10
MAX_GROUPS = 12 << 10
MAX_COMMAND = 24 << 10
COMMAND_TAIL = 8 << 10

# Columns and rows, the largest that a terminal's own structure holds (struct winsize, unsigned short).
MAX_SIDE = 65535
# Seconds: eleven days. A session's times above it are nonsense, and would make a nonsense of lists and plots.
MAX_TIME = 1e6
# Bytes looked at to tell binary data from text with a broken byte in it, and how many of those characters have to be
# broken (one in so many). UTF-8 cut badly or Latin-1 prose have fewer; archives and random bytes have a third and up.
_SAMPLE = 1024
_BINARY_SHARE = 8

# Byte -> character, for charmap_decode.
_ALL_ESCAPED = "".join(map(chr, (*range(0x80), *range(0x10FE80, 0x10FF00))))
# Bytes: what a run of NUL has to have to be worth the search for its end; and how many are laid down at a time.
_LONG = 256
_RUN = b"\0" * _LONG
_RUNS = re.compile(rb"\0{%d,}" % _LONG)
_NULS = b"\\u0000" * (64 * 1024)
_LONE = re.compile(r"[\ud800-\udfff]")
# Bytes of a text's first line from which on its lines are searched for one by one.
_LONG_LINE = 1024
# Of an "r" event. Zero, which a terminal without a size may have, and sizes beyond a terminal's are sizes all the same.
_RESIZE = re.compile(r"[0-9]{1,15}x[0-9]{1,15}")
# Of events whose data may be any text.
_TEXT_CODES = frozenset(string.ascii_letters) - {"r"}
_SIZE = re.compile(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class CastHeader:
    """What the header tells of a session, all but its size. The names are CastHeader's in Go, in Python's case.

    timestamp: whole unix seconds of the start. command: its words joined by blanks, "" for an attach. src_node: the
    node's full name without the final dot. A tagged node has src_node_tags, a user's has src_node_user_id and
    src_node_user (the login name). session_type: exec or attach. Go's env, sshUser and localUser are other senders' and
    are empty here. From cluster on, what Go's has not: the cluster's
    name, whom upstream saw ("" where nobody was impersonated), the client's User-Agent, the session's id, and the
    members that were cut before they came here, by their names in JSON (kubernetes.Container).
    """

    timestamp: int
    src_node: str
    src_node_id: str
    command: str = ""
    src_node_tags: tuple[str, ...] = ()
    src_node_user_id: int = 0
    src_node_user: str = ""
    connection_id: str = ""
    pod_name: str = ""
    namespace: str = ""
    container: str = ""
    session_type: str = ""
    cluster: str = ""
    impersonated_user: str = ""
    impersonated_groups: tuple[str, ...] = ()
    user_agent: str = ""
    session_id: str = ""
    truncated: Mapping[str, Truncation] = field(default_factory=dict)

    def line(self, width: int, height: int) -> bytes:
        """The header's line, with its line feed; MAX_HEADER_LINE bytes at most. width, height: columns and rows."""
        cuts = dict(self.truncated)

        def told(name: str, text: str, limit: int = MAX_TEXT, tail: int = 0) -> str:
            kept, cut = bounded(text, limit, tail)
            if cut is not None:
                cuts.setdefault(name, cut)
            return kept

        def listed(name: str, texts: Sequence[str], limit: int) -> list[str]:
            kept, cut = bounded_list(texts, limit, MAX_TEXT)
            if cut is not None:
                cuts.setdefault(name, cut)
            return list(kept)

        header: dict[str, object] = {
            "version": 2,
            "width": width,
            "height": height,
            "timestamp": self.timestamp,
            "srcNode": told("srcNode", self.src_node.removesuffix(".")),
            "srcNodeID": told("srcNodeID", self.src_node_id),
            "env": {},
            "sshUser": "",
            "localUser": "",
            "connectionID": told("connectionID", self.connection_id),
        }
        if self.command:
            header["command"] = told("command", self.command, MAX_COMMAND, COMMAND_TAIL)
        if self.src_node_tags:
            header["srcNodeTags"] = listed("srcNodeTags", self.src_node_tags, MAX_TAGS)
        else:
            header["srcNodeUserID"] = self.src_node_user_id
            header["srcNodeUser"] = told("srcNodeUser", self.src_node_user)
        if self.pod_name:
            header["kubernetes"] = {
                name: told(f"kubernetes.{name}", text)
                for name, text in (
                    ("PodName", self.pod_name),
                    ("Namespace", self.namespace),
                    ("Container", self.container),
                    ("SessionType", self.session_type),
                    ("Cluster", self.cluster),
                )
            }
        if self.impersonated_user:
            header["impersonation"] = {
                "user": told("impersonation.user", self.impersonated_user),
                "groups": listed("impersonation.groups", self.impersonated_groups, MAX_GROUPS),
            }
        if self.user_agent:
            header["userAgent"] = told("userAgent", self.user_agent)
        if self.session_id:
            header["sessionID"] = told("sessionID", self.session_id)
        if cuts:
            header["truncated"] = {name: cut.values() for name, cut in cuts.items()}
        # "replace": a lone surrogate, which no reader has to take, becomes a question mark.
        return json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace") + b"\n"


def event_line(seconds: float, code: str, text: str) -> bytes:
    """One event's line, with its line feed.

    seconds: since the recording's start, written to the microsecond. code: one ASCII letter. Lone surrogates in the
    text become question marks.
    """
    try:
        return orjson.dumps((round(seconds, 6), code, text), option=orjson.OPT_APPEND_NEWLINE)
    except orjson.JSONEncodeError:
        text = text.encode("utf-8", "replace").decode()
        return orjson.dumps((round(seconds, 6), code, text), option=orjson.OPT_APPEND_NEWLINE)


def resize_line(seconds: float, width: int, height: int) -> bytes:
    """The line of a resize. (Tailscale's proxy writes ROWSxCOLS.)"""
    return event_line(seconds, "r", f"{width}x{height}")


class OutputEncoder:
    """The bytes of one output stream as text that JSON can carry. Holds back at most 3 bytes."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held = b""

    def feed(self, data: bytes | memoryview) -> str:
        """All characters that have come whole, for event_line."""
        if self._held:
            data = b"".join((self._held, data))
        try:
            text, used = codecs.utf_8_decode(data, "strict", False)
        except UnicodeDecodeError as error:
            return self._feed_broken(bytes(data), error.start)
        self._held = bytes(data[used:]) if used < len(data) else b""
        if text.isascii():
            return text
        raw = bytes(data[:used])
        return _with_range(raw) if b"\xf4\x8f" in raw else text

    def line(self, seconds: float, code: str, data: bytes | bytearray) -> bytes:
        """The line of an event with all characters that have come whole, b"" where none has: what event_line makes of
        what feed gives, without a str in between where there need not be one."""
        if self._held:
            data = self._held + data
            self._held = b""
        if data.isascii():
            if _RUN in data:
                return _line_with_runs(seconds, code, data)
            return event_line(seconds, code, data.decode("ascii")) if data else b""
        cut = len(data) - _unfinished(data)
        # The first search alone is memchr's, and nearly always enough.
        if not (b"\xf4" in data and b"\xf4\x8f" in data):
            try:
                line = to_json((round(seconds, 6), code, bytes(data[:cut]))) if cut else b""
            except PydanticSerializationError:
                pass  # not UTF-8
            else:
                self._held = bytes(data[cut:])
                return line + b"\n" if line else b""
        text = self.feed(bytes(data))
        return event_line(seconds, code, text) if text else b""

    @property
    def held(self) -> bytes:
        """What is held back: the front of a character."""
        return self._held

    def finish(self) -> str:
        """What is held back, in the same form: the stream is over, or goes on behind a gap."""
        held, self._held = self._held, b""
        return escape_all(held)

    def _feed_broken(self, data: bytes, start: int) -> str:
        sample = data[start : start + _SAMPLE].decode("utf-8", "surrogateescape")
        broken = len(sample) - len(sample.encode("utf-8", "ignore").decode())
        # Short pieces are taken as text: there is too little to tell, and they cost nothing.
        if len(data) > _SAMPLE and broken * _BINARY_SHARE > len(sample):
            self._held = b""
            return escape_all(data)
        text, used = codecs.utf_8_decode(data, "surrogateescape", False)
        self._held = data[used:]
        return _with_range(text.encode("utf-8", "surrogatepass"))


def _unfinished(data: bytes | bytearray) -> int:
    """How many bytes at the end are the front of a character of UTF-8. Bytes that can't become one are not."""
    for back in range(1, min(3, len(data)) + 1):
        if data[-back] & 0xC0 != 0x80:
            try:
                return back - codecs.utf_8_decode(data[-back:], "strict", False)[1]
            except UnicodeDecodeError:
                return 0
    return 0


def _line_with_runs(seconds: float, code: str, data: bytes | bytearray) -> bytes:
    """event_line of ASCII in which there are long runs of NUL."""
    pieces: list[bytes] = [orjson.dumps((round(seconds, 6), code))[:-1], b',"']
    at = 0
    for run in _RUNS.finditer(data):
        pieces.append(orjson.dumps(data[at : run.start()].decode("ascii"))[1:-1])
        at = run.end()
        whole, rest = divmod(at - run.start(), len(_NULS) // 6)
        pieces += [_NULS] * whole
        pieces.append(_NULS[: 6 * rest])
    pieces.append(orjson.dumps(data[at:].decode("ascii"))[1:-1])
    pieces.append(b'"]\n')
    return b"".join(pieces)


def decode_output(text: str) -> bytes:
    """The bytes that the text of "o" or "e" events stands for; exact for what OutputEncoder wrote.

    Other writers' text is their characters' UTF-8. A lone surrogate is a question mark.
    """
    data = text.encode("utf-8", "replace")
    if b"\xf4\x8f" not in data:
        return data
    data = data.replace(b"\xf4\x8f\xba", b"\xed\xb2").replace(b"\xf4\x8f\xbb", b"\xed\xb3")
    return data.decode("utf-8", "surrogatepass").encode("utf-8", "surrogateescape")


def bytes_as_text(data: bytes) -> str:
    """Bytes that should be UTF-8 as text, those that are not in the form above; decode_output gives them back."""
    encoder = OutputEncoder()
    return encoder.feed(data) + encoder.finish()


def _with_range(data: bytes) -> str:
    """UTF-8 (with surrogates that stand for bytes) as text in which all such bytes, and each byte of the characters
    U+10FE80..U+10FEFF, are characters of that range."""
    # The surrogates of F4, 8F, BA (or BB), and the first two bytes of that of the last byte, 80..BF, which stays.
    data = data.replace(b"\xf4\x8f\xba", b"\xed\xb3\xb4\xed\xb2\x8f\xed\xb2\xba\xed\xb2")
    data = data.replace(b"\xf4\x8f\xbb", b"\xed\xb3\xb4\xed\xb2\x8f\xed\xb2\xbb\xed\xb2")
    return data.replace(b"\xed\xb2", b"\xf4\x8f\xba").replace(b"\xed\xb3", b"\xf4\x8f\xbb").decode()


def escape_all(data: bytes) -> str:
    """Each byte from 0x80 on as a character of the range, whatever it may be part of."""
    return codecs.charmap_decode(data, "strict", _ALL_ESCAPED)[0]


def read_header(line: bytes, limit: int) -> dict[str, object]:
    """The header's members. Raises ProtocolError where it is no asciicast v2 header of `limit` bytes at most.

    version, width and height are checked, timestamp where it is there; the other members are as they came.
    """
    header = _read(line, limit)
    if not isinstance(header, dict):
        raise ProtocolError("the header of a cast is not a JSON object")
    version = header.get("version")
    if type(version) is not int or version != 2:
        raise ProtocolError("the header of a cast does not say version 2")
    for side in ("width", "height"):
        value = header.get(side)
        # Zero is what Go's zero value says for a session without a terminal.
        if type(value) is not int or not 0 <= value <= MAX_SIDE:
            raise ProtocolError(f"the header of a cast has no usable {side}")
    timestamp = header.get("timestamp", 0)
    if type(timestamp) not in (int, float) or not 0 <= timestamp < 1 << 53:
        raise ProtocolError("the header of a cast has a timestamp that is not a number of seconds")
    return header


def read_event(line: bytes, limit: int) -> tuple[float, str, str]:
    """One event: seconds since the start, code, data. Raises ProtocolError where it is none of `limit` bytes at most.

    The code is one ASCII letter, known or not; the data is text without lone surrogates. This decides whether a line of
    a cast is an event, `are_events` for many lines at once.
    """
    event = _read(line, limit)
    if not isinstance(event, list) or len(event) != 3:
        raise ProtocolError("an event of a cast is not an array of three")
    seconds, code, data = event
    if type(seconds) not in (int, float) or not 0 <= seconds <= MAX_TIME:
        raise ProtocolError("an event of a cast has a time that is not a number of seconds")
    if not isinstance(code, str) or not _is_code(code):
        raise ProtocolError("an event of a cast has a code that is not one letter")
    if not isinstance(data, str):
        raise ProtocolError("an event of a cast has data that is not text")
    if not _is_whole(data):
        raise ProtocolError("an event of a cast has an unpaired surrogate")
    if code == "r" and _RESIZE.fullmatch(data) is None:
        raise ProtocolError("a resize of a cast has no size")
    return float(seconds), code, data


def event_of(line: bytes) -> tuple[float, str, str] | None:
    """The event that a line is, None where it is none; for those who show what there is. Lone surrogates are U+FFFD: a
    damaged line's text is better shown than left out."""
    try:
        event = _load(line)
    except (ValueError, RecursionError):
        return None
    match event:
        case [int() | float() as seconds, str(code), str(data)]:
            if type(seconds) is not bool and 0 <= seconds <= MAX_TIME and _is_code(code):
                return float(seconds), code, data if _is_whole(data) else _LONE.sub("\ufffd", data)
    return None


def are_events(text: bytes) -> bool:
    """Whether each line of a text that ends with a line feed is an event; what read_event says of each of them.

    Line by line: a value that is let go before the next one is made costs less than half of one in a list of them all.
    What nearly all lines are is seen here, as a call for each would cost as much again.
    """
    for line in _lines(text):
        try:
            seconds, code, data = orjson.loads(line)
            if type(seconds) is float and 0 <= seconds <= MAX_TIME and code in _TEXT_CODES and type(data) is str:
                continue  # orjson lets no half of a character through, and what it unpacks into a float is an array
        except (ValueError, TypeError):
            pass
        try:
            read_event(line, len(line))
        except ProtocolError:
            return False
    return True


def _lines(text: bytes) -> Iterable[bytes]:
    """The lines of a text without their line feeds; what follows the last one is left out.

    Splitting looks at each byte, which for long lines takes half as long as reading them does. A search for the next
    line feed is free there, but costs more than a short line.
    """
    if text.find(b"\n") < _LONG_LINE:
        lines = text.split(b"\n")
        lines.pop()
        return lines
    return _found_lines(text)


def _found_lines(text: bytes) -> Iterator[bytes]:
    start = 0
    while (feed := text.find(b"\n", start)) >= 0:
        yield text[start:feed]
        start = feed + 1


def _is_code(code: str) -> bool:
    return len(code) == 1 and code.isascii() and code.isalpha()


def _is_whole(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def read_size(data: str) -> tuple[int, int]:
    """Columns and rows of an "r" event's data. Raises ProtocolError."""
    match = _SIZE.fullmatch(data)
    if match is None or (width := int(match[1])) > MAX_SIDE or (height := int(match[2])) > MAX_SIDE:
        raise ProtocolError("a resize without a usable size")
    return width, height


def _read(line: bytes, limit: int) -> object:
    if len(line) > limit:
        raise ProtocolError(f"a line of a cast is longer than {limit} bytes", status=413)
    try:
        return _load(line)
    except (ValueError, RecursionError):  # decoding errors and integers of 4,300 digits are ValueErrors
        raise ProtocolError("a line of a cast is not JSON") from None


def _load(line: bytes) -> object:
    """Raises ValueError, RecursionError."""
    value: object
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:  # lone surrogates, which it refuses, are told from the rest by the other
        value = json.loads(line.decode(), parse_constant=no_constant, parse_float=finite)
    return value
