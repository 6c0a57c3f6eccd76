"""JSON as RFC 8259 has it, for json.loads: parse_constant=no_constant, parse_float=finite. Python's own takes more."""

from __future__ import annotations

import math
from typing import NoReturn


def no_constant(name: str) -> NoReturn:
    """NaN and Infinity are no JSON: ValueError."""
    raise ValueError(name)


def finite(text: str) -> float:
    """A number, ValueError for one beyond a double: it would come out as Infinity, which cannot be told to others."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value
