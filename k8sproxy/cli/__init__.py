"""The command line: `k8sproxy COMMAND`, a module a command (k8sproxy.common.cli says what all commands share)."""

from __future__ import annotations

from k8sproxy import __version__
from k8sproxy.common.cli import command_line

# In the order of --help. Each is the attribute `command` of a module of this package.
_COMMANDS = ("serve", "check", "whois", "explain", "kubeconfig", "sessions", "example", "completion", "version")

cli = command_line(
    "k8sproxy",
    __version__,
    package=__name__,
    names=_COMMANDS,
    about="kubectl over a tailnet: the connection itself is the identity.",
)


def main() -> None:
    """Entry point of the console script `k8sproxy`."""
    cli.main(prog_name="k8sproxy")
