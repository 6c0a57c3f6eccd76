"""From a path to a `Config`, or to every fault of the file at once.

pydantic tells all faults of the fields in one go, but nothing can be asked of a section that it refused. So what is
faulty is cut out of the data and the rest is asked again, until what is left is sound: that is what the checks between
sections see. A file is refused if there was one fault; what was left is never used.
"""

from __future__ import annotations

import copy
import difflib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import ValidationError

from k8sproxy.common.config.document import Broken, Document
from k8sproxy.common.config.faults import ConfigError, Fault, Key, dotted
from k8sproxy.config.checks import check_clusters, check_files, check_listeners
from k8sproxy.config.models import Admin, Cluster, Config, Listen, Section

# Bytes. The commented example has 10 KB; this is a bound on what a wrong path can make the parser read.
MAX_FILE = 1024 * 1024

S = TypeVar("S", bound=Section)


def load(path: Path, *, environment: Mapping[str, str] | None = None, files: bool = True) -> Config:
    """Read, check and return the configuration in `path`.

    Relative paths in the file are taken from the directory that it is in. environment: for ${NAME}, os.environ if it
    is None. files: also check that the files it names are there and can be used. Raises ConfigError with every fault.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            raw = file.read(MAX_FILE + 1)
    except OSError as error:
        raise ConfigError([Fault(path, 0, 0, "", f"can't be read: {error.strerror}")]) from None
    return parse(raw, path, environment=environment, files=files)


def parse(raw: bytes, path: Path, *, environment: Mapping[str, str] | None = None, files: bool = True) -> Config:
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
    return _Reading(document, path, files).config()


class _Reading:
    """The faults of one document, as they are found."""

    def __init__(self, document: Document, path: Path, files: bool) -> None:
        self._document = document
        self._path = path
        self._files = files
        self._faults: list[Fault] = []
        self._covered: set[Key] = set()
        # What is left of the two lists, as numbers in the file, once faulty items are cut out.
        self._numbers: dict[str, list[int]] = {}

    def config(self) -> Config:
        for fault in self._document.faults:
            self._add(fault.key, fault.message, fault.place, covers=fault.covers)
        data = self._document.data
        if not isinstance(data, dict):
            self._add((), "the file is empty" if data is None else "the file must be a mapping of keys")
            raise self._error()
        config, sound = self._validate(data)
        self._check(sound, data)
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

    def _validate(self, data: dict[str, Any]) -> tuple[Config | None, dict[str, Any]]:
        """The configuration, or else None and what of the data is sound."""
        rest = copy.deepcopy(data)
        for name in ("listen", "clusters"):
            items = rest.get(name)
            self._numbers[name] = list(range(len(items))) if isinstance(items, list) else []
        context = {"base": self._path.absolute().parent}
        for turn in range(8):  # a cut can only uncover something one level up, and there are four levels
            try:
                return Config.model_validate(rest, context=context, by_alias=True, by_name=False), rest
            except ValidationError as error:
                cuts: set[Key] = set()
                for details in error.errors(include_url=False, include_input=False):
                    key = details["loc"]
                    if details["type"] == "too_short" and self._numbers.get(str(key[0])):
                        continue  # pydantic counts no faulty items: those are what is wrong, the list isn't empty
                    if turn == 0:  # all that pydantic finds later is what the cuts have left behind
                        self._add(key, _message(key, details["type"], details["msg"], details.get("ctx", {})))
                    cuts.add(key[:-1] if details["type"] == "missing" else key)
                for cut in sorted(cuts, key=lambda key: [str(part).zfill(6) for part in key], reverse=True):
                    self._cut(rest, cut)
        return None, rest

    def _cut(self, rest: dict[str, Any], key: Key) -> None:
        holder: Any = rest
        try:
            for part in key[:-1]:
                holder = holder[part]
            del holder[key[-1]]
        except (KeyError, IndexError, TypeError):  # () or cut already
            return
        if len(key) == 2 and key[0] in self._numbers:
            del self._numbers[str(key[0])][int(key[1])]

    def _check(self, sound: dict[str, Any], data: dict[str, Any]) -> None:
        listeners = dict(self._sections(Listen, "listen", sound))
        clusters = dict(self._sections(Cluster, "clusters", sound))
        admin = self._section(Admin, sound.get("admin") or {})
        raw = data.get("clusters")
        given = [item.get("name") for item in raw if isinstance(item, dict)] if isinstance(raw, list) else []
        names = list(dict.fromkeys(name for name in given if isinstance(name, str)))
        found = [*check_listeners(listeners, admin, names), *check_clusters(clusters)]
        if self._files:
            found += check_files(listeners, clusters)
        for key, message in found:
            self._add(key, message)

    def _sections(self, model: type[S], name: str, sound: dict[str, Any]) -> Iterator[tuple[int, S]]:
        if not isinstance(sound.get(name), list):  # cut out as a whole
            return
        for number, item in zip(self._numbers[name], sound[name], strict=True):
            section = self._section(model, item)
            if section is not None:
                yield number, section

    def _section(self, model: type[S], value: object) -> S | None:
        try:
            return model.model_validate(
                value, context={"base": self._path.absolute().parent}, by_alias=True, by_name=False
            )
        except ValidationError:
            return None


def _message(key: Key, kind: str, text: str, context: Mapping[str, Any]) -> str:
    """What pydantic says, in the words of someone who writes YAML. It never holds the value."""
    match kind:
        case "missing":
            return "is required"
        case "extra_forbidden":
            close = difflib.get_close_matches(str(key[-1]), _known_keys(key[:-1]), n=1)
            return f"unknown key; did you mean {close[0]}?" if close else "unknown key"
        case "literal_error":
            return f"must be {str(context['expected']).replace(chr(39), '')}"
        case "model_type" | "model_attributes_type":
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


def _known_keys(key: Key) -> list[str]:
    section: Any = Config
    for part in key:
        if isinstance(part, str):
            field = next(field for field in section.model_fields.values() if field.alias == part)
            section = next(
                (item for item in (field.annotation, *get_args(field.annotation)) if _is_section(item)), Section
            )
    return [field.alias for field in section.model_fields.values()]


def _is_section(item: object) -> bool:
    return isinstance(item, type) and issubclass(item, Section)
