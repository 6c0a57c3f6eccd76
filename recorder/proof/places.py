"""Where a file really is, so that a key beside what it seals is found, whatever name it has there.

A path says little: it may lead through symbolic links, and a folder may be mounted a second time (bind mounts, subPath
of a volume). So two paths are compared as the kernel has them: the file system, and the path inside it, which
/proc/self/mountinfo tells of each mount (proc(5)). What is mounted below the store counts as inside it as well.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

_MOUNTS = Path("/proc/self/mountinfo")
_ESCAPE = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    """One mount. device: "MAJOR:MINOR" of the file system; root: which folder of it; point: where it is seen."""

    device: str
    root: str
    point: str


def read_mounts(path: Path = _MOUNTS) -> tuple[Mount, ...]:
    """All mounts of this process, the newest last; none where the system does not tell."""
    try:
        lines = path.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return ()
    fields = [line.split(" ") for line in lines]
    return tuple(Mount(one[2], _plain(one[3]), _plain(one[4])) for one in fields if len(one) > 5)


def _plain(text: str) -> str:
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text)


def _below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def place(path: Path, mounts: tuple[Mount, ...]) -> tuple[str, str]:
    """The file system and the path inside it. path: need not be there yet."""
    real = os.path.realpath(path)
    found = Mount("", "/", "/")
    for mount in mounts:
        if _below(real, mount.point) and len(mount.point) >= len(found.point):
            found = mount
    rest = os.path.relpath(real, found.point)
    return found.device, os.path.normpath(os.path.join(found.root, rest))


def is_inside(path: Path, folder: Path, mounts: tuple[Mount, ...] | None = None) -> bool:
    """Whether a file is in a folder or anywhere below it, under whatever name."""
    if mounts is None:
        mounts = read_mounts()
    device, inner = place(path, mounts)
    real = os.path.realpath(folder)
    homes = [place(folder, mounts)]
    homes += [(mount.device, mount.root) for mount in mounts if mount.point != real and _below(mount.point, real)]
    return any(device == home and _below(inner, root) for home, root in homes)


def same_volume(path: Path, folder: Path) -> bool:
    """Whether both are on one file system, so that whoever takes the one back to yesterday takes the other along."""
    mounts = read_mounts()
    return place(path, mounts)[0] == place(folder, mounts)[0]
