"""`k8sproxy serve`: run the proxy."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from k8sproxy.cli.common import read_config
from k8sproxy.common.cli import config_option


@click.command("serve", short_help="Run the proxy.")
@config_option("K8SPROXY_CONFIG", to="path", required=True)
def command(path: Path) -> None:
    """Run the proxy until SIGTERM, which drains it; SIGHUP or a change of FILE loads FILE anew."""
    config = read_config(path)
    from k8sproxy.app import run

    sys.exit(run(path, config))
