"""What other parsers make of a stream of HTTP/1.1: h11, llhttp (httptools) and, for responses, http.client.

A reader gets a head and all that follows it, and says what the first message is and how many bytes it takes. `Other`
means that the parser refuses the stream.
"""

from __future__ import annotations

import http.client
import io
import socket
from typing import NamedTuple

import h11
import httptools


class Other(Exception):
    """The oracle refuses what it was given."""


class Message(NamedTuple):
    """The first message of a stream. start: (method, target) or the status. fields: (lower-case name, value). body:
    decoded. rest: the bytes that follow the message."""

    start: object
    fields: list[tuple[bytes, bytes]]
    body: bytes
    rest: bytes


def h11_request(stream: bytes) -> Message:
    return _h11(h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20), stream)


def h11_response(stream: bytes, method: str, *, ended: bool) -> Message:
    """The final response. ended: upstream closes behind the stream."""
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
    connection.send(h11.Request(method=method, target="/", headers=[("Host", "a")]))
    connection.send(h11.EndOfMessage())
    return _h11(connection, stream, ended=ended)


def _h11(connection: h11.Connection, stream: bytes, *, ended: bool = False) -> Message:
    start: object = None
    fields: list[tuple[bytes, bytes]] = []
    body = b""
    try:
        connection.receive_data(stream)
        if ended:
            connection.receive_data(b"")
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Request):
                start, fields = (event.method, event.target), list(event.headers)
            elif isinstance(event, h11.Response):
                start, fields = event.status_code, list(event.headers)
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                return Message(start, fields, body, connection.trailing_data[0])
            else:
                raise Other(f"incomplete: {event}")
    except h11.ProtocolError as error:
        raise Other(str(error)) from error


class _Callbacks:
    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.url = b""
        self.fields: list[tuple[bytes, bytes]] = []
        self.body = b""
        self.parser: httptools.HttpRequestParser | httptools.HttpResponseParser | None = None

    def on_message_begin(self) -> None:
        self.url, self.fields, self.body = b"", [], b""

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name.lower(), value))

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        parser = self.parser
        assert parser is not None
        start: object
        if isinstance(parser, httptools.HttpResponseParser):
            start = parser.get_status_code()
        else:
            start = (parser.get_method(), self.url)
        self.messages.append(Message(start, self.fields, self.body, b""))


def llhttp_requests(stream: bytes) -> list[Message]:
    """All requests of a stream that holds nothing else; the last one is whole. An upgrade ends the list."""
    callbacks = _Callbacks()
    callbacks.parser = httptools.HttpRequestParser(callbacks)
    try:
        callbacks.parser.feed_data(stream)
    except httptools.HttpParserUpgrade as upgrade:
        callbacks.messages[-1] = callbacks.messages[-1]._replace(rest=stream[upgrade.args[0] :])
    except httptools.HttpParserError as error:
        raise Other(str(error)) from error
    return callbacks.messages


def llhttp_responses(stream: bytes) -> list[Message]:
    """All responses of a stream (to requests other than HEAD), interim ones included."""
    callbacks = _Callbacks()
    callbacks.parser = httptools.HttpResponseParser(callbacks)
    try:
        callbacks.parser.feed_data(stream)
    except httptools.HttpParserUpgrade as upgrade:
        callbacks.messages[-1] = callbacks.messages[-1]._replace(rest=stream[upgrade.args[0] :])
    except httptools.HttpParserError as error:
        raise Other(str(error)) from error
    return callbacks.messages


class _Stream(socket.socket):
    def __init__(self, stream: bytes) -> None:
        super().__init__()
        self.file = io.BytesIO(stream)

    def makefile(self, *_: object, **__: object) -> io.BytesIO:  # type: ignore[override]  # all that http.client uses
        return self.file


def client_response(stream: bytes, method: str, *, ended: bool) -> Message:
    """The final response as http.client reads it, which forgives much. ended: as for h11_response; it can't tell."""
    with _Stream(stream) as file:
        response = http.client.HTTPResponse(file, method=method)
        try:
            response.begin()
            fields = [
                (name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in response.getheaders()
            ]
            body = response.read()
        except (http.client.HTTPException, ValueError) as error:
            raise Other(str(error)) from error
        return Message(response.status, fields, body, stream[file.file.tell() :] if not file.file.closed else b"")
