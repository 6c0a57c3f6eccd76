"""`recorder check`: is the configuration right?"""

from __future__ import annotations

from pathlib import Path

import click

from recorder.cli.common import config_option, read_config


@click.command("check", short_help="Check a configuration file.")
@config_option
def command(path: Path) -> None:
    """Check FILE and print its faults, a line each."""
    read_config(path)
    click.echo(f"{path}: ok")
