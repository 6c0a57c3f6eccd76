"""Sessions of which one side sends what can't be read: what was shown is kept, what can be read is still recorded."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import structlog

from k8sproxy.access.ownrules import RecordingLevel
from k8sproxy.dataplane.ends import ClientGone, Cut
from k8sproxy.protocol.spdy import DICTIONARY
from k8sproxy.recording.limits import Limits
from tests.protocol.streams import MASK, SpdyWriter, control, data, goaway, ping, reset, typed, typed64, websocket
from tests.recording.scenes import CLOSED, OPEN, Base64, Scene, Spdy, Speech, WebSocket, scene, turns, until

ENFORCED = [CLOSED, RecordingLevel.ACKNOWLEDGED]


class V4(WebSocket):
    subprotocol = "v4.channel.k8s.io"


class V1(WebSocket):
    subprotocol = "channel.k8s.io"


def _spdy(make: Callable[[SpdyWriter], bytes]) -> bytes:
    """Frames of a client whose compression has gone through the opening of a session."""
    writer = SpdyWriter(DICTIONARY)
    for index, kind in enumerate((b"error", b"stdin", b"stdout", b"stderr", b"resize")):
        writer.opened(2 * index + 1, kind)
    return make(writer)


# Frames of a client that can't be read.
RUBBISH: list[tuple[Callable[[], Speech], bytes]] = [
    *((speech, b"\xff" * 20) for speech in (WebSocket, V4, V1, Base64)),
    (WebSocket, websocket(2, b"\0unmasked")),
    (WebSocket, websocket(3, b"\0", mask=MASK)),
    (V4, websocket(2, b"\0", mask=MASK, first=0x40)),
    (V1, websocket(0, b"\0", mask=MASK)),
    (Base64, websocket(9, b"x" * 126, mask=MASK)),
    (Base64, websocket(8, b"", mask=MASK, fin=False)),
    (Spdy, b"\x80\x09" + b"\xff" * 20),
    (Spdy, control(1, b"\0\0\0\x0b" + bytes(6) + b"no block")),
    (Spdy, control(8, b"\0\0\0\x05" + b"\xff" * 9)),
    (Spdy, control(3, b"short")),
    (Spdy, control(6, b"\0\0\0\1", 1)),
    (Spdy, data(0, b"of no stream")),
    (Spdy, _spdy(lambda writer: writer.opened(11, b"nonsense"))),
    (Spdy, _spdy(lambda writer: writer.opened(11, b"stdout"))),
    (Spdy, _spdy(lambda writer: writer.opened(12, b"resize"))),
    (Spdy, _spdy(lambda writer: writer.syn_stream(11, [(b"Streamtype", b"stdout")]))),
    (Spdy, _spdy(lambda writer: writer.syn_stream(11, b"\xff\xff\xff\xff"))),
    (Spdy, control(1, bytes(20_000))),
]
rubbish = pytest.mark.parametrize(("speech", "bad"), RUBBISH, ids=range(len(RUBBISH)))


def why(played: Scene) -> str:
    """The notice in the recording."""
    return next(line for line in played.cast.output.decode().split("\r\n") if "k8sproxy: " in line)


@rubbish
@pytest.mark.parametrize("tty", [True, False], ids=["tty", "no tty"])
@pytest.mark.parametrize("cut", [False, True], ids=["whole", "byte by byte"])
@pytest.mark.parametrize("mode", ENFORCED)
@scene
async def test_enforced_it_ends_and_all_that_was_shown_is_kept(
    mode: RecordingLevel, cut: bool, tty: bool, speech: Callable[[], Speech], bad: bytes
) -> None:
    played = Scene(speech(), mode, tty=tty)
    await played.begin()
    texts = [b"%06d" % number + b"x" * 9_000 for number in range(100)]
    for text in texts:
        played.down(played.speech.out(text))
        await turns(4)
    with structlog.testing.capture_logs() as lines:
        before = len(played.upstream.written)
        played.up(*((bad[at : at + 1] for at in range(len(bad))) if cut else (bad,)))
        sent = bytes(played.upstream.written[before:])
        assert bad.startswith(sent) and (cut or not sent)
        assert isinstance(played.outcome, Cut) and played.outcome.said
        understood = played.speech.understood(played.shown)
        assert understood.closed and b"what the client sends can't be read" in understood.error
        await played.close()
    assert understood.stdout and b"".join(texts).startswith(understood.stdout)
    assert played.recorder is not None and not played.recorder.was_reset
    assert played.recorder.upload.acked == len(played.recorder.body)
    assert played.cast.output.startswith(b"".join(texts)) and "what the client sends can't be read" in why(played)
    assert (played.cast.header["width"], played.cast.header["height"]) == (80, 24)
    assert played.session.cause == "session_unreadable" and played.session.recorded
    assert played.registry.failures == [("unreadable", mode)]
    (warning, end) = lines
    assert (warning["event"], warning["side"]) == ("session_unreadable", "client") and warning["why"]
    assert (end["event"], end["cause"], end["recorded"]) == ("session_ended", "session_unreadable", True)


@rubbish
@pytest.mark.parametrize("tty", [True, False], ids=["tty", "no tty"])
@scene
async def test_open_the_output_is_recorded_on(speech: Callable[[], Speech], bad: bytes, tty: bool) -> None:
    played = Scene(speech(), OPEN, tty=tty)
    await played.begin()
    played.up(played.speech.resize(100, 30))
    played.down(played.speech.out(b"before "))
    played.up(bad, b"and more of that", played.speech.resize(120, 40))
    assert bytes(played.upstream.written).endswith(bad + b"and more of that" + played.speech.resize(120, 40))
    played.down(played.speech.out(b"behind"), played.speech.out(b"!", stderr=True))
    played.down(played.speech.status() + played.speech.end())
    await played.finish()
    assert played.speech.understood(played.shown).stdout == b"before behind" and played.outcome is None
    output = played.cast.output
    assert output.startswith(b"before ") and output.endswith(b"behind!") and not played.cast.texts("r")
    assert "what the client sends can't be read from here on" in why(played)
    assert played.registry.failures == [("unreadable", OPEN)] and played.session.recorded and not played.session.cause
    assert played.recorder is not None and not played.recorder.was_reset


@rubbish
@pytest.mark.parametrize("mode", ENFORCED)
@scene
async def test_before_any_output(speech: Callable[[], Speech], bad: bytes, mode: RecordingLevel) -> None:
    """Of the session there is nothing but that it was, and why it ended."""
    played = Scene(speech(), mode, tty=True)
    await played.begin()
    played.up(bad)
    assert isinstance(played.outcome, Cut)
    await played.close()
    assert played.cast.header["width"] == 80 and "what the client sends can't be read" in why(played)


@rubbish
@pytest.mark.parametrize("mode", ENFORCED)
@scene
async def test_while_a_slow_recorder_has_all_wait(
    speech: Callable[[], Speech], bad: bytes, mode: RecordingLevel
) -> None:
    played = Scene(speech(), mode, flowing=False, limits=Limits(buffer=2_000))
    await played.begin()
    texts = [b"%04d" % number + b"x" * 700 for number in range(20)]
    for text in texts:
        if not played.upstream.paused:
            played.down(played.speech.out(text))
            await turns(2)
    played.up(bad)
    assert isinstance(played.outcome, Cut) and played.outcome.said
    shown = played.speech.understood(played.shown)
    assert played.recorder is not None
    played.recorder.open()
    await played.close()
    assert b"".join(texts).startswith(shown.stdout) and played.cast.output.startswith(shown.stdout)
    assert "what the client sends can't be read" in why(played) and played.session.recorded


@rubbish
@scene
async def test_a_recorder_that_fails_as_well(speech: Callable[[], Speech], bad: bytes) -> None:
    played = Scene(speech(), CLOSED, finishes=False, limits=Limits(finish_timeout=0.01))
    await played.begin()
    played.down(played.speech.out(b"hello"))
    played.up(bad)
    await played.close()
    assert not played.session.recorded and played.session.cause == "session_unreadable"
    assert played.registry.failures == [("unreadable", CLOSED), ("failed", CLOSED)]


CLOSES: list[tuple[Callable[[], Speech], bytes]] = [
    (WebSocket, websocket(8, b"\x03\xe8", mask=MASK)),
    (WebSocket, websocket(8, b"\x03", mask=MASK)),
    (Base64, websocket(8, b"", mask=MASK)),
    (Spdy, goaway(9)),
]


@pytest.mark.parametrize(("speech", "close"), CLOSES, ids=range(len(CLOSES)))
@pytest.mark.parametrize("mode", [OPEN, *ENFORCED])
@scene
async def test_what_a_client_sends_behind_its_end_is_read_by_nobody(
    speech: Callable[[], Speech], close: bytes, mode: RecordingLevel
) -> None:
    played = Scene(speech(), mode)
    await played.begin()
    played.up(close, b"\xff" * 40)
    assert not played.over
    played.down(played.speech.out(b"the last of it"))
    await turns(4)
    played.down(played.speech.status() + played.speech.end())
    await played.finish()
    assert played.cast.output == b"the last of it" == played.speech.understood(played.shown).stdout
    assert played.registry.failures == [] and played.session.recorded


@pytest.mark.parametrize("speech", [WebSocket, V4, V1, Base64, Spdy])
@pytest.mark.parametrize("text", [b"{ width: 100, height: 30}", b"[]", b'{"Width":1e2}', b"x" * 70_000, b"{" * 3])
@pytest.mark.parametrize("mode", [OPEN, *ENFORCED])
@scene
async def test_a_size_that_go_does_not_take_changes_nothing(
    mode: RecordingLevel, text: bytes, speech: Callable[[], Speech]
) -> None:
    """Nothing that the recording of output does not depend on decides whether it is recorded."""
    played = Scene(speech(), mode, tty=True)
    await played.begin()
    spoken = played.speech
    made = typed64(4, text) if isinstance(spoken, Base64) else data(9, text)
    frame = made if isinstance(spoken, Base64 | Spdy) else typed(4, text)
    played.up(spoken.resize(90, 30), frame, spoken.resize(100, 40))
    await until(lambda: not played.switched._up.waiting)  # so many take more than one turn of the loop
    assert not played.over and bytes(played.upstream.written).endswith(frame + spoken.resize(100, 40))
    played.down(spoken.out(b"all of it"))
    await turns(4)
    played.down(spoken.status() + spoken.end())
    await played.finish()
    assert played.cast.output == b"all of it" and played.cast.header["width"] == 90
    assert not played.cast.texts("r") and played.session.recorded and played.registry.failures == []


@scene
async def test_half_a_base64_message_is_dropped_by_itself() -> None:
    played = Scene(Base64(), CLOSED, tty=True)
    await played.begin()
    played.up(websocket(1, b"4a", mask=MASK), websocket(1, b"4" + b"!" * 9, mask=MASK), played.speech.resize(90, 30))
    played.down(played.speech.out(b"x"))
    await played.finish()
    assert played.cast.header["width"] == 90 and played.session.recorded


# -- upstream


UPSTREAM: list[tuple[Callable[[], Speech], bytes]] = [
    (WebSocket, b"\xff" * 20),
    (WebSocket, websocket(2, b"\1masked", mask=MASK)),
    (Base64, websocket(1, b"1a")),
    (Spdy, b"\x80\x09" + b"\xff" * 20),
    (Spdy, control(2, b"\0\0\0\5" + b"no block")),
]


@pytest.mark.parametrize(("speech", "bad"), UPSTREAM, ids=range(len(UPSTREAM)))
@pytest.mark.parametrize("mode", [OPEN, *ENFORCED])
@scene
async def test_upstream_that_can_not_be_read(mode: RecordingLevel, speech: Callable[[], Speech], bad: bytes) -> None:
    """What came before is kept whole. Closed, nothing of it is shown; open, it goes on, and the recording says so."""
    played = Scene(speech(), mode, tty=True)
    await played.begin()
    played.down(played.speech.out(b"before"))
    await until(lambda: played.shown.endswith(played.speech.out(b"before")))
    at = len(played.shown)
    played.down(bad)
    assert played.over is mode.enforced
    if mode is OPEN:
        played.down(b"more of it")
        played.up(b"and more")
        assert played.shown[at:] == bad + b"more of it" and bytes(played.upstream.written).endswith(b"and more")
    else:
        assert isinstance(played.outcome, Cut) and played.outcome.said
        understood = played.speech.understood(played.shown)
        assert understood.closed and understood.stdout == b"before" and "can't be read" in understood.message
    await played.close()
    assert played.cast.output.startswith(b"before\r\n") and "what the API server sends can't be read" in why(played)
    assert played.registry.failures == [("unreadable", mode)] and played.session.recorded is mode.enforced
    assert played.recorder is not None and not played.recorder.was_reset


@pytest.mark.parametrize("mode", [OPEN, *ENFORCED])
@pytest.mark.parametrize(
    ("speech", "frame"),
    [
        *((Spdy, data(stream, b"hidden")) for stream in (3, 9, 11, 2)),
        *((WebSocket, websocket(2, channel + b"hidden")) for channel in (b"\0", b"\4", b"\7", b"\xff", b"\xff\1")),
        (V4, websocket(2, b"\xffhidden")),
        (Base64, websocket(1, b"9aGlkZGVu")),
    ],
)
@scene
async def test_output_of_nobody_knows_what(speech: Callable[[], Speech], frame: bytes, mode: RecordingLevel) -> None:
    """On streams that only go the other way, or that nobody has opened: open, it is recorded as output is."""
    played = Scene(speech(), mode)
    await played.begin()
    at = len(played.shown)
    played.down(frame)
    if mode is OPEN:
        assert played.shown[at:] == frame
    else:
        assert isinstance(played.outcome, Cut) and b"hidden" not in played.shown and played.outcome.said
    await played.close()
    assert (b"hidden" in played.cast.output) is (mode is OPEN) and played.session.recorded


@scene
async def test_open_streams_that_a_client_opens_behind_its_rubbish() -> None:
    """Which of them is stdout nobody knows; what comes on them is recorded."""
    played = Scene(Spdy(), OPEN)
    await played.session.open()
    played.switch()
    played.up(control(3, b"short") + played.speech.opening)
    played.down(played.speech.accepted, played.speech.out(b"out"), played.speech.out(b"err", stderr=True), ping(2))
    played.down(reset(5))
    await played.close()
    assert played.cast.output.endswith(b"outerr") and played.session.recorded


# -- beside the output


BESIDE: list[tuple[Callable[[], Speech], bytes]] = [
    (WebSocket, websocket(9, b"secret")),
    (WebSocket, websocket(10, b"secret")),
    (WebSocket, websocket(8, b"\x03\xe8secret")),
    (Base64, websocket(9, b"secret")),
    (Spdy, control(77, b"secret")),
    (Spdy, _spdy(lambda _: control(4, b"\0\0\0\1\0\0\0\1secr"))),
]


@pytest.mark.parametrize(("speech", "frame"), BESIDE, ids=range(len(BESIDE)))
@pytest.mark.parametrize("codes", ["o,r", "o,r,m"], ids=["without markers", "with markers"])
@pytest.mark.parametrize("mode", [OPEN, *ENFORCED])
@scene
async def test_what_upstream_sends_beside_its_output_is_kept(
    mode: RecordingLevel, codes: str, speech: Callable[[], Speech], frame: bytes
) -> None:
    played = Scene(speech(), mode)
    assert played.recorder is not None
    played.recorder.upload.event_codes = frozenset(codes.split(","))
    await played.begin()
    played.down(played.speech.out(b"shown") + frame)
    await until(lambda: played.shown.endswith(frame) or played.session._keeping.settling is not None)
    await played.finish()
    notes = played.cast.texts("m") if "m" in codes else [why(played)]
    assert "secr" in "".join(notes) and "bytes that a terminal does not show" in notes[0]
    assert played.cast.output.startswith(b"shown")


@scene
async def test_pings_and_their_pongs_leave_no_trace() -> None:
    played = Scene(WebSocket(), CLOSED)
    await played.begin()
    played.up(played.speech.ping())
    played.down(played.speech.pong + websocket(9, b""))
    played.up(played.speech.ping() * 1000)
    await turns()
    played.down(played.speech.pong * 1000)
    await played.finish()
    assert played.cast.events == []


@pytest.mark.parametrize("speech", [WebSocket, Spdy])
@scene
async def test_an_error_as_long_as_a_file(speech: Callable[[], Speech]) -> None:
    """The error channel tells how it ended, in a few KiB at most: more would pass the recording."""
    played = Scene(speech(), CLOSED)
    await played.begin()
    at = len(played.shown)
    for _ in range(5):
        played.down(played.speech.status(json.dumps({"message": "x" * 60_000}).encode()))
        await turns(4)
    assert isinstance(played.outcome, Cut) and played.session.cause == "session_unreadable"
    assert len(played.shown[at:].replace(b"\0", b"")) < 70_000
    await played.close()


@pytest.mark.parametrize("mode", [OPEN, *ENFORCED])
@scene
async def test_a_client_that_only_resets_loses_nothing_either(mode: RecordingLevel) -> None:
    played = Scene(WebSocket(), mode, tty=True)
    await played.begin()
    played.down(played.speech.out(b"shown"))
    played.client.ends(ConnectionResetError())
    assert isinstance(played.outcome, ClientGone)
    await played.close()
    assert played.cast.output == b"shown" and played.session.recorded


@scene
async def test_streams_that_were_opened_in_the_read_of_the_fault_are_known() -> None:
    speech = Spdy()
    opening, accepted = speech.opening, speech.accepted
    speech.opening = b""
    played = Scene(speech, OPEN)
    assert played.recorder is not None
    played.recorder.upload.event_codes = frozenset("ore")
    await played.begin()
    played.up(opening + b"\xff" * 20)
    played.down(accepted, speech.out(b"a fault", stderr=True), speech.out(b"a line"))
    played.down(speech.status() + speech.end())
    await played.finish()
    assert played.cast.texts("e") == ["a fault"] and "a line" in played.cast.texts("o")


@pytest.mark.parametrize("speech", [WebSocket, Base64, Spdy])
@scene
async def test_a_size_in_the_read_of_the_fault_is_kept(speech: Callable[[], Speech]) -> None:
    played = Scene(speech(), OPEN, tty=True)
    await played.begin()
    played.up(played.speech.resize(132, 43) + b"\xff" * 20)
    played.down(played.speech.status() + played.speech.end())
    await played.finish()
    assert (played.cast.header["width"], played.cast.header["height"]) == (132, 43)
