"""A YAML text as plain values, plus the place of every key, plus the environment put in.

pydantic knows keys and PyYAML knows places; neither knows both. So the YAML is composed into nodes here (which carry
their marks), and built into values by a walk of our own that notes where each key stands. The walk is also where the
file is held to what a configuration may be: plain scalars, lists and mappings with text keys that occur once. Tags,
merge keys and several documents are refused. Aliases are fine, but a few of them can stand for billions of values
(`b: [*a, *a, ...]`, `c: [*b, *b, ...]`), and one may contain itself, so what they unfold to is counted and bounded.

`${NAME}` in a value is replaced by that environment variable; one that is not set is a fault, `$$` is a dollar sign
and any other dollar sign stands for itself. An unquoted value is looked at again afterwards, so that `${PORTS}` can
give a number and `"${PORTS}"` gives text. Keys are never replaced.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import yaml

from k8sproxy.common.config.faults import Key, dotted

# Levels. The schema needs 4; deeper nesting is an accident or an attack on the recursion below and in PyYAML.
MAX_DEPTH = 20
# Values after aliases are unfolded. A file with hundreds of listeners has a few thousand.
MAX_VALUES = 20_000
# Characters of one value after the environment is put in: paths and names are short.
MAX_TEXT = 64 * 1024

_REFERENCE = re.compile(r"\$\$|\$\{([^{}]*)\}")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_PLAIN_TAGS = ("null", "bool", "int", "float", "str")
_TAG = "tag:yaml.org,2002:"

Place = tuple[int, int]


class Broken(Exception):
    """The text is no YAML document, or one that is refused whole. message, place (line and column from 1)."""

    def __init__(self, message: str, place: Place) -> None:
        super().__init__(message)
        self.message = message
        self.place = place


@dataclass(frozen=True, slots=True)
class DocumentFault:
    """covers: there is no value to look at, so that further faults of this key would be this one's consequences."""

    key: Key
    place: Place
    message: str
    covers: bool = True


class Document:
    """data: dict, list, str, int, float, bool or None. faults: those found while it was built."""

    def __init__(self, text: str, environment: Mapping[str, str]) -> None:
        self.faults: list[DocumentFault] = []
        self._environment = environment
        self._places: dict[Key, Place] = {}
        self._values = 0
        root = _compose(text)
        self._constructor = yaml.constructor.SafeConstructor()
        self.data: object = None
        if root is not None:
            self._places[()] = _place(root.start_mark)
            self.data = self._value(root, (), 0)

    def place(self, key: Key) -> Place:
        """Line and column of this key, or of the nearest thing around it that stands in the file."""
        while key and key not in self._places:
            key = key[:-1]
        return self._places.get(key, (1, 1))

    def _fault(self, key: Key, place: Place, message: str) -> None:
        self.faults.append(DocumentFault(key, place, message))

    def _value(self, node: yaml.Node, key: Key, depth: int) -> object:
        self._values += 1
        if self._values > MAX_VALUES:
            raise Broken(f"more than {MAX_VALUES} values, counting each use of an alias", _place(node.start_mark))
        if depth >= MAX_DEPTH and not isinstance(node, yaml.ScalarNode):
            raise Broken(f"more than {MAX_DEPTH} levels deep, counting each use of an alias", _place(node.start_mark))
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, key, depth)
        if isinstance(node, yaml.SequenceNode):
            self._check_tag(node, key, "seq")
            items: list[object] = []
            for number, child in enumerate(node.value):
                self._places[*key, number] = _place(child.start_mark)
                items.append(self._value(child, (*key, number), depth + 1))
            return items
        assert isinstance(node, yaml.ScalarNode)  # noqa: S101 - PyYAML has three kinds of node
        return self._scalar(node, key)

    def _mapping(self, node: yaml.MappingNode, key: Key, depth: int) -> dict[str, object]:
        self._check_tag(node, key, "map")
        values: dict[str, object] = {}
        for name_node, child in node.value:
            place = _place(name_node.start_mark)
            if name_node.tag == f"{_TAG}merge":
                self._fault((*key, "<<"), place, "merge keys are not supported")
                continue
            if not isinstance(name_node, yaml.ScalarNode) or not name_node.value:
                self._fault((*key, "?"), place, "a key must be text")
                continue
            name = str(name_node.value)
            if name in values:
                first = self._places[*key, name][0]
                self.faults.append(DocumentFault((*key, name), place, f"is already in line {first}", covers=False))
                continue
            self._places[*key, name] = place
            values[name] = self._value(child, (*key, name), depth + 1)
        return values

    def _scalar(self, node: yaml.ScalarNode, key: Key) -> object:
        text, replaced = self._substituted(node, key)
        tag = node.tag
        if replaced and node.style is None:
            # As if it had been written there, except that nothing at all is an empty text and not "no value".
            tag = _resolved(text) if text else f"{_TAG}str"
        kind = tag.removeprefix(_TAG)
        if kind in ("timestamp", "value", "merge"):  # unquoted dates, "=" and "<<" are text here
            kind = "str"
        if kind not in _PLAIN_TAGS:
            self._fault(key, _place(node.start_mark), "YAML tags are not supported")
            return None
        try:
            plain: object = self._constructor.construct_object(yaml.ScalarNode(f"{_TAG}{kind}", text), deep=True)
        except (ValueError, yaml.YAMLError):  # an explicit tag that the text doesn't bear out, such as !!int x
            self._fault(key, _place(node.start_mark), f"not a YAML {kind}")
            return None
        return plain

    def _substituted(self, node: yaml.ScalarNode, key: Key) -> tuple[str, bool]:
        text, end, out, replaced = str(node.value), 0, "", False
        for match in _REFERENCE.finditer(text):
            out += text[end : match.start()]
            end = match.end()
            name = match.group(1)
            if name is None:
                out += "$"
                continue
            replaced = True
            if not _NAME.match(name):
                message = "${...} must hold the name of an environment variable (a dollar sign is written $$)"
                self._fault(key, _place(node.start_mark), message)
            elif name not in self._environment:
                self._fault(key, _place(node.start_mark), f"the environment variable {name} is not set")
            else:
                out += self._environment[name]
        out += text[end:]
        if len(out) > MAX_TEXT:
            raise Broken(f"{dotted(key)} has more than {MAX_TEXT} characters", _place(node.start_mark))
        return out, replaced

    def _check_tag(self, node: yaml.Node, key: Key, kind: str) -> None:
        if node.tag != f"{_TAG}{kind}":
            self._fault(key, _place(node.start_mark), "YAML tags are not supported")


class _Loader(yaml.SafeLoader):
    """PyYAML's, with a bound on the recursion of its composer."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: object) -> yaml.Node | None:
        self.depth += 1
        if self.depth > MAX_DEPTH + 2:
            raise Broken(f"more than {MAX_DEPTH} levels deep", _place(self.get_mark()))
        try:
            return super().compose_node(parent, index)  # type: ignore[arg-type]  # the stubs say int; a node for keys
        finally:
            self.depth -= 1


def _compose(text: str) -> yaml.Node | None:
    try:
        # The loader is built on SafeLoader; it only composes, nothing is constructed.
        return yaml.compose(text, Loader=_Loader)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        column = error.position - (text.rfind("\n", 0, error.position) + 1) + 1
        raise Broken("a character that YAML does not allow", (line, column)) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        message = " ".join(filter(None, (error.context, error.problem)))
        if "cannot start any token" in message and "'\\t'" in message:
            message = "a tab cannot be used for indentation: use spaces"
        raise Broken(f"not YAML: {message}", _place(mark) if mark else (1, 1)) from None


def _resolved(text: str) -> str:
    """The tag that an unquoted text has in YAML."""
    return str(yaml.resolver.Resolver().resolve(yaml.ScalarNode, text, (True, False)))  # type: ignore[no-untyped-call]  # as the stubs have it


def _place(mark: yaml.Mark) -> Place:
    return mark.line + 1, mark.column + 1
