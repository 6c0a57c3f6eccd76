"""The recorders of the grants: finding one that accepts a session, and what is kept open to them.

`open` tries the addresses one after the other, as given, those known to be bad behind the others, and returns once one
has accepted. All attempts together take `accept_timeout` at most, and it is divided so that a recorder that hangs, at
whichever step, leaves its share to those behind it: `dial_timeout` or an equal part of what is left, whichever is
less; the last address has all that is left. One known to be bad has BRIEF: it is asked in the background (`health`)
with more patience than a user has.

An address is first asked whether it speaks v2. If so, its connection is kept and shared: the next session there is one
frame and its answer. Connections to one address are made one at a time, however many sessions wait for it. A
session that meets a dead connection before it is accepted tries once more on a new one; half of its share is kept for
that where the old one only says nothing. A connection with no session on it is closed after IDLE seconds.

Who is cancelled or out of time leaves nothing of theirs behind; a connection that others may use too is still made.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import structlog

from k8sproxy.common.errors import ProtocolError
from k8sproxy.common.tasks import Tasks
from k8sproxy.recording.buffers import Buffers
from k8sproxy.recording.carriers.carrier import words_of
from k8sproxy.recording.carriers.errors import ConnectionLost, NotHTTP2, Rejected
from k8sproxy.recording.carriers.http1 import Submission
from k8sproxy.recording.carriers.http2 import Connection
from k8sproxy.recording.carriers.stream import Stream
from k8sproxy.recording.eventposts import EventPosts
from k8sproxy.recording.health import RecorderState
from k8sproxy.recording.known import Known
from k8sproxy.recording.limits import Limits
from k8sproxy.recording.upload import NoRecorder, Upload, UploadError

__all__ = ["Dial", "NoRecorder", "RecorderState", "Recorders", "Upload", "UploadError"]

_T = TypeVar("_T")
Dial = Callable[[str, int], Awaitable[socket.socket]]

# Seconds for an address that is known to be bad, where only such are left: enough for one that has just come back.
BRIEF = 1.0
# Seconds that a connection without sessions is kept: a person's pause between two commands.
IDLE = 60.0
# Seconds after which an address that nobody asks for is forgotten: grants change.
FORGET = 600.0

_log = structlog.get_logger(__name__)


class _Unfit(Exception):
    """The recorder is well, and can't do what the session needs."""

    def __str__(self) -> str:
        return (
            "it speaks version 1 of the recorder protocol, which confirms nothing before a session's end, and a grant "
            "asks for acknowledged recording"
        )


class _Attempt:
    """One session's attempt at one address: how far it came, and the connection that is to blame if it hangs."""

    __slots__ = ("connection", "step")

    def __init__(self) -> None:
        self.step = "did not accept a connection"
        self.connection: Connection | None = None


class Recorders:
    """All recorders; one for the process. limits: may be changed at any time, for what begins after it. buffers: what
    may wait for all of them.

    dial: makes a connected, non-blocking stream socket, or raises OSError with a sentence. clock: seconds, monotonic.
    """

    def __init__(
        self,
        dial: Dial,
        *,
        dial_timeout: float = 2.0,
        accept_timeout: float = 5.0,
        ack_timeout: float = 30.0,
        buffer: int = 4 << 20,
        finish_timeout: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limits = Limits(dial_timeout, accept_timeout, ack_timeout, buffer, finish_timeout)
        self.buffers = Buffers()
        self._dial = dial
        self._clock = clock
        self._recorders: dict[str, Known] = {}
        self._submissions: set[Submission] = set()
        self._tasks = Tasks()  # they end by their own limits
        self._idle: dict[Connection, asyncio.TimerHandle] = {}
        self._closed = False
        self._posts = EventPosts(self._recorder, self._dialled, self.limits)

    # -- sessions

    async def open(self, addresses: Sequence[str], *, acks: bool = False, user: str = "") -> Upload:
        """An upload that one of the recorders has accepted. acks: only one that says within a session what it has
        stored (v2) will do. user: whose share of a recorder's places it takes. Raises NoRecorder, within
        `accept_timeout` seconds."""
        declined = False
        attempts: list[tuple[str, str]] = []
        recorders: list[Known] = []
        for address in dict.fromkeys(addresses):
            try:
                recorders.append(self._recorder(address))
            except ProtocolError as error:
                attempts.append((address, error.message))
        recorders.sort(key=lambda recorder: recorder.is_bad)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.limits.accept_timeout
        for index, recorder in enumerate(recorders):
            if self._closed:
                attempts.append((recorder.address, "this process is stopping"))
                continue
            left = deadline - loop.time()
            if left <= 0:
                attempts.append((recorder.address, "no time was left for it"))
                continue
            seconds = self._share(left, recorders[index:])
            attempt = _Attempt()
            try:
                async with asyncio.timeout(seconds):
                    return await self._accept(recorder, attempt, seconds, acks, user)
            except _Unfit as error:
                attempts.append((recorder.address, str(error)))
                continue
            except TimeoutError:
                why = f"{attempt.step} within {seconds:.3g} s"
                if attempt.connection is not None:
                    self._suspect(recorder, attempt.connection)
            except Rejected as error:
                why = str(error)
                if error.declines:  # which says nothing about the recorder
                    declined = declined or error.declines == "user"
                    attempts.append((recorder.address, why))
                    continue
            except ConnectionLost as error:
                why = str(error)
            recorder.health.failed(why)
            attempts.append((recorder.address, why))
        raise NoRecorder(tuple(attempts), declined=declined)

    def describe(self) -> tuple[RecorderState, ...]:
        """What is known of each address, in the order in which they were first met."""
        return tuple(
            RecorderState(
                address=recorder.address,
                state=recorder.health.state,
                version=recorder.health.version,
                failure=recorder.health.failure,
                failed_ago=recorder.health.failed_ago,
                uploads=recorder.health.uploads,
                connections=len(recorder.connections),
                accepted=recorder.health.accepted_count,
                failures=recorder.health.failures,
                bytes_sent=recorder.health.bytes_sent,
                ack_seconds=recorder.health.ack_seconds,
                acks=recorder.health.acks,
            )
            for recorder in self._recorders.values()
        )

    async def aclose(self) -> None:
        """Ends all connections at once; uploads that are not finished fail. What is asked for later is refused."""
        self._closed = self._posts.closed = True
        why = "this process is stopping"
        for recorder in self._recorders.values():
            if recorder.retry is not None:
                recorder.retry.cancel()
            for connection in tuple(recorder.connections):
                connection.close(why)
            for events in recorder.events:
                events.close()
            recorder.events.clear()
        for submission in tuple(self._submissions):
            submission.close(why)
        await self._tasks.aclose()

    def _share(self, left: float, recorders: Sequence[Known]) -> float:
        """Seconds for the first of these."""
        if recorders[0].is_bad:
            return min(BRIEF, left / len(recorders))
        if len(recorders) == 1:
            return left
        return min(self.limits.dial_timeout, left / sum(1 for recorder in recorders if not recorder.is_bad))

    async def _accept(self, recorder: Known, attempt: _Attempt, seconds: float, acks: bool, user: str) -> Upload:
        """An upload there. Raises Rejected, ConnectionLost, _Unfit."""
        if recorder.health.version == 1:
            return await self._accept_v1(recorder, attempt, acks, user)
        connection = recorder.usable()
        if connection is not None:
            attempt.step = "did not accept the session"
            try:
                async with asyncio.timeout(seconds / 2):
                    return await connection.submit(lambda stream: self._upload(recorder, 2, stream), user)
            except TimeoutError:
                self._suspect(recorder, connection)
            except ConnectionLost:
                pass  # it was dead, and nobody had noticed
        while True:
            connection = recorder.usable()
            if connection is None:
                try:
                    connection = await self._connected(recorder, attempt)
                except (NotHTTP2, Rejected):
                    return await self._accept_v1(recorder, attempt, acks, user)
                if not connection.usable:
                    if not connection.open_streams:
                        raise Rejected("it accepts no streams")
                    continue  # others who waited for it have filled it
            attempt.step = "did not accept the session"
            attempt.connection = connection
            return await connection.submit(lambda stream: self._upload(recorder, 2, stream), user)

    async def _accept_v1(self, recorder: Known, attempt: _Attempt, acks: bool, user: str) -> Upload:
        if acks:
            raise _Unfit
        attempt.step = "did not accept a connection"
        sock = await self._dialled(recorder)
        attempt.step = "did not accept the session (100 Continue)"
        submission = Submission(
            sock,
            recorder.address,
            lambda carrier: self._upload(recorder, 1, carrier),
            self._submissions.discard,
            user,
        )
        self._submissions.add(submission)
        upload = await submission.accepted()
        recorder.health.version = 1
        return upload

    def _upload(self, recorder: Known, version: int, carrier: Stream | Submission) -> Upload:
        recorder.health.accepted()
        return Upload(recorder.address, version, carrier, recorder.health, self.limits, self.buffers)

    # -- connections

    async def _connected(self, recorder: Known, attempt: _Attempt) -> Connection:
        """A new shared connection whose other end speaks v2. Raises NotHTTP2, Rejected, ConnectionLost."""
        task = recorder.connecting
        if task is None:

            def ended(task: asyncio.Task[Connection | Exception]) -> None:
                recorder.connecting = None

            name = f"recorder {recorder.address}"
            task = recorder.connecting = self._tasks.start(self._connect(recorder), name, ended=ended)
        attempt.step = "did not answer"
        # Not the task itself: it goes on for the others if this one is cancelled.
        await asyncio.wait((task,))
        outcome = ConnectionLost("this process is stopping") if task.cancelled() else task.result()
        if isinstance(outcome, Exception):
            raise type(outcome)(*outcome.args)  # each of those waiting its own
        return outcome

    async def _connect(self, recorder: Known) -> Connection | Exception:
        try:
            async with asyncio.timeout(self.limits.accept_timeout):
                sock = await self._dialled(recorder)
                connection = Connection(sock, recorder.address, lambda connection: self._changed(recorder, connection))
                try:
                    await connection.probe()
                except BaseException:
                    connection.close()
                    raise
        except TimeoutError:
            return ConnectionLost(f"did not answer within {self.limits.accept_timeout:g} s")
        except (ConnectionLost, Rejected) as error:
            return error
        if connection.lost is not None:
            return ConnectionLost(connection.lost)
        recorder.health.version = 2
        recorder.connections.append(connection)
        self._changed(recorder, connection)
        return connection

    async def _dialled(self, recorder: Known) -> socket.socket:
        """A connected socket. Raises ConnectionLost."""
        if self._closed:
            raise ConnectionLost("this process is stopping")
        limit = self.limits.dial_timeout
        try:
            async with asyncio.timeout(limit):
                return await self._dial(recorder.host, recorder.port)
        except TimeoutError:
            raise ConnectionLost(f"did not accept a connection within {limit:g} s") from None
        except OSError as error:
            raise ConnectionLost(words_of(error)) from None

    def _changed(self, recorder: Known, connection: Connection) -> None:
        """A connection has one stream less, or is gone."""
        timer = self._idle.pop(connection, None)
        if timer is not None:
            timer.cancel()
        if connection not in recorder.connections:
            return
        if connection.lost is not None:
            recorder.connections.remove(connection)
        elif not connection.open_streams:
            if connection.retired:
                connection.close()
            else:
                self._idle[connection] = asyncio.get_running_loop().call_later(IDLE, self._idled, recorder, connection)

    def _idled(self, recorder: Known, connection: Connection) -> None:
        self._idle.pop(connection, None)
        if not connection.open_streams:
            connection.close()

    def _suspect(self, recorder: Known, connection: Connection) -> None:
        connection.suspect()
        self._changed(recorder, connection)

    # -- health

    def _recorder(self, address: str) -> Known:
        """Raises ProtocolError for an address that is none."""
        recorder = self._recorders.get(address)
        if recorder is None:
            recorder = Known(address, self._clock, self._probe_later)
            now = self._clock()
            for old in [old for old in self._recorders.values() if now - old.used > FORGET and old.unused]:
                del self._recorders[old.address]
            self._recorders[address] = recorder
        recorder.used = self._clock()
        return recorder

    def _probe_later(self, recorder: Known) -> None:
        if recorder.retry is None and not self._closed:
            loop = asyncio.get_running_loop()
            recorder.retry = loop.call_later(recorder.health.retry_delay, self._probe_now, recorder)

    def _probe_now(self, recorder: Known) -> None:
        recorder.retry = None
        if recorder.health.state != "bad" or self._closed:
            return
        if self._clock() - recorder.used > FORGET:
            recorder.health.state = "unknown"
            return
        self._tasks.start(self._probe(recorder), f"probe of recorder {recorder.address}")

    async def _probe(self, recorder: Known) -> None:
        """Asks a bad recorder whether it is there again: anything that it answers will do."""
        connection = recorder.usable()
        try:
            async with asyncio.timeout(self.limits.accept_timeout):
                if connection is not None:
                    await connection.probe()
                else:
                    await self._connected(recorder, _Attempt())
        except (NotHTTP2, Rejected):
            pass
        except (TimeoutError, ConnectionLost) as error:
            if isinstance(error, TimeoutError) and connection is not None:
                self._suspect(recorder, connection)
            if recorder.health.state == "bad":
                recorder.health.failed(words_of(error), probe=True)
                self._probe_later(recorder)
            return
        if recorder.health.state == "bad":
            _log.info("recorder_answers_again", recorder=recorder.address)
            recorder.health.answered()

    # -- events

    async def probe_events(self, address: str) -> None:
        """HEAD /v2/event: whether the recorder takes events, and how many at once. Raises UploadError."""
        await self._posts.exchange(address, ())

    async def post_events(self, address: str, bodies: Sequence[bytes]) -> None:
        """Sends events, a JSON object each; every one has been answered with 2xx when it returns.

        Raises UploadError, within accept_timeout for the connection and ack_timeout for the answers: then any of them
        may be stored, or none; and EventsRefused where it is the events that the recorder does not like. One that met a
        dead connection is sent again, so a recorder may see it twice.
        """
        if bodies:
            await self._posts.exchange(address, bodies)
