"""What lives on behind its end: objects of some kinds that were made within a block of code, without a collection.

    with Living(Wire, Connection) as living:
        ...
        living.assert_none()

What an earlier test has left counts as nothing here. What is found is named with what refers to it, so that a failure
that is seen once can be understood.
"""

from __future__ import annotations

import gc
import types
from collections import Counter


class Living:
    """Objects of these kinds. The collector does not run within the block."""

    def __init__(self, *kinds: type) -> None:
        self._kinds = kinds
        self._before: list[object] = []

    def __enter__(self) -> Living:
        gc.collect()
        gc.disable()
        self._before = self._all()
        return self

    def __exit__(self, *_: object) -> None:
        self._before.clear()
        gc.enable()

    def _all(self) -> list[object]:
        return [thing for thing in gc.get_objects() if isinstance(thing, self._kinds)]

    def _found(self) -> list[object]:
        before = set(map(id, self._before))
        return [thing for thing in self._all() if id(thing) not in before]

    def counts(self) -> dict[str, int]:
        """How many there are, by the names of their kinds."""
        return dict(Counter(type(thing).__name__ for thing in self._found()))

    def assert_none(self) -> None:
        """There is none."""
        found = self._found()
        if found:
            lines = []
            for thing in found:
                holders = [holder for holder in gc.get_referrers(thing) if holder is not found]
                lines.append(f"{type(thing).__name__}, held by: " + "; ".join(map(_name, holders)))
            raise AssertionError("\n".join(lines))


def _name(holder: object) -> str:
    if isinstance(holder, types.FrameType):
        return f"a frame of {holder.f_code.co_qualname}"
    if isinstance(holder, dict | list | tuple | set):
        return f"a {type(holder).__name__} of {len(holder)}"
    return repr(holder)[:120]
