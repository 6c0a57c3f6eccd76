"""What the relay shows of an upgraded connection: a tap beside the bytes, never a stage they pass through.

`open_tap` is the one place where a Decision's demand for a recording meets a recorder. It is asked before upstream
is contacted. This release has no recorder's client yet, so a demand cannot be met: CLOSED is refused, OPEN goes on
and is said in the log by the handler, which sees `tap.recorded`.
"""

from __future__ import annotations

from k8sproxy.errors import Refusal
from k8sproxy.policy.decision import Decision, FailureMode


class Tap:
    """The tap where nothing is kept. recorded: whether a recorder has accepted the session."""

    __slots__ = ()

    recorded = False

    async def close(self) -> None:
        """The session is over; what is kept is brought to its end."""

    def from_client(self, view: memoryview) -> None:
        """Bytes that the client sent after the switch of protocols. The view is good during the call alone."""

    def from_upstream(self, view: memoryview) -> None:
        """Bytes that upstream sent after the switch of protocols. The view is good during the call alone."""


NO_TAP = Tap()


async def open_tap(decision: Decision) -> Tap:
    """The tap that the Decision demands. Raises Refusal 403 where it must be recorded and cannot be."""
    refusal = refusal_of(decision)
    if refusal is not None:
        raise refusal
    return NO_TAP


def refusal_of(decision: Decision) -> Refusal | None:
    """Why the session can't be: it must be recorded and nothing can take it. None where it may go on."""
    demand = decision.recording
    if demand is None or demand.failure_mode is FailureMode.OPEN:
        return None
    tried = ", ".join(demand.recorders) or "none has an address"
    return Refusal(
        403,
        "recorder_unavailable",
        f"this session must be recorded (enforceRecorder) and no recorder can take it: {tried}",
    )
