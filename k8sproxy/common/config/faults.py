"""What is wrong with a configuration file, and where.

A fault names its place twice: by line and column for the editor, by dotted key for the reader. Messages never repeat
a value, since a value may have come out of the environment, and secrets live there.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

Key = tuple[str | int, ...]
"""Where in the document: names of keys and, in lists, numbers from 0."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault. line and column count from 1; both are 0 where the fault has no place (an unreadable file)."""

    path: Path
    line: int
    column: int
    key: str
    message: str

    def __str__(self) -> str:
        place = f"{self.path}:{self.line}:{self.column}" if self.line else str(self.path)
        return f"{place}: {self.key}: {self.message}" if self.key else f"{place}: {self.message}"


class ConfigError(Exception):
    """A configuration that is refused, with every fault that was found in it, in the order of the file."""

    def __init__(self, faults: list[Fault]) -> None:
        super().__init__("\n".join(map(str, faults)))
        self.faults = tuple(faults)


def dotted(key: Key) -> str:
    """("listen", 0, "tls") -> "listen[0].tls"."""
    text = ""
    for part in key:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text
