"""The command line: `recorder COMMAND`, a module a command, its attribute `command` a click command.

Exit codes, of every command: 0 it is done; 1 it failed, or the answer is no; 2 the command line or the configuration is
wrong. Answers go to stdout, everything else to stderr. Only what a command needs is imported, when it runs.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import click

from recorder import __version__

# In the order of --help; those whose module is not there are left out.
_COMMANDS = (
    "serve", "check", "ls", "search", "show", "play", "export", "verify", "rebuild", "prune", "key", "anchor",
    "completion", "version",
)  # fmt: skip


class _Commands(click.Group):
    """A group that imports a command's module when the command is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for name in _COMMANDS if importlib.util.find_spec(f"recorder.cli.{name}") is not None]

    def invoke(self, ctx: click.Context) -> Any:
        """Run it; a package of the extra that is not installed is one line."""
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            from recorder.cli.common import Failed
            from recorder.extras import PACKAGES, missing

            package = (error.name or "").partition(".")[0]
            why = missing([package]) if package in PACKAGES else None
            if why is None:
                raise
            raise Failed(why) from None

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        command = importlib.import_module(f"recorder.cli.{cmd_name}").command
        if not isinstance(command, click.Command):
            raise TypeError(f"recorder.cli.{cmd_name}.command")
        return command


@click.command(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="recorder", message="%(prog)s %(version)s")
def cli() -> None:
    """Keep, find and replay the sessions that k8sproxy sends.

    Exit codes: 0 done; 1 failed, or the answer is no; 2 the command line or the configuration is wrong.
    """


def main() -> None:
    """Entry point of the console script `recorder`."""
    cli.main(prog_name="recorder")
