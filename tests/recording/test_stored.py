"""What a recorder has stored, and its silence. What becomes of an upload by that is test_upload's."""

from __future__ import annotations

import asyncio

from k8sproxy.recording.limits import Limits
from k8sproxy.recording.stored import Stored
from tests.common.tailnet.leakless import run


def test_one_byte_at_a_time_tells_how_long_an_ack_takes() -> None:
    async def scene() -> None:
        stored = Stored(Limits(), lambda why: None)
        stored.wrote(10)
        stored.wrote(20)
        assert stored.watching and stored.moved(9) is None
        seconds = stored.moved(15)
        assert seconds is not None and seconds >= 0 and stored.moved(16) is None
        assert stored.watching and stored.moved(20) is None and not stored.watching
        stored.wrote(30)
        assert stored.watching
        stored.release()
        assert not stored.watching

    run(scene())


def test_silence_is_told_once() -> None:
    async def scene() -> None:
        told: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        stored = Stored(Limits(ack_timeout=0.01), told.set_result)
        stored.wrote(30)
        stored.moved(10)
        assert await told == "the recorder has confirmed nothing for 0.01 s, and 20 bytes wait for it"
        assert not stored.watching

    run(scene())
