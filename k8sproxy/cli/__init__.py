"""The command line: `k8sproxy COMMAND`, a module a command.

Exit codes, of every command: 0 it is done; 1 it failed, or the answer is no (an unknown peer, a refused request); 2 the
command line or the configuration is wrong. Answers go to stdout, everything else to stderr, as one clear line and
without a traceback where it was to be expected.

Only what a command needs is imported, when it runs: `check` must not wait for a TLS library.
"""

from __future__ import annotations

import importlib

import click

from k8sproxy import __version__

# In the order of --help. Each is the attribute `command` of a module of this package.
_COMMANDS = ("serve", "check", "whois", "explain", "kubeconfig", "sessions", "example", "completion", "version")


class _Commands(click.Group):
    """A group that imports a command's module when the command is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command = importlib.import_module(f"k8sproxy.cli.{cmd_name}").command
        if not isinstance(command, click.Command):
            raise TypeError(f"k8sproxy.cli.{cmd_name}.command")
        return command


@click.command(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="k8sproxy", message="%(prog)s %(version)s")
def cli() -> None:
    """kubectl over a tailnet: the connection itself is the identity.

    Exit codes: 0 done; 1 failed, or the answer is no; 2 the command line or the configuration is wrong.
    """


def main() -> None:
    """Entry point of the console script `k8sproxy`."""
    cli.main(prog_name="k8sproxy")
