"""What the recorder keeps, as values: a recording, an API event, who sent it. A leaf.

A recording's header and an event's document are the sender's words, kept as they came: strings may stand where numbers
are expected. So the properties below read them with care and give "" or () for whatever is not what it should be; they
never raise. The `source` is not the sender's word but the tailnet's (WhoIs), and is what access goes by where a
question is about who sent it.

An id is a ULID: 26 characters of Crockford's base 32, 48 bits of milliseconds, then 80 random bits; ids sort by time.
"""

from __future__ import annotations

import enum
import json
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, Protocol

from k8sproxy.common.formats.strictjson import finite, no_constant

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_MEMBER = re.compile(r"[A-Za-z][A-Za-z.]{0,63}\Z")
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
_ID = re.compile(rf"[0-7][{_ALPHABET}]{{25}}\Z")


# Levels of what a sender sends: Kubernetes's own words need five. JSON is read and written by functions that call
# themselves, and what could just be taken in could fail wherever it is read again with less of the stack left.
MAX_DEPTH = 64


def parse_json(text: bytes | bytearray) -> Any:
    """A sender's JSON. Raises ValueError, with a message for the sender, for what could not be told to everybody again:
    NaN and Infinity, which are no JSON, numbers beyond a double, and more than MAX_DEPTH levels."""
    try:
        value = json.loads(text, parse_constant=no_constant, parse_float=finite)
    except (ValueError, RecursionError):
        raise ValueError("not JSON") from None
    if text.count(b"[") + text.count(b"{") > MAX_DEPTH and isinstance(value, dict | list) and not _is_shallow(value):
        raise ValueError(f"not JSON of at most {MAX_DEPTH} levels")
    return value


def _is_shallow(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return True
    return False


def new_id(now: float | None = None) -> str:
    """A new id. now: unix seconds, the present by default."""
    return _encode(int((time.time() if now is None else now) * 1000), 10) + _encode(
        int.from_bytes(os.urandom(10), "big"), 16
    )


def is_id(text: str) -> bool:
    """Whether it is an id of ours: safe as a part of a path, a query and a page."""
    return _ID.match(text) is not None and text[:10] <= _LAST_MOMENT


def id_time(identifier: str) -> float:
    """When an id was made, in unix seconds. Raises ValueError for what is no id."""
    if not is_id(identifier):
        raise ValueError("not an id")
    number = 0
    for character in identifier[:10]:
        number = number * 32 + _ALPHABET.index(character)
    return number / 1000


def id_day(identifier: str) -> str:
    """The day (UTC) of an id as "yyyy-mm-dd", under which the store keeps it. Raises ValueError for what is no id."""
    return datetime.fromtimestamp(id_time(identifier), UTC).strftime("%Y-%m-%d")


def day_after(day: str) -> str:
    """The day behind a day, as "yyyy-mm-dd"."""
    return (date.fromisoformat(day) + timedelta(days=1)).isoformat()


def first_id(day: str) -> str:
    """The lowest id of a day (UTC, "yyyy-mm-dd")."""
    return _encode(int(datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp() * 1000), 10) + "0" * 16


def _encode(number: int, digits: int) -> str:
    return "".join(_ALPHABET[number >> shift & 31] for shift in range(5 * (digits - 1), -1, -5))


# 48 bits of milliseconds go on to the year 10889; days have four digits of a year.
_LAST_MOMENT = _encode(int(datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC).timestamp()) * 1000 + 999, 10)


class End(enum.Enum):
    """How far a recording is. CUT: the sender vanished without an end, or the recorder was killed meanwhile."""

    RUNNING = "running"
    CLEAN = "clean"
    CUT = "cut"


@dataclass(frozen=True, slots=True)
class Source:
    """The peer that sent it, by WhoIs. node: its name without the final dot. user: its login name, "" where it is
    tagged. address: its tailnet address without a port."""

    node: str
    address: str
    user: str = ""
    tags: tuple[str, ...] = ()

    def values(self) -> dict[str, Any]:
        """As JSON values."""
        return {"node": self.node, "address": self.address, "user": self.user, "tags": list(self.tags)}

    @classmethod
    def of(cls, values: object) -> Source:
        """From JSON values; what is missing is empty."""
        if not isinstance(values, Mapping):
            return cls("", "")
        return cls(_text(values, "node"), _text(values, "address"), _text(values, "user"), _texts(values.get("tags")))


@dataclass(frozen=True, slots=True)
class Recording:
    """One session. header: the cast header as sent. started, ended: unix seconds by the recorder's clock. size: bytes
    of cast text. duration: seconds, the last event's time. events: lines behind the header. damaged: some line could
    not be read as an event; it is kept as it came."""

    id: str
    header: Mapping[str, Any]
    source: Source
    started: float
    ended: float | None = None
    end: End = End.RUNNING
    size: int = 0
    duration: float = 0.0
    events: int = 0
    damaged: bool = False

    @property
    def _kubernetes(self) -> Mapping[str, Any]:
        value = self.header.get("kubernetes")
        return value if isinstance(value, Mapping) else {}

    @property
    def _impersonation(self) -> Mapping[str, Any]:
        value = self.header.get("impersonation")
        return value if isinstance(value, Mapping) else {}

    @property
    def user(self) -> str:
        """Whose session it is: the login name of the person, else whom a tagged node was impersonated as."""
        return _text(self.header, "srcNodeUser") or _text(self._impersonation, "user")

    @property
    def groups(self) -> tuple[str, ...]:
        """The impersonated groups."""
        return _texts(self._impersonation.get("groups"))

    @property
    def node(self) -> str:
        """The node that the session came from, without the final dot."""
        return _text(self.header, "srcNode").removesuffix(".")

    @property
    def tags(self) -> tuple[str, ...]:
        """The tags of that node."""
        return _texts(self.header.get("srcNodeTags"))

    @property
    def cluster(self) -> str:
        """The cluster's name, where the sender gives one."""
        return _text(self._kubernetes, "Cluster")

    @property
    def namespace(self) -> str:
        """The pod's namespace."""
        return _text(self._kubernetes, "Namespace")

    @property
    def pod(self) -> str:
        """The pod's name."""
        return _text(self._kubernetes, "PodName")

    @property
    def container(self) -> str:
        """The container's name, "" where the session took the pod's default one."""
        return _text(self._kubernetes, "Container")

    @property
    def session_type(self) -> str:
        """exec or attach; ssh for a session of Tailscale SSH (which names an sshUser and no pod)."""
        return _text(self._kubernetes, "SessionType") or ("ssh" if _text(self.header, "sshUser") else "")

    @property
    def command(self) -> str:
        """The command line."""
        return _text(self.header, "command")

    @property
    def session_id(self) -> str:
        """The sender's own id of the session, as it stands in its log."""
        return _text(self.header, "sessionID") or _text(self.header, "connectionID")

    @property
    def user_agent(self) -> str:
        """The client's User-Agent."""
        return _text(self.header, "userAgent")

    @property
    def truncated(self) -> dict[str, dict[str, Any]]:
        """The header's members that the sender had to cut, by name: {"bytes": how long it was, "sha256": of all of it}.

        Only what is of that form; there are some dozen at most.
        """
        told = self.header.get("truncated")
        cuts: dict[str, dict[str, Any]] = {}
        for name, cut in list(told.items())[:32] if isinstance(told, Mapping) else ():
            size, digest = (cut.get("bytes"), cut.get("sha256")) if isinstance(cut, Mapping) else (None, None)
            if (
                _MEMBER.match(name)
                and type(size) is int
                and size >= 0
                and isinstance(digest, str)
                and _SHA256.match(digest)
            ):
                cuts[name] = {"bytes": size, "sha256": digest}
        return cuts


@dataclass(frozen=True, slots=True)
class ApiEvent:
    """One request to a Kubernetes API, as the sender describes it. received: unix seconds by the recorder's clock."""

    id: str
    received: float
    source: Source
    document: Mapping[str, Any]

    def _part(self, name: str) -> Mapping[str, Any]:
        value = self.document.get(name)
        return value if isinstance(value, Mapping) else {}

    @property
    def user(self) -> str:
        """Who asked, as of a recording: the login name of the person, else whom a tagged node was impersonated as."""
        return _text(self._part("source"), "nodeUser") or _text(self._part("impersonation"), "user")

    @property
    def node(self) -> str:
        """The node that the request came from, without the final dot."""
        return _text(self._part("source"), "node").removesuffix(".")

    @property
    def cluster(self) -> str:
        """The cluster's name, "" where the sender gives none."""
        return (
            _text(self._part("kubernetes"), "Cluster")
            or _text(self.document, "cluster")
            or _text(self._part("destination"), "cluster")
        )

    @property
    def namespace(self) -> str:
        """The namespace that was asked for, "" where the request is not for one."""
        return _text(self._part("kubernetes"), "Namespace")

    @property
    def session_id(self) -> str:
        """The sender's id of the session that the request begins, "" where it begins none."""
        return _text(self.document, "sessionID")


class UnreadableError(Exception):
    """What is kept is not what was put: asking again gives the same, and everything else may be well."""


class Observer(Protocol):
    """Who is told by the store, on its loop, after the bytes are safe. Must return at once and raise nothing."""

    def began(self, recording: Recording) -> None:
        """A recording has begun: its header is safe."""

    def progressed(self, recording: Recording) -> None:
        """It has grown; at most once a second while it runs."""

    def ended(self, recording: Recording) -> None:
        """It is over. Also told at open() of those that a crash had left unfinished."""

    def corrected(self, recording: Recording) -> None:
        """Something else is known of it than what was told: that it is damaged, which may be found after its end."""

    def event_added(self, event: ApiEvent) -> None:
        """An API event is safe."""

    def removed(self, identifier: str) -> None:
        """A recording is gone from the store, or all API events of a day ("events DAY")."""


def _text(values: Mapping[str, Any], name: str) -> str:
    value = values.get(name)
    if not isinstance(value, str):
        return ""
    # A lone surrogate is valid in JSON's escapes and in nothing that this goes to (SQL, UTF-8, a page).
    return value if value.isascii() else value.encode("utf-8", "replace").decode()


def _texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list | tuple):
        return ()
    return tuple(item.encode("utf-8", "replace").decode() for item in value if isinstance(item, str))


def spender(header: Mapping[str, Any], source: Source) -> str:
    """Whose share a session takes: the user's that its header names, else its node's (as the proxy has it: see
    k8sproxy.common.tailnet.peer.Peer.owner); "" where it names neither."""
    return _text(header, "srcNodeUser") or _text(header, "srcNodeID") or _text(header, "srcNode").removesuffix(".")
