"""The Outbox: order, size, time; with a capture that tells what it was told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable

import pytest

from k8sproxy.common.formats.asciicast import CastHeader
from k8sproxy.recording import outbox as module
from k8sproxy.recording.capture import Capture
from k8sproxy.recording.outbox import Outbox

HEADER = CastHeader(timestamp=1, src_node="a", src_node_id="n")
Make = Callable[..., Outbox]


def lines(written: list[bytes]) -> list[list[object]]:
    """The events behind the header."""
    return [json.loads(line) for line in b"".join(written).splitlines()[1:]]


def play(scene: Callable[[Make, list[bytes]], Awaitable[None]]) -> list[bytes]:
    written: list[bytes] = []

    async def run() -> None:
        loop = asyncio.get_running_loop()

        def make(*, tty: bool = False) -> Outbox:
            capture = Capture(HEADER, 0.0, tty=tty, event_codes=frozenset("oerm"))
            return Outbox(loop, capture, written.append)

        await scene(make, written)

    asyncio.run(run())
    return written


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAIT", 3600.0)
    monkeypatch.setattr(module, "BATCH", 64 * 1024)


def view(text: str) -> list[memoryview]:
    return [memoryview(text.encode())]


def test_pieces_of_one_stream_are_one_event_with_the_firsts_time() -> None:
    async def scene(make: Make, written: list[bytes]) -> None:
        box = make()
        box.deadline(0.0)
        box.output(False, view("a"), 1.0)
        box.output(False, [*view("b"), *view("c")], 2.0)
        box.output(True, view("err"), 3.0)
        box.output(False, view("d"), 4.0)
        assert not written
        box.ended(5.0)

    assert lines(play(scene)) == [[1.0, "o", "abc"], [3.0, "e", "err"], [4.0, "o", "d"]]


def test_a_view_is_not_kept() -> None:
    async def scene(make: Make, written: list[bytes]) -> None:
        box, buffer = make(), bytearray(b"good")
        box.output(False, [memoryview(buffer)], 1.0)
        buffer[:] = b"gone"
        box.ended(1.0)

    assert lines(play(scene)) == [[1.0, "o", "good"]]


def test_a_full_batch_goes_at_once() -> None:
    async def scene(make: Make, written: list[bytes]) -> None:
        box = make()
        box.output(False, view("x" * (module.BATCH - 1)), 1.0)
        assert not written
        box.output(False, view("y"), 1.0)
        assert len(written) == 1 and box._timer is None

    assert len(str(lines(play(scene))[0][2])) == 64 * 1024


@pytest.mark.parametrize("what", ["resize", "gap"])
def test_what_comes_behind_output_stays_behind_it(what: str) -> None:
    """Also where the header has not gone out: a capture that was asked too early would put it in the middle."""

    async def scene(make: Make, written: list[bytes]) -> None:
        box = make(tty=True)
        box.output(False, view("before"), 0.1)
        if what == "resize":
            box.resize(132, 43, 0.2)
            box.resize(90, 30, 0.3)
        else:
            box.gap(7, "the recorder was too slow", 0.2)
        box.output(False, view("after"), 0.4)
        box.ended(0.5)

    written = play(scene)
    codes = [line[1] for line in lines(written)]
    assert codes == (["o", "r", "o"] if what == "resize" else ["o", "m", "o"])
    width = json.loads(b"".join(written).splitlines()[0])["width"]
    assert width == (132 if what == "resize" else 80)


def test_time_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAIT", 0.001)

    async def scene(make: Make, written: list[bytes]) -> None:
        box = make()
        box.output(False, view("x"), 1.0)
        while not written:  # noqa: ASYNC110  # the box tells nobody else
            await asyncio.sleep(0)
        box.close()

    assert lines(play(scene)) == [[1.0, "o", "x"]]


def test_closed_it_writes_nothing() -> None:
    async def scene(make: Make, written: list[bytes]) -> None:
        box = make()
        box.output(False, view("x"), 1.0)
        box.resize(1, 1, 1.0)
        box.close()
        box.flush()
        assert box._timer is None

    assert play(scene) == []
