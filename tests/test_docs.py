"""The documentation against the code: tables are complete, examples load, links and names exist."""

from __future__ import annotations

import ast
import json
import re
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from k8sproxy.access.grants import _KNOWN, CAPABILITY, parse_grants
from k8sproxy.access.ownrules import DEFAULT_DOMAIN, RecordingLevel, own_capability
from k8sproxy.cli import cli
from k8sproxy.common.config.sections import Section
from k8sproxy.common.formats.asciicast import CastHeader, OutputEncoder
from k8sproxy.common.formats.bounds import Truncation
from k8sproxy.common.tailnet.peer import Peer
from k8sproxy.config import Config, parse

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").glob("*.md"))
SOURCES = sorted((ROOT / "k8sproxy").rglob("*.py"))

# f"{question}_denied" and its like in tailnet/localapi.py.
_QUESTIONS = ("whois", "localapi")
# Causes that a Refusal or Cut takes over from elsewhere, where they are counted already.
_PASSED_ON = {"cause", "outcome.cause", "refusal.cause", "error.cause", "cut.cause", "cut"}


def read(name: str) -> str:
    return (ROOT / "docs" / name).read_text()


def section(text: str, title: str) -> str:
    """What stands below a heading, up to the next one of its level."""
    match = re.search(rf"^(#+) {re.escape(title)}\n(.*?)(?=^#{{1,3}} |\Z)", text, re.MULTILINE | re.DOTALL)
    assert match is not None, title
    return match[2]


def rows(text: str) -> list[list[str]]:
    """The cells of a table's rows, without its head."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def blocks(text: str, *languages: str) -> Iterator[str]:
    for language, body in re.findall(r"^ *```(\w*)\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL):
        if language in languages:
            yield body


def calls(*names: str) -> Iterator[ast.Call]:
    """Calls of functions and methods by those names, in the proxy's sources."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            if name in names:
                yield node


def causes_of(node: ast.expr) -> list[str]:
    """The causes that an expression can stand for."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [node.value]
    if isinstance(node, ast.JoinedStr):
        variable, rest = node.values
        assert isinstance(variable, ast.FormattedValue) and isinstance(rest, ast.Constant)
        assert ast.unparse(variable.value) == "question", ast.unparse(node)
        return [question + str(rest.value) for question in _QUESTIONS]
    assert ast.unparse(node) in _PASSED_ON, f"a cause that this test does not understand: {ast.unparse(node)}"
    return []


def causes_in_the_code() -> dict[str, set[int]]:
    """Cause -> the statuses that it can have; none where no Status is sent."""
    found: dict[str, set[int]] = defaultdict(set)
    for call in calls("Refusal"):
        status, cause = call.args[:2]
        for name in causes_of(cause):
            found[name] |= (
                {status.value} if isinstance(status, ast.Constant) and isinstance(status.value, int) else set()
            )
    for call in calls("Cut", "cut", "refusal"):
        for name in causes_of(call.args[0]) if call.args else ():
            found[name] |= set()
    # Session.end, Sessions.end_all: a session that is ended from outside is a Cut with that cause.
    for call in calls("end", "end_all"):
        if call.args and isinstance(call.args[0], ast.Constant):
            found[str(call.args[0].value)] |= set()
    # Exchange.cut(cause) is a Refusal 503 where nothing of an answer has been sent.
    for call in calls("cut"):
        for name in causes_of(call.args[0]) if call.args else ():
            found[name].add(503)
    # A ProtocolError is answered as bad_request; 502 are those of the API server's side (upstream_malformed).
    statuses = {400}
    for call in calls("ProtocolError"):
        statuses |= {k.value.value for k in call.keywords if k.arg == "status" and isinstance(k.value, ast.Constant)}  # type: ignore[misc]  # status is an int
    found["bad_request"] |= statuses - {502}
    return dict(found)


def test_every_cause_is_in_the_table_with_its_statuses() -> None:
    table = {cells[0].strip("`"): cells[1] for cells in rows(section(read("operations.md"), "Causes"))}
    documented = {cause: {int(code) for code in codes.split(", ") if code} for cause, codes in table.items()}
    assert documented == causes_in_the_code()
    assert list(table) == sorted(table)


def test_every_metric_is_in_the_table() -> None:
    found = {}
    for call in calls("CounterMetricFamily", "GaugeMetricFamily", "HistogramMetricFamily", "_labelled"):
        if not isinstance(call.args[0], ast.Constant):
            continue  # inside _labelled
        name, kind = str(call.args[0].value), ast.unparse(call.func)
        labels = {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}.get("labels", ())
        if kind == "_labelled":
            labels = (ast.literal_eval(call.args[2]),)
        found[name if kind.startswith(("Gauge", "Histogram")) else f"{name}_total"] = ", ".join(labels)
    table = {cells[0].strip("`"): cells[1] for cells in rows(section(read("operations.md"), "Metrics"))}
    assert table == found


def names(table: list[list[str]]) -> list[str]:
    """What stands in the first cells between backquotes."""
    return [name for cells in table for name in re.findall(r"`([^`]+)`", cells[0])]


def said_of_sessions() -> dict[str, tuple[str, list[str]]]:
    """Log event -> its level and fields, of what sessions/, recording/ and audit/ say but for faults of ours, and the
    lines of requests (audit/sinks.py), which have a section of their own."""
    found = {}
    rooms = [ROOT / "k8sproxy" / room for room in ("sessions", "recording", "audit")]
    for path in sorted(path for room in rooms for path in room.rglob("*.py")):
        if path.match("audit/sinks.py"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            what, event = ast.unparse(node.func), node.args[0] if node.args else None
            own = {"self._say": "info", "self._warn": "warning"}.get(what)
            if not isinstance(event, ast.Constant) or not (own or what.startswith("_log.")):
                continue
            level, fields = (own, ["session"]) if own else (node.func.attr, [])
            if level != "error":
                found[str(event.value)] = level, fields + [str(keyword.arg) for keyword in node.keywords]
    return found


def test_every_log_event_of_sessions_is_in_the_table() -> None:
    table = {
        cells[0].strip("`"): (cells[1], re.findall(r"`([^`]+)`", cells[2]))
        for cells in rows(section(read("operations.md"), "Sessions"))
    }
    assert table == said_of_sessions()


def tables(name: str, title: str) -> list[list[list[str]]]:
    """The tables of a section, each without its head."""
    text = section(read(name), title)
    return [rows(table) for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)]


def test_every_member_of_a_recordings_header_is_in_the_table() -> None:
    members, events = tables("recording.md", "What a recording looks like")
    values: dict[str, Any] = {name: "x" for name, kind in CastHeader.__annotations__.items() if kind == "str"}
    user = CastHeader(timestamp=0, **values, truncated={"command": Truncation(1, "x")})
    tagged = CastHeader(timestamp=0, **values, src_node_tags=("tag:x",))
    known = json.loads(user.line(80, 24)) | json.loads(tagged.line(80, 24))
    inner = [*known["kubernetes"], *known["impersonation"], "exec", "attach", "clusters[].name"]
    assert set(names(members)) == set(known)
    said = {word for cells in members for word in re.findall(r"`([^`]+)`", cells[1])}
    assert said == {*inner, "sessionID"}
    assert names(events) == ['"o"', '"e"', '"r"', '"m"']


def test_bytes_come_back_as_the_page_says() -> None:
    (code,) = blocks(read("recording.md"), "python")
    scope: dict[str, Any] = {}
    exec(code, scope)  # the page's own example
    data = bytes(range(256)) * 9 + "ü漢\U0010fe80".encode() + b"\xf4\x8f"
    encoder = OutputEncoder()
    assert scope["output"](encoder.feed(data) + encoder.finish()) == data


def test_every_member_of_a_listed_session_is_in_the_table() -> None:
    (table,) = tables("recording.md", "Looking at sessions, and ending them")
    source = ast.parse((ROOT / "k8sproxy" / "sessions" / "registry.py").read_text())
    (values,) = (n for n in ast.walk(source) if isinstance(n, ast.FunctionDef) and n.name == "_values")
    (found,) = (n.value for n in ast.walk(values) if isinstance(n, ast.Return))
    assert isinstance(found, ast.Dict)
    members = [ast.literal_eval(key) for key in found.keys if key is not None]
    assert [name for name in names(table) if name not in ("exec", "attach")] == members


def test_every_field_of_a_grant_is_in_the_table() -> None:
    table, levels = tables("recording.md", "Grants")
    assert {part for name in names(table) for part in name.casefold().split(".")} == _KNOWN
    assert names(levels) == [level.value for level in RecordingLevel]


def policies() -> Iterator[dict[str, Any]]:
    """The grants of all policies in the documentation. A block may be a whole policy, or members of one."""
    for path in DOCS:
        for block in blocks(path.read_text(), "json", "jsonc"):
            if CAPABILITY in block:
                text = re.sub(r"^\s*//.*\n", "", block, flags=re.MULTILINE).strip()
                yield from json.loads(text if text.startswith("{") else f"{{{text}}}")["grants"]


def test_policies_can_be_read() -> None:
    granted = [grant["app"] for grant in policies() if "app" in grant]
    assert sum(CAPABILITY in app for app in granted) >= 3
    assert any(own_capability(DEFAULT_DOMAIN) in app for app in granted)
    for app in granted:
        capabilities = {name: tuple(values) for name, values in app.items()}
        parse_grants(Peer("100.64.0.1", "n1", "node.", capabilities=capabilities))


def test_failures_name_what_is_counted() -> None:
    """The failure table against the stages that the code counts, and the keys against the configuration."""
    failures, limits = tables("recording.md", "When a recorder fails")
    stages = {
        str(call.args[0].value) for call in calls("failed") if call.args and isinstance(call.args[0], ast.Constant)
    }
    assert {word for cells in failures for word in re.findall(r"`([^`]+)`", cells[4])} == stages
    assert names(limits) == [key for key in keys(Config) if key.startswith("recording.")]


@pytest.mark.parametrize("path", [path for path in DOCS if "recorder" not in path.name], ids=lambda path: path.name)
def test_keys_that_are_named_exist(path: Path) -> None:
    known = set(keys(Config))
    for name in re.findall(r"`((?:tailnet|limits|recording|events|shutdown|admin)\.[A-Za-z]+)`", path.read_text()):
        assert name in known, name


def keys(model: type[Section], prefix: str = "") -> Iterator[str]:
    for field in model.model_fields.values():
        name = f"{prefix}{field.alias}"
        inner = field.annotation
        item = next((arg for arg in getattr(inner, "__args__", ()) if is_section(arg)), None)
        if is_section(inner):
            yield from keys(inner, f"{name}.")  # type: ignore[arg-type]  # is_section has looked
        elif item is not None:
            yield name
            yield from keys(item, f"{name}[].")
        else:
            yield name


def is_section(item: object) -> bool:
    return isinstance(item, type) and issubclass(item, Section)


def test_every_key_is_in_the_table() -> None:
    documented = [
        key for cells in rows(section(read("configuration.md"), "Keys")) for key in re.findall(r"`([^`]+)`", cells[0])
    ]
    assert documented == list(keys(Config))


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_configurations_load(path: Path) -> None:
    for block in blocks(path.read_text(), "yaml"):
        if "apiVersion: k8sproxy/" in block:
            parse(block.encode(), path, environment={}, files=False)
        else:
            yaml.safe_load(block)


def test_there_are_configurations() -> None:
    assert sum("apiVersion: k8sproxy/" in block for path in DOCS for block in blocks(path.read_text(), "yaml")) >= 4


def anchors(text: str) -> set[str]:
    """As GitHub makes them of headings."""
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", path.read_text()):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        other = path if not name else path.parent / name
        assert other.exists(), target
        assert not anchor or anchor in anchors(other.read_text()), target


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_commands_and_their_options_exist(path: Path) -> None:
    for block in blocks(path.read_text(), "sh"):
        for line in block.splitlines():
            match = re.match(r"\s*(?:\S*/)?k8sproxy ([a-z]+)(?: ([a-z]+))?(.*)", line)
            if match is None:
                continue
            command = cli.get_command(click.Context(cli), match[1])
            if isinstance(command, click.Group):
                command = command.get_command(click.Context(command), match[2])
            assert command is not None, line
            known = {option for parameter in command.params for option in parameter.opts}
            for option in re.findall(r"(?<= )--[a-z0-9-]+", match[3].partition("#")[0]):
                assert option in known, line


@pytest.mark.parametrize("name", ["operations.md", "recording.md", "security.md", "troubleshooting.md"])
def test_log_events_and_causes_that_are_named_exist(name: str) -> None:
    sources = "".join(path.read_text() for path in SOURCES)
    known = set(re.findall(r"\"([a-z0-9_]+)\"", sources)) | set(causes_in_the_code())
    known |= {field for _, fields in said_of_sessions().values() for field in fields}
    for word in re.findall(r"`([a-z0-9]+(?:_[a-z0-9]+)+)`", read(name)):
        assert word in known or word.startswith("k8sproxy_"), word


def test_files_that_are_named_exist() -> None:
    for path in DOCS:
        for name in re.findall(r"`((?:manifests|docs)/[\w./-]+)`", path.read_text()):
            assert (ROOT / name).exists(), name


def test_every_file_that_the_architecture_names_exists() -> None:
    """A path with a slash is one from the root; it ends in one where it is a folder."""
    named = {name for name in re.findall(r"`([\w./-]+/[\w./-]*)`", read("architecture.md")) if not name.startswith("/")}
    missing = {name for name in named if not (ROOT / name).exists() or name.endswith("/") != (ROOT / name).is_dir()}
    assert len(named) > 60 and not missing


def test_every_class_of_the_glossary_is_where_it_says() -> None:
    for word, _, where in rows(section(read("architecture.md"), "Glossary")):
        path = ROOT / where.strip("`")
        assert path.is_file(), where
        if word.startswith("`"):
            (name,) = re.findall(r"^`(\w+)`$", word)
            classes = {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef)}
            assert name in classes, (name, where)


def test_every_word_of_the_glossary_stands_there_once() -> None:
    words = [cells[0].strip("`").casefold() for cells in rows(section(read("architecture.md"), "Glossary"))]
    assert len(words) > 30 and len(set(words)) == len(words)


@pytest.mark.parametrize("package", ["k8sproxy", "k8sproxy.common", "recorder"])
def test_the_table_of_imports_is_that_of_the_contracts(package: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    contracts = project["tool"]["importlinter"]["contracts"]
    (layers,) = (contract["layers"] for contract in contracts if contract.get("containers") == [package])
    text = section(read("architecture.md"), "Who may import whom")
    table = text.split(f"(`{package.replace('.', '/')}/`):\n", 1)[1].lstrip().split("\n\n", 1)[0]
    assert [re.findall(r"`([^`]+)`", row[0]) for row in rows(table)] == [re.findall(r"\w+", layer) for layer in layers]
