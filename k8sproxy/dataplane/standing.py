"""Who is at the other end of one connection, what that entitles to, and whether it still does.

    current(route)      the Authority, if it is known at this moment: nothing is waited for
    ask(route)          the Authority, once the authenticator has been asked
    allow()             a request runs from here on by this Authority
    is_due()            whether something has changed that what runs depends on
    look_again()        what follows from that for what runs

An Authority belongs to a caller and a snapshot. It is computed anew only where one of them is another object; then the
connection is also counted to the caller's owner, and its account is told who it is.

What runs may outlive what it was allowed by. Four things can change meanwhile: who the caller is or what the tailnet
grants it, what the configuration says of the route, whether the listener's clients are still identified in this way,
and whether the proof has ended by the clock. All of them are looked at in `look_again`, and nowhere else.
"""

from __future__ import annotations

from time import perf_counter, time

from k8sproxy.access.caller import Caller
from k8sproxy.access.decision import Authority, Decision, authorize, covers, decide
from k8sproxy.audit.entry import Entry
from k8sproxy.authenticators.evidence import Evidence
from k8sproxy.common.errors import Refusal
from k8sproxy.dataplane.client import Client
from k8sproxy.dataplane.places import Place
from k8sproxy.dataplane.routes import REVOKED, Permit, Route, listener_changed
from k8sproxy.dataplane.shared import Shared
from k8sproxy.request.requestinfo import RequestInfo

# Seconds for which what runs outlives an authenticator that can't be asked: a restart of tailscaled, not more.
_UNKNOWN_GRACE = 60.0
# Seconds before an answer is stale from which on it is asked for again: the clock strikes once a second.
_AHEAD = 1.0


class Standing:
    """Of one connection. permit: of its listener. authority: None while nobody knows the caller. entry: the account of
    the connection's requests, which is told who the caller is."""

    __slots__ = (
        "_allowed",
        "_client",
        "_counted",
        "_entry",
        "_known",
        "_place",
        "_route",
        "_shared",
        "authority",
        "evidence",
        "permit",
    )

    def __init__(
        self, shared: Shared, evidence: Evidence, permit: Permit, place: Place, client: Client, entry: Entry
    ) -> None:
        self.permit = permit
        self.evidence = evidence
        self.authority: Authority | None = None
        self._shared = shared
        self._client = client
        self._place = place
        self._entry = entry
        self._counted = ""  # the owner that the connection is counted to
        self._route: Route | None = None  # of `authority`
        self._allowed: Authority | None = None  # by which what runs was last found to be allowed
        self._known = 0.0  # when, perf_counter()

    # -- who it is

    def current(self, route: Route) -> Authority | None:
        """The caller's Authority on a route, None where `ask` has to be waited for. Raises Refusal."""
        authority = self.authority
        before = authority.caller if authority is not None else None
        caller = self._shared.authenticator.current(self.evidence, before)
        if caller is None:
            return None
        if caller is before and route is self._route and self.permit.state is not REVOKED:
            return authority  # nothing has changed since the last request
        return self._authority(caller, route)

    async def ask(self, route: Route) -> Authority:
        """The caller's Authority on a route, once the authenticator has answered. Raises Refusal."""
        before = self.authority.caller if self.authority is not None else None
        try:
            caller = await self._shared.authenticator.ask(self.evidence, before)
        except Refusal:
            self._forget()
            raise
        return self._authority(caller, route)

    def _authority(self, caller: Caller, route: Route) -> Authority:
        self.permit.check()
        authority = self.authority
        if authority is None or authority.caller is not caller or self._route is not route:
            authority = self._authorize(caller, route)
        return authority

    def _authorize(self, caller: Caller, route: Route) -> Authority:
        self._forget()
        known = self._shared.authorities.of(caller, route)
        authority = known.authority
        if authority.grants.unknown:
            self._shared.remarks.tell(caller.peer, authority.grants.unknown)
        self._count(caller)
        self.authority = authority
        self._client.owner = caller.owner
        self._route = route
        self._entry.identify(caller, known.who)
        return authority

    def _forget(self) -> None:
        self.authority = None
        self._entry.forget()

    # -- whose share it takes

    def _count(self, caller: Caller) -> None:
        """Count the connection to its owner. Raises Refusal 429 past the limit."""
        if self._counted:
            return
        counts, owner = self._shared.per_peer, caller.owner
        held = counts.get(owner, 0)
        if held >= self._shared.limits.connections_per_peer:
            message = f"{caller.display} has too many connections to this proxy ({held}, from all nodes together)"
            raise Refusal(429, "too_many_connections", message, retry_after=1, close=True)
        counts[owner] = held + 1
        self._counted = owner
        self._place.known()

    def close(self) -> None:
        """The connection has ended: it is not counted any more."""
        if self._counted:
            counts = self._shared.per_peer
            counts[self._counted] -= 1
            if not counts[self._counted]:
                del counts[self._counted]
            self._counted = ""

    # -- what runs

    def allow(self, started: float) -> None:
        """A request runs that was decided by the current authority. started: perf_counter()."""
        self._allowed = self.authority
        self._known = started

    def is_due(self) -> bool:
        """Whether what runs has to be looked at again. Another answer about the caller counts as well: another
        connection of the same caller may have asked anew, as one that polls always does first."""
        allowed, route = self._allowed, self._route
        if allowed is None or route is None:
            return False
        caller = self._shared.authenticator.current(self.evidence, allowed.caller, _AHEAD)
        return (
            caller is None
            or caller is not allowed.caller
            or self.permit.routes.snapshot(route) != allowed.snapshot
            or time() >= caller.until
            or self.permit.state is REVOKED
        )

    async def look_again(self, decision: Decision, asked: RequestInfo) -> Authority | Refusal | None:
        """Look again at what runs. The Authority by which it goes on, which is to be `confirmed`; the Refusal that ends
        it; or None while nobody can say and the time for that is not over.

        decision, asked: of what runs. Nothing is changed here: it may have ended while this was waiting.
        """
        if self.permit.state is REVOKED:
            return listener_changed()
        allowed, route = self._allowed, self._route
        if allowed is None or route is None:
            return None
        try:
            caller = await self._shared.authenticator.ask(self.evidence, allowed.caller, _AHEAD)
            snapshot = self.permit.routes.snapshot(route)  # read behind the wait: a reload may have changed it
            if caller is allowed.caller and snapshot == allowed.snapshot and time() < caller.until:
                return allowed
            authority = authorize(caller, snapshot)
            if covers(decide(authority, asked, time()), decision):
                return authority
        except Refusal as refusal:
            # 503: the authenticator can't be asked now. Everything else is its answer, or the policy's.
            if refusal.status == 503 and perf_counter() - self._known < _UNKNOWN_GRACE:
                return None
        return Refusal(503, "grant_withdrawn", "the tailnet's policy does not allow this any more")

    def confirm(self, authority: Authority) -> None:
        """What runs has been found to be allowed by this Authority."""
        self._allowed = authority
        self._known = perf_counter()
