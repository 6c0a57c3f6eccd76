"""A TLS handshake in memory, without sockets or loops."""

from __future__ import annotations

import contextlib
import ssl


def handshake(
    client: ssl.SSLContext, server: ssl.SSLContext, server_name: str | None = None
) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """(client's side, server's side) after the handshake. Raises ssl.SSLError, whichever side's comes first."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    one = client.wrap_bio(to_client, to_server, server_hostname=server_name)
    two = server.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(10):
        done = 0
        for side in (one, two):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
                done += 1
        if done == 2:
            with contextlib.suppress(ssl.SSLWantReadError):
                one.read()  # TLS 1.3: the server's refusal of a client certificate comes after the client is through
            return one, two
    raise AssertionError("the handshake does not end")


def trusting(ca_pem: bytes, *, check_hostname: bool = True) -> ssl.SSLContext:
    """A client that believes this CA alone."""
    context = ssl.create_default_context(cadata=ca_pem.decode())
    context.check_hostname = check_hostname
    return context
