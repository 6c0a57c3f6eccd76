"""The recorder's configuration file: its shape, and how it is read.

`load` is the only door: `k8sproxy.common.config.loading` with the recorder's models and checks. It has no side effects,
so a running recorder can try a changed file and go on with the old one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from k8sproxy.common.config import loading
from k8sproxy.common.config.addresses import ListenAddress
from k8sproxy.common.config.faults import ConfigError, dotted
from k8sproxy.common.config.sections import Network
from recorder.config.checks import check
from recorder.config.models import Config, Retention

__all__ = ["Config", "ConfigError", "ListenAddress", "Network", "Retention", "dotted", "load"]


def load(path: Path, *, environment: Mapping[str, str] | None = None) -> Config:
    """Read, check and return the configuration in `path`; relative paths in it are taken from its directory.
    environment: for ${NAME}, os.environ if it is None. Raises ConfigError with every fault that is found."""
    return loading.load(path, Config, check, environment=environment)
