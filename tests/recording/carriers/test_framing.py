"""DATA frames of several sessions: their turns and their windows. A whole session is test_upload's."""

from __future__ import annotations

from typing import cast

from h2.connection import H2Connection
from h2.stream import H2Stream

from k8sproxy.recording.carriers.carrier import Wire
from k8sproxy.recording.carriers.framing import MAX_WINDOW, Framing
from k8sproxy.recording.carriers.stream import Carries, Stream
from k8sproxy.recording.health import Health
from k8sproxy.recording.limits import Limits
from k8sproxy.recording.upload import Upload
from tests.common.tailnet.leakless import run


class Sent:
    """What Framing needs of a Wire."""

    stalled = closed = False

    def __init__(self) -> None:
        self.data = b""

    def send(self, pieces: list[bytes | memoryview], size: int) -> None:
        joined = b"".join(pieces)
        assert len(joined) == size
        self.data += joined


class Stage:
    """Sessions on one connection, whose windows are as large as `window`."""

    def __init__(self, count: int, window: int) -> None:
        self.h2 = H2Connection()
        self.h2.outbound_flow_control_window = window
        self.streams: dict[int, Stream] = {}
        self.ended: list[int] = []
        self.sent = Sent()
        self.framing = Framing(self.h2, self.streams, self._end)
        for number in range(1, 2 * count, 2):
            stream = Stream(cast(Carries, self), number, H2Stream(number, self.h2.config, window, window), None, "")
            health = Health(lambda: 0.0, lambda: None)
            health.accepted()
            stream.upload = Upload("", 2, stream, health, Limits())
            self.streams[number] = stream

    def _end(self, number: int) -> bool:
        self.ended.append(number)
        return True

    def wake(self, stream: Stream) -> None:
        self.framing.put(stream)

    def reset(self, stream: Stream) -> None:
        self.streams.pop(stream.number, None)

    def write(self, number: int, data: bytes) -> Upload:
        upload = self.streams[number].upload
        assert upload is not None
        upload.write(data)
        return upload

    def flush(self) -> bytes:
        self.framing.flush(cast(Wire, self.sent))
        data, self.sent.data = self.sent.data, b""
        return data

    def done(self) -> None:
        for stream in tuple(self.streams.values()):
            if stream.upload is not None:
                stream.upload.abort()


def frame(number: int, data: bytes) -> bytes:
    return len(data).to_bytes(3, "big") + b"\0\0" + number.to_bytes(4, "big") + data


def test_frames_are_whole_and_no_longer_than_the_other_side_takes() -> None:
    async def scene() -> None:
        stage = Stage(1, 1 << 20)
        stage.write(1, b"a" * 20_000)
        assert stage.flush() == frame(1, b"a" * 16_384) + frame(1, b"a" * 3_616)
        assert stage.h2.outbound_flow_control_window == (1 << 20) - 20_000 and not stage.framing.waits
        stage.done()

    run(scene())


def test_a_window_that_is_used_up_is_waited_for() -> None:
    async def scene() -> None:
        stage = Stage(1, 10)
        stage.write(1, b"0123456789abc")
        assert stage.flush() == frame(1, b"0123456789") and not stage.framing.waits
        assert stage.framing.enlarge(0, (2).to_bytes(4, "big")) and not stage.flush()
        assert stage.framing.enlarge(1, (5).to_bytes(4, "big")) and stage.flush() == frame(1, b"ab")
        assert stage.framing.enlarge(0, (1).to_bytes(4, "big")) and stage.flush() == frame(1, b"c")
        assert stage.framing.enlarge(0, (1).to_bytes(4, "big"))
        for number, increment in ((0, 0), (0, MAX_WINDOW), (1, MAX_WINDOW), (3, 5)):
            assert not stage.framing.enlarge(number, increment.to_bytes(4, "big"))
        assert not stage.framing.enlarge(0, b"\0\0\1")
        stage.done()

    run(scene())


def test_one_that_is_not_read_leaves_the_last_quarter_to_the_others() -> None:
    async def scene() -> None:
        stage = Stage(2, 64_000)
        stage.write(1, b"x" * 64_000)
        stage.flush()
        assert stage.h2.outbound_flow_control_window == 16_000
        stage.write(3, b"y" * 500)
        assert stage.flush().endswith(b"y" * 500)
        stage.done()

    run(scene())
