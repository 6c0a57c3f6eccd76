"""From a path to a checked configuration, or to every fault of the file at once: for both programs.

    bytes -> document (YAML with places, environment put in) -> models (each section by itself) -> checks (sections
    against each other, files) -> the configuration, or ConfigError with every fault, its line, column and key

pydantic reports all faults of the fields at once, but nothing can be asked of a section that it refused. So a faulty
value is cut out of the data and the rest is validated again, until what is left is sound: that is what the checks see
(`Sound`). A file with one fault is refused; what was left of it is never used.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from k8sproxy.common.config.document import Broken, Document
from k8sproxy.common.config.faults import ConfigError, Fault, Key, dotted

# Bytes. The commented examples have 10 KB; this is a bound on what a wrong path can make the parser read.
MAX_FILE = 1024 * 1024
# A cut can only uncover a fault one level up, and no schema here has more than four levels.
_TURNS = 8

C = TypeVar("C", bound=BaseModel)
M = TypeVar("M", bound=BaseModel)
V = TypeVar("V")


class Sound:
    """What is left of a file without its faulty values. Keys and numbers of list items are those of the file."""

    def __init__(self, data: Mapping[str, Any], base: Path) -> None:
        self.data = data
        self._base = base
        self._cut: set[Key] = set()

    def section(self, model: type[M], *key: str) -> M | None:
        """The section of this key; its defaults if the file does not have it. None if it is not sound."""
        return None if key in self._cut else self._validated(model, _at(self.left(), key, {}))

    def numbered(self, model: type[M], name: str) -> dict[int, M]:
        """The sound sections in the list of this name, by their numbers in the file."""
        items = _at(self.left(), (name,), None)
        if not isinstance(items, list):
            return {}
        sections = ((number, self._validated(model, item)) for number, item in self.numbers((name,), items))
        return {number: section for number, section in sections if section is not None}

    def is_whole(self, *key: str) -> bool:
        """Whether nothing in this section is faulty. A faulty value is missing from a section that is sound without it,
        so a check that asks whether a key is there must ask this first."""
        return not any(cut[: len(key)] == key for cut in self._cut)

    def numbers(self, key: Key, values: Sequence[V]) -> list[tuple[int, V]]:
        """The values of a list, with their numbers in the file."""
        items = self._left_of(key)
        # Where the file has no such list, or none that is sound, these are its defaults.
        return list(zip(items, values, strict=True)) if items and key not in self._cut else list(enumerate(values))

    def left(self) -> Any:
        """The data without what is left out."""
        return self._without((), self.data)

    def place(self, key: Key) -> Key:
        """Where in the file that is which has this key in `left`."""
        place: Key = ()
        for part in key:
            place = (*place, self._left_of(place)[part] if isinstance(part, int) else part)
        return place

    def leave_out(self, keys: Iterable[Key]) -> bool:
        """Leave out the values of these keys. Whether any of them was still there."""
        before = len(self._cut)
        self._cut.update(key for key in keys if key)
        return len(self._cut) > before

    def validated(self, model: type[M], value: object) -> M:
        """Raises ValidationError."""
        return model.model_validate(value, context={"base": self._base}, by_alias=True, by_name=False)

    def _validated(self, model: type[M], value: object) -> M | None:
        try:
            return self.validated(model, value)
        except ValidationError:
            return None

    def _without(self, key: Key, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {
                name: self._without((*key, name), item) for name, item in value.items() if (*key, name) not in self._cut
            }
        if isinstance(value, list):
            return [self._without((*key, number), value[number]) for number in self._left_of(key)]
        return value

    def _left_of(self, key: Key) -> list[int]:
        """The numbers that are left of a list; none if there is no list."""
        items = _at(self.data, key, None)
        return [n for n in range(len(items)) if (*key, n) not in self._cut] if isinstance(items, list) else []


Checks = Callable[[Sound], Iterable[tuple[Key, str]]]


def load(path: Path, model: type[C], checks: Checks, *, environment: Mapping[str, str] | None = None) -> C:
    """Read, check and return the configuration in `path`.

    Relative paths in the file are taken from the directory that it is in. checks: what is wrong between sections, as
    (key, message) pairs. environment: for ${NAME}, os.environ if it is None. Raises ConfigError with every fault.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            raw = file.read(MAX_FILE + 1)
    except OSError as error:
        raise ConfigError([Fault(path, 0, 0, "", f"can't be read: {error.strerror}")]) from None
    return parse(raw, path, model, checks, environment=environment)


def parse(raw: bytes, path: Path, model: type[C], checks: Checks, *, environment: Mapping[str, str] | None = None) -> C:
    """`load`, for the bytes of a file that has been read. path: where they are from."""
    if len(raw) > MAX_FILE:
        raise ConfigError([Fault(path, 0, 0, "", f"has more than {MAX_FILE} bytes")])
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = raw[: error.start]
        place = before.count(b"\n") + 1, len(before) - (before.rfind(b"\n") + 1) + 1
        raise ConfigError([Fault(path, *place, "", "not UTF-8")]) from None
    try:
        document = Document(text, os.environ if environment is None else environment)
    except Broken as broken:
        raise ConfigError([Fault(path, *broken.place, "", broken.message)]) from None
    return _Reading(document, path, model).config(checks)


class _Reading(Generic[C]):
    """The faults of one document, as they are found."""

    def __init__(self, document: Document, path: Path, model: type[C]) -> None:
        self._document = document
        self._path = path
        self._model = model
        self._faults: list[Fault] = []
        self._covered: set[Key] = set()

    def config(self, checks: Checks) -> C:
        for fault in self._document.faults:
            self._add(fault.key, fault.message, fault.place, covers=fault.covers)
        data = self._document.data
        if not isinstance(data, dict):
            self._add((), "the file is empty" if data is None else "the file must be a mapping of keys")
            raise self._error()
        sound = Sound(data, self._path.absolute().parent)
        config = self._validate(sound)
        for key, message in checks(sound):
            self._add(key, message)
        if self._faults or config is None:
            raise self._error()
        return config

    def _error(self) -> ConfigError:
        return ConfigError(sorted(self._faults, key=lambda fault: (fault.line, fault.column)))

    def _add(self, key: Key, message: str, place: tuple[int, int] | None = None, *, covers: bool = True) -> None:
        # Once a key has a fault, others of it and of what is in it are likely its consequences.
        if any(key[:end] in self._covered for end in range(1, len(key) + 1)):
            return
        if covers:
            self._covered.add(key)
        line, column = place or self._document.place(key)
        self._faults.append(Fault(self._path, line, column, dotted(key), message))

    def _validate(self, sound: Sound) -> C | None:
        """The configuration, or else None; then `sound` has lost what is faulty."""
        for turn in range(_TURNS):
            try:
                return sound.validated(self._model, sound.left())
            except ValidationError as error:
                faults = [
                    (sound.place(details["loc"]), details)
                    for details in error.errors(include_url=False, include_input=False)
                ]
            cuts: set[Key] = set()
            for key, details in faults:
                if details["type"] == "too_short" and any(key == other[: len(key)] != other for other, _ in faults):
                    continue  # pydantic counts no faulty items: those are what is wrong, the list isn't empty
                if turn == 0:  # all that pydantic finds later is what the cuts have left behind
                    self._add(key, self._message(key, details["type"], details["msg"], details.get("ctx", {})))
                cuts.add(key[:-1] if details["type"] == "missing" else key)
            if not sound.leave_out(cuts):
                break
        return None

    def _message(self, key: Key, kind: str, text: str, context: Mapping[str, Any]) -> str:
        """What pydantic says, in the words of someone who writes YAML. It never holds the value."""
        match kind:
            case "missing":
                return "is required"
            case "extra_forbidden":
                close = difflib.get_close_matches(str(key[-1]), _known_keys(self._model, key[:-1]), n=1)
                return f"unknown key; did you mean {close[0]}?" if close else "unknown key"
            case "literal_error":
                return f"must be {str(context['expected']).replace(chr(39), '')}"
            case "model_type" | "model_attributes_type" | "dict_type":
                return "must be a mapping of keys"
            case "tuple_type":
                return "must be a list"
            case "too_short" | "string_too_short":
                return "must not be empty"
            case "bool_type":
                return "must be true or false"
            case "string_type":
                return "must be text (put it in quotes)"
            case _:
                return text.removeprefix("Value error, ")


def _at(data: Any, key: Key, default: Any) -> Any:
    """The value of a key, or the default where there is none, or nothing after the key."""
    for part in key:
        if isinstance(data, Mapping):
            data = data.get(str(part))
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            data = data[part]
        else:
            return default
    return default if data is None else data


def _known_keys(model: type[BaseModel], key: Key) -> list[str]:
    for part in key:
        if isinstance(part, str):
            field = next(field for field in model.model_fields.values() if field.alias == part)
            model = next(item for item in (field.annotation, *get_args(field.annotation)) if _is_section(item))
    return [field.alias or "" for field in model.model_fields.values()]


def _is_section(item: object) -> bool:
    return isinstance(item, type) and issubclass(item, BaseModel)
