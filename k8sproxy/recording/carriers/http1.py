"""The recorder's wires over HTTP/1.1: version 1 of recording, one connection a session, and API events.

`Submission` is POST /record, chunked, with Expect: 100-continue: the 100 accepts the session, nothing is sent before
it, and a recorder that says nothing until it sees a body has not accepted one. The final 200 counts only after the
body's end.

`EventConnection` is a kept-alive connection with requests in a pipeline: a recorder across the tailnet is milliseconds
away, and each event would wait for the one before.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable, Sequence

from k8sproxy.common.errors import ProtocolError
from k8sproxy.common.formats.recorderapi import (
    DECLINES_FIELD,
    ERROR_FIELD,
    EVENT_CODES_FIELD,
    EVENT_PATH,
    USER_FIELD,
    V1_PATH,
    read_declines,
    read_event_codes,
    user_value,
)
from k8sproxy.protocol.body import Body, response_body
from k8sproxy.protocol.http1 import ResponseHead, head_end, parse_response_head
from k8sproxy.recording.carriers.carrier import Piece, Wire
from k8sproxy.recording.carriers.errors import ConnectionLost, Rejected
from k8sproxy.recording.refusals import Reason
from k8sproxy.recording.upload import Upload

# Bytes of a response's head: a dozen short fields.
MAX_HEAD = 16 * 1024
# Bytes of one chunk, and so of one sendmsg. See framing._MAX_TURN.
_MAX_CHUNK = 512 * 1024
# Requests whose answers are due, on one connection: with 1 KiB events and 5 ms of round trip some 3,000 a second.
_MAX_PIPELINE = 16


class Submission:
    """A v1 session's connection, first asking to be accepted, later an upload's carrier. user: whose share of the
    recorder's places it takes."""

    def __init__(
        self,
        sock: socket.socket,
        authority: str,
        upload_for: Callable[[Submission], Upload],
        on_close: Callable[[Submission], None],
        user: str = "",
    ) -> None:
        self._upload_for = upload_for
        self._on_close = on_close
        self._upload: Upload | None = None
        self._answer: asyncio.Future[Upload] = asyncio.get_running_loop().create_future()
        self._held = b""
        self._ended = False  # the terminating chunk is sent
        self._reason: Reason | None = None  # it was refused, and why is being read
        self._declines = ""  # of that refusal
        self._body: Body | None = None  # the same
        self._wire = Wire(sock, flush=self._flush, received=self._received, lost=self._on_lost)
        head = (
            f"POST {V1_PATH} HTTP/1.1\r\nHost: {authority}\r\nUser-Agent: k8sproxy\r\n"
            "Transfer-Encoding: chunked\r\nExpect: 100-continue\r\n"
            + (f"{USER_FIELD}: {value}\r\n" if (value := user_value(user)) else "")
            + "\r\n"
        ).encode()
        self._wire.send((head,), len(head))

    async def accepted(self) -> Upload:
        """The upload, once the recorder has said 100. Raises Rejected, ConnectionLost; then the connection is gone."""
        try:
            upload = await self._answer
        except BaseException:
            if self._upload is not None:
                self._upload.abort()
            self.reset()
            raise
        if upload.failure is not None:
            raise Rejected(upload.failure)
        return upload

    def wake(self) -> None:
        self._wire.wake()

    def reset(self) -> None:
        if self._reason is not None:
            self._reason.cancel()
        if not self._wire.closed:
            self._wire.close()
        self._on_close(self)

    def close(self, why: str) -> None:
        """Ends the connection; its upload fails."""
        if self._reason is not None:
            self._reason.cancel()
        self._wire.close()
        self._failed(ConnectionLost(why), why, blame=False)

    def _flush(self) -> None:
        upload = self._upload
        if upload is None:
            return
        while upload.buffered and not self._wire.stalled:
            pieces: list[Piece] = [b""]
            size = upload.take(_MAX_CHUNK, pieces)
            pieces[0] = b"%x\r\n" % size
            pieces.append(b"\r\n")
            self._wire.send(pieces, size + len(pieces[0]) + 2)
        if upload.ending and not upload.buffered and not self._ended:
            self._ended = True
            self._wire.send((b"0\r\n\r\n",), 5)

    def _received(self, data: bytes) -> None:
        data = self._held + data if self._held else data
        try:
            while True:
                if self._reason is not None:
                    self._refusal(self._reason, data)
                    return
                end = head_end(data)
                if end < 0:
                    if len(data) > MAX_HEAD:
                        raise ProtocolError("a response head that does not end")
                    break
                head = parse_response_head(data[:end])
                data = data[end:]
                self._head(head)
                if self._wire.closed:
                    return
        except ProtocolError:
            self._failed(Rejected("it does not speak HTTP/1.1"), "the recorder's answer is not HTTP/1.1")
            self.reset()
            return
        self._held = data

    def _head(self, head: ResponseHead) -> None:
        if head.status == 100 and self._upload is None:
            if not self._answer.done():
                upload = self._upload = self._upload_for(self)
                upload.event_codes = read_event_codes(field_of(head, EVENT_CODES_FIELD))
                self._answer.set_result(upload)
        elif head.status >= 200:
            if self._upload is None or not 200 <= head.status < 300:
                self._body = response_body("POST", head.status, head.content_length, head.chunked)
                question, said = f"POST {V1_PATH}", field_of(head, ERROR_FIELD)
                self._declines = read_declines(field_of(head, DECLINES_FIELD), head.status)
                self._reason = Reason(head.status, question, said, self._refused, chunked=head.chunked)
                return
            if not self._ended or self._wire.stalled:  # what the kernel has not taken, no recorder has
                self._upload.fail("the recorder ended its answer before the session's end")
            else:
                self._upload.receive_end()
            self.reset()  # its body says nothing that is used, and the connection is not used again

    def _refusal(self, reason: Reason, data: bytes) -> None:
        """Some of the body of a refusal."""
        self._held = b""
        if self._body is not None:
            _read_reason(reason, self._body, data)

    def _refused(self, words: str) -> None:
        self._failed(Rejected(words, self._declines), f"the recorder answered {words}", blame=not self._declines)
        self.reset()

    def _on_lost(self, why: str) -> None:
        if self._reason is not None:
            self._reason.done()
            return
        self._failed(ConnectionLost(why), why)
        self._on_close(self)

    def _failed(self, error: Exception, why: str, *, blame: bool = True) -> None:
        if not self._answer.done():
            self._answer.set_exception(error)
            self._answer.exception()  # nobody may be left to look at it
        if self._upload is not None:
            self._upload.fail(why, blame=blame)


class EventConnection:
    """One HTTP/1.1 connection for events. usable: another exchange may be had here; fresh: none has been yet.

    on_lost: called when the recorder ends it while nobody is waiting for an answer.
    """

    def __init__(self, sock: socket.socket, authority: str, on_lost: Callable[[EventConnection], None]) -> None:
        self.fresh = True
        self.usable = True
        self.answered = 0  # of the current exchange
        self.refused = 0  # the status of the request that was refused, 0 while none was
        self._authority = authority
        self._on_idle_lost = on_lost
        self._requests: deque[tuple[str, bytes]] = deque()
        self._due: deque[str] = deque()  # the methods of requests that are sent and not answered
        self._heads: list[ResponseHead] = []
        self._body: Body | None = None
        self._reason: Reason | None = None  # the newest request was refused, and why is being read
        self._held = b""
        self._done: asyncio.Future[None] | None = None
        self._wire = Wire(sock, flush=self._flush, received=self._received, lost=self._on_lost)

    async def exchange(self, method: str, bodies: Sequence[bytes]) -> list[ResponseHead]:
        """One request for each body, and their responses' heads, all 2xx. Raises Rejected, ConnectionLost.

        After an error, a cancellation included, the connection is closed; `answered` says how many got their 2xx.
        """
        self.answered = 0
        self._heads = []
        self._requests.extend((method, body) for body in bodies)
        done = self._done = asyncio.get_running_loop().create_future()
        self._wire.wake()
        try:
            await done
        except BaseException:
            self.close()
            raise
        self._done = None
        self.fresh = False
        return self._heads

    def close(self) -> None:
        self.usable = False
        if self._reason is not None:
            self._reason.cancel()
        self._wire.close()

    def _flush(self) -> None:
        while self._requests and not self._wire.stalled and len(self._due) < _MAX_PIPELINE:
            method, body = self._requests.popleft()
            self._due.append(method)
            head = f"{method} {EVENT_PATH} HTTP/1.1\r\nHost: {self._authority}\r\nUser-Agent: k8sproxy\r\n"
            if method == "POST":
                head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
            encoded = head.encode() + b"\r\n"
            self._wire.send((encoded, body), len(encoded) + len(body))

    def _received(self, data: bytes) -> None:
        data = self._held + data if self._held else data
        self._held = b""
        try:
            while data and not self._wire.closed:
                if self._body is not None and self._reason is not None:
                    _read_reason(self._reason, self._body, data)
                    return
                if self._body is not None:
                    data = data[self._body.take(memoryview(data)) :]
                    if self._body.done:
                        self._body = None
                        self._whole()
                    continue
                end = head_end(data)
                if end < 0:
                    if len(data) > MAX_HEAD:
                        raise ProtocolError("a response head that does not end")
                    self._held = data
                    return
                head = parse_response_head(data[:end])
                data = data[end:]
                if head.status >= 200:
                    self._head(head)
        except ProtocolError:
            self._fail("the recorder's answer is not HTTP/1.1")

    def _head(self, head: ResponseHead) -> None:
        if not self._due:
            raise ProtocolError("an answer without a request")
        method = self._due[0]
        body = response_body(method, head.status, head.content_length, head.chunked)
        if not 200 <= head.status < 300:
            question, said = f"{method} {EVENT_PATH}", field_of(head, ERROR_FIELD)
            self.usable = False
            self.refused = head.status
            self._body = body
            self._reason = Reason(head.status, question, said, self._refused, chunked=head.chunked)
            if body.done:
                self._reason.done()
            return
        self._heads.append(head)
        if head.close:
            self.usable = False
        if body.done:
            self._whole()
        else:
            self._body = body

    def _whole(self) -> None:
        self._due.popleft()
        self.answered += 1
        if not self._due and not self._requests:
            if self._done is not None and not self._done.done():
                self._done.set_result(None)
            if not self.usable:
                self._wire.close()
        elif not self.usable:
            self._fail("the recorder closed the connection")
        else:
            self._wire.wake()

    def _refused(self, words: str) -> None:
        self._fail(words, Rejected)

    def _on_lost(self, why: str) -> None:
        if self._reason is not None:
            self._reason.done()
        else:
            self._fail(why)

    def _fail(self, why: str, error: type[Exception] = ConnectionLost) -> None:
        self.close()
        if self._done is not None:
            if not self._done.done():
                self._done.set_exception(error(why))
        else:
            self._on_idle_lost(self)


def _read_reason(reason: Reason, body: Body, data: bytes) -> None:
    """Some of the body of a refusal; where it breaks its framing, what has come is all there is."""
    try:
        size = body.take(memoryview(data))
    except ProtocolError:
        reason.take(data)
        reason.done()
        return
    reason.take(data[:size])
    if body.done:
        reason.done()


def field_of(head: ResponseHead, name: str) -> str | None:
    """A field of a head as it came, by its lower-case name."""
    for line in head.fields.split(b"\r\n"):
        found, colon, value = line.partition(b":")
        if colon and found.lower() == name.encode():
            return value.strip(b" \t").decode("latin-1")
    return None
