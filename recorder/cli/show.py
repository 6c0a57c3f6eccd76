"""`recorder show`: all that is known of one session."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from k8sproxy.common.cli import json_option, print_json
from recorder.cli.common import Where, execute, place_options, print_table, printable, tell_short
from recorder.cli.filters import place

if TYPE_CHECKING:
    from recorder.cli.library import Unseens, Values


# Characters of a line of what is not shown.
_LINE = 200


@click.command("show", short_help="Show all that is known about a session.")
@click.argument("identifier", metavar="ID")
@place_options()
@click.option("--unseen", is_flag=True, help="Instead, list the output that a terminal does not show.")
@json_option
def command(where: Where, identifier: str, unseen: bool, as_json: bool) -> None:
    """Show the session ID: who, where, when, how it ended, and the API events beside it.

    With --unseen: output that a terminal does not show (in strings such as APC, concealed, in the colour of what is
    behind it, erased in the instant in which it was written), with its time and what hid it.
    """
    if unseen:
        _show_unseen(where, identifier, as_json)
        return
    session, events = execute(_show(where, identifier))
    if as_json:
        print_json(session | {"related": events})
        return
    for name, text in _lines(session):
        if text:
            click.echo(f"{name:<11} {printable(text)}")
    if events is None:
        click.echo("\n(API events around it need an index, and this store has none)")
    elif events:
        click.echo()
        head = ("RECEIVED", "VERB", "RESOURCE", "NAMESPACE", "NAME", "PATH")
        print_table(head, [_event(event) for event in events])


async def _show(where: Where, identifier: str) -> tuple[Values, list[Values] | None]:
    from recorder.cli.library import open_library

    async with open_library(where) as library:
        session = await library.session(identifier) | await library.known(identifier)
        events = await library.events(identifier)
        tell_short(library.short)
        return session, events


def _show_unseen(where: Where, identifier: str, as_json: bool) -> None:
    found = execute(_unseen(where, identifier))
    if as_json:
        print_json([{"time": piece.time, "kind": piece.kind, "text": piece.text} for piece in found.items])
    elif found.items:
        rows = [(f"{piece.time:.3f}", piece.kind, line) for piece in found.items for line in _folded(piece.text)]
        print_table(("SECONDS", "HIDDEN AS", "TEXT"), rows)
    else:
        click.echo("nothing was found that a terminal does not show", err=True)
    if not found.complete:
        click.echo("recorder: the session has more text than was searched for this", err=True)


def _folded(text: str) -> list[str]:
    """In lines of what a table's last column takes."""
    return [text[start : start + _LINE] for start in range(0, len(text), _LINE)]


async def _unseen(where: Where, identifier: str) -> Unseens:
    from recorder.cli.library import open_library

    async with open_library(where) as library:
        return await library.unseen(identifier)


def _lines(session: Mapping[str, Any]) -> list[tuple[str, str]]:
    from recorder.web.words import length, size

    source = session["source"]
    sender = " ".join(filter(None, [source["node"], source["address"], source["user"], *source["tags"]]))
    state = str(session["state"]) + (" (damaged: some of its lines are not events)" if session["damaged"] else "")
    return [
        ("id", str(session["id"])),
        ("state", state),
        ("unseen", "it has output that a terminal does not show: see --unseen" if session.get("unseen") else ""),
        ("started", str(session["started"])),
        ("ended", str(session["ended"] or "")),
        ("length", f"{length(float(session['duration']))}, {session['events']} events, {size(int(session['size']))}"),
        ("type", str(session["type"])),
        ("command", str(session["command"])),
        ("where", place(session)),
        ("user", str(session["user"])),
        ("groups", ", ".join(map(str, session["groups"]))),
        ("node", str(session["node"])),
        ("tags", ", ".join(map(str, session["tags"]))),
        ("session id", str(session["sessionId"])),
        ("client", str(session["userAgent"])),
        *(
            ("cut", f"{name} had {cut['bytes']} bytes, SHA-256 {cut['sha256']}")
            for name, cut in session.get("truncated", {}).items()
        ),
        ("signed", _signed(session.get("proof"))),
        *(
            ("held", f"by {hold['by']} since {hold['at']}: {hold['reason']}{'' if hold['signed'] else ' (not signed)'}")
            for hold in session.get("holds") or ()
        ),
        ("sent by", sender),
    ]


def _signed(proof: Mapping[str, Any] | None) -> str:
    if proof is None:
        return ""
    listed = f"in the manifest of {proof['day']}" if proof["day"] else ""
    return ", ".join(filter(None, (f"{proof['status']}{': ' if proof['detail'] else ''}{proof['detail']}", listed)))


def _event(event: Mapping[str, Any]) -> tuple[str, ...]:
    resource = "/".join(str(event[name]) for name in ("resource", "subresource") if event[name])
    return (
        str(event["received"]),
        str(event["verb"]),
        resource,
        str(event["namespace"]),
        str(event["name"]),
        str(event["path"]),
    )
