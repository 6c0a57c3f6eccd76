"""The limits of the data plane, in bytes, seconds and counts. The configuration documents and checks them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """What one client, and all of them, may hold.

    head_bytes: a request or response head, bytes; Go's own limit is 1 MiB, real kubectl heads stay below 4 KiB and a
    long exec command below 32. header_count: field lines of a request. head_timeout: seconds from a head's first byte
    (or a connection's first moment) to its last. idle_timeout: seconds a connection may wait for its next request.
    handshake_timeout: seconds for the TLS handshake and the PROXY header together. connections, connections_per_peer:
    how many at once, of all and of one owner (peer.Peer.owner); one costs about 60 KiB. connect_timeout: seconds for a
    TCP and TLS connection to the API server.
    pool_size, pool_idle_timeout: how many idle upstream connections are kept, and for how many seconds: below the
    idle time-outs of load balancers, and enough that a burst of clients does not end in as many handshakes.
    write_timeout: seconds that a closing connection may take to accept the last bytes written to it: some 100 KiB
    behind a full buffer of the kernel, over a slow line.
    """

    head_bytes: int = 64 * 1024
    header_count: int = 128
    head_timeout: float = 10.0
    idle_timeout: float = 300.0
    handshake_timeout: float = 10.0
    connections: int = 10_000
    connections_per_peer: int = 2048
    connect_timeout: float = 5.0
    pool_size: int = 1024
    pool_idle_timeout: float = 60.0
    write_timeout: float = 30.0
