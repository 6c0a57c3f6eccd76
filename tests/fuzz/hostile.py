"""A hostile client against a session, its recording and a recorder, with a server that behaves.

The client's bytes are the input's. What the server writes is the input's too, in frames of its own making, so it is
known what a client has been shown: the frames in their order, with nothing between them but pongs, and at the end what
tells why the session ends. The property: whatever was shown is kept, or the session ended before it was shown; where a
grant says `acknowledged`, at every moment.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable

from structlog.testing import capture_logs

from k8sproxy.access.ownrules import RecordingLevel
from k8sproxy.common.formats.asciicast import decode_output
from k8sproxy.recording.limits import Limits
from tests.protocol.streams import MASK, control, data, goaway, ping, typed, typed64, websocket
from tests.recording.scenes import Base64, Cast, Scene, Spdy, Speech, WebSocket, turns

SPEECHES: tuple[Callable[[], Speech], ...] = (WebSocket, Base64, Spdy)
LEVELS = tuple(RecordingLevel)
# Bits of an input's second byte.
TTY, SMALL, OPENS, DIES = 0x80, 0x40, 0x20, 0x10
# Bits of a piece's head (two bytes): whose it is; of the server's whether to stderr, of the client's whether the
# recorder stops or goes on with it; whether it comes in halves. The rest is its size.
_SERVER, _OTHER, _HALVES, _SIZE = 0x8000, 0x4000, 0x2000, 0x1FFF


def packed(speech: int, level: RecordingLevel, flags: int, pieces: list[tuple[int, bytes]]) -> bytes:
    """The input that stands for these pieces; each with its bits."""
    out = bytes((speech, flags | LEVELS.index(level)))
    return out + b"".join((bits | len(text)).to_bytes(2, "big") + text for bits, text in pieces)


def session(text: bytes) -> None:
    """The target."""
    if len(text) < 2:
        return
    with capture_logs():
        asyncio.run(_Play(text).play())


class _Play:
    def __init__(self, text: bytes) -> None:
        self._flags = text[1]
        self._level = LEVELS[(text[1] & 0x0F) % len(LEVELS)]
        self._speech = SPEECHES[text[0] % len(SPEECHES)]()
        self._rest = text[2:]
        self._frames: list[tuple[bytes, int, bytes]] = []  # the server's, and what they write to stdout (0) or stderr
        # Where the client opens the streams as it likes, nobody knows which is which, and all is recorded as one.
        self._apart = not isinstance(self._speech, Spdy) or self._flags & OPENS != 0

    def _pieces(self) -> list[tuple[int, bytes]]:
        pieces, rest = [], self._rest
        while len(rest) >= 2:
            head = int.from_bytes(rest[:2], "big")
            size = head & _SIZE
            pieces.append((head, rest[2 : 2 + size]))
            rest = rest[2 + size :]
        return pieces

    async def play(self) -> None:
        limits = Limits(buffer=600) if self._flags & SMALL else Limits()
        scene = self._scene = Scene(self._speech, self._level, tty=self._flags & TTY != 0, limits=limits)
        recorder = scene.recorder
        assert recorder is not None
        recorder.upload.event_codes = frozenset("orem")  # notices are markers, and output is output alone
        await scene.session.open()
        scene.switch()
        if self._flags & OPENS and self._speech.opening:
            scene.up(self._speech.opening)
            self._server(self._speech.accepted, 0, b"", halves=False)
        for head, text in self._pieces():
            if head & _SERVER:
                self._server(*self._written(head, text), halves=head & _HALVES != 0)
            else:
                half = len(text) // 2 if head & _HALVES else len(text)
                scene.up(text[:half], text[half:])
                if head & _OTHER:
                    recorder.flowing = not recorder.flowing
            await turns(3)
            self._check_acknowledged()
        if self._flags & DIES:
            recorder.upload.fail("it died")
            await turns(2)
            self._check_acknowledged()
        else:
            recorder.open()
        await scene.close()
        self._check_acknowledged()
        if not self._flags & DIES:
            self._check_kept()

    def _written(self, head: int, text: bytes) -> tuple[bytes, int, bytes]:
        """A frame and what it writes; without bytes: the end."""
        if not self._apart:
            # On a stream that nobody has opened a status is output too, and parts of characters would wait in several.
            text = bytes(byte & 0x7F for byte in text) or b"the end"
        if not text:
            return self._speech.status() + self._speech.end(), 0, b""
        stderr = head & _OTHER != 0 and self._apart
        return self._speech.out(text, stderr=stderr), int(stderr), text

    def _server(self, frame: bytes, stream: int, text: bytes, *, halves: bool) -> None:
        if self._scene.upstream.paused or self._scene.over:
            return  # it is not read
        self._frames.append((frame, stream, text))
        half = len(frame) // 2 if halves else len(frame)
        self._scene.down(frame[:half], frame[half:])

    def _shown(self) -> list[bytes]:
        """What the client was shown of what the server wrote to stdout and stderr."""
        rest, shown = self._scene.shown, [b"", b""]
        frames = iter(self._frames)
        frame, stream, text = next(frames, (b"", 0, b""))
        while rest:
            if frame and rest.startswith(frame):
                rest = rest[len(frame) :]
                shown[stream] += text
                frame, stream, text = next(frames, (b"", 0, b""))
            elif size := self._pong(rest):
                rest = rest[size:]
            else:
                same = next(
                    (at for at, (one, other) in enumerate(zip(rest, frame, strict=False)) if one != other), len(frame)
                )
                shown[stream] += self._part(rest[:same], frame, text)
                break
        return shown

    def _pong(self, rest: bytes) -> int:
        """Bytes of a whole frame that answers a ping; 0 where none begins."""
        if isinstance(self._speech, Spdy):
            return 12 if rest[:8] == ping(1)[:8] and len(rest) >= 12 else 0
        return 2 + rest[1] if rest[:1] == b"\x8a" and len(rest) >= 2 + rest[1] else 0

    def _part(self, part: bytes, frame: bytes, text: bytes) -> bytes:
        """What the front of a frame writes. Some bytes of it may be filling that happens to be the same."""
        if not text:
            return b""
        payload = part[len(frame) - (len(base64.b64encode(text)) if isinstance(self._speech, Base64) else len(text)) :]
        if len(part) < len(frame) - len(text):
            return b""
        if isinstance(self._speech, Base64):
            return base64.b64decode(payload[: len(payload) & ~3])
        return payload

    def _kept(self, cast: Cast) -> list[bytes]:
        """What is recorded of stdout and stderr."""
        if not self._apart:
            return [cast.output, b""]
        return [b"".join(map(decode_output, cast.texts(code))) for code in "oe"]

    def _check_acknowledged(self) -> None:
        if self._level is RecordingLevel.ACKNOWLEDGED:
            recorder = self._scene.recorder
            assert recorder is not None
            stored = bytes(recorder.body[: recorder.upload.acked])
            lines = stored[: stored.rindex(b"\n") + 1] if b"\n" in stored else b""
            shown = self._shown()
            assert not any(shown) or lines, "output is shown before the recorder has the header"
            if lines:
                for part, kept in zip(shown, self._kept(Cast(lines)), strict=True):
                    assert kept.startswith(part), "output is shown that is not confirmed"

    def _check_kept(self) -> None:
        scene = self._scene
        recorder, session = scene.recorder, scene.session
        assert recorder is not None and not recorder.was_reset, "a recording was given up"
        assert session.recorded and recorder.upload.acked == len(recorder.body)
        assert ("failed", self._level) not in scene.registry.failures
        for stream, (part, kept) in enumerate(zip(self._shown(), self._kept(scene.cast), strict=True)):
            if session.lost:
                assert not self._level.enforced and len(kept) + session.lost >= len(part)
            else:
                assert kept.startswith(part), "output was shown that is not kept"
                said = b"".join(text for _, its, text in self._frames if its == stream)
                assert said.startswith(kept), "what is kept was never said"
        if self._level is RecordingLevel.OPEN:
            assert not scene.over, "an open session was ended"


def seeds() -> list[bytes]:
    """Sessions with one hostile client each."""
    bad: list[tuple[int, list[bytes]]] = [
        (0, [b"\xff" * 8, typed(4, b"{ width: 100, height: 30}"), typed(255, b"\x09"), websocket(8, b"\3", mask=MASK)]),
        (0, [websocket(9, b"now", mask=MASK) * 3, websocket(2, b"\4{", fin=False, mask=MASK), websocket(2, b"\0x")]),
        (1, [typed64(4, b"[]"), websocket(1, b"4!!", mask=MASK), websocket(1, b"4eyJ", mask=MASK)]),
        (
            2,
            [control(3, b"x"), data(9, b"{"), goaway(0), ping(1) + ping(3), Spdy().opening, control(6, b"\0\0\0\1", 1)],
        ),
    ]
    found = []
    for speech, frames in bad:
        for index, frame in enumerate(frames):
            for level in LEVELS:
                flags = OPENS | (TTY, SMALL, DIES, TTY | SMALL)[index % 4]
                size = SPEECHES[speech]().resize(90, 30)
                pieces = [(0, size), (_SERVER, b"$ caf\xc3"), (_OTHER, b""), (_SERVER | _HALVES, b"\xa9" + b"x" * 300)]
                pieces += [(_HALVES, frame), (_SERVER | _OTHER, b"more \xff"), (_OTHER, b""), (_SERVER, b"")]
                found.append(packed(speech, level, flags, pieces))
    return found
