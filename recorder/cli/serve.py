"""`recorder serve`: run the recorder."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from k8sproxy.common.cli import Failed
from recorder.cli.common import config_option, read_config


@click.command("serve", short_help="Run the recorder.")
@config_option
def command(path: Path) -> None:
    """Run the recorder until SIGTERM, which lets sessions end within the grace time; SIGHUP loads FILE anew."""
    config = read_config(path)
    from recorder.extras import missing, needed

    if (why := missing(needed(config))) is not None:
        raise Failed(why)
    from recorder.app import run

    sys.exit(run(path, config))
