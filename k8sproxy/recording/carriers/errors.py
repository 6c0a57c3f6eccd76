"""Why a recorder's connection, or a request on it, came to nothing."""

from __future__ import annotations


class ConnectionLost(Exception):
    """The connection ended, or can take no more streams, before this request was answered."""


class NotHTTP2(ConnectionLost):
    """The other end does not speak HTTP/2: it answered otherwise, or closed the connection before it said a word."""


class Rejected(Exception):
    """The recorder answered, and not with 200. declines: see recorderapi; "" where the recorder may be to blame."""

    def __init__(self, why: str, declines: str = "") -> None:
        super().__init__(why, declines)
        self.declines = declines

    def __str__(self) -> str:
        return str(self.args[0])
