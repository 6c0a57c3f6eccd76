"""`recorder search`: which sessions had words on their screen."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from k8sproxy.common.cli import json_option, print_json
from recorder.cli.common import Where, execute, place_options, printable, progress_bar, tell_short
from recorder.cli.filters import filter_options, place

if TYPE_CHECKING:
    from recorder.cli.library import Values
    from recorder.index.filters import Filter


@click.command("search", short_help="Search what was on the screen.")
@click.argument("text")
@place_options()
@filter_options
@json_option
def command(where: Where, wanted: Filter, text: str, limit: int, as_json: bool) -> None:
    """Search for TEXT on the screens and in the commands of sessions. Several words are all meant; quotes make a
    phrase.

    Without an index (a bare store) each session is read, which takes its time. Exit code 1 if nothing was found.
    """
    from recorder.index.words import terms

    try:
        if not text.strip():
            raise click.UsageError("TEXT is what to search for; `recorder ls` lists all sessions")
        terms(text)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    found = execute(_search(where, replace(wanted, text=text), limit))
    if as_json:
        print_json(found)
    for session in [] if as_json else found:
        who = str(session["user"] or session["node"])
        line = f"{session['id']}  {str(session['started'])[:19]}  {who}  {place(session)}  {session['command']}"
        click.echo(printable(line, 500))
        for hit in session["hits"]:
            hidden = f"(not shown: {printable(str(hit['unseen']))}) " if hit.get("unseen") else ""
            click.echo(f"    {_clock(hit)}  {hidden}{_snippet(hit)}")
    if not found:
        if not as_json:
            click.echo("nothing was found", err=True)
        raise click.exceptions.Exit(1)


async def _search(where: Where, wanted: Filter, limit: int) -> list[Values]:
    from recorder.cli.library import open_library

    with progress_bar("sessions looked at") as progress:
        async with open_library(where) as library:
            found = await library.sessions(wanted, limit, progress)
    tell_short(library.short)
    return found


def _clock(hit: Mapping[str, Any]) -> str:
    from recorder.web.words import clock

    return f"{clock(float(hit['time'])):>8}"


def _snippet(hit: Mapping[str, Any]) -> str:
    parts = []
    for piece in hit["snippet"]:
        text = printable(str(piece["text"]), 500)
        # click takes the style out again where stdout is no terminal, and knows nothing of https://no-color.org.
        parts.append(click.style(text, bold=True) if piece["match"] and not os.environ.get("NO_COLOR") else text)
    return "".join(parts)
