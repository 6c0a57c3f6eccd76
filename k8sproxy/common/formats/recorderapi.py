"""The wire of a recorder, both versions: names, and how its answers are read.

    v2      HEAD /v2/record, then POST /v2/record, HTTP/2 by prior knowledge. The response head comes at once; its body
            is a stream of JSON objects, {"ack": N} (N = bytes of the request's body that are stored, in all) or
            {"error": ".."}, with or without blanks between them. `AckReader` reads it.
    v1      POST /record, HTTP/1.1, chunked, Expect: 100-continue. There are no acks: the 100 is the recorder's word
            that it takes the session, the final 200 that it has it.
    events  HEAD, then POST /v2/event, HTTP/1.1, a JSON object each, or a JSON array of at most N where the answer to
            HEAD said `Event-Batch: N`.

Source: facts on tsrecorder and its clients in tailscale.com v1.102.5 (sessionrecording). These
are this project's own, and whoever does not know them is served all the same:

    Asciicast-Event-Codes, Event-Batch      of answers: see `read_event_codes` and `read_event_batch`
    Recorder-Error                          of refusals: why, where there is no body to say it in
    Recorder-User                           of sessions: whose share of a recorder's places they take, percent-encoded
    Recorder-Declines                       of refusals, and `declines` beside `error`: the recorder is well and takes
                                            other sessions. "user": this user has too many; "sender": this proxy has
                                            too many, with all its users; "session": it makes no sense
"""

from __future__ import annotations

import json
import re
from ipaddress import ip_address
from urllib.parse import quote, unquote

from k8sproxy.common.errors import ProtocolError

V2_PATH = "/v2/record"
V1_PATH = "/record"
EVENT_PATH = "/v2/event"
EVENT_CODES_FIELD = "asciicast-event-codes"
EVENT_BATCH_FIELD = "event-batch"
# Why a request is refused, where the answer has no body to say it in, as that to HEAD.
ERROR_FIELD = "recorder-error"
USER_FIELD = "recorder-user"
DECLINES_FIELD = "recorder-declines"
# What a recorder declines that is well.
DECLINES = frozenset({"user", "sender", "session"})
_TOO_MANY_REQUESTS = 429  # RFC 6585, 4
# Bytes of the value of Recorder-User; a longer name is left out, the header line has it too.
MAX_USER = 1024

# asciicast v2: what every reader of recordings knows. "e" (stderr apart) and "m" (marker) only where asked for.
DEFAULT_EVENT_CODES = frozenset({"o", "r"})
# Events in one array at most, for sender and receiver, whatever the other allows: some 4 KiB each, so 4 MiB a request.
MAX_EVENT_BATCH = 1000
# Bytes of a request with events, for both. A batch is full at 1 MiB, so this is for the largest single event: a body of
# 8 MiB (the most of events.bodyBytes), which base64 makes 11 MiB. An event that would be larger goes without its body.
MAX_EVENTS = 16 << 20

# Bytes of one JSON object. An ack takes 40, an error a sentence or two; Go's own errors may quote a path or a URL.
MAX_MESSAGE = 16 * 1024
# Bytes of a refusal's body that are looked at: a sentence or two.
MAX_REFUSAL = 4096
# Characters of a recorder's own words that are repeated to a user.
_MAX_WORDS = 200

_ACK = re.compile(rb'[ \t\r\n]*+\{[ \t\r\n]*+"ack"[ \t\r\n]*+:[ \t\r\n]*+(0|[1-9][0-9]{0,17}+)[ \t\r\n]*+\}')
_SPECIAL = re.compile(rb'[{}\[\]"]')
_STRING_SPECIAL = re.compile(rb'["\\]')
_BLANKS = b" \t\r\n"
_MAX_DEPTH = 16  # an ack has 1; json itself gives up at about 1000 with another exception


class RecorderError(Exception):
    """The recorder's own {"error": ".."}; the message is one printable line of it. declines: one of DECLINES where the
    recorder is well, else ""."""

    def __init__(self, message: str, declines: str = "") -> None:
        super().__init__(message)
        self.declines = declines


class AckReader:
    """Reads the body of a v2 response: how many bytes the recorder has stored.

    acked: the newest N. `receive_data` takes any slice and raises ProtocolError for what is no such stream (a number
    that goes backwards among it), RecorderError for an error object. Members that are not known are skipped, an
    object without `ack` says nothing: both as Go's reader has it. Holds at most MAX_MESSAGE bytes.
    """

    __slots__ = ("_depth", "_held", "_in_string", "_position", "acked")

    def __init__(self) -> None:
        self.acked = 0
        self._held = b""
        self._position = 0  # of the scan in _held
        self._depth = 0
        self._in_string = False

    @property
    def at_boundary(self) -> bool:
        """Whether the stream may end here: no object is unfinished."""
        return not self._held

    def receive_data(self, data: bytes) -> int:
        """Takes what came and returns `acked`."""
        data = self._held + data if self._held else data
        while data:
            if not self._position and (match := _ACK.match(data)):
                self._ack(int(match[1]))
                data = data[match.end() :]
                continue
            if not self._position:
                data = data.lstrip(_BLANKS)
                if not data:
                    break
                if data[0] != 0x7B:
                    raise ProtocolError("the recorder's answer is not a JSON object")
            end = self._scan(data)
            if end > MAX_MESSAGE or (end < 0 and len(data) > MAX_MESSAGE):
                raise ProtocolError(f"the recorder's answer is longer than {MAX_MESSAGE} bytes")
            if end < 0:
                break
            self._message(data[:end])
            data = data[end:]
        self._held = data
        return self.acked

    def receive_eof(self) -> None:
        """The response has ended. Raises ProtocolError if it did so within an object."""
        if self._held:
            raise ProtocolError("the recorder's answer ends within a message")

    def _scan(self, data: bytes) -> int:
        """Where the object at the front ends; -1 while it has not. Goes over every byte once."""
        position = self._position
        while True:
            if self._in_string:
                match = _STRING_SPECIAL.search(data, position)
                if match is None:
                    position = len(data)
                    break
                if match[0] == b"\\":
                    if match.end() == len(data):  # what it escapes has not come: look at it again
                        position = match.start()
                        break
                    position = match.end() + 1
                    continue
                self._in_string = False
                position = match.end()
                continue
            match = _SPECIAL.search(data, position)
            if match is None:
                position = len(data)
                break
            position = match.end()
            if match[0] == b'"':
                self._in_string = True
            elif match[0] in b"{[":
                self._depth += 1
                if self._depth > _MAX_DEPTH:
                    raise ProtocolError("the recorder's answer is nested too deeply")
            else:
                self._depth -= 1
                if not self._depth:
                    self._position = 0
                    return position
        self._position = position
        return -1

    def _message(self, text: bytes) -> None:
        try:
            message = json.loads(text)
        except ValueError:
            raise ProtocolError("the recorder's answer is not JSON") from None
        error = message.get("error")
        if error is not None and not isinstance(error, str):
            raise ProtocolError("the recorder's answer has an error that is not text")
        if error:
            raise RecorderError(printable(error), read_declines(message.get("declines")))
        ack = message.get("ack", 0)
        if type(ack) is not int or ack < 0:
            raise ProtocolError("the recorder's answer has an ack that is not a number of bytes")
        self._ack(ack)

    def _ack(self, ack: int) -> None:
        if not ack:
            return  # in Go, the same as an object without it
        if ack < self.acked:
            raise ProtocolError(f"the recorder's acks go backwards, from {self.acked} to {ack} bytes")
        self.acked = ack


def read_refusal(body: bytes, field: str | None = None) -> str:
    """One printable line of why a recorder refuses: {"error": ".."} or {"message": ".."}, else the first line of a
    text, else the value of `Recorder-Error`; "" where it gives no reason. body: the first MAX_REFUSAL bytes at most."""
    text = body.decode("utf-8", "replace").strip()
    said: object = None
    if text.startswith(("{", "[")):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, dict):
            said = value.get("error") or value.get("message")
    elif text and not text.startswith("<"):  # a page is no reason
        said = text.partition("\n")[0]
    line = printable(said) if isinstance(said, str) else ""
    return line or printable(field or "")


def read_declines(value: object, status: int = 0) -> str:
    """What a recorder declines that is well, of the field's or member's value; "" where it is not known to be. status:
    of the answer; a 429 without the field is about its sender, and a recorder that can count is well."""
    if isinstance(value, str) and value in DECLINES:
        return value
    return "sender" if status == _TOO_MANY_REQUESTS else ""


def user_value(user: str) -> str:
    """A user's name as the value of Recorder-User; "" where it has none, or is too long."""
    value = quote(user, safe="@:+")
    return value if len(value) <= MAX_USER else ""


def read_user(value: str | None) -> str:
    """The name in the value of Recorder-User; "" where there is none."""
    if not value or len(value) > MAX_USER:
        return ""
    try:
        return unquote(value, errors="strict")
    except UnicodeDecodeError:
        return ""


def read_event_codes(value: str | None) -> frozenset[str]:
    """The asciicast event codes that a recorder takes, of its field's value; those of asciicast v2 in any case."""
    if not value:
        return DEFAULT_EVENT_CODES
    codes = (code.strip() for code in value[:256].split(","))
    return DEFAULT_EVENT_CODES | {code for code in codes if len(code) == 1 and code.isascii() and code.isalpha()}


def read_event_batch(value: str | None) -> int:
    """How many events one request may carry, of the field's value; 0: one object each, not in an array."""
    if not value or not re.fullmatch(r"[0-9]{1,9}", value.strip()):
        return 0
    return min(int(value), MAX_EVENT_BATCH)


def split_address(address: str) -> tuple[str, int]:
    """("IP", PORT) of "IP:PORT" or "[IPv6]:PORT". Raises ProtocolError for anything else."""
    host, colon, port = address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if bracketed else host
    try:
        version: int = ip_address(host).version
    except ValueError:
        version = 0
    if not colon or version != (6 if bracketed else 4) or not re.fullmatch(r"[0-9]{1,5}", port):
        raise ProtocolError("not an address of the form IP:PORT or [IPv6]:PORT")
    number = int(port)
    if not 0 < number < 65536:
        raise ProtocolError("not a port between 1 and 65535")
    return host, number


def printable(text: str) -> str:
    """One short line of what a recorder says, without control characters: it is shown on terminals."""
    line = "".join(character if character.isprintable() else " " for character in text[: _MAX_WORDS + 1]).strip()
    return line if len(line) <= _MAX_WORDS else line[:_MAX_WORDS] + ".."
