"""The recorder's bytes, cut into frames (RFC 9113, 4.1)."""

from __future__ import annotations

from k8sproxy.recording.carriers.framing import FRAME_HEADER

_SETTINGS = 0x4


class Malformed(Exception):
    """The recorder's bytes are no frames; the message says what they are."""


class Frames:
    """One connection's. heard: the first frame of an HTTP/2 server has come, which is SETTINGS (RFC 9113, 3.4)."""

    __slots__ = ("_held", "heard")

    def __init__(self) -> None:
        self._held = b""
        self.heard = False

    def put(self, data: bytes) -> bytes:
        """All bytes that are in no frame yet."""
        data = self._held + data if self._held else data
        self._held = b""
        if not self.heard and len(data) >= FRAME_HEADER:
            if data[3] != _SETTINGS or data[5:9] != b"\0\0\0\0":
                line = data.split(b"\r\n", 1)[0][:60]
                raise Malformed(
                    f"it answered {line.decode('latin-1')!r}"
                    if data.startswith(b"HTTP/1.")
                    else "it does not speak HTTP/2"
                )
            self.heard = True
        return data

    def keep(self, rest: bytes) -> None:
        """What is behind the last frame that is whole."""
        self._held = rest
