"""`recorder check`: is the configuration right?"""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from k8sproxy.common.cli import Failed
from recorder.cli.common import config_option, read_config


@click.command("check", short_help="Check a configuration file.")
@config_option
@click.option("--live", is_flag=True, help="Also ask tailscaled and the store, and write to the store and read it.")
def command(path: Path, live: bool) -> None:
    """Check FILE and print its faults, a line each; and whether what it needs is installed.

    With --live as well whether tailscaled answers and the store keeps and gives back what it is given: run it where the
    recorder runs, as the same user. It leaves nothing in the store.
    """
    config = read_config(path)
    from recorder.extras import missing, needed

    if (why := missing(needed(config))) is not None:
        raise Failed(why)
    if live:
        from recorder.living import ask

        faults = asyncio.run(ask(config))
        if faults:
            raise Failed("\nrecorder: ".join(faults))
    click.echo(f"{path}: ok")
