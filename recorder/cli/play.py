"""`recorder play`: a session in the terminal, as it was seen."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import click

from recorder.cli.common import Where, execute, place_options

if TYPE_CHECKING:
    from recorder.cli.player import Player

_KEYS = {
    b" ": "pause",
    b"q": "quit",
    b"Q": "quit",
    b"\x03": "quit",
    b"\x1b[C": "on",
    b"\x1bOC": "on",
    b"\x1b[D": "back",
    b"\x1bOD": "back",
    b"\x1b[A": "faster",
    b"\x1bOA": "faster",
    b"+": "faster",
    b"\x1b[B": "slower",
    b"\x1bOB": "slower",
    b"-": "slower",
}


@click.command("play", short_help="Play a session in the terminal.")
@click.argument("identifier", metavar="ID")
@place_options()
@click.option("-s", "--speed", type=click.FloatRange(1 / 16, 64), default=1.0, help="1/16 to 64 (default 1).")
@click.option(
    "-i", "--idle-limit", type=click.FloatRange(min=0.001), metavar="SECONDS", help="Shorten longer pauses to this."
)
@click.option(
    "--start", type=click.FloatRange(min=0, max=1e9), default=0.0, metavar="SECONDS", help="Where to start (default 0)."
)
@click.option(
    "--raw", is_flag=True, help="Write all that was recorded, also what can control the terminal; allowed into a pipe."
)
def command(where: Where, identifier: str, speed: float, idle_limit: float | None, start: float, raw: bool) -> None:
    """Play the session ID in the terminal.

    Space pauses, the arrows to the left and right move by five seconds, those up and down change the speed, q ends it.
    What a recording could do to the terminal besides drawing (its clipboard, its title, questions that it answers) is
    left out, unless you say --raw.
    """
    if not sys.stdout.isatty() and not raw:
        raise click.UsageError("stdout is not a terminal: use --raw to write the recording's own bytes")
    execute(_play(where, identifier, speed, idle_limit, start, raw))


async def _play(where: Where, identifier: str, speed: float, idle_limit: float | None, start: float, raw: bool) -> None:
    from recorder.cli.library import open_library
    from recorder.cli.player import Player

    async with open_library(where) as library:
        session = await library.session(identifier)
        if sys.stdout.isatty():
            _tell_size(session)
        with keyboard() as keys:
            player = Player(
                library, identifier, wait=keys.wait, write=_write, speed=speed, idle_limit=idle_limit, raw=raw
            )
            await _run(player, start)
        if player.unseen:
            click.echo(
                f"recorder: it has output that a terminal does not show: recorder show {identifier} --unseen",
                err=True,
            )


async def _run(player: Player, start: float) -> None:
    """Play, and leave the terminal as it was however it ends."""
    from recorder.cli.tame import RESTORE

    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    stopped = []

    def stop() -> None:
        stopped.append(True)
        if task is not None:
            task.cancel()

    for name in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        loop.add_signal_handler(name, stop)
    try:
        await player.run(start)
    except asyncio.CancelledError:
        if not stopped:
            raise
    except BrokenPipeError:
        # Nobody reads any more; Python must not try once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    finally:
        for name in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            loop.remove_signal_handler(name)
        if sys.stdout.isatty():
            with suppress(OSError):
                _write(RESTORE.encode())
    if stopped:
        raise click.exceptions.Exit(130)


def _tell_size(session: dict[str, object]) -> None:
    header = session.get("header")
    if not isinstance(header, dict):
        return
    width, height = header.get("width"), header.get("height")
    columns, rows = os.get_terminal_size(sys.stdout.fileno())
    if isinstance(width, int) and isinstance(height, int) and (width > columns or height > rows):
        click.echo(f"recorder: the session's terminal was {width}x{height}, this one is {columns}x{rows}", err=True)


def _write(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


class Keyboard:
    """Keys out of a terminal. descriptor: -1 where there is none, and nobody presses any."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._pressed: asyncio.Queue[str] = asyncio.Queue()

    async def wait(self, seconds: float | None) -> str:
        """See player.Wait."""
        if self._descriptor < 0 and seconds is not None:
            await asyncio.sleep(seconds)
            return ""
        try:
            async with asyncio.timeout(seconds):
                return await self._pressed.get()
        except TimeoutError:
            return ""

    def read(self) -> None:
        """There is something."""
        try:
            data = os.read(self._descriptor, 4096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:  # the terminal is gone
            asyncio.get_running_loop().remove_reader(self._descriptor)
            self._pressed.put_nowait("quit")
            return
        for key in split_keys(data):
            self._pressed.put_nowait(key)


def split_keys(data: bytes) -> list[str]:
    """The keys in what a terminal sent; those that mean nothing here are left out."""
    found: list[str] = []
    position = 0
    while position < len(data):
        for size in (3, 1):
            key = _KEYS.get(data[position : position + size])
            if key is not None:
                found.append(key)
                position += size
                break
        else:
            # A sequence of a key that means nothing is skipped whole: its letters are not keys.
            position += 3 if data[position : position + 2] in (b"\x1b[", b"\x1bO") else 1
    return found


@contextmanager
def keyboard() -> Iterator[Keyboard]:
    """The keyboard, if stdin is a terminal, in a mode in which keys come at once; as it was before afterwards."""
    try:
        descriptor = sys.stdin.fileno()
        has_keys = os.isatty(descriptor) and sys.stdout.isatty()
    except (OSError, ValueError):
        has_keys = False
    if not has_keys:
        yield Keyboard(-1)
        return
    import termios
    import tty

    before = termios.tcgetattr(descriptor)
    keys = Keyboard(descriptor)
    loop = asyncio.get_running_loop()
    tty.setcbreak(descriptor)
    try:
        loop.add_reader(descriptor, keys.read)
        yield keys
    finally:
        loop.remove_reader(descriptor)
        # Flushed, so that no key, and no terminal's answer to a recording, becomes a command for the shell.
        termios.tcsetattr(descriptor, termios.TCSAFLUSH, before)
