"""Names of fields that are not known, said so that the policy's author finds them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

# Characters of a name that is shown; the longest known one has 15.
_SHOWN = 64


def shown(name: str) -> str:
    """The name in quotes, in ASCII, cut where it is long: it is somebody's text, and goes into logs and answers."""
    return ascii(name if len(name) <= _SHOWN else f"{name[:_SHOWN]}..")


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known name that was probably meant; None where no name is near. cutoff: 1 is the same name, 0 is any."""
    spelled = {candidate.casefold(): candidate for candidate in known}
    close = difflib.get_close_matches(name[:_SHOWN].casefold(), spelled, n=1, cutoff=cutoff)
    return spelled[close[0]] if close else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: "; did you mean NAME?", or nothing."""
    near = nearest(name, known)
    return f"; did you mean {near}?" if near is not None else ""
