"""Where the bed's programs are: built by the Makefile into a cache, found again by what they are built from."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from .processes import BedError

HERE = Path(__file__).parent


def _make(target: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["make", "--silent", "--no-print-directory", "-C", str(HERE), target],
        stdout=subprocess.PIPE,
        text=True,
    )


class Programs:
    """A search path of built programs. Building is only started for what is missing."""

    def __init__(self, progress: Callable[[str], None]) -> None:
        with _make("where") as where:
            self._path = where.communicate()[0].strip()
        if where.returncode:
            raise BedError("make where failed in tests/bed")
        with _make("all") as build:
            for line in build.stdout or ():
                progress(line.rstrip())
        if build.returncode:
            raise BedError("the bed's programs could not be built: make -C tests/bed all")

    def __call__(self, name: str) -> Path:
        found = shutil.which(name, path=self._path)
        if found is None:
            raise BedError(f"no {name} in {self._path}")
        return Path(found)
