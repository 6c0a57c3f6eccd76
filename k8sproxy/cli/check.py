"""`k8sproxy check`: every fault of a configuration at once."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sized
from pathlib import Path

import click

from k8sproxy.common.cli import EXISTING_FILE, Misconfigured, json_option, print_json


@click.command("check", short_help="Check a configuration and print every fault.")
@click.argument("path", type=EXISTING_FILE, metavar="FILE")
@click.option(
    "--no-files", is_flag=True, help="Don't check the files that FILE names (they may be on another machine)."
)
@json_option
def command(path: Path, no_files: bool, as_json: bool) -> None:
    """Say every fault of FILE with its line, column and key. Exit code 2 if there is one.

    Warnings are about what works and is a bad idea; they don't change the exit code.

    ${NAME} is taken from the environment, as `serve` does it.
    """
    from k8sproxy.config import ConfigError, dotted, load, warnings_of

    try:
        config = load(path, files=not no_files)
    except ConfigError as error:
        if not as_json:
            raise Misconfigured(str(error)) from None
        faults = [dataclasses.asdict(fault) | {"path": str(fault.path)} for fault in error.faults]
        print_json({"ok": False, "faults": faults})
        sys.exit(2)
    warnings = [(dotted(key), message) for key, message in warnings_of(config)]
    if as_json:
        told = [{"key": key, "message": message} for key, message in warnings]
        print_json({"ok": True, "faults": [], "warnings": told})
    else:
        for key, message in warnings:
            click.echo(f"{path}: warning: {key}: {message}", err=True)
        click.echo(f"{path}: ok ({_count(config.listen, 'listener')}, {_count(config.clusters, 'cluster')})")


def _count(items: Sized, what: str) -> str:
    return f"{len(items)} {what}" if len(items) == 1 else f"{len(items)} {what}s"
