"""The command line: `recorder COMMAND`, a module a command (k8sproxy.common.cli says what all commands share)."""

from __future__ import annotations

from k8sproxy.common.cli import command_line
from recorder import __version__

# In the order of --help. Each is the attribute `command` of a module of this package.
_COMMANDS = (
    "serve", "check", "ls", "search", "show", "play", "export", "verify", "rebuild", "prune", "key", "anchor",
    "completion", "version",
)  # fmt: skip


def _explain(package: str) -> str | None:
    """A package of the extra that is not installed is one line."""
    from recorder.extras import PACKAGES, missing

    return missing([package]) if package in PACKAGES else None


cli = command_line(
    "recorder",
    __version__,
    package=__name__,
    names=_COMMANDS,
    about="Keep, find and replay the sessions that k8sproxy sends.",
    explain=_explain,
)


def main() -> None:
    """Entry point of the console script `recorder`."""
    cli.main(prog_name="recorder")
