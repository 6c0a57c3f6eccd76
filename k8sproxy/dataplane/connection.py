"""The spine: what happens to one connection, from its first byte to its last.

    serve()      heads one after the other, each answered in order
    _request()   head -> route -> Authority -> RequestInfo -> Decision -> UpstreamHead -> gates -> upstream -> exchange

A Refusal on the way is answered once. Every step of `_request` is first tried at once; only where that gives nothing is
something waited for, in the connection's task: the authenticator (standing), a turn or a long target, a place among the
events, a gate, a new connection to upstream. A request that meets a known caller and an idle upstream connection waits
twice, for its head and for its response, and the loop goes on with it when these have been read (drive): no task is
woken. Bytes move in callbacks (relay).

Whatever is not a Refusal or an orderly end is a fault of ours: it is logged with its traceback, answered with 500 if
nothing has been answered, and ends the connection.

What runs is looked at again where something has changed that it depends on (standing), and ended in one place
(running).
"""

from __future__ import annotations

import asyncio
from functools import partial
from itertools import count
from time import perf_counter, time

import structlog

from k8sproxy.access.decision import Authority, Decision, decide
from k8sproxy.access.rewrite import UpstreamHead, check_offer, offered_protocols, rewrite
from k8sproxy.audit.entry import Entry, Served
from k8sproxy.authenticators.evidence import Evidence
from k8sproxy.common.errors import ProtocolError, Refusal
from k8sproxy.common.longwork import LONG
from k8sproxy.common.states import State, table
from k8sproxy.dataplane.client import Client
from k8sproxy.dataplane.doubt import is_doubtful, settle
from k8sproxy.dataplane.drive import in_task
from k8sproxy.dataplane.ends import ClientGone, Cut, Doubtful, StaleConnection
from k8sproxy.dataplane.local import LOCAL_PREFIX, local_document
from k8sproxy.dataplane.places import Place
from k8sproxy.dataplane.relay import Exchange
from k8sproxy.dataplane.routes import OPEN, REVOKED, Permit, Route, listener_changed
from k8sproxy.dataplane.running import Running, end
from k8sproxy.dataplane.shared import Shared
from k8sproxy.dataplane.standing import Standing
from k8sproxy.dataplane.turns import REQUEST, price_of
from k8sproxy.dataplane.upstream import UpstreamConnection
from k8sproxy.protocol.http1 import RequestHead
from k8sproxy.request.browsers import opens_document
from k8sproxy.request.classify import STREAMING, SessionKind
from k8sproxy.request.foreign import DOCUMENT, guard_of
from k8sproxy.request.requestinfo import RequestInfo, request_info
from k8sproxy.sessions.gates import pass_gates
from k8sproxy.sessions.registry import facts_of
from k8sproxy.sessions.session import Session
from k8sproxy.sessions.tap import NO_TAP, Tap

_log = structlog.get_logger("k8sproxy")
_NO_SESSION = SessionKind.NONE
_serial = count(1)

# Seconds in which the client of a session that was ended takes what it is told. A session is over in two.
_FAREWELL_SECONDS = 1.5


class ConnectionState(State):
    """What can still be said to the client. While an exchange runs, it has a state of its own (relay).

    UNANSWERED   nothing of an answer to the next request has been sent,
                 whether its head has come or not                           -> ANSWERED, ENDED
    ANSWERED     an answer has been sent, or a part of one: whatever goes
                 wrong now, the client can't be told                        -> UNANSWERED, ENDED
    ENDED        nothing more is read or sent                               -> (final)
    """

    UNANSWERED = "unanswered"
    ANSWERED = "answered"
    ENDED = "ended"


UNANSWERED, ANSWERED, ENDED = ConnectionState.UNANSWERED, ConnectionState.ANSWERED, ConnectionState.ENDED
table({UNANSWERED: (ANSWERED, ENDED), ANSWERED: (UNANSWERED, ENDED), ENDED: ()})


class Connection:
    """One client connection. entry: the account of its requests."""

    __slots__ = (
        "_shared",
        "client",
        "entry",
        "running",
        "standing",
        "state",
    )

    def __init__(self, shared: Shared, client: Client, evidence: Evidence, permit: Permit, place: Place) -> None:
        self.client = client
        self.entry = Entry(shared.trail, f"c{next(_serial)}", evidence.address)
        self.standing = Standing(shared, evidence, permit, place, client, self.entry)
        self._shared = shared
        self.state = UNANSWERED
        self.running = Running()

    @property
    def id(self) -> str:
        """What the log calls it."""
        return self.entry.connection

    @property
    def requests(self) -> int:
        """How many requests have come."""
        return self.entry.number

    async def serve(self) -> None:
        """Answer requests until either side ends the connection. Raises nothing but CancelledError."""
        client = self.client
        try:
            await client.drive.run(self._requests())
            await client.finish()
        except ClientGone:
            pass
        except Cut as cut:
            await self._cut(cut)
        except Exception:
            _log.exception("request_failed", connection=self.id, request=self.requests)
            await self._fault()
        except BaseException:
            # Cancelled (a drain whose time is over): what is unfinished must not look whole.
            client.wire.abort()
            raise
        finally:
            self.entry.lose()
            self.state = self.state.to(ENDED)
            self.standing.close()
            client.wire.close()

    async def _requests(self) -> None:
        """Requests, one after the other, until there is no other one."""
        client = self.client
        while True:
            try:
                head = await client.next_head()
                if head is None:
                    return
                self.entry.begin(head)
                again = await self._request(head)
            except ProtocolError as error:
                again = self._refuse(Refusal(error.status, "bad_request", error.message, close=True))
            except Refusal as refusal:
                again = self._refuse(refusal)
            if not again:
                return
            self.state = self.state.to(UNANSWERED)

    async def _fault(self) -> None:
        """A fault of ours ends the connection, with a 500 where no answer had begun."""
        if self.state is ANSWERED:
            self.client.wire.abort()
            self.entry.lose("internal")
            return
        self._refuse(Refusal(500, "internal", "an internal error of k8sproxy; its log has more", close=True))
        await self.client.finish()

    async def _cut(self, cut: Cut) -> None:
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
        standing, entry, target = self.standing, self.entry, head.target
        route = standing.permit.routes.choose(standing.evidence, head)  # once: whatever a reload does meanwhile
        authority = standing.current(route) or await self._ask(route)
        if len(target) <= LONG and self.client.turns.begin(price_of(target)):
            info = request_info(head.method, target, head.fields.upgrade)
        else:
            info = await self._read_later(head, authority)
            authority = standing.current(route) or await self._ask(route)  # it may have taken its time
        entry.info = info
        if info.path.startswith(LOCAL_PREFIX):
            return self._answer(head, info, authority)
        decision = decide(authority, info, time())
        endpoint = route.upstream.endpoint
        authorization = endpoint.authorization()
        session: Session | None = None
        if info.session is not _NO_SESSION:
            await in_task()
            session = await self._begin_session(head, info, decision, route)
        upstream_head = rewrite(
            head,
            decision,
            target=endpoint.base_path + target if endpoint.base_path else target,
            host=endpoint.authority,
            authorization=authorization,
            streaming=session.streaming if session is not None else None,
            origins=route.origins,
            foreign=info.foreign,
        )
        exchange = self._prepare(head, info, upstream_head, session)
        if decision.events:
            wait = entry.tell(
                decision,
                head.fields,
                cluster=route.upstream.name,
                session=session.facts.id if session is not None else "",
            )
            if wait is not None:
                await in_task()
                await wait()
            exchange.body_seen = entry.watch(decision, partial(_end_untold, exchange, session))
        standing.allow(started)
        self.running.begin(info, decision, session, exchange)
        entry.run(exchange, started)
        try:
            if session is not None:
                await pass_gates(self._shared.gates, session)
            await self._run(exchange, upstream_head, route, info, authorization, started)
        except (Cut, ClientGone, asyncio.CancelledError) as gone:
            if isinstance(gone, Cut) and gone.reset:
                self.client.wire.abort()  # before the end of a recording is waited for
            stopped = isinstance(gone, asyncio.CancelledError) and self._shared.draining
            entry.lose(gone.cause if isinstance(gone, Cut) else "stopping" if stopped else "")
            raise
        finally:
            if exchange.status:
                self.state = self.state.to(ANSWERED)
            self.running.over()
            if decision.events:
                entry.over(decision, whole=exchange.body_came)
            if session is not None:
                if decision.events and session.began and session.facts.kind == "portforward":
                    entry.tell_ports(decision, session.facts.id, session.ports)
                try:
                    await in_task()
                finally:
                    # Also where the task is cancelled in just this turn: a session is closed, whatever else happens.
                    await session.close()
        entry.end(exchange, perf_counter() - started)
        return not (exchange.closing or self._shared.draining or standing.permit.state is not OPEN)

    async def _ask(self, route: Route) -> Authority:
        await in_task()
        return await self.standing.ask(route)

    # -- what is asked

    async def _read_later(self, head: RequestHead, authority: Authority) -> RequestInfo:
        """What is asked, where the target is long or it is not this connection's turn: in a later turn of the loop."""
        await in_task()
        client = self.client
        if len(head.target) <= LONG:
            await client.turns.turn(client.owner, price_of(head.target))
            return request_info(head.method, head.target, head.fields.upgrade)
        if not client.turns.begin(REQUEST):
            await client.turns.turn(client.owner, REQUEST)
        arguments = (head.method, head.target, head.fields.upgrade)
        return await self._shared.longwork.run(authority.caller.owner, request_info, *arguments)

    def _answer(self, head: RequestHead, info: RequestInfo, authority: Authority) -> bool:
        """Answer a path of the proxy's own."""
        content_type, body = local_document(head, info.path, authority, self._shared.documents)
        close = head.fields.close or head.fields.chunked or bool(head.fields.content_length) or bool(info.upgrade)
        self.client.answer(200, body, content_type=content_type, close=close, head_only=head.method == "HEAD")
        self.state = self.state.to(ANSWERED)
        self.entry.end(Served(len(body)), 0.0)
        return not close

    # -- the exchange

    def _prepare(
        self, head: RequestHead, info: RequestInfo, upstream_head: UpstreamHead, session: Session | None
    ) -> Exchange:
        """The exchange, before it has a connection to upstream."""
        fields = head.fields
        # A tap of its own, for callbacks of the switched connection that must go with it.
        tap = session or (Tap() if fields.upgrade else NO_TAP)
        exchange = Exchange(self.client, upstream_head, tap, self._shared.limits.head_bytes, fields.close)
        exchange.watching = info.verb == "watch"
        if info.foreign:
            exchange.guard = guard_of(info.root)
        elif info.subresource == "log" or opens_document(fields):
            exchange.guard = DOCUMENT
        return exchange

    async def _run(
        self,
        exchange: Exchange,
        head: UpstreamHead,
        route: Route,
        info: RequestInfo,
        authorization: bytes | None,
        started: float,
    ) -> None:
        """Give the exchange a connection to upstream, and wait for its end. Raises as Exchange.start does."""
        upstream, permit, running, repeatable = route.upstream, self.standing.permit, self.running, head.repeatable
        connection: UpstreamConnection | None = None
        try:
            connection = upstream.take_idle(repeatable=repeatable)
            if connection is None:
                await in_task()
                connection = await upstream.connect(repeatable=repeatable)
            if permit.state is not OPEN:
                exchange.closing = True
                if permit.state is REVOKED:  # since the request was decided, and upstream has heard nothing yet
                    upstream.release(connection, reusable=True)
                    connection = None
                    raise listener_changed()
            running.exchange = exchange
            if self._shared.draining:
                running.drain()  # it may have begun since the head came
            try:
                try:
                    await exchange.run(connection, started)
                except StaleConnection:
                    exchange.detach()
                    upstream.release(connection, reusable=False)
                    connection = None
                    await in_task()
                    connection = await upstream.dial()
                    await exchange.run(connection, perf_counter())
            except Doubtful:
                if is_doubtful(upstream.endpoint, info):
                    await in_task()
                    await settle(upstream.endpoint, authorization, connection)
                await exchange.pass_on()
        finally:
            if connection is not None:
                exchange.detach()
                upstream.release(connection, reusable=exchange.reusable)

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
        shared, cluster, agent = self._shared, route.upstream.name, fields.get(b"user-agent")
        if len(head.target) > LONG:
            facts = await shared.longwork.run(decision.caller.owner, facts_of, info, decision, cluster, self.id, agent)
        else:
            facts = facts_of(info, decision, cluster, self.id, agent)
        return shared.sessions.make(facts, info, decision, offered=offered_protocols(fields))

    def _refuse(self, refusal: Refusal) -> bool:
        """Answer a Refusal; whether the connection goes on. It can't where the request's body is still to come."""
        head = self.entry.head
        close = (
            refusal.close
            or self._shared.draining
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
        self.state = self.state.to(ANSWERED)
        self.entry.refuse(refusal)
        return not close

    # -- from outside: the clock, a reload, a drain

    def tick(self, now: float) -> bool:
        """Look at the limits, once a second; whether what runs needs a recheck. now: of the loop's clock, seconds."""
        self.client.wire.look()
        if self.running.exchange is None:
            self.client.expire(now)
            return self.running.prepared is not None and self.standing.is_due()
        self.running.tick(now, self._shared.limits.idle_timeout)
        return self.standing.is_due()

    def break_unheard(self) -> None:
        """End what runs, or waits for a request, if the other side of either wire is gone without a word."""
        self.client.wire.break_unheard()
        if self.running.exchange is not None:
            self.running.exchange.break_unheard()

    async def recheck(self) -> None:
        """Look again at what runs, and end it if it would not be allowed now."""
        running = self.running
        exchange, decision, asked = running.prepared, running.decision, running.asked
        if exchange is None or decision is None or asked is None:
            return
        found = await self.standing.look_again(decision, asked)
        if running.prepared is not exchange:
            return  # It has ended; what runs now was decided by itself.
        if isinstance(found, Refusal):
            running.end(found)
        elif found is not None:
            self.standing.confirm(found)

    def leave(self) -> None:
        """End, and whatever runs: the permit has been revoked, so a request that is on its way is refused as well."""
        self.client.end_idle()
        self.running.end(listener_changed())

    def drain(self) -> None:
        """Take no further request; end a watch at its next boundary."""
        self.client.end_idle()
        self.running.drain()


def _end_untold(exchange: Exchange, session: Session | None, message: str) -> None:
    """End a request that runs, whose event must be told and is refused by the recorder."""
    end(exchange, session, Refusal(503, "event_refused", message, close=True))


def _is_discovery(target: str) -> bool:
    """Whether a target names no object or collection: /api, /apis/GROUP/VERSION, /version, /openapi/..

    kubectl asks for some of these first, and prints "unknown" for whatever Status it is answered with there, but it
    does print warnings.
    """
    parts = target.partition("?")[0].strip("/").split("/")
    return len(parts) <= {"api": 2, "apis": 3}.get(parts[0], len(parts))
