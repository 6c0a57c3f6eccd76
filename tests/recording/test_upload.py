"""One accepted session: its bytes, its acks, and each way in which it can fail, over a real socket."""

from __future__ import annotations

import asyncio
import hashlib
import socket

import pytest
from h2.settings import SettingCodes

from k8sproxy.recording.carriers.http1 import Submission
from k8sproxy.recording.recorders import UploadError
from k8sproxy.recording.upload import State
from standins.recorder import FakeRecorder
from tests.common.tailnet.leakless import run
from tests.lives import assert_documented
from tests.recording.dialled import failure_of, recorders, refusal_of, session, turns

BOTH = pytest.mark.parametrize("version", [1, 2])


def test_the_states() -> None:
    assert_documented(State)


def test_a_v1_recorder_that_says_it_has_what_it_has_not_read() -> None:
    async def scene() -> None:
        async with session(1) as (fake, upload):
            kept = fake.sessions[0]
            kept.connection.transport.pause_reading()
            carrier = upload._carrier
            assert isinstance(carrier, Submission)
            carrier._wire._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)

            async def end() -> str:
                upload.write(bytes(500_000))  # one chunk, of which the kernel takes less
                return await refusal_of(upload)

            finishing = asyncio.ensure_future(end())
            await turns(20)
            assert carrier._wire.stalled and not upload.buffered
            kept.finish()
            assert "before the session's end" in await finishing

    run(scene())


@BOTH
def test_a_session_arrives_as_it_was_written(version: int) -> None:
    async def scene() -> None:
        async with session(version) as (fake, upload):
            assert upload.version == version and upload.recorder == fake.address
            pieces = [bytes([number]) * number for number in range(200)]
            for piece in pieces:
                upload.write(piece)
            await upload.finish()
            assert bytes(fake.sessions[0].body) == b"".join(pieces)
            assert fake.sessions[0].end == "clean"
            assert (upload.acked, upload.buffered, upload.failure) == (19900, 0, None)
            upload.write(b"late")  # dropped
            await upload.finish()  # twice is once
            upload.abort()
            assert upload.failure is None

    run(scene())


@BOTH
def test_an_empty_session(version: int) -> None:
    async def scene() -> None:
        async with session(version) as (fake, upload):
            upload.write(b"")
            await upload.finish()
            assert fake.sessions[0].end == "clean" and not fake.sessions[0].body

    run(scene())


def test_the_event_codes_of_the_recorder() -> None:
    async def scene() -> None:
        async with FakeRecorder() as fake, recorders() as made:
            assert (await made.open([fake.address])).event_codes == {"o", "r"}
            fake.fields = {"asciicast-event-codes": "o, e, r, m"}
            assert (await made.open([fake.address])).event_codes == {"o", "e", "r", "m"}

    run(scene())


@BOTH
def test_an_abort(version: int) -> None:
    async def scene() -> None:
        async with session(version) as (fake, upload):
            upload.failed = pytest.fail
            upload.write(b"x")
            upload.abort()
            upload.abort()
            upload.write(b"y")
            await fake.until(lambda: fake.sessions[0].end)
            assert fake.sessions[0].end == ("reset" if version == 2 else "lost")
            with pytest.raises(UploadError):
                await upload.finish()

    run(scene())


@BOTH
def test_a_large_session_with_backpressure(version: int) -> None:
    async def scene() -> None:
        async with FakeRecorder() as fake, recorders(buffer=1 << 20) as made:
            fake.version = version
            fake.keep = False
            fake.settings = {SettingCodes.INITIAL_WINDOW_SIZE: 1 << 20, SettingCodes.MAX_FRAME_SIZE: 1 << 20}
            fake.connection_window = 1 << 20
            upload = await made.open([fake.address])
            room = asyncio.Event()
            upload.drained = room.set
            upload.failed = pytest.fail
            piece = bytes(range(256)) * 256
            most = 0
            for _ in range((64 << 20) // len(piece)):
                upload.write(piece)
                most = max(most, upload.buffered)
                if upload.blocked:
                    room.clear()
                    await room.wait()
                    assert upload.buffered <= (1 << 20) // 2
            await upload.finish()
            assert fake.sessions[0].received == 64 << 20
            assert most <= (1 << 20) + len(piece)

    run(scene())


def test_small_windows_and_frames() -> None:
    async def scene() -> None:
        async with FakeRecorder() as fake, recorders() as made:
            fake.settings = {SettingCodes.INITIAL_WINDOW_SIZE: 1000}
            upload = await made.open([fake.address])
            data = bytes(range(256)) * 1000
            upload.write(data)
            await upload.finish()
            assert hashlib.sha256(fake.sessions[0].body).digest() == hashlib.sha256(data).digest()

    run(scene())


@BOTH
def test_a_recorder_that_is_gone(version: int) -> None:
    async def scene() -> None:
        async with session(version) as (fake, upload):
            upload.write(b"x")
            await fake.until(lambda: fake.sessions[0].received)
            fake.drop()
            assert "connection" in await failure_of(upload)
            upload.write(b"y")
            assert upload.buffered == 0
            assert "connection" in await refusal_of(upload)

    run(scene())


def test_a_failure_from_before_anybody_listened() -> None:
    async def scene() -> None:
        async with session() as (fake, upload):
            fake.drop()
            while upload.failure is None:
                await turns(1)
            assert "connection" in await failure_of(upload)
            upload.failed = pytest.fail  # once is enough
            await turns()

    run(scene())


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b'{"error":"disk full"}', "the recorder says: disk full"),
        (b'{"ack":6}', "confirms 6 bytes of 5 sent"),
        (b'{"ack":5}{"ack":4}', "backwards"),
        (b'{"ack":"5"}', "not a number"),
        (b"ok\n", "not a JSON object"),
        (b'{"ack":}', "not JSON"),
        (b'{"' + b"x" * 20_000, "longer than"),
    ],
)
def test_what_a_recorder_must_not_say(answer: bytes, why: str) -> None:
    async def scene() -> None:
        async with session() as (fake, upload):
            fake.acks = False
            upload.write(b"hello")
            await fake.until(lambda: fake.sessions[0].received == 5)
            fake.sessions[0].send(answer)
            assert why in await failure_of(upload)
            await fake.until(lambda: fake.sessions[0].end)
            assert fake.sessions[0].end == "reset"

    run(scene())


def test_an_error_in_the_same_breath_as_the_acceptance() -> None:
    async def scene() -> None:
        async with FakeRecorder() as fake, recorders() as made:
            fake.accepts = False
            opening = asyncio.ensure_future(made.open([fake.address]))
            await fake.until(lambda: fake.sessions)
            connection = fake.sessions[0].connection
            connection.h2.send_headers(fake.sessions[0].stream, [(":status", "200")])
            connection.h2.send_data(fake.sessions[0].stream, b'{"error":"no space"}')
            connection.flush()
            with pytest.raises(Exception, match="no space"):
                await opening

    run(scene())


def test_acks_in_pieces() -> None:
    async def scene() -> None:
        async with session() as (fake, upload):
            fake.acks = fake.finishes = False
            upload.write(b"hello")
            finishing = asyncio.ensure_future(upload.finish())
            await fake.until(lambda: fake.sessions[0].end)
            for byte in b'{"ack":2} {"ack": 5}\n':
                fake.sessions[0].send(bytes([byte]))
                await turns(3)
            fake.sessions[0].finish()
            await finishing
            assert upload.acked == 5

    run(scene())


def test_a_reset() -> None:
    async def scene() -> None:
        async with session() as (fake, upload):
            fake.sessions[0].reset()
            assert "INTERNAL_ERROR" in await failure_of(upload)

    run(scene())


@BOTH
def test_an_answer_that_ends_too_early(version: int) -> None:
    async def scene() -> None:
        async with session(version) as (fake, upload):
            upload.write(b"hello")
            await fake.until(lambda: fake.sessions[0].received == 5)
            fake.sessions[0].finish()
            assert "before the session's end" in await failure_of(upload)

    run(scene())


def test_an_end_with_too_few_acks() -> None:
    async def scene() -> None:
        async with session() as (fake, upload):
            fake.acks = False
            upload.write(b"hello")
            await fake.until(lambda: fake.sessions[0].received == 5)
            fake.sessions[0].ack(3)
            assert "3 of 5 bytes" in await refusal_of(upload)

    run(scene())


def test_an_end_within_a_message() -> None:
    async def scene() -> None:
        async with session() as (fake, upload):
            upload.write(b"hello")
            fake.finishes = False
            finishing = asyncio.ensure_future(refusal_of(upload))
            await fake.until(lambda: fake.sessions[0].end)
            fake.sessions[0].send(b'{"ack":5')
            fake.sessions[0].finish()
            assert "within a message" in await finishing

    run(scene())


def test_a_v1_recorder_that_could_not_keep_it() -> None:
    async def scene() -> None:
        async with session(1) as (fake, upload):
            fake.final = 500
            upload.write(b"hello")
            assert "HTTP 500" in await refusal_of(upload)

    run(scene())


@BOTH
def test_an_end_that_is_not_confirmed(version: int) -> None:
    async def scene() -> None:
        async with session(version, finish_timeout=0.05) as (fake, upload):
            fake.finishes = False
            upload.write(b"hello")
            assert "did not confirm the end within 0.05 s" in await refusal_of(upload)
            await fake.until(lambda: fake.sessions[0].end)

    run(scene())


@BOTH
def test_a_finish_that_is_cancelled_gives_up_the_session(version: int) -> None:
    async def scene() -> None:
        async with session(version) as (fake, upload):
            fake.finishes = False
            upload.write(b"hello")
            finishing = asyncio.ensure_future(upload.finish())
            await fake.until(lambda: fake.sessions[0].end == "clean")
            finishing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await finishing
            assert upload.failure is not None

    run(scene())


def test_no_acks() -> None:
    async def scene() -> None:
        async with session(ack_timeout=0.05) as (fake, upload):
            fake.acks = False
            upload.write(b"hello")
            assert "confirmed nothing for 0.05 s, and 5 bytes wait for it" in await failure_of(upload)

    run(scene())


def test_acks_that_say_nothing_new_are_no_sign_of_life() -> None:
    async def scene() -> None:
        async with session(ack_timeout=0.05) as (fake, upload):
            fake.acks = False
            upload.write(b"hello")
            await fake.until(lambda: fake.sessions[0].received == 5)
            fake.sessions[0].ack(3)
            why = asyncio.ensure_future(failure_of(upload))
            while not why.done():
                if not fake.sessions[0].end:
                    fake.sessions[0].ack(3)
                await asyncio.wait((why,), timeout=0.01)
            assert "and 2 bytes wait for it" in why.result()

    run(scene())


def test_silence_is_no_fault_when_nothing_is_due() -> None:
    async def scene() -> None:
        async with session() as (_, upload):
            upload.failed = pytest.fail
            assert not upload._stored.watching
            for number in range(1, 4):
                upload.write(b"hello")
                assert upload._stored.watching
                while upload.acked < 5 * number:
                    await turns(1)
                assert not upload._stored.watching
            await upload.finish()

    run(scene())


@BOTH
def test_a_recorder_that_does_not_read(version: int) -> None:
    async def scene() -> None:
        async with session(version, ack_timeout=0.5, buffer=1 << 20) as (fake, upload):
            fake.sessions[0].reading = False
            for transport in [connection.transport for connection in fake.connections]:
                transport.pause_reading()
            for _ in range(200):
                upload.write(bytes(1 << 16))
                await turns(1)
            assert upload.blocked
            assert "confirmed nothing" in await failure_of(upload)
            assert not upload.blocked and upload.buffered == 0

    run(scene())


def test_one_session_that_is_not_read_does_not_stop_the_others() -> None:
    async def scene() -> None:
        async with FakeRecorder() as fake, recorders() as made:
            fake.reading = False
            # As Go's server: a window for the connection that one stream could fill.
            fake.settings = {SettingCodes.INITIAL_WINDOW_SIZE: 1 << 20}
            fake.connection_window = (1 << 20) - 65535
            stuck = await made.open([fake.address])
            fake.reading = True
            others = [await made.open([fake.address]) for _ in range(5)]
            assert fake.dials == 1
            stuck.write(bytes(4 << 20))
            await fake.until(lambda: fake.sessions[0].received >= 700_000)
            for _ in range(3):
                for other in others:
                    other.write(bytes(200_000))
                    await turns()
            await asyncio.gather(*(other.finish() for other in others))
            assert [session.received for session in fake.sessions[1:]] == [600_000] * 5
            assert stuck.blocked is False and stuck.buffered > 3 << 20
            fake.sessions[0].read()
            await stuck.finish()
            assert fake.sessions[0].received == 4 << 20

    run(scene())


def test_the_last_on_a_connection_may_use_all_of_its_window() -> None:
    async def scene() -> None:
        async with FakeRecorder() as fake, recorders() as made:
            fake.reading = False
            fake.settings = {SettingCodes.INITIAL_WINDOW_SIZE: 1 << 20}
            fake.connection_window = (1 << 20) - 65535
            first, second = await made.open([fake.address]), await made.open([fake.address])
            first.write(bytes(2 << 20))
            await fake.until(lambda: fake.sessions[0].received >= 700_000)
            await turns(20)
            assert fake.sessions[0].received < 800_000
            second.abort()
            await fake.until(lambda: fake.sessions[0].received == 1 << 20)
            first.abort()

    run(scene())


def test_a_recorder_that_is_being_replaced_gets_the_rest() -> None:
    async def scene() -> None:
        async with FakeRecorder() as fake, recorders() as made:
            upload = await made.open([fake.address])
            upload.failed = pytest.fail
            upload.write(b"before ")
            await fake.until(lambda: fake.sessions[0].received)
            fake.goaway()
            fake.sessions[0].ack()  # in the same segment as the GOAWAY
            upload.write(b"after")
            later = await made.open([fake.address])
            assert fake.dials == 2
            await upload.finish()
            await later.finish()
            assert bytes(fake.sessions[0].body) == b"before after"
            await fake.until(lambda: len(fake.connections) == 1)  # the old one is closed with its last session

    run(scene())


def test_a_goaway_that_leaves_a_session_out() -> None:
    async def scene() -> None:
        async with session() as (fake, upload):
            fake.goaway(1)
            assert "closing" in await failure_of(upload)

    run(scene())


@pytest.mark.parametrize(
    "frame",
    [
        b"\xff\xff\xff\0\0\0\0\0\x03",  # longer than allowed
        b"\0\0\x01\x04\0\0\0\0\0\0",  # SETTINGS of one byte
        b"\0\0\x04\x08\0\0\0\0\0\0\0\0\0",  # a window update of nothing
        b"\0\0\x03\x01\x04\0\0\0\x03\xff\xff\xff",  # HPACK that is none
        b"\0\0\x08\x05\x04\0\0\0\x03\0\0\0\x02\x88\x88\x88\x88",  # a push
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
    ],
)
def test_what_is_no_http2(frame: bytes) -> None:
    async def scene() -> None:
        async with session() as (fake, upload):
            fake.sessions[0].connection.write(frame)
            assert "HTTP/2" in await failure_of(upload)
            await fake.until(lambda: not fake.connections)

    run(scene())


def test_what_an_owner_raises_is_its_own() -> None:
    async def scene() -> None:
        caught: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: caught.append(context["exception"]))
        async with FakeRecorder() as fake, recorders() as made:
            first, second = await made.open([fake.address]), await made.open([fake.address])

            def broken(why: str) -> None:
                raise ZeroDivisionError

            first.failed = broken
            fake.drop()
            assert "connection" in await failure_of(second)
            assert [type(error) for error in caught] == [ZeroDivisionError]

    run(scene())


def test_the_windows_of_the_answers_are_given_back() -> None:
    async def scene() -> None:
        async with session() as (fake, upload):
            fake.acks = False
            upload.failed = pytest.fail
            upload.write(bytes(30_000))
            await fake.until(lambda: fake.sessions[0].received == 30_000)
            answers = fake.sessions[0]
            connection = answers.connection.h2
            for number in range(1, 30_000, 1000):
                # 10 KB each, 300 KB in all: nearly five times what the windows let through at first.
                await fake.until(lambda: connection.local_flow_control_window(answers.stream) > 11_000)
                answers.send(b'{"note":"%s"}' % (b"x" * 10_000))
                answers.ack(number)
            answers.connection.h2.send_data(answers.stream, b'{"ack":29999}', pad_length=10)
            answers.connection.flush()
            while upload.acked < 29_999:
                await turns(1)
            answers.ack(30_000)
            await upload.finish()

    run(scene())
