"""What several commands share: how they fail, how they read the configuration."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from recorder.config import Config

EXISTING_FILE = click.Path(path_type=Path)

config_option = click.option(
    "--config", "path", type=EXISTING_FILE, required=True, envvar="RECORDER_CONFIG", metavar="FILE",
    help="The configuration file (or RECORDER_CONFIG).",
)  # fmt: skip


class Failed(click.ClickException):
    """Something that can go wrong did; one line on stderr, exit code 1."""

    def show(self, file: object = None) -> None:
        """Print it."""
        click.echo(f"recorder: {self.message}", err=True)


class Misconfigured(Failed):
    """The configuration is refused; a line for each fault, exit code 2."""

    exit_code = 2

    def show(self, file: object = None) -> None:
        """Print it: each line begins with the file, so that editors find the place."""
        click.echo(self.message, err=True)


def read_config(path: Path) -> Config:
    """The configuration in `path`. Raises Misconfigured."""
    from recorder.config import ConfigError, load

    try:
        return load(path)
    except ConfigError as error:
        raise Misconfigured(str(error)) from None
