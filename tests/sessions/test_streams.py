"""What upstream has chosen, and what of it can be read."""

from __future__ import annotations

import pytest

from k8sproxy.common.errors import ProtocolError
from k8sproxy.sessions.streams import negotiated, readable


def test_readable() -> None:
    assert "v5.channel.k8s.io" in readable("exec", "websocket") and "v5.channel.k8s.io" not in readable(
        "exec", "spdy/3.1"
    )
    assert readable("exec", "spdy/3.1") == readable("attach", "spdy/3.1")
    assert readable("portforward", "spdy/3.1") == readable("exec", "h2c") == readable("exec", "") == frozenset()


@pytest.mark.parametrize(
    ("upgrade", "fields", "chosen"),
    [
        ("websocket", b"Sec-WebSocket-Protocol: v5.channel.k8s.io\r\n", "v5.channel.k8s.io"),
        ("websocket", b"A: b\r\nsec-websocket-protocol:v4.channel.k8s.io \r\nC: d\r\n", "v4.channel.k8s.io"),
        ("websocket", b"X-Stream-Protocol-Version: v4.channel.k8s.io\r\n", ""),
        ("websocket", b"X: Sec-WebSocket-Protocol: v5.channel.k8s.io\r\n", ""),
        ("websocket", b"Sec-WebSocket-Protocol:\r\nX: v5.channel.k8s.io\r\n", ""),
        ("spdy/3.1", b"X-STREAM-PROTOCOL-VERSION: v4.channel.k8s.io\r\n", "v4.channel.k8s.io"),
        ("spdy/3.1", b"Sec-WebSocket-Extensions: permessage-deflate\r\n", ""),
        ("spdy/3.1", b"", ""),
    ],
)
def test_negotiated(upgrade: str, fields: bytes, chosen: str) -> None:
    assert negotiated(upgrade, fields) == chosen


@pytest.mark.parametrize(
    ("upgrade", "fields"),
    [
        ("h2c", b""),
        ("", b""),
        ("websocket", b"Sec-WebSocket-Protocol: a\r\nSec-WebSocket-Protocol: a\r\n"),
        ("websocket", b"sec-websocket-extensions: permessage-deflate\r\n"),
        ("websocket", b"A: b\r\nSec-WebSocket-Extensions:\r\n"),
        ("spdy/3.1", b"X-Stream-Protocol-Version: v4\r\nA: b\r\nx-stream-protocol-version: v4\r\n"),
    ],
)
def test_what_can_not_be_told(upgrade: str, fields: bytes) -> None:
    with pytest.raises(ProtocolError):
        negotiated(upgrade, fields)
