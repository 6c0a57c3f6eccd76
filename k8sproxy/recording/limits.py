"""How long a recorder may take, and how much waits for it: one object that a reload of the configuration changes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Limits:
    """dial_timeout: seconds to a recorder's TCP connection, and all that one of several may take of the whole: past
    two seconds a user wonders. accept_timeout: seconds until a recorder has accepted the session, all attempts
    together: kubectl's users wait that long for a shell on a busy cluster. ack_timeout: seconds without an ack while
    bytes are not stored; 30 is what clients of tsrecorder use. buffer: bytes that may wait for the wire in a session
    before it is blocked; 4 MiB are some 40 ms at the highest rate of a session, or minutes of a person's typing.
    finish_timeout: seconds for the last ack after a session's end.
    """

    dial_timeout: float = 2.0
    accept_timeout: float = 5.0
    ack_timeout: float = 30.0
    buffer: int = 4 << 20
    finish_timeout: float = 5.0
