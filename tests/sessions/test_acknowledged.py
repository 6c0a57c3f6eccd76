"""Acknowledged sessions: no byte of output is shown before the recorder has confirmed it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from k8sproxy.access.ownrules import RecordingLevel
from k8sproxy.common.errors import Refusal
from k8sproxy.dataplane.ends import Cut
from k8sproxy.recording.limits import Limits
from k8sproxy.sessions.fence import WINDOW
from tests.protocol.streams import websocket
from tests.recording.scenes import SPEECHES, Cast, Scene, Speech, WebSocket, scene, turns, until
from tests.strategies import splits

pytestmark = pytest.mark.usefixtures("patient")
Make = Callable[[], Speech]
transports = pytest.mark.parametrize("speech", SPEECHES, ids=["websocket", "base64", "spdy"])
ACKNOWLEDGED = RecordingLevel.ACKNOWLEDGED


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Output is collected as it is in life, but what waits for 20 ms waits for `late`."""
    monkeypatch.setattr("k8sproxy.recording.outbox.WAIT", 1000.0)
    monkeypatch.setattr("k8sproxy.recording.outbox.BATCH", 128 * 1024)


def late(played: Scene) -> None:
    """Those 20 ms have passed."""
    recording = played.session._keeping.recording
    assert recording is not None and recording._outbox is not None
    recording._outbox._due()


def stored(played: Scene) -> bytes:
    """The output that the recorder has confirmed."""
    assert played.recorder is not None
    body = bytes(played.recorder.body[: played.recorder.upload.acked])
    return Cast(body[: body.rindex(b"\n") + 1]).output if b"\n" in body else b""


def ack(played: Scene, upto: int | None = None) -> None:
    """The recorder confirms what it has."""
    assert played.recorder is not None
    size = len(played.recorder.body) if upto is None else upto
    played.recorder.upload.receive_data(b'{"ack":%d}\n' % size)


@transports
@scene
async def test_a_key_is_on_its_way_at_once_and_shown_when_it_is_confirmed(speech: Make) -> None:
    played = Scene(speech(), ACKNOWLEDGED, acks=False)
    await played.begin()
    assert played.recorder is not None and played.registry.acks
    at, size = len(played.shown), len(played.recorder.body)
    played.down(played.speech.out(b"l"))
    await turns(2)  # no timer: 20 ms are longer than a key may take
    assert played.recorder.body[size:].endswith(b',"o","l"]\n') and len(played.shown) == at
    ack(played, len(played.recorder.body) - 1)
    await turns()
    assert len(played.shown) == at
    ack(played)
    await turns()
    assert played.shown[at:] == played.speech.out(b"l") and not played.session.blocked
    # What comes while something is on its way is the next batch, in one line.
    played.down(played.speech.out(b"a"))
    await turns(2)
    size = len(played.recorder.body)
    played.down(played.speech.out(b"b"), played.speech.out(b"c"))
    await turns(2)
    assert len(played.recorder.body) == size
    ack(played)
    await turns()
    assert played.recorder.body[size:].endswith(b',"o","bc"]\n') and played.shown.endswith(played.speech.out(b"a"))
    ack(played)
    await turns()
    assert played.shown.endswith(played.speech.out(b"b") + played.speech.out(b"c"))
    played.recorder.open()
    await played.finish()
    assert played.session.recorded


@transports
@given(draw=st.data())
@settings(max_examples=25, deadline=None)
def test_at_every_moment(speech: Make, draw: st.DataObject) -> None:
    spoken = speech()
    texts = draw.draw(st.lists(st.text(max_size=30).map(str.encode) | st.binary(max_size=30), max_size=12))
    texts = [text for text in texts if text]
    down = b"".join(map(spoken.out, texts))
    pieces = draw.draw(splits(down)) if down else []
    acks = draw.draw(st.lists(st.booleans(), min_size=len(pieces), max_size=len(pieces)))

    @scene
    async def play() -> None:
        played = Scene(spoken, ACKNOWLEDGED, acks=False)
        await played.begin()
        for piece, acked in zip(pieces, acks, strict=True):
            played.down(piece)
            await turns(2)
            if acked:
                late(played)
                ack(played)
                await turns(2)
            shown = shown_of(played)
            assert stored(played).startswith(shown)
        assert played.recorder is not None
        played.recorder.open()
        played.down(spoken.status() + spoken.end())
        await played.finish()
        assert played.cast.output == b"".join(texts) == spoken.understood(played.shown).stdout
        assert played.shown.endswith(down + spoken.status() + spoken.end())

    def shown_of(played: Scene) -> bytes:
        shown, rest = b"", played.shown[len(spoken.accepted) :]
        for text in texts:
            frame = spoken.out(text)
            if not rest.startswith(frame):
                break
            shown, rest = shown + text, rest[len(frame) :]
        assert not rest, "part of a message is shown"
        return shown

    play()


@transports
@scene
async def test_a_recorder_that_dies_with_output_unconfirmed(speech: Make) -> None:
    for how in ("it broke", "it is silent"):
        limits = Limits(ack_timeout=1.0) if how == "it is silent" else Limits()
        played = Scene(speech(), ACKNOWLEDGED, acks=False, limits=limits)
        await played.begin()
        played.down(played.speech.out(b"kept"))
        await turns(2)
        ack(played)
        await turns()
        played.down(played.speech.out(b"secret"), played.speech.out(b"half")[:-2])
        await turns(2)
        if how == "it broke":
            assert played.recorder is not None
            played.recorder.upload.fail(how)
        while not played.over:
            await turns()
        assert isinstance(played.outcome, Cut) and played.outcome.said
        understood = played.speech.understood(played.shown)
        assert understood.stdout == b"kept" == stored(played) and understood.closed
        assert "its recording failed" in understood.message
        await played.close()
        assert not played.session.recorded


@transports
@scene
async def test_pings_do_not_starve(speech: Make) -> None:
    played = Scene(speech(), ACKNOWLEDGED, acks=False)
    await played.begin()
    played.down(played.speech.out(b"x"))
    await turns(2)
    at = len(played.shown)
    played.up(played.speech.ping())
    assert played.shown[at:] == played.speech.pong and not played.session.blocked
    ack(played)
    await turns()
    played.up(played.speech.ping())
    assert played.shown.count(played.speech.pong) == 1, "now it is upstream's to answer"
    played.down(played.speech.pong)
    await turns()
    assert played.shown.endswith(played.speech.pong), "what holds no output waits for nothing"
    await played.close()


@transports
@scene
async def test_what_waits_is_bounded(speech: Make) -> None:
    played = Scene(speech(), ACKNOWLEDGED, acks=False)
    await played.begin()
    text = b"x" * 30_000
    while not played.upstream.paused:
        played.down(played.speech.out(text))
        await until(lambda: not played.switched._down.waiting or played.session.blocked)
    waiting = sum(map(len, played.switched._held)) + played.switched._down.waiting
    assert WINDOW <= waiting < WINDOW + 150_000 and played.speech.understood(played.shown).stdout == b""
    assert played.recorder is not None
    played.recorder.open()
    await until(lambda: not played.upstream.paused)
    await until(lambda: not played.switched._held)
    played.down(played.speech.status() + played.speech.end())
    await played.finish()
    assert played.cast.output == played.speech.understood(played.shown).stdout


@scene
async def test_one_message_larger_than_all_that_may_wait() -> None:
    played = Scene(WebSocket(), ACKNOWLEDGED)
    await played.begin()
    frame = played.speech.out(b"y" * (3 * WINDOW))
    for at in range(0, len(frame), 60_000):
        await until(lambda: not (played.upstream.paused or played.switched._down.waiting))
        played.down(frame[at : at + 60_000])
    played.down(played.speech.status() + played.speech.end())
    await until(lambda: not played.switched._down.waiting)
    await played.finish()
    assert played.speech.understood(played.shown).stdout == b"y" * (3 * WINDOW) == played.cast.output


@transports
@scene
async def test_the_front_of_a_character_waits_for_its_rest_but_not_for_ever(speech: Make) -> None:
    played = Scene(speech(), ACKNOWLEDGED)
    await played.begin()
    at = len(played.shown)
    played.down(played.speech.out(b"caf\xc3"))
    await turns()
    assert len(played.shown) == at
    played.down(played.speech.out(b"\xa9"))
    await turns()
    assert played.shown[at:] == played.speech.out(b"caf\xc3") + played.speech.out(b"\xa9")
    assert "".join(played.cast.texts("o")) == "caf\u00e9"
    at = len(played.shown)
    played.down(played.speech.out(b"a prompt in latin-1 \xe9"))
    await turns()
    assert len(played.shown) == at
    late(played)
    await turns()
    assert played.shown[at:] == played.speech.out(b"a prompt in latin-1 \xe9")
    await played.finish()
    assert played.cast.output == b"caf\xc3\xa9a prompt in latin-1 \xe9"


@scene
async def test_no_recorder_that_confirms() -> None:
    played = Scene(WebSocket(), ACKNOWLEDGED, recorder=False)
    with pytest.raises(Refusal) as raised:
        await played.session.open()
    assert raised.value.status == 403 and raised.value.cause == "recorder_unavailable" and played.registry.acks
    await played.close()


@scene
async def test_a_ping_of_upstream_with_bytes_waits_too() -> None:
    """Whatever a client can read is confirmed first."""
    played = Scene(WebSocket(), ACKNOWLEDGED, acks=False)
    await played.begin()
    played.down(websocket(9, b"secret"))
    await turns()
    assert b"secret" not in played.shown
    ack(played)
    await turns()
    assert played.shown == websocket(9, b"secret")
    await played.close()
