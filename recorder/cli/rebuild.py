"""`recorder rebuild`: the index made anew from the store."""

from __future__ import annotations

import click

from k8sproxy.common.cli import json_option, print_json
from recorder.cli.common import Where, execute, place_options, progress_bar


@click.command("rebuild", short_help="Rebuild the index from the store.")
@place_options(running=False)
@click.option("--index", metavar="URL", help='"sqlite:PATH" or "postgresql://.." (default: as configured).')
@json_option
def command(where: Where, index: str | None, as_json: bool) -> None:
    """Make the index anew from what is in the store. Until it is done the old one answers; who looked at what stays,
    and what the index has lost of that is read from the store.

    With an index in a file the recorder must be stopped meanwhile; in PostgreSQL it may run on. A file that is damaged
    is laid aside.
    """
    recordings, events = execute(_rebuild(where, index))
    if as_json:
        print_json({"sessions": recordings, "events": events})
    else:
        click.echo(f"indexed {recordings} sessions and {events} API events")


async def _rebuild(where: Where, url: str | None) -> tuple[int, int]:
    from recorder.assembly import index_url
    from recorder.book import Book
    from recorder.cli.opening import open_read_only
    from recorder.index import Index

    url = url or index_url(where.store())
    if url is None:
        raise click.UsageError("there is no index configured: --index URL")
    try:
        index = Index(url)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    try:
        async with open_read_only(where.store()) as store:
            await index.open(anew=True)
            with progress_bar("sessions and events indexed") as bar:
                done = await index.rebuild(store, lambda progress: bar(progress.recordings + progress.events, 0))
            await index.restore_looks(Book(store).looks())
    finally:
        await index.aclose()
    return done.recordings, done.events
