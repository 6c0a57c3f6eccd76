"""The frame of both command lines, and what both have to do alike."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import click
import pytest
from click.testing import CliRunner

import k8sproxy.cli
import recorder.cli
from k8sproxy.common import cli
from k8sproxy.common.build import describe_build
from k8sproxy.common.config.faults import ConfigError, Fault

BOTH = [k8sproxy.cli.cli, recorder.cli.cli]


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> Iterator[click.Group]:
    """`tool fail`, `tool read --config FILE`, `tool need`, `tool other` and `tool no`."""
    package, modules = ModuleType("sample_cli"), {}

    def add(name: str, command: object) -> None:
        modules[name] = module = ModuleType(f"sample_cli.{name}")
        module.command = command  # type: ignore[attr-defined]

    @click.command("fail")
    def fail() -> None:
        raise cli.Failed("it is broken")

    @click.command("read")
    @cli.config_option("TOOL_CONFIG", required=True)
    def read(config_path: Path) -> None:
        click.echo(cli.read_config(load, config_path))

    def load(path: Path) -> str:
        if path.name == "bad":
            raise ConfigError([Fault(path, 1, 2, "key", "is wrong"), Fault(path, 3, 4, "other", "is worse")])
        return f"read {path}"

    def need(name: str) -> click.Command:
        @click.command(name)
        def command() -> None:
            raise ModuleNotFoundError(name=f"{name}.inner")

        return command

    for name, command in (
        *(("fail", fail), ("read", read), ("lacking", need("lacking")), ("unknown", need("unknown"))),
        *(("no", "not a command"), ("completion", cli.completion_command("tool"))),
        ("version", cli.version_command("tool", "1.2", lambda: {"click": cli.installed("click")})),
    ):
        add(name, command)
    monkeypatch.setitem(sys.modules, "sample_cli", package)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, f"sample_cli.{name}", module)
    yield cli.command_line(
        "tool", "1.2", package="sample_cli", names=tuple(modules), about="A tool.",
        explain=lambda package: "install it" if package == "lacking" else None,
    )  # fmt: skip


def test_failures_are_one_line_with_the_name_of_the_program(tool: click.Group) -> None:
    result = CliRunner().invoke(tool, ["fail"])
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", "tool: it is broken\n")
    with pytest.raises(cli.Failed) as caught:
        raise cli.Failed("outside of a command")
    assert caught.value.message == "outside of a command"


def test_a_configuration_is_read_or_its_faults_are_told(tool: click.Group) -> None:
    assert CliRunner().invoke(tool, ["read", "--config", "good"]).stdout == "read good\n"
    assert CliRunner().invoke(tool, ["read"], env={"TOOL_CONFIG": "other"}).stdout == "read other\n"
    result = CliRunner().invoke(tool, ["read", "--config", "bad"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "bad:1:2: key: is wrong\nbad:3:4: other: is worse\n"
    assert CliRunner().invoke(tool, ["read"]).exit_code == 2


def test_a_package_that_is_missing(tool: click.Group) -> None:
    result = CliRunner().invoke(tool, ["lacking"])
    assert (result.exit_code, result.stderr) == (1, "tool: install it\n")
    assert isinstance(CliRunner().invoke(tool, ["unknown"]).exception, ModuleNotFoundError)


def test_a_module_without_a_command_is_a_fault_of_ours(tool: click.Group) -> None:
    assert isinstance(CliRunner().invoke(tool, ["no"]).exception, TypeError)
    assert CliRunner().invoke(tool, ["nix"]).exit_code == 2


def test_versions(tool: click.Group) -> None:
    answer = json.loads(CliRunner().invoke(tool, ["version", "--json"]).stdout)
    assert list(answer) == ["version", "python", "click", "compiled"] and answer["version"] == "1.2"
    text = CliRunner().invoke(tool, ["version"]).stdout
    assert text == f"tool 1.2 (python {answer['python']}, click {answer['click']}, {describe_build()})\n"
    assert CliRunner().invoke(tool, ["--version"]).stdout == "tool 1.2\n"
    assert cli.installed("no-such-package") == "absent"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(tool: click.Group, shell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    result = CliRunner().invoke(tool, ["completion", shell])
    assert result.exit_code == 0 and "_TOOL_COMPLETE" in result.stdout
    monkeypatch.setattr("click.shell_completion.get_completion_class", lambda shell: None)
    result = CliRunner().invoke(tool, ["completion", shell])
    assert (result.exit_code, result.stderr) == (1, f"tool: this version of click has no completion for {shell}\n")


@pytest.mark.parametrize("program", BOTH, ids=lambda program: str(program.name))
def test_both_command_lines(program: cli.Commands) -> None:
    """Each command is there and explains itself; exit codes are in the help."""
    result = CliRunner().invoke(program, ["--help"])
    assert result.exit_code == 0 and "Exit codes: 0 done; 1 failed" in result.stdout
    for name in program.list_commands(click.Context(program)):
        assert f"\n  {name} " in result.stdout
        assert CliRunner().invoke(program, [name, "-h"]).exit_code == 0
    assert CliRunner().invoke(program, ["nix"]).exit_code == 2
    assert str(program.name) in CliRunner().invoke(program, ["version"]).stdout
    assert CliRunner().invoke(program, ["check"]).exit_code == 2


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize("program", BOTH, ids=lambda program: str(program.name))
def test_completion_of_both(program: cli.Commands, shell: str) -> None:
    result = CliRunner().invoke(program, ["completion", shell])
    assert result.exit_code == 0
    assert f"_{str(program.name).upper()}_COMPLETE={shell}_complete" in result.stdout
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=result.stdout, text=True, check=True)
