"""The wire's version 1 and API events, over HTTP/1.1 (aiohttp's server protocol, no application around it).

    HEAD /v2/event   200, as a probe; says how many events a request may hold
    POST /v2/event   one event as a JSON object, or an array of them: 200 once they are safe
    POST /record     a session, chunked; with Expect: 100-continue the 100 is the word that it is taken. 200 once all of
                     it is safe; an error ends the connection, since the sender may not read before it has sent all

The probe of version 2 (HEAD /v2/record) is answered with 404 here, which says that this is not HTTP/2.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog
from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from k8sproxy.common.errors import Refusal
from k8sproxy.common.formats.recorderapi import DECLINES_FIELD, ERROR_FIELD, MAX_EVENT_BATCH, MAX_EVENTS, USER_FIELD
from k8sproxy.common.tasks import beside
from recorder.ingest.admission import Door
from recorder.ingest.intake import Intake
from recorder.ingest.site import EVENT_CODES, EVENTS_TIMEOUT, IDLE_TIMEOUT, IngestSite, declines
from recorder.ingest.turnaway import field_value
from recorder.model import Source, parse_json
from recorder.store import StoreError

_log = structlog.get_logger(__name__)

# Seconds, see below.
_LINGER = 1.0


class Http1:
    """All HTTP/1.1 connections. door: of a connection, by its transport; begun: a first head has come."""

    def __init__(
        self,
        site: IngestSite,
        *,
        door: Callable[[asyncio.Transport], Door | None],
        begun: Callable[[asyncio.Transport], None],
    ) -> None:
        self._site = site
        self._door = door
        self._begun = begun
        self._intakes: set[tuple[Intake, asyncio.Event]] = set()
        self._server = web.Server(
            self._handle,
            access_log=None,
            keepalive_timeout=IDLE_TIMEOUT,
            tcp_keepalive=False,  # set by the listener, for both versions
            # A refused sender may still be sending; closed at once, the connection would be reset before it reads why.
            lingering_time=_LINGER,
            max_line_size=4096,
            max_headers=64,
            max_field_size=4096,
            read_bufsize=256 << 10,
        )

    def protocol(self) -> RequestHandler:
        """For a new connection."""
        return self._server()

    @property
    def busy(self) -> bool:
        """Whether a session is coming in."""
        return bool(self._intakes)

    def cut(self, why: str) -> None:
        """End every session, with this error."""
        for intake, changed in tuple(self._intakes):
            intake.cut(why)
            changed.set()

    async def aclose(self) -> None:
        """Close all connections."""
        await self._server.shutdown(1.0)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        transport = request.transport
        door = self._door(transport) if transport is not None else None
        if transport is None or door is None:
            raise ConnectionResetError("the connection has ended")
        self._begun(transport)
        door.begin()
        try:
            return await self._route(request, door)
        except Refusal as refusal:
            self._site.refused(refusal, door)
            return _refuse(refusal.status, refusal.message, declines(refusal))
        except StoreError as error:
            self._site.counts.refused["store"] += 1
            return _refuse(503, str(error))
        finally:
            door.end()

    async def _route(self, request: web.BaseRequest, door: Door) -> web.StreamResponse:
        match request.method, request.path:
            case "POST", "/record":
                return await self._record(request, door)
            case "HEAD", "/v2/event":
                await door.admit()
                self._site.check_willing()
                return web.Response(headers={"Event-Batch": str(MAX_EVENT_BATCH), "Asciicast-Event-Codes": EVENT_CODES})
            case "POST", "/v2/event":
                return await self._events(request, door)
        return _refuse(404, "this recorder serves nothing at this path")

    # -- events

    async def _events(self, request: web.BaseRequest, door: Door) -> web.Response:
        source = await door.admit()
        if self._site.draining:
            raise Refusal(503, "unwilling", "the recorder is stopping")
        await _continue(request)
        body = bytearray()
        try:
            async with asyncio.timeout(EVENTS_TIMEOUT):
                async for piece in request.content.iter_any():
                    self._site.bodies.take(door.holder, len(piece))
                    body += piece
                    if len(body) > MAX_EVENTS:
                        raise Refusal(413, "events_too_large", f"more than {MAX_EVENTS} bytes of events")
            return await self._add(body, source)
        except TimeoutError:
            raise Refusal(408, "events_slow", f"the events did not arrive within {EVENTS_TIMEOUT:g} s") from None
        finally:
            self._site.bodies.give_back(door.holder, len(body))

    async def _add(self, body: bytearray, source: Source) -> web.Response:
        try:
            value = parse_json(body)
        except ValueError as error:
            raise Refusal(400, "events_malformed", str(error)) from None
        documents = value if isinstance(value, list) else [value]
        if len(documents) > MAX_EVENT_BATCH:
            raise Refusal(413, "events_too_many", f"more than {MAX_EVENT_BATCH} events")
        if not all(isinstance(document, dict) for document in documents):
            raise Refusal(400, "events_malformed", "an event must be a JSON object")
        if documents:
            await self._site.store.add_events(documents, source)
            self._site.counts.events += len(documents)
        return web.Response(status=200)

    # -- sessions

    async def _record(self, request: web.BaseRequest, door: Door) -> web.StreamResponse:
        source = await door.admit()
        changed = asyncio.Event()
        intake = Intake(self._site, door, "v1", changed.set, request.headers.get(USER_FIELD))
        entry = (intake, changed)
        self._intakes.add(entry)
        try:
            intake.admit(source)
            await _continue(request, f"Asciicast-Event-Codes: {EVENT_CODES}\r\n")
            clean = await self._read(request, intake, changed)
            if clean:
                intake.end()
                while not intake.over and intake.error is None:
                    changed.clear()
                    await changed.wait()
            if intake.error is None and clean:
                return web.Response(status=200, headers={"Asciicast-Event-Codes": EVENT_CODES})
            status = 400 if intake.live is None else 503
            return _refuse(status, intake.error or "the session was cut off", intake.declines)
        finally:
            intake.close()
            self._intakes.discard(entry)

    async def _read(self, request: web.BaseRequest, intake: Intake, changed: asyncio.Event) -> bool:
        """Whether the whole body came. Ends early where the store fails, however silent the sender is."""
        async with beside(self._read_body(request, intake), "body of a session") as reading:
            reading.add_done_callback(lambda _: changed.set())
            while not reading.done() and intake.error is None:
                changed.clear()
                await changed.wait()
        if reading.cancelled() or intake.error is not None:
            return False
        return reading.result()

    async def _read_body(self, request: web.BaseRequest, intake: Intake) -> bool:
        try:
            async for piece in request.content.iter_any():
                intake.feed(piece)
                while intake.blocked:
                    await self._site.store.relieved()
        except (ConnectionError, web.HTTPException, ValueError, RuntimeError, asyncio.IncompleteReadError) as error:
            _log.info("session_cut", why=type(error).__name__)
            return False
        except Exception as error:
            # aiohttp has several names for a body that ends too early or is no chunked body.
            _log.info("session_cut", why=type(error).__name__)
            return False
        return True


async def _continue(request: web.BaseRequest, fields: str = "") -> None:
    """fields: lines of the head. A sender of version 1 sees no other head before it sends."""
    if request.headers.get("Expect", "").lower() == "100-continue" and request.transport is not None:
        request.transport.write(f"HTTP/1.1 100 Continue\r\n{fields}\r\n".encode())


def _refuse(status: int, message: str, declined: str = "") -> web.Response:
    # HEAD has no body to say it in.
    fields = {ERROR_FIELD: field_value(message)} | ({DECLINES_FIELD: declined} if declined else {})
    response = web.json_response({"error": message}, status=status, headers=fields)
    # What else the sender has on its way is not read.
    response.force_close()
    return response
