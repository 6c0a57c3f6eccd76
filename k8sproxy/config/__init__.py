"""The configuration file: its shape, and how it is read.

    bytes -> document (YAML with places, environment put in) -> models (each section by itself) -> checks (sections
    against each other, files) -> Config, or ConfigError with every fault, its line, column and key

`load` is the only door. It has no side effects but reading the files that are named, so a running proxy can try a
changed file and go on with the old one.
"""

from __future__ import annotations

from k8sproxy.common.config.addresses import TAILNET, AdminAddress, ListenAddress
from k8sproxy.common.config.faults import ConfigError, Fault, dotted
from k8sproxy.config.checks import warnings_of
from k8sproxy.config.loading import load, parse
from k8sproxy.config.models import (
    Admin,
    Cluster,
    Config,
    Events,
    Limits,
    Listen,
    ListenTLS,
    Log,
    Recording,
    Shutdown,
    Tailnet,
)

__all__ = [
    "TAILNET",
    "Admin",
    "AdminAddress",
    "Cluster",
    "Config",
    "ConfigError",
    "Events",
    "Fault",
    "Limits",
    "Listen",
    "ListenAddress",
    "ListenTLS",
    "Log",
    "Recording",
    "Shutdown",
    "Tailnet",
    "dotted",
    "load",
    "parse",
    "warnings_of",
]
