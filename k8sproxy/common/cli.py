"""The frame of both command lines: `PROGRAM COMMAND`, a module a command, its attribute `command` a click command.

Exit codes, of every command: 0 it is done; 1 it failed, or the answer is no; 2 the command line or the configuration is
wrong. Answers go to stdout, everything else to stderr, as one clear line and without a traceback where it was to be
expected.

Only what a command needs is imported, when it runs: a check of a file must not wait for a TLS library.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

C = TypeVar("C")
F = TypeVar("F", bound=Callable[..., Any])

EXISTING_FILE = click.Path(path_type=Path)

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


class Failed(click.ClickException):
    """Something that can go wrong did; one line on stderr, exit code 1."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        # Now: when it is shown, the context has gone.
        context = click.get_current_context(silent=True)
        self._program = (context.find_root().command.name if context is not None else None) or "error"

    def show(self, file: object = None) -> None:
        """Print it."""
        click.echo(f"{self._program}: {self.message}", err=True)


class Misconfigured(Failed):
    """The configuration is refused; a line for each fault, exit code 2."""

    exit_code = 2

    def show(self, file: object = None) -> None:
        """Print it: each line begins with the file, so that editors find the place."""
        click.echo(self.message, err=True)


class Commands(click.Group):
    """A group that imports a command's module when the command is asked for.

    package: of the modules. names: in the order of --help. explain: told the name of a package that is not installed;
    gives the line that says so, or None where that is a fault of ours.
    """

    def __init__(
        self,
        *,
        package: str,
        names: Sequence[str],
        explain: Callable[[str], str | None] = lambda _: None,
        **more: Any,
    ) -> None:
        super().__init__(**more)
        self._package = package
        self._names = tuple(names)
        self._explain = explain

    def list_commands(self, ctx: click.Context) -> list[str]:
        """See click.Group."""
        return list(self._names)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """See click.Group."""
        if cmd_name not in self._names:
            return None
        command = importlib.import_module(f"{self._package}.{cmd_name}").command
        if not isinstance(command, click.Command):
            raise TypeError(f"{self._package}.{cmd_name}.command")
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run it. A package that is not installed and that an installation may lack is one line."""
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            why = self._explain((error.name or "").partition(".")[0])
            if why is None:
                raise
            raise Failed(why) from None


def command_line(
    program: str,
    version: str,
    *,
    package: str,
    names: Sequence[str],
    about: str,
    explain: Callable[[str], str | None] = lambda _: None,
) -> Commands:
    """A program's command line. about: for --help, one line. See Commands."""
    codes = "Exit codes: 0 done; 1 failed, or the answer is no; 2 the command line or the configuration is wrong."
    cli = Commands(
        package=package,
        names=names,
        explain=explain,
        name=program,
        help=f"{about}\n\n{codes}",
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )
    click.version_option(version, prog_name=program, message="%(prog)s %(version)s")(cli)
    return cli


def config_option(
    variable: str, *, to: str = "config_path", required: bool = False, about: str = "The configuration file"
) -> Callable[[F], F]:
    """The option --config. variable: of the environment, where it is taken from otherwise. to: the parameter."""
    return click.option(
        "--config", to, type=EXISTING_FILE, required=required, envvar=variable, metavar="FILE",
        help=f"{about} (or {variable}).",
    )  # fmt: skip


def read_config(load: Callable[[Path], C], path: Path) -> C:
    """The configuration in `path`. Raises Misconfigured."""
    from k8sproxy.common.config.faults import ConfigError

    try:
        return load(path)
    except ConfigError as error:
        raise Misconfigured(str(error)) from None


def print_json(value: object) -> None:
    """One JSON value, indented. Text from elsewhere is escaped where it isn't ASCII."""
    click.echo(json.dumps(value, indent=2))


def completion_command(program: str) -> click.Command:
    """`PROGRAM completion`: a script for the shell."""

    @click.command(
        "completion",
        short_help="Print a completion script for the shell.",
        help=f"Print a completion script: source <({program} completion bash).",
    )
    @click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
    @click.pass_context
    def command(context: click.Context, shell: str) -> None:
        from click.shell_completion import ShellComplete, get_completion_class

        chosen = get_completion_class(shell)
        if chosen is None:
            raise Failed(f"this version of click has no completion for {shell}")
        script = chosen(context.find_root().command, {}, program, f"_{program.upper()}_COMPLETE")
        # The base class's: bash's own runs bash to find its version, which may not be here.
        click.echo(ShellComplete.source(script))

    return command


def version_command(program: str, version: str, beneath: Callable[[], Mapping[str, str]]) -> click.Command:
    """`PROGRAM version`. beneath: the versions of what matters most beneath it."""

    @click.command("version", short_help="Print the version.")
    @json_option
    def command(as_json: bool) -> None:
        """Print the version, those of what matters most beneath it, and whether the hot modules are compiled."""
        import platform

        from k8sproxy.common.build import describe_build, is_compiled

        versions = {"python": platform.python_version(), **beneath()}
        if as_json:
            print_json({"version": version, **versions, "compiled": is_compiled()})
        else:
            text = ", ".join(f"{name} {number}" for name, number in versions.items())
            click.echo(f"{program} {version} ({text}, {describe_build()})")

    return command


def installed(package: str) -> str:
    """The version of a package, "absent" if it is not installed."""
    import importlib.metadata

    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"
