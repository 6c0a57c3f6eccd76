"""The packages that only the recorder needs, which a plain installation of the proxy leaves out."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from recorder.config import Config

# What to install, as pip is told.
EXTRA = "k8sproxy[recorder]"
# By the module's name. The first is needed by all that reads or writes recordings.
PACKAGES = ("zstandard", "jinja2", "obstore", "asyncpg")


def needed(config: Config) -> list[str]:
    """The modules that a configuration needs."""
    names = ["zstandard"]
    if config.web.listen:
        names.append("jinja2")
    if config.store.url is not None:
        names.append("obstore")
    if config.index.enabled and (config.index.url or "").startswith("postgres"):
        names.append("asyncpg")
    return names


def missing(names: Iterable[str]) -> str | None:
    """One line that says which of them are not installed and how to install them; None where all are there."""
    absent = [name for name in names if importlib.util.find_spec(name) is None]
    if not absent:
        return None
    are = "is" if len(absent) == 1 else "are"
    return f"{', '.join(absent)} {are} not installed, and the recorder needs {_them(absent)}: pip install '{EXTRA}'"


def _them(names: list[str]) -> str:
    return "it" if len(names) == 1 else "them"
