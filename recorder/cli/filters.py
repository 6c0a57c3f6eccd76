"""The options that choose sessions, for `ls` and `search`; and sessions as a table."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from recorder.cli.common import print_table

if TYPE_CHECKING:
    from recorder.index.filters import Filter

F = TypeVar("F", bound=Callable[..., Any])

_TEXTS = {
    "user": "The user of the session.",
    "node": "The node that the session came from.",
    "tag": "A tag of that node.",
    "cluster": "The cluster.",
    "namespace": "The namespace.",
    "pod": "The pod.",
    "container": "The container.",
    "command": "A part of the command line.",
    "type": "exec, attach or ssh.",
}
_STATES = ("running", "clean", "cut")


def filter_options(command: F) -> F:
    """The command takes `wanted` (a Filter without a text) and `limit`."""

    @functools.wraps(command)
    def with_filter(*, limit: int, **more: Any) -> Any:
        found = {name: more.pop(f"by_{name}") for name in (*_TEXTS, "state", "since", "until", "min_duration")}
        return command(wanted=_filter(found), limit=limit, **more)

    wrapped: Any = with_filter
    options = [
        click.option("-n", "--limit", type=click.IntRange(1, 1_000_000), default=50, help="Rows (default 50)."),
        click.option("--min-duration", "by_min_duration", metavar="SECONDS", help="Sessions of at least this length."),
        click.option("--until", "by_until", metavar="TIME", help="Sessions that began before this time."),
        click.option(
            "--since",
            "by_since",
            metavar="TIME",
            help="Sessions that began at this time or later: RFC 3339, a day, or unix seconds.",
        ),
        click.option(
            "--state", "by_state", type=click.Choice(_STATES), help="Whether it runs, ended clean, or was cut."
        ),
    ]
    for name, text in reversed(_TEXTS.items()):
        options.append(
            click.option(f"--{name}", f"by_{name}", metavar="GLOB", help=f"{text} * stands for any characters.")
        )
    for option in options:
        wrapped = option(wrapped)
    result: F = wrapped
    return result


def _filter(found: Mapping[str, str | None]) -> Filter:
    from k8sproxy.common.errors import Refusal
    from recorder.web.queries import sessions

    try:
        return sessions({name: value for name, value in found.items() if value})
    except Refusal as refusal:
        raise click.UsageError(refusal.message.replace("min_duration", "--min-duration")) from None


def print_sessions(found: Sequence[Mapping[str, Any]]) -> None:
    """As a table, newest first."""
    head = ("ID", "STARTED", "LENGTH", "SIZE", "STATE", "WHO", "TYPE", "WHERE", "COMMAND")
    print_table(head, [_row(session) for session in found])


def _row(session: Mapping[str, Any]) -> tuple[str, ...]:
    from recorder.web.words import length, size

    return (
        str(session["id"]),
        str(session["started"])[:19].replace("T", " "),
        length(float(session["duration"])),
        size(int(session["size"])),
        str(session["state"]) + ("!" if session["damaged"] else "") + ("*" if session.get("unseen") else ""),
        str(session["user"] or session["node"]),
        str(session["type"]),
        place(session),
        str(session["command"])[:60],
    )


def place(session: Mapping[str, Any]) -> str:
    """Cluster, namespace, pod, container, as far as they are known."""
    return "/".join(str(session[name]) for name in ("cluster", "namespace", "pod", "container") if session[name])
