"""`k8sproxy serve`: run the proxy."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from k8sproxy.cli.common import EXISTING_FILE, read_config


@click.command("serve", short_help="Run the proxy.")
@click.option(
    "--config", "path", type=EXISTING_FILE, required=True, envvar="K8SPROXY_CONFIG", metavar="FILE",
    help="The configuration file (or K8SPROXY_CONFIG).",
)  # fmt: skip
def command(path: Path) -> None:
    """Run the proxy until SIGTERM, which drains it; SIGHUP or a change of FILE loads FILE anew."""
    config = read_config(path)
    from k8sproxy.app import run

    sys.exit(run(path, config))
