"""What is done with a request: the one place where grants meet what is asked.

    authorize(caller, snapshot)      once for a caller and what its route says: grants, whom to impersonate, and the
                                     Decisions of the requests that need nothing more
    decide(authority, asked, now)    once for a request: one of those Decisions, or a Refusal
    covers(now, before)              while it runs, after a change: whether it would still be allowed

An Authority stands for caller and snapshot: everything of a decision that depends on these two alone is computed once.
So decide() is cheap, and the Decision of ordinary requests is always the same object: whatever is derived from it can
be kept beside it. Both are pure: the clock is handed in.

A Decision can only come from decide(), and rewrite and upstream take nothing else: what was not decided can't be sent.
(A third result is to come: questions that somebody has to answer before the decision, which is then made again.)

Recording is required for exec and attach (the kubelet's own behind nodes/proxy too) where a grant asks for it, at the
strongest level that a grant says (ownrules.RecordingLevel): open, a session without a recorder goes on; closed and
acknowledged (both are "enforced"), it must not start. What leads to a shell and can't be recorded as a session is
refused where recording is enforced, and passed otherwise; an ephemeral container is put in place without a recording,
since it is reached by attach or exec.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NoReturn, final

from k8sproxy.access.caller import Caller
from k8sproxy.access.grants import DEFAULT_SETTINGS, Grants, GrantSettings, Impersonation, impersonation, parse_grants
from k8sproxy.access.ownrules import RecordingLevel
from k8sproxy.common.errors import Refusal
from k8sproxy.request.classify import SessionKind
from k8sproxy.request.requestinfo import RequestInfo


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What decisions are made by, beside the caller: one value that never changes; a reload makes another one.

    settings: how grants are read. impersonate: False in passthrough mode, where the client's own credentials go
    through, and grants still say what is recorded.
    """

    settings: GrantSettings = DEFAULT_SETTINGS
    impersonate: bool = True


DEFAULT_SNAPSHOT = Snapshot()


@dataclass(frozen=True, slots=True)
class RecordingDemand:
    """A session that has to be recorded.

    recorders: "IP:PORT" in the order to be tried; where empty, none takes it. level: what its user may see without
    recording. session: EXEC or ATTACH, whichever way leads to it.
    """

    recorders: tuple[str, ...]
    level: RecordingLevel
    session: SessionKind


class _Maker:
    """The right to make a Decision or an Authority. This module has the only one, and gives it to nobody.

    A constructor asks for it, so that mypy refuses a call from elsewhere, and the call fails where mypy did not look. A
    class that mypyc compiles takes this too; it refuses `object.__new__`.
    """

    __slots__ = ()


_MAKER: Final = _Maker()


@final
class Decision:
    """A request may go upstream, in this way. Only decide() makes one.

    impersonation: None where the client's own credentials go through (passthrough mode). recording: None where the
    request need not be recorded. events: the grants ask for the request to be told to grants.recorders.
    """

    __slots__ = ("caller", "events", "grants", "impersonation", "recording")

    def __init__(
        self,
        maker: _Maker,
        caller: Caller,
        grants: Grants,
        impersonation: Impersonation | None,
        recording: RecordingDemand | None,
    ) -> None:
        if maker is not _MAKER:
            raise TypeError("only decide() makes a Decision")
        self.caller: Final = caller
        self.grants: Final = grants
        self.impersonation: Final = impersonation
        self.recording: Final = recording
        self.events: Final = grants.enable_events

    def __repr__(self) -> str:
        return f"Decision({self.caller!r}, {self.impersonation!r}, {self.recording!r}, events={self.events})"


@final
class Authority:
    """What depends on caller and snapshot alone. Only authorize() makes one.

    ordinary: the Decision of every request that need not be recorded, always the same object, so that whatever is
    derived from it can be kept beside it.
    """

    __slots__ = ("_attach", "_exec", "caller", "grants", "impersonation", "ordinary", "snapshot")

    def __init__(
        self, maker: _Maker, caller: Caller, snapshot: Snapshot, grants: Grants, impersonation: Impersonation | None
    ) -> None:
        if maker is not _MAKER:
            raise TypeError("only authorize() makes an Authority")
        self.caller: Final = caller
        self.snapshot: Final = snapshot
        self.grants: Final = grants
        self.impersonation: Final = impersonation
        self.ordinary: Final = Decision(maker, caller, grants, impersonation, None)
        self._exec: Final = Decision(maker, caller, grants, impersonation, _demand(grants, SessionKind.EXEC))
        self._attach: Final = Decision(maker, caller, grants, impersonation, _demand(grants, SessionKind.ATTACH))

    def __repr__(self) -> str:
        return f"Authority({self.caller!r}, {self.impersonation!r})"


def authorize(caller: Caller, snapshot: Snapshot = DEFAULT_SNAPSHOT) -> Authority:
    """The caller's Authority, to be kept as long as caller and snapshot are the same.

    Raises Refusal (403): malformed_grant, unusable_name, reserved_name.
    """
    grants = parse_grants(caller.peer, snapshot.settings)
    identity = impersonation(caller, grants) if snapshot.impersonate else None
    return Authority(_MAKER, caller, snapshot, grants, identity)


def decide(authority: Authority, asked: RequestInfo, now: float) -> Decision:
    """What is done with one request of the caller. now: unix seconds.

    Raises Refusal: 401 (proof_expired) once the caller's proof has ended, 403 (unrecordable_session).
    """
    if now >= authority.caller.until:
        raise Refusal(401, "proof_expired", "what proves who you are is not valid any more; connect again", close=True)
    session = asked.session
    if session is SessionKind.NONE:
        return authority.ordinary
    if session is SessionKind.EXEC or session is SessionKind.NODE_PROXY_EXEC:
        return authority._exec
    if session is SessionKind.ATTACH or session is SessionKind.NODE_PROXY_ATTACH:
        return authority._attach
    if authority.grants.enforced and session not in _NEVER_RECORDED:
        _refuse_unrecordable(session)
    return authority.ordinary


# Not sessions in themselves: what attaches to an ephemeral container is recorded, a forwarded port shows no terminal,
# and the kubelet's reads are reads. A kind that is not here is refused where recording is enforced.
_NEVER_RECORDED = frozenset((SessionKind.EPHEMERAL, SessionKind.PORT_FORWARD, SessionKind.NODE_PROXY_SAFE))

_USE_EXEC = "use kubectl exec or kubectl attach, which are recorded"
_UNRECORDABLE = {
    SessionKind.NODE_PROXY_COMMAND: f"it can run commands through the kubelet (nodes/proxy); {_USE_EXEC}",
    SessionKind.PROXY_UPGRADE: f"it opens a stream to an application through the API server; {_USE_EXEC}, "
    "or kubectl port-forward",
}


def _refuse_unrecordable(session: SessionKind) -> NoReturn:
    why = _UNRECORDABLE.get(session, f"it is upgraded to a protocol that k8sproxy does not know; {_USE_EXEC}")
    raise Refusal(
        403,
        "unrecordable_session",
        f"a grant of this peer enforces session recording, and this request cannot be recorded: {why}",
    )


def _demand(grants: Grants, session: SessionKind) -> RecordingDemand | None:
    if grants.recording is None:
        return None
    return RecordingDemand(grants.recorders, grants.recording, session)


def covers(now: Decision, before: Decision) -> bool:
    """Whether a request that runs by `before` could run by `now`: the same user, at least the groups, no recording
    demanded that it has not got."""
    if now.recording is not None and (
        # A session keeps the recorder that it has, also where the grant's list of them has changed.
        before.recording is None or not before.recording.level.holds(now.recording.level)
    ):
        return False
    if now.impersonation is None or before.impersonation is None:
        return now.impersonation is before.impersonation
    return now.impersonation.user == before.impersonation.user and set(now.impersonation.groups) >= set(
        before.impersonation.groups
    )
