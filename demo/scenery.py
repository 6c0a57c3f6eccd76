"""What a demonstration runs on, whichever tailnet and cluster are behind it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Stage:
    """kubeconfigs: of each person, by name. gone: waits for the proxy's end, gives its exit code. log: the proxy's."""

    kubeconfigs: Mapping[str, Path]
    gone: Callable[[], Awaitable[int]]
    log: Path
