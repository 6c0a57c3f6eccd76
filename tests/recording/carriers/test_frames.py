"""The recorder's bytes, cut into frames at any place."""

from __future__ import annotations

import pytest

from k8sproxy.recording.carriers.frames import Frames, Malformed

SETTINGS = b"\0\0\0\4\0\0\0\0\0"


def test_an_http2_server_begins_with_its_settings() -> None:
    frames = Frames()
    for at in range(8):
        rest = frames.put(SETTINGS[at : at + 1])
        assert rest == SETTINGS[: at + 1] and not frames.heard
        frames.keep(rest)
    assert frames.put(SETTINGS[8:] + b"more") == SETTINGS + b"more" and frames.heard
    frames.keep(b"more")
    assert frames.put(b" of it") == b"more of it"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n", "it answered 'HTTP/1.1 400 Bad Request'"),
        (b"\0\0\0\6\0\0\0\0\0", "it does not speak HTTP/2"),
        (b"\0\0\0\4\0\0\0\0\1", "it does not speak HTTP/2"),
    ],
)
def test_what_is_none(data: bytes, words: str) -> None:
    with pytest.raises(Malformed, match=words):
        Frames().put(data)
