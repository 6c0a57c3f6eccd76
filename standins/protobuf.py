"""Reads the few protobuf bodies that kubectl sends: its typed clients (auth, create configmap) prefer them.

A body is "k8s\\0" and a runtime.Unknown: the type's apiVersion and kind, then the object's own message. Field numbers
are those of the generated.proto files of k8s.io/api and apimachinery. Fields that aren't listed here are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

MEDIA_TYPE = "application/vnd.kubernetes.protobuf"
_MAGIC = b"k8s\0"

_TEXT: dict[int, tuple[str, Any]] = {}  # a string
_MAP: dict[int, tuple[str, Any]] = {1: ("key", _TEXT), 2: ("value", _TEXT)}  # an entry of a map<string, string>
_METADATA = {1: ("name", _TEXT), 3: ("namespace", _TEXT), 11: ("labels", _MAP), 12: ("annotations", _MAP)}
_RESOURCE = {1: ("namespace", _TEXT), 2: ("verb", _TEXT), 5: ("resource", _TEXT), 6: ("subresource", _TEXT)}
_KINDS: Mapping[str, dict[int, tuple[str, Any]]] = {
    "ConfigMap": {1: ("metadata", _METADATA), 2: ("data", _MAP)},
    "Namespace": {1: ("metadata", _METADATA)},
    "SelfSubjectReview": {1: ("metadata", _METADATA)},
    "SelfSubjectAccessReview": {1: ("metadata", _METADATA), 2: ("spec", {1: ("resourceAttributes", _RESOURCE)})},
}


def decode(body: bytes) -> dict[str, Any]:
    """The object in `body` as JSON values. Raises ValueError for a kind that isn't known here, or no protobuf."""
    if not body.startswith(_MAGIC):
        raise ValueError("the body isn't Kubernetes protobuf")
    envelope = _message(body[len(_MAGIC) :], {1: ("type", _MAP), 2: ("raw", None)})
    ((version, kind),) = envelope.get("type", {"": ""}).items()
    if kind not in _KINDS or "raw" not in envelope:
        raise ValueError(f"the stand-in reads {kind or 'this'} as JSON only")
    return {"apiVersion": version, "kind": kind, **_message(envelope["raw"], _KINDS[kind])}


def _message(data: bytes, schema: dict[int, tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for number, value in _fields(data):
        name, inner = schema.get(number, ("", None))
        if not name:
            continue
        if inner is None:
            values[name] = value
        elif inner is _TEXT:
            values[name] = value.decode()
        elif inner is _MAP:
            entry = _message(value, _MAP)
            values.setdefault(name, {})[entry.get("key", "")] = entry.get("value", "")
        else:
            values[name] = _message(value, inner)
    return values


def _fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The length-delimited fields of a message: (number, value). Numbers are passed over."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        match key & 7:
            case 0:
                _, at = _varint(data, at)
            case 1:
                at += 8
            case 2:
                size, at = _varint(data, at)
                if at + size > len(data):
                    raise ValueError("a protobuf field is longer than its message")
                yield key >> 3, data[at : at + size]
                at += size
            case 5:
                at += 4
            case _:
                raise ValueError("a protobuf field of an unknown wire type")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 64, 7):
        if at >= len(data):
            break
        value |= (data[at] & 0x7F) << shift
        at += 1
        if data[at - 1] < 0x80:
            return value, at
    raise ValueError("a protobuf number that doesn't end")
