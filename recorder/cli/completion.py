"""`recorder completion`: a script for the shell."""

from __future__ import annotations

import click
from click.shell_completion import ShellComplete, get_completion_class


@click.command("completion", short_help="Print a completion script for the shell.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(context: click.Context, shell: str) -> None:
    """Print a completion script: source <(recorder completion bash)."""
    chosen = get_completion_class(shell)
    if chosen is None:
        raise click.ClickException(f"this version of click has no completion for {shell}")
    script = chosen(context.find_root().command, {}, "recorder", "_RECORDER_COMPLETE")
    # The base class's: bash's own runs bash to find its version, which may not be here.
    click.echo(ShellComplete.source(script))
