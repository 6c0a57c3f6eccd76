"""Sessions at their tap: every byte in its place, the end held back, what is said where a recording fails.

Each scene runs in each of the transports; see scenes.py. A client reads what it got by tests.protocol.streams, which
shares no code with the readers under test, and which takes whole frames alone.
"""

from __future__ import annotations

import asyncio
import gc
import json
import weakref
from collections.abc import Callable
from typing import NoReturn

import pytest
import structlog.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from k8sproxy.access.ownrules import RecordingLevel
from k8sproxy.common.errors import Refusal
from k8sproxy.dataplane.ends import ClientGone, Cut
from k8sproxy.recording.capture import Capture
from k8sproxy.recording.limits import Limits
from k8sproxy.recording.outbox import WAIT
from k8sproxy.sessions.session import Life, Session
from k8sproxy.sessions.streams import Streams
from k8sproxy.sessions.words import unavailable
from tests.lives import assert_documented
from tests.protocol.streams import said, typed, websocket
from tests.recording.scenes import (
    CLOSED,
    OPEN,
    SPEECHES,
    Base64,
    Cast,
    Scene,
    Spdy,
    Speech,
    WebSocket,
    scene,
    turns,
    until,
)
from tests.strategies import splits

Make = Callable[[], Speech]
transports = pytest.mark.parametrize("speech", SPEECHES, ids=["websocket", "base64", "spdy"])
modes = pytest.mark.parametrize("mode", [None, OPEN, CLOSED], ids=["unrecorded", "open", "closed"])
WHY = "the recorder says: the disk is full"
NARROW = 20_000  # bytes that may wait for the recorder where a fixture says so


def broken(scene: Scene) -> None:
    """The recorder fails."""
    assert scene.recorder is not None
    scene.recorder.upload.receive_data(b'{"error":"the disk is full"}\n')


def test_the_states() -> None:
    assert_documented(Life)


# -- the bytes


@transports
@modes
@given(draw=st.data())
@settings(max_examples=12, deadline=None)
def test_bytes_pass_as_they_came(speech: Make, mode: RecordingLevel | None, draw: st.DataObject) -> None:
    spoken = speech()
    wide = "é日本😀".encode()
    down = spoken.accepted + b"".join(
        spoken.out(text, stderr=index % 3 == 2) for index, text in enumerate((b"$ ", wide * 3, b"err\xff", b"x" * 300))
    )
    down += spoken.status() + spoken.end()
    up = spoken.opening + spoken.resize(100, 30) + spoken.typed(b"secret") + spoken.ping() + spoken.typed(b"\x04")
    pieces_down, pieces_up = draw.draw(splits(down)), draw.draw(splits(up))

    @scene
    async def play() -> None:
        played = Scene(spoken, mode)
        await played.session.open()
        played.switch()
        opening = len(spoken.opening)
        seen = 0
        # Upstream answers what it was asked: the client's streams come first.
        for piece in pieces_up:
            if seen < opening:
                played.up(piece)
                seen += len(piece)
        for piece in pieces_down:
            await until(lambda: not played.session.blocked)
            played.down(piece)
        await until(lambda: not played.session.blocked)
        rest = up[seen:]
        for at in range(0, len(rest), 7):
            played.up(rest[at : at + 7])
        await played.finish()
        assert played.shown == down
        assert bytes(played.upstream.written) == up
        assert (played.session.received, played.session.sent) == (len(up), len(down))
        assert played.outcome is None
        if mode is not None:
            assert played.cast.output == b"$ " + wide * 3 + b"err\xff" + b"x" * 300
            assert b"secret" not in played.recorder.body  # type: ignore[union-attr]  # there is one
            assert played.session.recorded and not played.session.lost

    play()


@modes
@scene
async def test_header_of_the_cast(mode: RecordingLevel | None) -> None:
    played = Scene(WebSocket(), mode)
    await played.begin()
    await played.finish()
    if mode is None:
        assert played.recorder is not None and not played.recorder.body
        return
    header = played.cast.header
    assert header["srcNode"] == "laptop.tail.ts.net" and header["srcNodeUser"] == "ana@example.com"
    assert json.loads('{"PodName":"web","Namespace":"a","Container":"main","SessionType":"exec"}').items() <= (
        header["kubernetes"].items()  # type: ignore[attr-defined]  # it is an object
    )
    assert played.session.facts.id in json.dumps(header)


# -- the end waits for the last ack


@transports
@scene
async def test_closed_holds_the_status_back_wherever_it_is_cut(speech: Make) -> None:
    text = speech().status()
    for cut in range(len(text) + 1):
        played = Scene(speech(), CLOSED, acks=False)
        await played.begin()
        before = played.speech.out(b"all of it")
        end = played.speech.end()
        played.down(before)
        held_from = len(played.shown)
        played.down(text[:cut], text[cut:])
        assert played.session.blocked and played.upstream.paused
        shown = played.shown[held_from:]
        # At most the frame's header, and the channel's byte, have gone: nothing that tells how it ended.
        assert text.startswith(shown) and len(shown) <= 8 and len(shown) <= cut
        await turns()
        assert played.shown[held_from:] == shown
        assert played.recorder is not None
        played.recorder.open()
        await turns()
        assert not played.session.blocked and not played.upstream.paused
        assert played.shown[held_from:] == text
        played.down(end)
        await played.finish()
        assert played.shown[held_from:] == text + end and played.outcome is None
        assert played.cast.output == b"all of it"


@transports
@pytest.mark.parametrize("mode", [None, OPEN])
@scene
async def test_open_holds_nothing_back(speech: Make, mode: RecordingLevel | None) -> None:
    played = Scene(speech(), mode, flowing=False)
    await played.begin()
    at = len(played.shown)
    frames = played.speech.out(b"x") + played.speech.status() + played.speech.end()
    played.down(frames)
    played.upstream.ends()
    assert played.shown[at:] == frames and played.client.end_written
    assert played.recorder is not None
    played.recorder.open()
    await played.finish()


@transports
@scene
async def test_the_last_ack_never_comes(speech: Make) -> None:
    played = Scene(speech(), CLOSED, acks=False, limits=Limits(finish_timeout=0.01))
    await played.begin()
    played.down(played.speech.out(b"hello") + played.speech.status())
    await until(lambda: played.over)
    understood = played.speech.understood(played.shown)
    assert understood.closed and understood.stdout == b"hello"
    assert "must be recorded" in understood.message and "did not confirm the end" in understood.message
    assert b"Success" not in understood.error
    assert isinstance(played.outcome, Cut) and played.outcome.said and not played.outcome.reset
    assert played.registry.failures == [("failed", CLOSED)]
    await played.close()
    assert not played.session.recorded and played.session.cause == "recorder_failed"


@scene
async def test_an_end_without_a_status_waits_too() -> None:
    played = Scene(WebSocket(), CLOSED, acks=False)
    await played.begin()
    played.down(played.speech.out(b"hello"))
    played.upstream.ends()
    await turns()
    assert not played.client.end_written and played.session.blocked
    assert played.recorder is not None
    played.recorder.open()
    await turns()
    assert played.client.end_written
    played.client.ends()
    await played.close()
    assert played.outcome is None


# -- a recorder that fails


@transports
@scene
async def test_failure_at_every_byte_of_a_frame(speech: Make) -> None:
    text = b"four score and seven"
    for large in (b"", b"z" * 200, b"y" * 70_000):
        frame = speech().out(text + large)
        places = range(len(frame) + 1) if not large else (*range(1, 16), len(frame) // 2, len(frame) - 1)
        for cut in places:
            played = Scene(speech(), CLOSED)
            await played.begin()
            played.down(played.speech.out(b"before"), frame[:cut])
            broken(played)
            await turns()
            assert played.over and isinstance(played.outcome, Cut) and played.outcome.said, cut
            understood = played.speech.understood(played.shown)
            assert understood.closed and WHY in understood.message
            assert understood.stdout.startswith(b"before")
            rest = understood.stdout.removeprefix(b"before")
            whole = text + large
            seen = len(rest.rstrip(b"\0"))
            # Of base64 the last letters may have been cut off, and make another byte with what fills them up.
            sure = seen - (1 if isinstance(played.speech, Base64) else 0)
            assert whole.startswith(rest[: max(sure, 0)])
            assert seen <= cut
            assert played.recorder is not None and played.recorder.was_reset
            await played.close()


@scene
async def test_failure_before_the_error_stream_is_there() -> None:
    """Only a reset can tell of it."""
    for prefix in (0, 30):
        played = Scene(Spdy(), CLOSED)
        await played.session.open()
        played.switch()
        played.up(played.speech.opening[:prefix])
        broken(played)
        await turns()
        assert isinstance(played.outcome, Cut) and played.outcome.reset and not played.outcome.said
        assert played.shown == b""
        await played.close()


@transports
@scene
async def test_open_goes_on_without_its_recorder(speech: Make) -> None:
    played = Scene(speech(), OPEN)
    await played.begin()
    played.down(played.speech.out(b"one"))
    broken(played)
    await turns()
    frames = played.speech.out(b"two") + played.speech.status() + played.speech.end()
    played.down(*(frames[at : at + 1] for at in range(len(frames))))
    await played.finish()
    understood = played.speech.understood(played.shown)
    assert (understood.stdout, understood.closed) == (b"onetwo", True) and b"Success" in understood.error
    assert played.outcome is None and played.registry.failures == [("failed", OPEN)]
    assert not played.session.recorded and played.session.recorder


@pytest.mark.parametrize("told", [True, False], ids=["told", "about to be told"])
@pytest.mark.parametrize("mode", [OPEN, CLOSED])
@scene
async def test_failure_between_the_accept_and_the_switch(mode: RecordingLevel, told: bool) -> None:
    """Upstream is being asked meanwhile; its switch must not begin a session that nobody records."""
    played = Scene(WebSocket(), mode)
    await played.session.open()
    broken(played)
    if told:
        await turns()
    if mode is CLOSED:
        with pytest.raises(Refusal) as raised:
            played.switch()
        assert raised.value.status == 403 and raised.value.close and WHY in raised.value.message
        assert not played.session.began
    else:
        played.switch()
        played.down(played.speech.out(b"x"))
        assert played.shown == played.speech.out(b"x")
    await turns()
    assert played.registry.failures == [("failed", mode)]
    await played.close()


@scene
async def test_no_recorder() -> None:
    closed = Scene(WebSocket(), CLOSED, recorder=False)
    with pytest.raises(Refusal) as raised:
        await closed.session.open()
    assert raised.value.status == 403 and raised.value.cause == "recorder_unavailable"
    assert "100.64.0.9:80: connection refused; 100.64.0.8:80: it said 500" in raised.value.message
    await closed.close()
    opened = Scene(WebSocket(), OPEN, recorder=False)
    await opened.begin()
    opened.down(opened.speech.out(b"hello") + opened.speech.status())
    await opened.finish()
    assert opened.speech.understood(opened.shown).stdout == b"hello"
    assert (closed.registry.failures, opened.registry.failures) == (
        [("not_accepted", CLOSED)],
        [("not_accepted", OPEN)],
    )
    assert not opened.session.recorded


# -- a slow recorder


@transports
@scene
async def test_closed_waits_at_a_border_for_a_slow_recorder(speech: Make) -> None:
    played = Scene(speech(), CLOSED, flowing=False, limits=Limits(buffer=4000))
    await played.begin()
    texts = [b"%04d" % number + b"x" * 1000 for number in range(20)]
    frames = b"".join(played.speech.out(text) for text in texts)
    at = 0
    while not played.upstream.paused:
        played.down(frames[at : at + 777])
        at += 777
    shown = played.speech.understood(played.shown)  # it is whole frames, or this fails
    assert b"".join(texts).startswith(shown.stdout) and not shown.closed
    assert 2000 < len(shown.stdout) < 8000
    before = len(played.shown)
    played.up(played.speech.ping())
    assert played.shown[before:] == played.speech.pong
    assert bytes(played.upstream.written).endswith(played.speech.ping())
    played.down(frames[at : at + 500])  # read before the pause took hold
    assert len(played.shown) == before + len(played.speech.pong) and len(played.switched._held) <= 777 + 500
    at += 500
    assert played.recorder is not None
    played.recorder.open()
    await turns()
    assert not played.upstream.paused and not played.switched._held
    played.up(played.speech.ping())
    assert played.shown.count(played.speech.pong) == 1  # now it is upstream's to answer
    played.down(frames[at:])
    await turns()
    played.down(played.speech.status())
    await turns()
    played.down(played.speech.end())
    await played.finish()
    assert played.shown.replace(played.speech.pong, b"").endswith(frames + played.speech.status() + played.speech.end())
    assert played.cast.output == b"".join(texts) == played.speech.understood(played.shown).stdout


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("k8sproxy.sessions.fence.WINDOW", NARROW)


@pytest.mark.parametrize("mode", [CLOSED, RecordingLevel.ACKNOWLEDGED])
@pytest.mark.parametrize("bad", [False, True], ids=["its recorder fails", "upstream talks rubbish"])
@pytest.mark.usefixtures("narrow")
@scene
async def test_a_large_message_of_spdy_that_is_cut_looks_failed(bad: bool, mode: RecordingLevel) -> None:
    """kubectl takes a SPDY session that is merely reset for one that went well."""
    for extra in (b"", Spdy().out(b"and more")):  # which is whole behind it, and waits too
        for cut in (8, 9, 9_000, NARROW + 100, 3 * NARROW + 7, 3 * NARROW + 8):
            await _cut_in_a_large_message(mode, cut, bad, extra)


async def _cut_in_a_large_message(mode: RecordingLevel, cut: int, bad: bool, extra: bytes) -> None:
    played = Scene(Spdy(), mode)
    await played.begin()
    recorder = played.recorder
    assert recorder is not None
    frame = played.speech.out(b"y" * (3 * NARROW))
    for at in range(0, cut, 3_000):
        await until(lambda: not (played.upstream.paused or played.switched._down.waiting))
        played.down(frame[at : min(cut, at + 3_000)])
    await until(lambda: not played.switched._down.waiting)
    recorder.acks = False
    played.down(frame[cut:][:9] + (extra if cut + 9 >= len(frame) else b""))
    if bad and cut + 9 < len(frame):
        played.down(frame[cut + 9 :] + b"\x80\x09" + b"\xff" * 20)
    await turns(2)
    if not played.over:
        recorder.upload.fail(WHY)
    await until(lambda: played.over)
    assert isinstance(played.outcome, Cut) and played.outcome.said, cut
    understood = played.speech.understood(played.shown)
    text = understood.stdout.removesuffix(b"and more").rstrip(b"\0")
    assert understood.closed and understood.message and text == b"y" * len(text)
    recorder.open()
    await played.close()


@transports
@scene
async def test_failure_while_output_waits(speech: Make) -> None:
    """The client stands at a border, and the reader is ahead of it."""
    for size in range(1, 40):
        played = Scene(speech(), CLOSED, flowing=False, limits=Limits(buffer=400))
        await played.begin()
        frames = b"".join(played.speech.out(b"%03d" % number * 9) for number in range(100))
        at = 0
        while not played.upstream.paused:
            played.down(frames[at : at + size])
            at += size
        broken(played)
        await turns()
        understood = played.speech.understood(played.shown)
        assert understood.closed and WHY in understood.message and b"\0" not in understood.stdout
        await played.close()


@transports
@scene
async def test_open_leaves_out_what_a_slow_recorder_does_not_take(speech: Make) -> None:
    played = Scene(speech(), OPEN, flowing=False, limits=Limits(buffer=2000))
    await played.begin()
    texts = [b"%04d" % number + b"x" * 500 for number in range(20)]
    for text in texts:
        played.down(played.speech.out(text))
        assert not played.upstream.paused
    assert played.recorder is not None
    kept = played.recorder.upload.buffered
    assert kept < 4000
    assert played.registry.failures == [("slow", OPEN)]
    played.recorder.open()
    await turns()
    played.down(played.speech.out(b"the end"))
    assert played.session.lost > 0
    played.down(played.speech.status() + played.speech.end())
    await played.finish()
    assert played.speech.understood(played.shown).stdout == b"".join(texts) + b"the end"
    notice = f"{played.session.lost} bytes of output are missing here"
    cast = played.cast
    whole = b"".join(texts)
    before, _, behind = cast.output.partition(b"k8sproxy: ")
    assert notice in cast.output.decode() and behind.endswith(b"the end")
    shown = before[: before.rindex(b"\r\n")]
    assert whole.startswith(shown) and len(shown) + played.session.lost == len(whole)
    assert played.session.recorded


@scene
async def test_a_gap_at_the_very_end_is_noted() -> None:
    played = Scene(WebSocket(), OPEN, flowing=False, limits=Limits(buffer=1000))
    await played.begin()
    for _ in range(5):
        played.down(played.speech.out(b"x" * 900))
    ending = asyncio.ensure_future(played.finish())
    await turns()
    assert played.recorder is not None
    played.recorder.open()
    await ending
    assert played.session.lost and f"{played.session.lost} bytes" in played.cast.output.decode()


@pytest.mark.parametrize("mode", [OPEN, CLOSED])
@scene
async def test_sizes_do_not_pile_up_behind_a_slow_recorder(mode: RecordingLevel) -> None:
    """A client can send them without end, and nothing makes it wait."""
    played = Scene(WebSocket(), mode, tty=True, flowing=False, limits=Limits(buffer=1000))
    await played.begin()
    played.up(played.speech.resize(80, 24))
    played.down(played.speech.out(b"x" * 2000))
    assert played.recorder is not None
    buffered = played.recorder.upload.buffered
    for number in range(1, 500):
        played.up(played.speech.resize(100 + number % 7, 24))
    played.up(played.speech.resize(132, 43))
    await until(lambda: not played.switched._up.waiting)  # so many take more than one turn of the loop
    assert played.recorder.upload.buffered == buffered
    played.recorder.open()
    await turns()
    await played.finish()
    assert played.cast.texts("r") == ["132x43"]


@transports
@scene
async def test_pongs_do_not_pile_up_for_a_client_that_does_not_read(speech: Make) -> None:
    played = Scene(speech(), CLOSED, flowing=False, limits=Limits(buffer=100))
    await played.begin()
    played.down(played.speech.out(b"x" * 200))
    assert played.session.blocked
    before = len(played.shown)
    played.client.blocked = True
    played.up(*[played.speech.ping()] * 100)
    assert len(played.shown) == before
    played.client.blocked = False
    broken(played)
    await turns()
    await played.close()


@transports
@scene
async def test_no_pong_within_a_frame(speech: Make) -> None:
    """A part of the status frame has gone already; what is put in there would be read as its payload."""
    text = speech().status()
    for cut in range(1, 9):
        played = Scene(speech(), CLOSED, acks=False)
        await played.begin()
        at = len(played.shown)
        played.down(text[:cut], text[cut:])
        gone = len(played.shown) - at
        played.up(played.speech.ping())
        assert len(played.shown) - at == gone + (0 if gone else len(played.speech.pong))
        assert played.recorder is not None
        played.recorder.open()
        await turns()
        assert played.shown[at:].removeprefix(played.speech.pong) == text
        await played.close()


# -- what can't be read, and what comes too late


@transports
@scene
async def test_output_behind_the_end_is_not_shown(speech: Make) -> None:
    late = speech().out(b"and another thing")
    for cut in range(len(late) + 1):
        played = Scene(speech(), CLOSED)
        await played.begin()
        played.down(played.speech.status())
        await turns()
        assert not played.session.blocked
        played.down(late[:cut], late[cut:])
        assert isinstance(played.outcome, Cut) and played.session.cause == "session_unreadable"
        assert b"another" not in played.shown and b"thing" not in played.shown
        if played.outcome.said:
            understood = played.speech.understood(played.shown)
            assert understood.closed and not understood.stdout.strip(b"\0") and b"after the end" in understood.error
        else:
            assert 0 < cut < 8 and cut != len(late)  # the client has a part of its header
        await played.close()


@pytest.mark.parametrize("step", ["output", "deadline", "ended", "resize", "begin"])
@pytest.mark.parametrize("mode", [CLOSED, OPEN])
def test_a_fault_of_ours_in_writing_loses_nothing(
    mode: RecordingLevel, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closed, the session ends and its user knows why; open, it goes on; in both the recording is whole."""
    monkeypatch.setattr(Capture, step, _fault)

    @scene
    async def played_out() -> None:
        for speech in SPEECHES:
            played = Scene(speech(), mode, tty=step in ("resize", "begin"))
            await played.begin()
            if step == "resize":
                played.up(played.speech.resize(90, 30))
            played.down(played.speech.out(b"caf\xc3") + played.speech.out(b"\xa9"))
            await asyncio.sleep(2 * WAIT)  # lines are made in a timer of their own
            if step == "deadline" and mode is CLOSED:  # over before there was output
                assert isinstance(played.outcome, Cut)
                await played.close()
                continue
            if step == "ended" or (step == "begin" and mode is OPEN):
                played.down(played.speech.status())
                await played.close()
            else:
                _was_told_of_ours(played, mode)
                await played.close()
                assert played.registry.failures == [("unreadable", mode)]
            assert b"caf\xc3\xa9" in played.cast.output and played.session.recorded

    played_out()


@pytest.mark.parametrize("mode", [CLOSED, OPEN])
def test_a_fault_of_ours_that_leaves_a_hole_is_a_recorder_that_failed(
    mode: RecordingLevel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Capture, "output", _fault)
    monkeypatch.setattr("k8sproxy.recording.capture.escape_all", _fault)

    @scene
    async def played_out() -> None:
        played = Scene(WebSocket(), mode)
        await played.begin()
        played.down(played.speech.out(b"hello"))
        await asyncio.sleep(2 * WAIT)
        await played.close()
        assert not played.session.recorded and ("failed", mode) in played.registry.failures

    played_out()


@pytest.mark.parametrize("who", ["client", "upstream"])
@modes
def test_a_fault_of_ours_in_reading(mode: RecordingLevel | None, who: str, monkeypatch: pytest.MonkeyPatch) -> None:
    @scene
    async def played_out() -> None:
        for speech in SPEECHES:
            played = Scene(speech(), mode)
            await played.begin()
            played.down(played.speech.out(b"before"))
            with monkeypatch.context() as patch:
                patch.setattr(Streams, f"from_{who}", _fault)
                (played.up if who == "client" else played.down)(played.speech.ping())
            _was_told_of_ours(played, mode)
            assert played.registry.failures == ([("unreadable", mode)] if mode else [])
            await played.close()
            if mode is not None:
                assert played.cast.output.startswith(b"before") and b"an internal error" in played.cast.output
                assert played.cast.output.endswith(b"more") is (mode is OPEN and who == "client")
                assert played.session.recorded is (mode is CLOSED or who == "client")

    played_out()


def _fault(*_: object) -> NoReturn:
    raise RuntimeError("nobody thought of this")


def _was_told_of_ours(played: Scene, mode: RecordingLevel | None) -> None:
    """Closed, it is over and its user knows why; open, it goes on as it was."""
    if mode is CLOSED:
        assert isinstance(played.outcome, Cut) and played.outcome.said
        assert "an internal error" in played.speech.understood(played.shown).message
    else:
        at = len(played.shown)
        played.down(played.speech.out(b"more"))
        assert not played.over and played.shown[at:] == played.speech.out(b"more")


@scene
async def test_a_port_forward_that_can_not_be_read_says_so() -> None:
    """Nothing of it is kept, so nothing of it ends; but that its ports are not told any more has to show."""
    with structlog.testing.capture_logs() as lines:
        played = Scene(Spdy(), None, kind="portforward")
        played.switch(b"X-Stream-Protocol-Version: portforward.k8s.io\r\n")
        played.up(b"\x80\x03\x00\x06\x01\x00\x00\x04\x00\x00\x00\x01", b"on")  # a PING with a flag
        assert not played.over and bytes(played.upstream.written).endswith(b"on")
        await played.close()
    assert [line["event"] for line in lines] == ["session_started", "ports_unreadable", "session_ended"]


@pytest.mark.parametrize(
    "fields",
    [
        b"Sec-WebSocket-Protocol: v9.channel.k8s.io\r\n",
        b"Sec-WebSocket-Protocol: v5.channel.k8s.io\r\nSec-WebSocket-Extensions: permessage-deflate\r\n",
        b"Sec-WebSocket-Protocol: v5.channel.k8s.io\r\nsec-websocket-protocol: v4.channel.k8s.io\r\n",
        b"Sec-WebSocket-Protocol: v5.channel.k8s.io, v4.channel.k8s.io\r\n",
    ],
)
@modes
@scene
async def test_what_upstream_chose_can_not_be_read(mode: RecordingLevel | None, fields: bytes) -> None:
    played = Scene(WebSocket(), mode)
    await played.session.open()
    if mode is CLOSED:
        with pytest.raises(Refusal) as raised:
            played.switch(fields)
        assert (raised.value.status, raised.value.cause, raised.value.close) == (403, "unrecordable_session", True)
        assert played.recorder is not None
        await played.close()
        assert played.recorder.was_reset
    else:
        played.switch(fields)
        played.down(b"\xff\xff")
        played.up(b"\xff")
        assert played.shown == b"\xff\xff" and bytes(played.upstream.written) == b"\xff"
        await played.close()
        assert played.registry.failures == ([] if mode is None else [("unreadable", OPEN)])
        if mode is OPEN:
            assert b"is not recorded" in played.cast.output and not played.session.recorded


@modes
@scene
async def test_a_head_of_the_switch_that_is_as_long_as_a_file(mode: RecordingLevel | None) -> None:
    """It goes to the client, and is in no recording."""
    played = Scene(WebSocket(), mode)
    await played.session.open()
    fields = b"Sec-WebSocket-Protocol: v5.channel.k8s.io\r\nX-Secret: " + b"s" * 17_000 + b"\r\n"
    if mode is CLOSED:
        with pytest.raises(Refusal, match="more than 16384 bytes"):
            played.switch(fields)
    else:
        played.switch(fields)
    await played.close()


@scene
async def test_two_lines_that_name_the_protocol_of_spdy() -> None:
    played = Scene(Spdy(), CLOSED)
    await played.session.open()
    with pytest.raises(Refusal):
        played.switch(b"X-Stream-Protocol-Version: v4.channel.k8s.io\r\n" * 2)
    await played.close()


@scene
async def test_an_offer_that_can_not_be_read() -> None:
    with pytest.raises(Refusal) as raised:
        Scene(WebSocket(), CLOSED, offered=("v9.channel.k8s.io",))
    assert raised.value.status == 403 and "v9.channel.k8s.io" in raised.value.message
    opened = Scene(WebSocket(), OPEN, offered=("v9.channel.k8s.io",))
    assert opened.session.streaming.protocols is None
    closed = Scene(WebSocket(), CLOSED, offered=("v9.channel.k8s.io", "v4.channel.k8s.io"))
    assert closed.session.streaming.protocols is not None
    assert "v9.channel.k8s.io" not in closed.session.streaming.protocols
    assert Scene(WebSocket(), None).session.streaming.protocols is None


# -- the header and the terminal's size


@pytest.mark.parametrize("early", [0.0, 0.5], ids=["in time", "a little early"])
@scene
async def test_the_header_waits_for_the_size_and_the_user_does_not(early: float) -> None:
    played = Scene(WebSocket(), OPEN, tty=True)
    await played.begin()
    played.down(played.speech.out(b"$ "))
    await turns()
    assert played.speech.understood(played.shown).stdout == b"$ "
    assert played.recorder is not None and not played.recorder.body
    recording = played.session._keeping.recording
    assert recording is not None
    timer, outbox = recording._timer, recording._outbox
    assert timer is not None and outbox is not None and outbox.due is not None
    assert timer.when() - asyncio.get_running_loop().time() <= 1.0
    timer.cancel()
    outbox._capture.due = asyncio.get_running_loop().time() + early
    recording._header_due()
    outbox.flush()
    await turns()
    assert (played.cast.header["width"], played.cast.header["height"]) == (80, 24) and played.cast.output == b"$ "
    played.up(played.speech.resize(120, 40))
    await played.finish()
    assert played.cast.texts("r") == ["120x40"]


@transports
@pytest.mark.parametrize("tty", [True, False], ids=["tty", "no tty"])
@scene
async def test_closed_shows_no_output_before_the_recorder_has_the_header(speech: Make, tty: bool) -> None:
    played = Scene(speech(), CLOSED, tty=tty, acks=False)
    assert played.recorder is not None
    await played.session.open()
    played.switch()
    if played.speech.opening:
        played.up(played.speech.opening)
        played.down(played.speech.accepted)
    before = len(played.shown)
    assert before == len(played.speech.accepted)
    played.down(played.speech.out(b"$ "))
    await turns()
    assert len(played.shown) == before and played.session.blocked and played.upstream.paused
    # It is on its way at once, with the size that terminals have.
    header = played.recorder.body[: played.recorder.body.index(b"\n") + 1]
    assert Cast(bytes(header)).header["width"] == 80
    played.up(played.speech.ping())
    assert played.shown[before:] == played.speech.pong
    played.recorder.upload.receive_data(b'{"ack":%d}\n' % (len(header) - 1))
    await turns()
    assert len(played.shown) == before + len(played.speech.pong)
    played.recorder.upload.receive_data(b'{"ack":%d}\n' % len(header))
    await turns()
    assert played.shown.endswith(played.speech.out(b"$ ")) and not played.session.blocked
    played.up(played.speech.resize(120, 40))
    played.recorder.open()
    await played.finish()
    assert played.cast.texts("r") == (["120x40"] if tty else []) and played.cast.output == b"$ "


@transports
@scene
async def test_a_recorder_that_fails_before_it_has_the_header(speech: Make) -> None:
    """Wherever the output was cut: servers write the header of a SPDY frame apart from what it heads."""
    frame = speech().out(b"secret")
    for cut in range(len(frame) + 1):
        played = Scene(speech(), CLOSED, tty=True, acks=False)
        await played.begin()
        played.down(frame[:cut], frame[cut:], played.speech.out(b"of state")[:5])
        broken(played)
        await turns()
        assert isinstance(played.outcome, Cut) and played.outcome.said, cut
        understood = played.speech.understood(played.shown)
        assert understood.closed and WHY in understood.message and not understood.stdout
        await played.close()


@transports
@scene
async def test_the_size_comes_first(speech: Make) -> None:
    played = Scene(speech(), CLOSED, tty=True)
    await played.begin()
    both = played.speech.resize(132, 43) + played.speech.resize(80, 25)
    played.up(*(both[at : at + 1] for at in range(len(both))))
    played.down(played.speech.out(b"x"))
    await turns()
    assert (played.cast.header["width"], played.cast.header["height"]) == (132, 43)
    assert played.cast.texts("r") == ["80x25"]
    await played.finish()


@scene
async def test_a_client_that_never_says_its_size() -> None:
    played = Scene(WebSocket(), OPEN, tty=True)
    await played.begin()
    played.down(played.speech.out(b"bye") + played.speech.status() + played.speech.end())
    await played.finish()
    assert played.cast.header["width"] == 80 and played.cast.output == b"bye"
    assert played.session._keeping.recording is not None and played.session._keeping.recording._timer is None


# -- ended from outside


@transports
@modes
@scene
async def test_ended_by_an_administrator(speech: Make, mode: RecordingLevel | None) -> None:
    played = Scene(speech(), mode)
    await played.begin()
    played.down(played.speech.out(b"working")[:-3])
    played.session.end("session_ended", "the session was ended by an administrator: lunch")
    assert isinstance(played.outcome, Cut) and played.outcome.cause == "session_ended" and played.outcome.said
    understood = played.speech.understood(played.shown)
    assert understood.closed and understood.message.endswith("ended by an administrator: lunch")
    played.session.end("other", "once is enough")
    await played.close()
    assert played.session.cause == "session_ended"
    if mode is not None:
        assert played.session.recorded
        assert b"working".startswith(played.cast.output) and played.cast.output


@scene
async def test_ended_while_the_end_waits() -> None:
    played = Scene(WebSocket(), CLOSED, acks=False)
    await played.begin()
    played.down(played.speech.out(b"x") + played.speech.status())
    played.session.end("session_ended", "enough")
    understood = played.speech.understood(played.shown)
    assert understood.closed and understood.message.endswith("enough")
    assert played.recorder is not None
    played.recorder.open()
    await played.close()
    assert played.session.recorded


# -- who goes away, and who is cancelled


@pytest.mark.parametrize("mode", [OPEN, CLOSED])
@scene
async def test_a_switch_that_never_came(mode: RecordingLevel) -> None:
    played = Scene(WebSocket(), mode)
    await played.session.open()
    await played.close()
    assert played.recorder is not None and played.recorder.was_reset and not played.recorder.body
    assert played.recorder.health.uploads == 0 and played.registry.failures == []


@transports
@pytest.mark.parametrize("mode", [OPEN, CLOSED])
@scene
async def test_a_client_that_goes_leaves_a_whole_recording(speech: Make, mode: RecordingLevel) -> None:
    played = Scene(speech(), mode)
    await played.begin()
    played.down(played.speech.out(b"half a sen"))
    played.client.ends(ConnectionResetError())
    assert isinstance(played.outcome, ClientGone)
    await played.close()
    assert played.cast.output == b"half a sen" and played.recorder is not None and not played.recorder.was_reset
    assert played.recorder.upload.acked == len(played.recorder.body) and played.session.recorded


@pytest.mark.parametrize("stage", range(12))
@pytest.mark.parametrize("mode", [OPEN, CLOSED])
@scene
async def test_cancelled_at_every_turn(mode: RecordingLevel, stage: int) -> None:
    """Whoever serves the session is cancelled; its recording is brought to its end all the same."""
    played = Scene(WebSocket(), mode, flowing=False)

    async def serve() -> None:
        try:
            await played.begin()
            played.down(played.speech.out(b"said"))
            await asyncio.sleep(0)
            played.down(played.speech.status() + played.speech.end())
            await asyncio.sleep(0)
        finally:
            await played.session.close()

    serving = asyncio.ensure_future(serve())
    await turns(stage)
    serving.cancel()
    await turns()
    assert played.recorder is not None
    played.recorder.open()
    await asyncio.wait((serving,))
    await turns()
    assert not played.registry.tasks
    assert played.registry.log in ([], ["over"], ["begun", "over"])
    played.switched.let_go()
    upload = played.recorder.upload
    if played.registry.log == ["begun", "over"]:
        assert not played.recorder.was_reset and upload.acked == upload.written > 0
        assert b"said".startswith(played.cast.output)


@modes
@pytest.mark.parametrize("how", ["end", "refused", "failed", "unswitched", "ended"])
@scene
async def test_nothing_is_left_of_a_session(mode: RecordingLevel | None, how: str) -> None:
    """At once, without a collection: a circle would keep the buffers of two TLS connections with it."""
    seen: list[weakref.ref[Session]] = []

    async def play() -> None:
        played = Scene(WebSocket(), mode)
        seen.append(weakref.ref(played.session))
        await played.session.open()
        if how == "unswitched":
            await played.close()
            played.let_go()
            return
        played.switch()
        played.down(played.speech.out(b"x"))
        if how == "failed" and mode is not None:
            broken(played)
            await turns()
        elif how == "ended":
            played.session.end("session_ended", "enough")
        elif how == "refused":
            played.client.ends(ConnectionResetError())
        if played.over:
            await played.close()
        else:
            await played.finish()
        played.let_go()

    gc.collect()
    gc.disable()
    try:
        await play()
        await turns()
        assert seen[0]() is None
    finally:
        gc.enable()


def test_a_fragment_and_a_long_ping() -> None:
    """A message in parts with a ping between them, from a server unlike Kubernetes' own."""

    @scene
    async def play() -> None:
        played = Scene(WebSocket(), CLOSED, tty=True)
        await played.begin()
        frames = websocket(2, b"\x01ab", fin=False) + websocket(9, b"") + websocket(0, b"cd", fin=False)
        frames += websocket(0, b"") + said(1, b"ef")
        played.down(*(frames[at : at + 1] for at in range(len(frames))))
        played.up(typed(0), websocket(0x0A, b"?", mask=b"abcd"))
        await played.finish()
        assert played.shown == frames and played.cast.output == b"abcdef"

    play()


@pytest.mark.parametrize("level", [RecordingLevel.CLOSED, RecordingLevel.ACKNOWLEDGED])
def test_a_refusal_names_the_level_that_a_grant_asks_for(level: RecordingLevel) -> None:
    """And no field of one of the two capabilities that may have asked for it."""
    message = unavailable(level, (("100.64.0.9:80", "connection refused"),)).message
    assert f"(recording: {level.value})" in message and "100.64.0.9:80: connection refused" in message
    assert "enforceRecorder" not in message


@pytest.mark.parametrize("mode", list(RecordingLevel))
@scene
async def test_who_has_too_many_sessions_gets_no_unrecorded_one(mode: RecordingLevel) -> None:
    """An open session went on: who had enough of them was not recorded any more."""
    played = Scene(WebSocket(), mode, recorder=False)
    played.registry.declined = True
    with pytest.raises(Refusal) as raised:
        await played.session.open()
    assert (raised.value.status, raised.value.cause) == (429, "too_many_sessions")
    assert "100.64.0.8:80: it said 500" in raised.value.message
    assert played.registry.user == played.session.facts.peer.owner
    assert not played.registry.failures, "a user's excess sets off no alarm about recordings"
    await played.close()
