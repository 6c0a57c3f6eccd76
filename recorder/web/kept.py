"""What the pages and the API tell of holds and of the signed acts: what is held and what was removed, and by whom.

People with `audit` in a place see the holds of sessions in it. A hold of what matches, and the list of acts, name
users, clusters and sessions of anywhere, removed ones too: those are told to whoever has `audit` everywhere.

Whether somebody is under a hold is not for that somebody to know, so `view` alone tells nothing of it. Whether a
recording is signed, and when that was done, whoever may view it should know.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from k8sproxy.common.errors import Refusal
from recorder.access import ANYWHERE, Scope, holds
from recorder.model import Recording
from recorder.proof.acts import Act, Acts
from recorder.proof.keys import KeyFault
from recorder.proof.report import Finding
from recorder.retention.holds import Hold
from recorder.store import Reading, StoreError


class Keeps(Protocol):
    """What is needed of the recorder. fault: why retention removes nothing, or not all, None where it does."""

    @property
    def fault(self) -> str | None:
        """See above."""

    async def now(self) -> Sequence[Hold]:
        """All holds. Raises StoreError, KeyFault where one is not as it was signed."""

    async def acts(self) -> Acts:
        """All acts. Raises StoreError, KeyFault."""

    async def standing(self, recording: Recording) -> Finding | None:
        """Whether it is signed; None where nothing is signed, or that cannot be told. Raises StoreError."""


class Nothing:
    """Where nothing is held and nothing signed."""

    fault: str | None = None

    async def now(self) -> Sequence[Hold]:
        """See Keeps."""
        return ()

    async def acts(self) -> Acts:
        """See Keeps."""
        return Acts()

    async def standing(self, recording: Recording) -> Finding | None:
        """See Keeps."""
        return None


@dataclass(frozen=True, slots=True)
class Told:
    """What somebody may know. faults: what is wrong, a sentence each."""

    holds: Sequence[Hold] = ()
    faults: Sequence[str] = ()


async def tell(keeps: Keeps, store: Reading, scope: Scope) -> Told:
    """The holds that a peer may know of, who may audit `scope`."""
    faults = [keeps.fault] if keeps.fault is not None else []
    try:
        found = await keeps.now()
    except (StoreError, KeyFault) as error:
        return Told((), [*faults, *([str(error)] if str(error) not in faults else [])])
    if ANYWHERE in scope:
        return Told(found, faults)
    seen = []
    for hold in found:
        if hold.held and await _in(store, hold.held, scope):
            seen.append(hold)
    return Told(seen, faults)


async def _in(store: Reading, identifier: str, scope: Scope) -> bool:
    try:
        return holds(scope, await store.get(identifier))
    except (KeyError, StoreError):
        return False


async def of(keeps: Keeps, recording: Recording) -> Sequence[Hold] | None:
    """The holds of one session; None where that can't be told."""
    try:
        return [hold for hold in await keeps.now() if hold.holds(recording)]
    except (StoreError, KeyFault):
        return None


async def standing(keeps: Keeps, recording: Recording) -> Finding | None:
    """Whether a session is signed; None where that can't be told."""
    try:
        return await keeps.standing(recording)
    except StoreError:
        return None


async def acts(keeps: Keeps, scope: Scope, *, limit: int, before: int | None) -> tuple[Sequence[Act], Sequence[str]]:
    """Acts, newest first, those below a number; and what is wrong with the chain. Raises Refusal."""
    if ANYWHERE not in scope:
        raise Refusal(403, "no_audit", "only peers with the right audit everywhere may see acts")
    try:
        found = await keeps.acts()
    except (StoreError, KeyFault) as error:
        return (), [str(error)]
    wanted = [act for act in found.believed if before is None or act.number < before]
    return wanted[::-1][:limit], found.faults


__all__ = ["Keeps", "Nothing", "Told", "acts", "of", "standing", "tell"]
