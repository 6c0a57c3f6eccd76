"""The documentation against the code: tables are complete, examples load, links and names exist."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import yaml

from k8sproxy.cli import cli
from k8sproxy.config import Config, parse
from k8sproxy.config.models import Section

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").glob("*.md"))
SOURCES = sorted((ROOT / "k8sproxy").rglob("*.py"))

# f"{question}_denied" and its like in tailnet/localapi.py.
_QUESTIONS = ("whois", "localapi")
# Causes that a Refusal or Cut takes over from elsewhere, where they are counted already.
_PASSED_ON = {"cause", "outcome.cause", "refusal.cause", "error.cause", "cut.cause"}


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
    documented = {cause: {int(code) for code in codes.split(", ")} for cause, codes in table.items()}
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
        name, _, anchor = target.partition("#")
        other = path if not name else path.parent / name
        assert other.exists(), target
        assert not anchor or anchor in anchors(other.read_text()), target


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_commands_and_their_options_exist(path: Path) -> None:
    for block in blocks(path.read_text(), "sh"):
        for line in block.splitlines():
            match = re.match(r"\s*(?:\S*/)?k8sproxy ([a-z]+)(.*)", line)
            if match is None:
                continue
            command = cli.get_command(click.Context(cli), match[1])
            assert command is not None, line
            known = {option for parameter in command.params for option in parameter.opts}
            for option in re.findall(r"(?<= )--[a-z0-9-]+", match[2].partition("#")[0]):
                assert option in known, line


@pytest.mark.parametrize("name", ["operations.md", "security.md", "troubleshooting.md"])
def test_log_events_and_causes_that_are_named_exist(name: str) -> None:
    sources = "".join(path.read_text() for path in SOURCES)
    known = set(re.findall(r"\"([a-z0-9_]+)\"", sources)) | set(causes_in_the_code())
    for word in re.findall(r"`([a-z0-9]+(?:_[a-z0-9]+)+)`", read(name)):
        assert word in known or word.startswith("k8sproxy_"), word


def test_files_that_are_named_exist() -> None:
    for path in DOCS:
        for name in re.findall(r"`((?:manifests|docs)/[\w./-]+)`", path.read_text()):
            assert (ROOT / name).exists(), name
