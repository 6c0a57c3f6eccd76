"""`recorder export`: a session taken away, as a file."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

import click

from k8sproxy.common.cli import Failed
from recorder.cli.common import Where, execute, place_options, progress_bar

if TYPE_CHECKING:
    from collections.abc import Iterator

    from recorder.cli.library import Library


@click.command("export", short_help="Export a session as .cast, text or JSON.")
@click.argument("identifier", metavar="ID")
@place_options()
@click.option(
    "--format", "form", type=click.Choice(["cast", "txt", "json"]), default="cast", help="Default: cast (asciicast v2)."
)
@click.option("--raw", is_flag=True, help="Instead, the exact bytes that were written to the terminal.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
    help="The file to write (default: stdout). Only you can read it.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Overwrite FILE.")
def command(where: Where, identifier: str, form: str, raw: bool, output: Path | None, force: bool) -> None:
    """Export the session ID to stdout, or to FILE.

    With --raw it is what the terminal was sent, byte by byte, also where that was no text: `recorder export ID --raw`
    gives back the archive that a `kubectl cp` moved.
    """
    if output is None and (raw or form == "cast") and sys.stdout.isatty():
        raise click.UsageError("a recording's own bytes may do anything to a terminal: use --output FILE, or a pipe")
    execute(_export(where, identifier, "raw" if raw else form, output, force))


async def _export(where: Where, identifier: str, form: str, output: Path | None, force: bool) -> None:
    from recorder.cli.library import open_library

    async with open_library(where) as library:
        session = await library.session(identifier)
        with progress_bar("exported") as progress, _file(output, force) as file:
            pieces = _counted(library, identifier, int(session["size"]), progress)
            async with aclosing(pieces):
                async for piece in _formed(form, session, pieces):
                    file.write(piece)
            file.flush()


async def _counted(
    library: Library, identifier: str, total: int, progress: Callable[[int, int], None]
) -> AsyncGenerator[bytes, None]:
    done = 0
    async with aclosing(library.cast(identifier)) as pieces:
        async for piece in pieces:
            yield piece
            done += len(piece)
            progress(done, total)


def _formed(form: str, session: dict[str, object], pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    from recorder.web import exports

    match form:
        case "txt":
            return exports.text(pieces)
        case "json":
            about = {name: value for name, value in session.items() if name not in ("header", "hits", "rights")}
            return exports.document(about, pieces)
        case "raw":
            return _raw(pieces)
    return pieces


async def _raw(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    from k8sproxy.common.formats.asciicast import decode_output
    from recorder.web import exports, windows

    async for line in windows.lines(pieces):
        output = exports.output_of(line)
        if output:
            yield decode_output(output)


@contextmanager
def _file(path: Path | None, force: bool) -> Iterator[IO[bytes]]:
    """stdout, or a file that is there whole or not at all. Raises Failed."""
    if path is None:
        yield sys.stdout.buffer
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        if path.exists() and not force:
            raise Failed(f"{path} is there already: --force writes over it")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with open(descriptor, "wb") as file:
                yield file
            os.replace(temporary, path)
        finally:
            with suppress(FileNotFoundError):
                temporary.unlink()
    except OSError as error:
        raise Failed(f"{path}: {error.strerror}") from None
