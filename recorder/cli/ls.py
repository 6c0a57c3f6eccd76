"""`recorder ls`: which sessions there are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from k8sproxy.common.cli import json_option, print_json
from recorder.cli.common import Where, execute, place_options, progress_bar, tell_short
from recorder.cli.filters import filter_options, print_sessions

if TYPE_CHECKING:
    from recorder.cli.library import Values
    from recorder.index.filters import Filter


@click.command("ls", short_help="List sessions.")
@place_options()
@filter_options
@json_option
def command(where: Where, wanted: Filter, limit: int, as_json: bool) -> None:
    """List sessions, newest first. Times are UTC; a state with ! is of a session that is damaged, one
    with * of a session that holds output that a terminal does not show (as far as an index has told). Exit code 1 if no
    session fits."""
    found = execute(_find(where, wanted, limit))
    if as_json:
        print_json(found)
    elif not found:
        click.echo("no session matches", err=True)
    else:
        print_sessions(found)
    if not found:
        raise click.exceptions.Exit(1)


async def _find(where: Where, wanted: Filter, limit: int) -> list[Values]:
    from recorder.cli.library import open_library

    with progress_bar("sessions looked at") as progress:
        async with open_library(where) as library:
            found = await library.sessions(wanted, limit, progress)
    tell_short(library.short)
    return found
