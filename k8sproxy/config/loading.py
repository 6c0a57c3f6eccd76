"""From a path to the proxy's `Config`: `k8sproxy.common.config.loading` with the proxy's models and checks."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from k8sproxy.common.config import loading
from k8sproxy.config.checks import check
from k8sproxy.config.models import Config


def load(path: Path, *, environment: Mapping[str, str] | None = None, files: bool = True) -> Config:
    """Read, check and return the configuration in `path`.

    Relative paths in the file are taken from the directory that it is in. environment: for ${NAME}, os.environ if it
    is None. files: also check that the files it names are there and can be used. Raises ConfigError with every fault.
    """
    return loading.load(path, Config, partial(check, files=files), environment=environment)


def parse(raw: bytes, path: Path, *, environment: Mapping[str, str] | None = None, files: bool = True) -> Config:
    """`load`, for the bytes of a file that has been read. path: where they are from."""
    return loading.parse(raw, path, Config, partial(check, files=files), environment=environment)
