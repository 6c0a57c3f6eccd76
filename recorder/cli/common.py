"""What several commands share: where they look, how they print, how they show that they go on.

Everything that comes out of a recording or from elsewhere is somebody's input: it goes to a terminal through
`printable`, and as JSON in ASCII.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Coroutine, Iterable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from k8sproxy.common import cli
from k8sproxy.common.cli import EXISTING_FILE, Failed

if TYPE_CHECKING:
    from recorder.config import Config

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

config_option = cli.config_option("RECORDER_CONFIG", to="path", required=True)

# Seconds between two drawings of a progress bar; fewer would flicker, more would look stuck.
_REDRAW = 0.1
# Characters of a cell that others stand behind: a login name, a pod's name with its namespace.
_CELL = 60


def read_config(path: Path) -> Config:
    """The configuration in `path`. Raises Misconfigured."""
    from recorder.config import load

    return cli.read_config(load, path)


@dataclass(frozen=True, slots=True)
class Where:
    """Where a command looks. config: of a store; url: of a running recorder. One of the two. configured: there is a
    file, so that it also knows of an index and of keys."""

    config: Config | None = None
    url: str = ""
    configured: bool = False

    def store(self) -> Config:
        """The store's configuration. Raises click.UsageError where a running recorder was named."""
        if self.config is None:
            raise click.UsageError("this needs the store itself: --store PATH or URL, or --config FILE")
        return self.config


def place_options(*, running: bool = True) -> Callable[[F], F]:
    """The options that say where: the command takes `where`. running: a running recorder will do as well."""

    def add(command: F) -> F:
        import functools

        @functools.wraps(command)
        def with_place(
            *,
            store: str | None,
            options: Sequence[str],
            key_files: Sequence[Path],
            config_path: Path | None,
            url: str | None = None,
            **more: Any,
        ) -> Any:
            return command(where=_where(store, options, key_files, config_path, url), **more)

        wrapped: Any = with_place
        if running:
            wrapped = click.option(
                "--url",
                envvar="RECORDER_URL",
                metavar="URL",
                help="The URL of a running recorder's site (or RECORDER_URL).",
            )(wrapped)
        for option in (
            cli.config_option("RECORDER_CONFIG", about="The store of this configuration"),
            click.option(
                "--encryption-key", "key_files", multiple=True, type=EXISTING_FILE, metavar="FILE",
                help="With --store: a file with an encryption key; may be repeated.",
            ),
            click.option(
                "--option", "options", multiple=True, metavar="NAME=VALUE",
                help="With --store URL: a setting of the object store, such as endpoint or region; may be repeated.",
            ),
            click.option("--store", metavar="PATH|URL", help="A recorder's folder or object store."),
        ):  # fmt: skip
            wrapped = option(wrapped)
        result: F = wrapped
        return result

    return add


def _where(
    store: str | None, options: Sequence[str], key_files: Sequence[Path], config_path: Path | None, url: str | None
) -> Where:
    # What stands on the command line goes before what stands in the environment.
    source = click.get_current_context().get_parameter_source
    if store is not None or (url is not None and config_path is not None):
        config_path = config_path if _is_typed(source("config_path")) else None
        url = url if _is_typed(source("url")) else None
    if [store, config_path, url].count(None) != 2:
        raise click.UsageError("name one place: --store PATH or URL, --config FILE, or --url URL")
    if (options or key_files) and store is None:
        raise click.UsageError("--option and --encryption-key need --store")
    if url is not None:
        if not url.startswith(("http://", "https://")):
            raise click.UsageError("--url must begin with http:// or https://")
        return Where(url=url.rstrip("/"))
    if config_path is not None:
        return Where(config=read_config(config_path), configured=True)
    return Where(config=_config_of(store or "", options, key_files))


def _is_typed(source: object) -> bool:
    return getattr(source, "name", "") == "COMMANDLINE"


def _config_of(store: str, options: Sequence[str], key_files: Sequence[Path]) -> Config:
    from pydantic import ValidationError

    from recorder.config import Config

    settings: dict[str, object] = {}
    if "://" in store:
        pairs = dict(option.partition("=")[::2] for option in options)
        if not all(pairs) or any("=" not in option for option in options):
            raise click.UsageError("--option must be NAME=VALUE")
        settings = {"url": store, "options": pairs}
    elif options:
        raise click.UsageError("--option needs --store with the URL of an object store")
    else:
        if not Path(store).is_dir():
            raise Failed(f"there is no folder {printable(store)}")
        settings = {"folder": store}
    document = {"apiVersion": "recorder/v1alpha1", "store": settings}
    if key_files:
        document["encryption"] = {"keys": [str(path) for path in key_files]}
    try:
        return Config.model_validate(document, by_alias=True, by_name=False)
    except ValidationError as error:
        message = error.errors(include_url=False, include_input=False)[0]["msg"].removeprefix("Value error, ")
        raise click.UsageError(f"--store {message}") from None


def execute(work: Coroutine[Any, Any, T]) -> T:
    """Run a command's work; what can go wrong with a store or an index becomes one line."""
    from recorder.index import IndexFailure
    from recorder.proof.keys import KeyFault
    from recorder.store import StoreError

    _quiet()
    try:
        return asyncio.run(work)
    except (StoreError, IndexFailure, KeyFault) as error:
        raise Failed(printable(str(error))) from None


def _quiet() -> None:
    """The parts' log is for a service; a command says itself what it did, and passes on only what is wrong."""
    import logging

    import structlog

    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        processors=[_log_line],
        logger_factory=lambda *_: _Stderr(),
    )


class _Stderr:
    """Where the log's lines go."""

    def warning(self, line: str) -> None:
        click.echo(line, err=True)

    error = critical = warning


def _log_line(logger: object, method: str, event: MutableMapping[str, Any]) -> str:
    """A line of the log, for people."""
    event.pop("exc_info", None)
    what = str(event.pop("event", "")).replace("_", " ")
    more = ", ".join(f"{name} {value}" for name, value in event.items())
    return "recorder: " + printable(f"{what}: {more}" if more else what)


def tell_short(why: str) -> None:
    """Say that an answer may lack something, where it may."""
    if why:
        click.echo(f"recorder: {why}", err=True)


def printable(text: str, most: int = 4000) -> str:
    """Text from elsewhere, for a terminal: nothing in it acts on what is around it."""
    from recorder.web.words import visible

    return visible(text, most)


def print_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table with a head, its cells made harmless, and cut but for the last; on a terminal no wider than that."""
    cells = [[*(_cut(printable(cell, 300)) for cell in row[:-1]), printable(row[-1], 300)] for row in rows]
    widths = [max([len(name), *(len(row[column]) for row in cells)]) for column, name in enumerate(head)]
    width = _width()
    for row in (list(head), *cells):
        line = "  ".join(cell.ljust(size) for cell, size in zip(row, widths, strict=True)).rstrip()
        click.echo(line if width is None or len(line) <= width else line[: width - 1] + "…")


def _cut(text: str) -> str:
    return text if len(text) <= _CELL else text[: _CELL - 1] + "…"


def _width() -> int | None:
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or None
    except (OSError, ValueError):
        return None


@contextmanager
def progress_bar(label: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr, where that is a terminal; what it gives is told how many of how many are done. With a total of
    0 it counts."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    import time

    drawn = [0.0]

    def draw(done: int, total: int) -> None:
        now = time.monotonic()
        if now - drawn[0] < _REDRAW and done != total:
            return
        drawn[0] = now
        if total:
            share = min(1.0, done / total)
            bar = "#" * round(share * 30)
            text = f"{label} [{bar:<30}] {share:4.0%}"
        else:
            text = f"{label} {done:,}"
        click.echo(f"\r\x1b[K{text}", err=True, nl=False)

    try:
        yield draw
    finally:
        click.echo("\r\x1b[K", err=True, nl=False)
