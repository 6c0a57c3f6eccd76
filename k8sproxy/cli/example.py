"""`k8sproxy example`: a configuration with everything in it."""

from __future__ import annotations

import importlib.resources

import click


@click.command("example", short_help="Print a commented configuration.")
def command() -> None:
    """Print a commented configuration with every key, its default and why."""
    click.echo(importlib.resources.files("k8sproxy").joinpath("example.yaml").read_text(encoding="utf-8"), nl=False)
