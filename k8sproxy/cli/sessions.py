"""`k8sproxy sessions`: what runs through a proxy now, and its end; asked of the proxy's admin site."""

from __future__ import annotations

import asyncio
import datetime
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click

from k8sproxy.cli.common import config_option, printable, read_config
from k8sproxy.common.cli import Failed, json_option, print_json

# Seconds for the admin site's answer: it is near, and answers out of memory.
_TIMEOUT = 10.0

admin_option = click.option(
    "--admin", metavar="ADDRESS", help="The proxy's admin site, IP:PORT or unix:/PATH (default: the configuration's)."
)


@click.group("sessions", short_help="List the sessions that run, or end one.")
def command() -> None:
    """The sessions (exec, attach, port-forward) that run through a proxy now.

    They are asked of its admin site, so this is for the machine or pod that the proxy runs on.
    """


@command.command("list")
@config_option
@admin_option
@json_option
def list_sessions(config_path: Path | None, admin: str | None, as_json: bool) -> None:
    """List the sessions that run now, oldest first."""
    answer = asyncio.run(_ask(_address(config_path, admin), "GET", "/sessions"))
    if as_json:
        print_json(answer)
        return
    try:
        rows = [_row(session) for session in answer["sessions"]]
    except (KeyError, TypeError, ValueError):
        raise Failed("the admin site does not list sessions: does another version of k8sproxy run there?") from None
    if not rows:
        click.echo("no session runs now")
        return
    head = ("ID", "SINCE", "WHO", "WHAT", "WHERE", "OUTPUT", "RECORDED")
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    for row in (head, *rows):
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@command.command("end")
@click.argument("session_id", metavar="ID")
@click.option("--reason", required=True, help="One line that the session's user will read.")
@config_option
@admin_option
@json_option
def end_session(session_id: str, reason: str, config_path: Path | None, admin: str | None, as_json: bool) -> None:
    """End the session ID.

    Four or more of the id's first characters will do. The user reads the reason in the terminal; a port-forward has no
    place for it, and breaks.
    """
    path = f"/sessions/{quote(session_id, safe='')}/end"
    answer = asyncio.run(_ask(_address(config_path, admin), "POST", path, {"reason": reason}))
    if as_json:
        print_json(answer)
    else:
        click.echo(f"ended {printable(str(answer.get('ended')))}")


def _address(config_path: Path | None, admin: str | None) -> str:
    if admin is not None:
        return admin
    if config_path is None:
        raise click.UsageError("name the proxy's admin site: --admin ADDRESS, or --config FILE")
    return str(read_config(config_path, files=False).admin.address)


async def _ask(address: str, method: str, path: str, body: dict[str, str] | None = None) -> dict[str, Any]:
    """The admin site's answer. Raises Failed."""
    import aiohttp

    unix = address.startswith("unix:")
    connector = aiohttp.UnixConnector(address.removeprefix("unix:")) if unix else aiohttp.TCPConnector()
    url = f"http://{'localhost' if unix else address}{path}"
    timeout = aiohttp.ClientTimeout(total=_TIMEOUT)
    try:
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout) as client,
            client.request(method, url, json=body, allow_redirects=False) as response,
        ):
            answer = await response.json(content_type=None)
            if response.status != 200:
                message = answer.get("message") if isinstance(answer, dict) else None
                raise Failed(printable(str(message or response.status)).removeprefix("k8sproxy: "))
            if not isinstance(answer, dict):
                raise ValueError
            return answer
    except TimeoutError:
        raise Failed(f"the admin site at {address} does not answer") from None
    except (aiohttp.ClientError, OSError, ValueError):
        raise Failed(f"there is no admin site of k8sproxy at {address}") from None


# What stands behind the recorder of a session that must not go on without it, by its level of recording.
_ENFORCED = {"closed": "enforced", "acknowledged": "acknowledged"}


def _row(session: dict[str, Any]) -> tuple[str, ...]:
    since = datetime.timedelta(seconds=round(max(0.0, time.time() - float(session["started"]))))
    place = "/".join(str(session[name]) for name in ("cluster", "namespace", "pod", "container") if session[name])
    what = f"{session['kind']} {session['command']}".strip()
    ports = ", ".join(session["ports"])
    recorded = session["recorder"] if session["recorded"] else "no"
    if session["failureMode"] in _ENFORCED:
        recorded += f" ({_ENFORCED[session['failureMode']]})"
    cells = (
        str(session["id"])[:8],
        str(since),
        str(session["peer"]),
        f"{what} {ports}".strip()[:48],
        place,
        _size(int(session["sent"])),
        recorded,
    )
    return tuple(printable(cell) for cell in cells)


def _size(count: int) -> str:
    size = float(count)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
