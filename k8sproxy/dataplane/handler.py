"""The spine: what happens to one connection, from its first byte to its last.

    serve()      heads one after the other, each answered in order
    _request()   head -> Peer -> Decision -> UpstreamHead -> exchange; a Refusal on the way is answered once

A connection is one task. A request that meets a known peer and an idle upstream connection waits twice: for its head
and for its response; bytes move in callbacks (relay). Whatever is not a Refusal or an orderly end is a fault of ours:
it is logged with its traceback, answered with 500 if nothing has been answered, and ends the connection.

What runs is looked at again: once the peer's answer is stale, `recheck` asks anew and ends the exchange if the same
request would now be refused or be made as somebody else.
"""

from __future__ import annotations

import asyncio
from itertools import count
from time import perf_counter

import structlog

from k8sproxy.access.decision import Authority, Decision, authorize, covers, decide
from k8sproxy.access.grants import DEFAULT_SETTINGS
from k8sproxy.access.rewrite import check_offer, offered_protocols, rewrite
from k8sproxy.audit.events import untold
from k8sproxy.audit.requestevent import RequestEvent
from k8sproxy.common.errors import ProtocolError, Refusal
from k8sproxy.common.longwork import LONG
from k8sproxy.common.tailnet.peer import Peer
from k8sproxy.common.tailnet.whois import ClientKey
from k8sproxy.dataplane.client import Client
from k8sproxy.dataplane.doubt import is_doubtful, settle
from k8sproxy.dataplane.ends import ClientGone, Cut, Doubtful, StaleConnection
from k8sproxy.dataplane.places import Place
from k8sproxy.dataplane.relay import Exchange
from k8sproxy.dataplane.site import LOCAL_PREFIX, OPEN, Gate, Route, Site, local_document
from k8sproxy.dataplane.turns import REQUEST, TARGET_CHARACTERS
from k8sproxy.dataplane.upstream import UpstreamConnection
from k8sproxy.protocol.http1 import RequestHead
from k8sproxy.request.browsers import opens_document
from k8sproxy.request.classify import STREAMING, SessionKind
from k8sproxy.request.foreign import DOCUMENT, guard_of
from k8sproxy.request.requestinfo import RequestInfo, request_info
from k8sproxy.sessions.registry import facts_of
from k8sproxy.sessions.session import Session
from k8sproxy.sessions.tap import NO_TAP, Tap
from k8sproxy.telemetry import encode_fields

_log = structlog.get_logger("k8sproxy")
_NO_SESSION = SessionKind.NONE
_serial = count(1)

# Seconds for which a running exchange outlives a daemon that can't be asked: a restart of tailscaled, not more.
_UNKNOWN_GRACE = 60.0
# Seconds before an answer is stale from which on it is asked anew about what runs: the clock strikes once a second.
_AHEAD = 1.0
_CHANGED = "the configuration of this listener has changed; connect again"
# Seconds in which the client of a session that was ended takes what it is told. A session is over in two.
_FAREWELL_SECONDS = 1.5


class Connection:
    """One client connection."""

    __slots__ = (
        "_answering",
        "_authority",
        "_counted",
        "_exchange",
        "_fields",
        "_info",
        "_judged",
        "_key",
        "_last_known",
        "_origin",
        "_place",
        "_route",
        "_running",
        "_seen",
        "_session",
        "_site",
        "_stalled_since",
        "_vetted",
        "client",
        "gate",
        "id",
        "requests",
    )

    def __init__(self, site: Site, client: Client, key: ClientKey, gate: Gate, place: Place) -> None:
        self.id = f"c{next(_serial)}"
        self.client = client
        self.requests = 0
        self._site = site
        self._key = key
        self.gate = gate
        self._authority: Authority | None = None
        self._route: Route | None = None  # the one that _authority and _fields are of
        self._answering = False  # whether something of an answer to the current request has been sent
        self._fields = '"peer":null'
        self._origin = ""  # what API events of this connection have in common
        self._counted = ""
        self._place = place
        self._exchange: Exchange | None = None
        self._running: Decision | None = None
        self._session: Session | None = None
        self._info: RequestInfo | None = None
        self._last_known = 0.0
        self._seen = 0
        self._stalled_since = 0.0
        self._vetted: Peer | None = None  # the answer by which what runs was last found to be allowed,
        self._judged = DEFAULT_SETTINGS  # and how its grants were read

    async def serve(self) -> None:
        """Answer requests until either side ends the connection. Raises nothing but CancelledError."""
        client = self.client
        head: RequestHead | None = None
        try:
            while True:
                try:
                    head = None
                    head = await client.next_head()
                    if head is None:
                        break
                    self.requests += 1
                    if not await self._request(head):
                        break
                except ProtocolError as error:
                    if not self._refuse(head, Refusal(error.status, "bad_request", error.message, close=True)):
                        break
                except Refusal as refusal:
                    if not self._refuse(head, refusal):
                        break
            await client.finish()
        except ClientGone:
            pass
        except Cut as cut:
            await self._cut(cut)
        except Exception:
            _log.exception("request_failed", connection=self.id, request=self.requests)
            await self._fault(head)
        except BaseException:
            # Cancelled (a drain whose time is over): what is unfinished must not look whole.
            client.wire.abort()
            raise
        finally:
            self._discount()
            client.wire.close()

    async def _fault(self, head: RequestHead | None) -> None:
        """A fault of ours ends the connection, with a 500 where no answer had begun."""
        if self._answering:
            self.client.wire.abort()
            return
        self._refuse(head, Refusal(500, "internal", "an internal error of k8sproxy; its log has more", close=True))
        await self.client.finish()

    async def _cut(self, cut: Cut) -> None:
        self._site.telemetry.refusal(cut.cause)
        _log.warning("response_cut", connection=self.id, request=self.requests, cause=cut.cause)
        if cut.reset:
            self.client.wire.abort()
        elif cut.said:
            try:
                async with asyncio.timeout(_FAREWELL_SECONDS):
                    await self.client.finish()
            except TimeoutError:
                self.client.wire.abort()
        else:
            await self.client.flush()
            self.client.wire.cut()

    async def _request(self, head: RequestHead) -> bool:
        """One request; whether there may be another on this connection."""
        started = perf_counter()
        site, gate, fields = self._site, self.gate, head.fields
        route = gate.route  # read once: whatever a reload does meanwhile, this request has this one
        self._answering = False
        self._info = None
        peer = site.whois.cached(self._key) or await self._ask()
        if gate.is_revoked():
            raise _revoked()
        authority = self._authority
        if authority is None or authority.peer is not peer or self._route is not route:
            authority = self._authorize(peer, route)
        client, long = self.client, len(head.target) > LONG
        price = REQUEST if long else REQUEST + len(head.target) // TARGET_CHARACTERS
        if not client.turns.begin(price):
            await client.turns.turn(client.owner, price)
        if long:
            info = await site.longwork.run(peer.owner, request_info, head.method, head.target, fields.upgrade)
            if gate.is_revoked():
                raise _revoked()
            peer = site.whois.cached(self._key) or await self._ask()  # it may have taken its time
            if authority.peer is not peer:
                authority = self._authorize(peer, route)
        else:
            info = request_info(head.method, head.target, fields.upgrade)
        self._info = info
        if info.path.startswith(LOCAL_PREFIX):
            return self._local(head, info, authority)
        decision = decide(authority, info)
        upstream = route.upstream
        endpoint = upstream.endpoint
        authorization = endpoint.authorization()
        session = None if info.session is _NO_SESSION else await self._begin_session(head, info, decision, route)
        upstream_head = rewrite(
            head,
            decision,
            target=endpoint.base_path + head.target if endpoint.base_path else head.target,
            host=endpoint.authority,
            authorization=authorization,
            streaming=session.streaming if session is not None else None,
            origins=route.origins,
            foreign=info.foreign,
        )
        # A tap of its own, for callbacks of the switched connection that must go with it.
        tap = session or (Tap() if fields.upgrade else NO_TAP)
        exchange = Exchange(client, upstream_head, tap, head_limit=site.limits.head_bytes, closing=fields.close)
        exchange.watching = info.verb == "watch"
        if info.foreign:
            exchange.guard = guard_of(info.root)
        elif info.subresource == "log" or opens_document(fields):
            exchange.guard = DOCUMENT
        event = await self._tell(head, info, decision, route, session) if decision.events else None
        if event is not None and event.body is not None:
            exchange.body_seen = event.body.feed
        elif event is not None:
            event.refused = lambda why: _end_untold(exchange, session, untold(decision.grants, why))
        self._running, self._last_known, self._session = decision, started, session
        self._vetted, self._judged = decision.peer, route.grants
        connection: UpstreamConnection | None = None
        try:
            if session is not None:
                site.sessions.enter(session)
                await session.open()
            repeatable = upstream_head.repeatable
            connection = upstream.take_idle(repeatable=repeatable) or await upstream.connect(repeatable=repeatable)
            if gate.is_revoked():
                upstream.release(connection, reusable=True)
                connection = None
                raise _revoked()
            self._exchange = exchange
            if site.draining:
                self.drain()  # it may have begun since the head came
            elif gate.state is not OPEN:
                exchange.closing = True
            exchange.doubts = is_doubtful(endpoint, info)
            try:
                try:
                    await exchange.start(connection, started)
                except StaleConnection:
                    exchange.detach()
                    upstream.release(connection, reusable=False)
                    connection = None
                    connection = await upstream.dial()
                    await exchange.start(connection, perf_counter())
            except Doubtful:
                await settle(endpoint, authorization, connection)
                await exchange.pass_on()
        except (Cut, ClientGone) as end:
            if isinstance(end, Cut) and end.reset:
                self.client.wire.abort()  # before the end of a recording is waited for
            self._record(info, exchange, perf_counter() - started)
            raise
        finally:
            if connection is not None:
                exchange.detach()
                upstream.release(connection, reusable=exchange.reusable)
            self._answering = exchange.status > 0
            self._exchange = self._running = self._session = None
            if event is not None and event.body is not None:
                if not exchange.body_came:
                    event.body.truncated = True
                site.events.tell(decision.grants, event)
            elif event is not None:
                event.refused = None
            if session is not None:
                if decision.events and session.began and session.facts.kind == "portforward":
                    site.events.tell_ports(
                        decision.grants, info, self._origin, session.facts.id, session.ports, peer.owner
                    )
                await session.close()
        self._record(info, exchange, perf_counter() - started)
        return not (exchange.closing or site.draining or gate.state is not OPEN)

    async def _begin_session(
        self, head: RequestHead, info: RequestInfo, decision: Decision, route: Route
    ) -> Session | None:
        """The session that a request asks for. Raises Refusal and ProtocolError."""
        if info.session not in STREAMING:
            if decision.recording is not None:
                raise Refusal(500, "internal", "recording is required for a request that is not a session", close=True)
            return None
        fields = head.fields
        check_offer(fields)
        site, cluster, agent = self._site, route.upstream.name, fields.get(b"user-agent")
        if len(head.target) > LONG:
            facts = await site.longwork.run(decision.peer.owner, facts_of, info, decision, cluster, self.id, agent)
        else:
            facts = facts_of(info, decision, cluster, self.id, agent)
        return site.sessions.make(facts, info, decision, offered=offered_protocols(fields))

    async def _tell(
        self, head: RequestHead, info: RequestInfo, decision: Decision, route: Route, session: Session | None
    ) -> RequestEvent:
        """Tell recorders of a request. One with a body is still to be told, once that has been seen.

        Raises Refusal where it must be told and can't be.
        """
        events, fields = self._site.events, head.fields
        weight = events.weigh(decision.peer, info, content_length=fields.content_length, chunked=fields.chunked)
        if not events.admit(decision.grants, weight):
            await events.wait(decision.grants, weight)
        if not self._origin:
            self._origin = events.origin(decision.peer, decision.impersonation, route.upstream.name)
        body = fields.chunked or bool(fields.content_length)
        event = events.begin(
            decision.grants,
            weight,
            info,
            self._origin,
            user_agent=fields.get(b"user-agent"),
            body=body,
            chunked=fields.chunked,
            session_id=session.facts.id if session is not None else "",
        )
        if not body:
            events.tell(decision.grants, event)
        return event

    def _record(self, info: RequestInfo, exchange: Exchange, seconds: float) -> None:
        """Count a request that was forwarded, and write its line. A refusal is counted where it is answered."""
        site = self._site
        # 499, as nginx has it: the client went before there was an answer.
        status = exchange.status or 499
        site.telemetry.request(
            info.verb, _resource(info), status, exchange.proxy_seconds, exchange.received, exchange.sent
        )
        if site.requests.enabled:
            site.requests.write(
                self.id, self.requests, self._fields, info.verb, info.path, status, seconds, exchange.sent
            )

    def _refuse(self, head: RequestHead | None, refusal: Refusal) -> bool:
        """Answer a Refusal; whether the connection goes on. It can't where the request's body is still to come."""
        site = self._site
        close = (
            refusal.close
            or site.draining
            or head is None
            or head.fields.close
            or head.fields.chunked
            or bool(head.fields.content_length)
            or bool(head.fields.upgrade)
        )
        self.client.refuse(
            refusal,
            close=close,
            head_only=head is not None and head.method == "HEAD",
            warn=head is not None and _is_discovery(head.target),
        )
        info = self._info if head is not None else None
        verb, resource = (info.verb, _resource(info)) if info is not None else ("", "")
        site.telemetry.refused(verb, resource, refusal.status, refusal.cause)
        _log.warning(
            "refused",
            connection=self.id,
            request=self.requests,
            cause=refusal.cause,
            code=refusal.status,
            message=refusal.message,
            method=head.method if head else None,
            path=head.target.partition("?")[0][:256] if head else None,
            address=self._authority.peer.address if self._authority else self._key.address,
            peer=self._authority.peer.display if self._authority else None,
        )
        return not close

    # -- who it is

    async def _ask(self) -> Peer:
        try:
            return await self._site.whois.ask(self._key)
        except Refusal:
            self._authority = None
            raise

    def _authorize(self, peer: Peer, route: Route) -> Authority:
        """The peer's Authority; computed again only where WhoIs gave another answer, or the route is another one."""
        self._authority = None
        authority = authorize(peer, impersonate=route.impersonate, settings=route.grants)
        if authority.grants.unknown:
            self._site.remarks.tell(peer, authority.grants.unknown)
        self._count(peer)
        self._authority = authority
        self.client.owner = peer.owner
        self._route = route
        self._origin = ""
        identity = authority.impersonation
        self._fields = encode_fields(
            {
                "cluster": route.upstream.name,
                "peer": peer.display,
                "node": peer.node_name.removesuffix("."),
                "address": peer.address,
                "user": identity.user if identity else None,
                "groups": list(identity.groups) if identity else None,
            }
        )
        return authority

    def _count(self, peer: Peer) -> None:
        """Count the connection to its owner. Raises Refusal 429 past the limit."""
        if self._counted:
            return
        counts = self._site.per_peer
        owner = peer.owner
        held = counts.get(owner, 0)
        if held >= self._site.limits.connections_per_peer:
            message = f"{peer.display} has too many connections to this proxy ({held}, from all nodes together)"
            raise Refusal(429, "too_many_connections", message, retry_after=1, close=True)
        counts[owner] = held + 1
        self._counted = owner
        self._place.known()

    def _discount(self) -> None:
        if self._counted:
            counts = self._site.per_peer
            counts[self._counted] -= 1
            if not counts[self._counted]:
                del counts[self._counted]
            self._counted = ""

    # -- what the proxy itself serves

    def _local(self, head: RequestHead, info: RequestInfo, authority: Authority) -> bool:
        """Answer a path below LOCAL_PREFIX: whoami, and what the Site has."""
        if head.method not in ("GET", "HEAD"):
            raise Refusal(405, "method_not_allowed", "only GET and HEAD are served here", close=True)
        content_type, body = local_document(self._site, info.path, authority)
        close = head.fields.close or head.fields.chunked or bool(head.fields.content_length) or bool(info.upgrade)
        self.client.answer(200, body, content_type=content_type, close=close, head_only=head.method == "HEAD")
        self._site.telemetry.request(info.verb, "", 200, 0.0, 0, len(body))
        return not close

    # -- from outside: the clock, a drain

    def tick(self, now: float) -> bool:
        """Look at the limits, once a second; whether the exchange that runs needs a recheck."""
        exchange = self._exchange
        self.client.wire.look()
        if exchange is None:
            self.client.expire(now)
            return False
        exchange.look()
        if exchange.uploading and exchange.received == self._seen and self._stalled_since:
            if now - self._stalled_since > self._site.limits.idle_timeout:
                exchange.cut("upload_stalled")
        else:
            self._seen, self._stalled_since = exchange.received, now
        # Another answer too: another connection of the peer's may have asked anew, as one that polls always does first.
        peer = self._site.whois.cached(self._key, _AHEAD)
        return peer is None or peer is not self._vetted or self.gate.route.grants != self._judged

    def break_unheard(self) -> None:
        """End what runs, or waits for a request, if the other side of either wire is gone without a word."""
        self.client.wire.break_unheard()
        if self._exchange is not None:
            self._exchange.break_unheard()

    async def recheck(self) -> None:
        """Ask again who it is; end what runs if it would not be allowed now."""
        exchange, decision, info, route = self._exchange, self._running, self._info, self._route
        if exchange is None or decision is None or info is None or route is None:
            return
        try:
            peer = await self._site.whois.ask(self._key, _AHEAD)
            if self._exchange is not exchange:
                return  # It has ended; what runs now was decided by itself.
            settings = self.gate.route.grants  # a reload may have changed them
            if peer is decision.peer and settings == self._judged:
                self._last_known, self._vetted = perf_counter(), peer
                return
            authority = authorize(peer, impersonate=route.impersonate, settings=settings)
            now = decide(authority, info)
        except Refusal as refusal:
            # 503: the daemon can't be asked just now. Anything else is its answer, or the policy's.
            if refusal.status == 503 and perf_counter() - self._last_known < _UNKNOWN_GRACE:
                return
            now = None
        if self._exchange is not exchange:
            return
        self._last_known = perf_counter()
        if now is not None and covers(now, decision):
            self._vetted, self._judged = now.peer, settings
        else:
            self._end_running("grant_withdrawn", "the tailnet's policy does not allow this any more")

    def _end_running(self, cause: str, message: str) -> None:
        """End what runs, with a word to its user."""
        if self._session is not None and self._exchange is not None and self._exchange.upgraded:
            self._session.end(cause, message)
        elif self._exchange is not None:
            self._exchange.cut(cause, message)

    def leave(self) -> None:
        """End, and whatever runs: the listener's clients are identified in another way from now on."""
        if self._exchange is None:
            self.client.end_idle()  # a request that is on its way is refused (_request)
        else:
            self._end_running("listener_changed", _CHANGED)

    @property
    def kind(self) -> str:
        """What runs on it just now, for the metrics: nothing, "request", "watch" or "upgrade"."""
        if self._exchange is None or self._info is None:
            return ""
        return "upgrade" if self._exchange.upgraded else "watch" if self._info.verb == "watch" else "request"

    def drain(self) -> None:
        """Take no further request; end a watch at its next boundary."""
        if self._exchange is None:
            self.client.end_idle()
            return
        self._exchange.closing = True  # said in the response's head, if that is still to come
        if self._info is not None and self._info.verb == "watch":
            self._exchange.end_at_boundary()


def _end_untold(exchange: Exchange, session: Session | None, message: str) -> None:
    """End a request that runs, whose event must be told and is refused by the recorder."""
    if session is not None and exchange.upgraded:
        session.end("event_refused", message)
    else:
        exchange.cut("event_refused", message)


def _revoked() -> Refusal:
    return Refusal(503, "listener_changed", _CHANGED, retry_after=1, close=True)


def _resource(info: RequestInfo) -> str:
    """The resource as metrics name it: pods, pods/exec."""
    return f"{info.resource}/{info.subresource}" if info.subresource else info.resource


def _is_discovery(target: str) -> bool:
    """Whether a target names no object or collection: /api, /apis/GROUP/VERSION, /version, /openapi/..

    kubectl asks for some of these first, and prints "unknown" for whatever Status it is answered with there, but it
    does print warnings.
    """
    parts = target.partition("?")[0].strip("/").split("/")
    return len(parts) <= {"api": 2, "apis": 3}.get(parts[0], len(parts))
