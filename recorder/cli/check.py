"""`recorder check`: is the configuration right?"""

from __future__ import annotations

from pathlib import Path

import click

from recorder.cli.common import Failed, config_option, read_config


@click.command("check", short_help="Check a configuration file.")
@config_option
def command(path: Path) -> None:
    """Check FILE and print its faults, a line each; and whether what it needs is installed."""
    config = read_config(path)
    from recorder.extras import missing, needed

    if (why := missing(needed(config))) is not None:
        raise Failed(why)
    click.echo(f"{path}: ok")
