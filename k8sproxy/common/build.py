"""How this program was built: whether its hot modules are compiled (mypyc), or run from their Python sources.

This module is compiled together with the hot set, or not at all, so that it can tell from its own file.
"""

from __future__ import annotations

import platform


def is_compiled() -> bool:
    """Whether the hot modules of this process are compiled."""
    return not __file__.endswith(".py")


def describe_build() -> str:
    """The same in words, for a command that prints versions."""
    return "compiled" if is_compiled() else "pure Python"


def build_labels(version: str) -> tuple[str, str, str]:
    """The labels of the metric that says what runs: version, compiled ("true" or "false"), Python's version."""
    return version, str(is_compiled()).lower(), platform.python_version()
