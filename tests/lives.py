"""The check that an enum of states and its docstring have the same table of transitions (k8sproxy.common.states)."""

from __future__ import annotations

import inspect
import re

import pytest

from k8sproxy.common.states import State

FINAL = "(final)"
# What mypyc gives a compiled enum in place of its docstring.
LOST = "mypyc filler docstring"


def documented(states: type[State]) -> dict[str, frozenset[str]]:
    """The table of the docstring: the followers of each state, by name. A line may go on in the next ones."""
    table: dict[str, str] = {}
    name = ""
    for line in inspect.cleandoc(states.__doc__ or "").splitlines():
        first = line.split(maxsplit=1)[0] if line.strip() else ""
        if first in states.__members__ and not line.startswith(" "):
            name = first
            table[name] = line[len(first) :]
        elif name and line.startswith(" "):
            table[name] += " " + line.strip()
        else:
            name = ""
    return {name: _followers(text) for name, text in table.items()}


def _followers(text: str) -> frozenset[str]:
    _, arrow, names = text.rpartition("->")
    assert arrow, f"there is no arrow in {text!r}"
    return frozenset() if names.strip() == FINAL else frozenset(re.split(r"[\s,]+", names.strip()))


def assert_documented(states: type[State]) -> None:
    """The docstring's table is the code's. Compiled, an enum has no docstring: the run from the sources compares it."""
    if states.__doc__ == LOST:
        pytest.skip(f"{states.__name__} is compiled and has lost its docstring")
    assert documented(states) == {
        state.name: frozenset(follower.name for follower in state.followers) for state in states
    }
