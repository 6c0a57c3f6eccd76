"""Finding a recorder: order, versions, health, shared connections, and a share of the time for each address."""

from __future__ import annotations

import asyncio
import gc
import socket
from collections.abc import Awaitable, Callable

import pytest
from h2.settings import SettingCodes

from k8sproxy.recording.health import LONGEST_RETRY, Health
from k8sproxy.recording.recorders import NoRecorder, Recorders, Upload
from standins.recorder import FakeRecorder, Step
from tests.common.tailnet.leakless import run
from tests.recording.dialled import dial, recorders, turns, unused_port


async def refusal(made: Recorders, *addresses: str) -> tuple[tuple[str, str], ...]:
    with pytest.raises(NoRecorder) as caught:
        await made.open(addresses)
    return caught.value.attempts


def state(made: Recorders, address: str) -> str:
    return next(state.state for state in made.describe() if state.address == address)


def test_nobody_listens() -> None:
    async def scene() -> None:
        async with recorders() as made:
            address = f"127.0.0.1:{unused_port()}"
            assert await refusal(made, address) == ((address, "connection refused"),)
            assert state(made, address) == "bad"

    run(scene())


def test_no_address_at_all_and_some_that_are_none() -> None:
    async def scene() -> None:
        async with recorders() as made, FakeRecorder() as fake:
            assert await refusal(made) == ()
            assert "form IP:PORT" in (await refusal(made, "recorder:80"))[0][1]
            upload = await made.open(["recorder:80", "100.64.0.1:99999", fake.address])
            assert upload.recorder == fake.address
            assert str(NoRecorder(())) == "no recorder has an address"

    run(scene())


def test_a_dial_that_fails_with_a_sentence_or_never_ends() -> None:
    async def scene() -> None:
        async def failing(host: str, port: int) -> socket.socket:
            raise OSError("tailscaled is not connected to its tailnet: Stopped")

        async def hanging(host: str, port: int) -> socket.socket:
            await asyncio.Event().wait()
            raise AssertionError

        async with recorders(dial=failing) as made:
            assert await refusal(made, "100.64.0.9:80") == (
                ("100.64.0.9:80", "tailscaled is not connected to its tailnet: Stopped"),
            )
        async with recorders(dial=hanging, dial_timeout=0.05) as made:
            assert "did not accept a connection within 0.05 s" in str(await refusal(made, "100.64.0.9:80"))

    run(scene())


@pytest.mark.parametrize(
    ("version", "hang"), [(2, "accept"), (2, "SETTINGS"), (2, "HEAD"), (2, "POST"), (1, "accept"), (1, "POST")]
)
def test_a_recorder_that_hangs_leaves_time_for_the_next(version: int, hang: Step) -> None:
    async def scene() -> None:
        async with FakeRecorder() as hanging, FakeRecorder() as good, recorders(dial_timeout=0.25) as made:
            hanging.version = version
            hanging.hang = hang
            upload = await made.open([hanging.address, good.address])
            assert upload.recorder == good.address
            failed = made.describe()[0]
            assert failed.state == "bad" and "did not" in failed.failure and "within 0.25 s" in failed.failure
            # Now that it is known, it costs nothing.
            dials = hanging.dials
            assert (await made.open([hanging.address, good.address])).recorder == good.address
            assert hanging.dials == dials
            # Whatever was under way there is gone, in the recorder's eyes too.
            await hanging.until(lambda: all(session.end for session in hanging.sessions))

    run(scene())


def test_all_hang() -> None:
    async def scene() -> None:
        async with FakeRecorder() as one, FakeRecorder() as two, FakeRecorder() as three:
            one.hang, two.hang, three.hang = "accept", "HEAD", "POST"
            async with recorders(accept_timeout=0.6, dial_timeout=5.0) as made:
                began = asyncio.get_running_loop().time()
                attempts = await refusal(made, one.address, two.address, three.address)
                assert [address for address, _ in attempts] == [one.address, two.address, three.address]
                assert "did not answer" in attempts[0][1] and "did not accept the session" in attempts[2][1]
                # All known to be bad: still tried, still within the limit.
                assert len(await refusal(made, one.address, two.address, three.address)) == 3
                assert asyncio.get_running_loop().time() - began < 5.0

    run(scene())


@pytest.mark.parametrize("status", [403, 404, 417, 500, 503])
def test_a_v1_recorder_that_refuses(status: int) -> None:
    async def scene() -> None:
        async with FakeRecorder() as fake, recorders() as made:
            fake.version = 1
            fake.statuses["POST"] = status
            assert await refusal(made, fake.address) == ((fake.address, f"HTTP {status} to POST /record: no"),)

    run(scene())


def test_a_v1_recorder_whose_answer_is_no_http() -> None:
    async def scene() -> None:
        async with FakeRecorder() as fake, recorders() as made:
            fake.version = 1
            fake.accepts = False
            opening = asyncio.ensure_future(made.open([fake.address]))
            await fake.until(lambda: fake.sessions)
            fake.sessions[0].connection.write(b"SSH-2.0-x\r\n\r\n")
            with pytest.raises(NoRecorder, match="does not speak HTTP"):
                await opening

    run(scene())


def test_other_interim_answers_are_no_acceptance() -> None:
    async def scene() -> None:
        async with FakeRecorder() as fake, recorders() as made:
            fake.version = 1
            fake.accepts = False
            opening = asyncio.ensure_future(made.open([fake.address]))
            await fake.until(lambda: fake.sessions)
            fake.sessions[0].connection.write(b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 10")
            await turns(10)
            assert not opening.done()
            fake.sessions[0].connection.write(b"0 Continue\r\nAsciicast-Event-Codes: e\r\n\r\n")
            assert (await opening).event_codes == {"o", "r", "e"}

    run(scene())


def test_a_v2_recorder_that_refuses() -> None:
    async def scene() -> None:
        async with FakeRecorder() as fake, recorders() as made:
            fake.statuses["POST"] = 403
            assert await refusal(made, fake.address) == ((fake.address, "HTTP 403 to POST /v2/record"),)

    run(scene())


def test_http2_without_v2_is_asked_for_v1() -> None:
    async def scene() -> None:
        async with FakeRecorder() as fake, recorders() as made:
            fake.statuses["HEAD"] = 404
            assert (await made.open([fake.address])).version == 1

    run(scene())


def test_a_port_that_closes_what_it_does_not_know_is_asked_for_v1() -> None:
    async def scene() -> None:
        calls = 0

        async def first_is_cut(host: str, port: int) -> socket.socket:
            nonlocal calls
            calls += 1
            if calls > 1:
                return await dial(host, port)
            ours, theirs = socket.socketpair()
            ours.setblocking(False)
            theirs.close()
            return ours

        async with FakeRecorder() as fake, recorders(dial=first_is_cut) as made:
            assert (await made.open([fake.address])).version == 1

    run(scene())


def test_the_version_is_remembered_and_forgotten() -> None:
    async def scene() -> None:
        now = 1000.0
        async with FakeRecorder() as fake, recorders(clock=lambda: now) as made:
            fake.version = 1
            await made.open([fake.address])
            assert fake.dials == 2
            await made.open([fake.address])
            assert fake.dials == 3 and made.describe()[0].version == 1
            now += 601.0
            fake.version = 2
            assert (await made.open([fake.address])).version == 2
            # A failure makes it ask again as well.
            fake.statuses["POST"] = 500
            await refusal(made, fake.address)
            assert made.describe()[0].version == 0

    run(scene())


def test_sessions_share_a_connection() -> None:
    async def scene() -> None:
        async with FakeRecorder() as fake, recorders() as made:
            uploads = await asyncio.gather(*(made.open([fake.address]) for _ in range(70)))
            assert (fake.dials, fake.probes) == (3, 3)  # of 32, however many came at once
            for number, upload in enumerate(uploads):
                upload.write(b"%d" % number)
            await asyncio.gather(*(upload.finish() for upload in uploads))
            assert sorted(int(session.body) for session in fake.sessions) == list(range(70))
            again = [await made.open([fake.address]) for _ in range(10)]
            assert fake.dials == 3
            for upload in again:
                upload.abort()
            assert made.describe()[0].uploads == 0

    run(scene())


def test_no_more_streams_than_the_recorder_allows() -> None:
    async def scene() -> None:
        async with FakeRecorder() as fake, recorders() as made:
            fake.settings = {SettingCodes.MAX_CONCURRENT_STREAMS: 2}
            await asyncio.gather(*(made.open([fake.address]) for _ in range(5)))
            assert fake.dials == 3
            fake.settings = {SettingCodes.MAX_CONCURRENT_STREAMS: 0}
            fake.drop()
            await fake.until(lambda: not fake.connections)
            assert await refusal(made, fake.address)

    run(scene())


def test_an_idle_connection_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("k8sproxy.recording.recorders.IDLE", 0.01)

    async def scene() -> None:
        async with FakeRecorder() as fake, recorders() as made:
            upload = await made.open([fake.address])
            await upload.finish()
            await fake.until(lambda: not fake.connections)
            assert made.describe()[0].connections == 0
            assert state(made, fake.address) == "good"
            await made.open([fake.address])

    run(scene())


def test_a_connection_that_has_had_many_streams_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("k8sproxy.recording.carriers.http2.MAX_LIFE", 3)

    async def scene() -> None:
        async with FakeRecorder() as fake, recorders() as made:
            for _ in range(6):  # and the probe: two for each connection
                await (await made.open([fake.address])).finish()
            assert fake.dials == 3
            await fake.until(lambda: not fake.connections)

    run(scene())


def test_a_session_on_a_dead_connection_tries_a_new_one() -> None:
    async def scene() -> None:
        async with FakeRecorder() as fake, recorders() as made:
            await (await made.open([fake.address])).finish()
            fake.accepts = False
            opening = asyncio.ensure_future(made.open([fake.address]))
            await fake.until(lambda: len(fake.sessions) == 2)
            fake.accepts = True
            fake.drop()
            upload = await opening
            assert fake.dials == 2 and upload.failure is None
            assert state(made, fake.address) == "good"

    run(scene())


def test_a_connection_that_says_nothing_any_more_is_left() -> None:
    async def scene() -> None:
        async with FakeRecorder() as fake, recorders(accept_timeout=1.0) as made:
            first = await made.open([fake.address])
            stuck = next(iter(fake.connections))
            stuck.transport.pause_reading()
            second = await made.open([fake.address])
            assert fake.dials == 2
            first.abort()
            second.abort()

    run(scene())


def test_order_and_health() -> None:
    async def scene() -> None:
        async with FakeRecorder() as one, FakeRecorder() as two, recorders() as made:
            addresses = [one.address, two.address]
            assert (await made.open(addresses)).recorder == one.address
            await one.stop()
            await turns()
            assert (await made.open(addresses)).recorder == two.address
            assert [state.state for state in made.describe()] == ["bad", "good"]
            await two.stop()
            await turns()
            tried = [address for address, _ in await refusal(made, *addresses)]
            assert tried == addresses
            # Both are bad: the one that is there again is found by trying.
            await two.start()
            assert (await made.open(addresses)).recorder == two.address

    run(scene())


def test_a_bad_recorder_is_found_again_in_the_background(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("k8sproxy.recording.health.FIRST_RETRY", 0.01)

    async def scene() -> None:
        async with FakeRecorder() as one, FakeRecorder() as two, recorders() as made:
            addresses = [one.address, two.address]
            await one.stop()
            assert (await made.open(addresses)).recorder == two.address
            failures = made.describe()[0].failures
            while made.describe()[0].failures < failures + 2:  # probes that fail
                await asyncio.wait((asyncio.ensure_future(asyncio.sleep(0.01)),))
            await one.start()
            await one.until(lambda: one.probes)
            while state(made, one.address) != "good":
                await turns(1)
            assert (await made.open(addresses)).recorder == one.address

    run(scene())


def test_a_v1_recorder_is_found_again_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("k8sproxy.recording.health.FIRST_RETRY", 0.01)

    async def scene() -> None:
        async with FakeRecorder() as fake, recorders() as made:
            fake.version = 1
            fake.statuses["POST"] = 503
            await refusal(made, fake.address)
            fake.statuses.clear()
            while state(made, fake.address) != "good":
                await asyncio.wait((asyncio.ensure_future(asyncio.sleep(0)),))
            await made.open([fake.address])

    run(scene())


def test_health_waits_longer_each_time() -> None:
    now = 0.0
    told: list[int] = []
    health = Health(lambda: now, lambda: told.append(1))
    health.failed("gone")
    delays = [health.retry_delay]
    for _ in range(9):
        health.failed("gone", probe=True)
        delays.append(health.retry_delay)
    assert delays == [1, 2, 4, 8, 16] + [LONGEST_RETRY] * 5
    health.answered()
    health.failed("refuses sessions")
    health.failed("refuses sessions")  # many sessions are one failure
    assert health.retry_delay == LONGEST_RETRY
    health.accepted()
    health.failed("gone")
    assert health.retry_delay == 1
    now = 7.0
    assert health.failed_ago == 7.0
    assert len(told) == 3


@pytest.mark.parametrize("version", [1, 2])
def test_one_that_has_no_place_for_this_proxy_just_now_is_well(version: int) -> None:
    async def scene() -> None:
        async with FakeRecorder() as fake, recorders() as made:
            fake.version = version
            (await made.open([fake.address])).abort()
            fake.statuses["POST"] = 429
            with pytest.raises(NoRecorder, match="HTTP 429") as caught:
                await made.open([fake.address])
            assert not caught.value.declined, "it says nothing of the user"
            (state,) = made.describe()
            assert (state.state, state.failures) == ("good", 0)

    run(scene())


def test_an_address_that_nobody_asks_for_is_forgotten() -> None:
    async def scene() -> None:
        now = 0.0
        async with FakeRecorder() as fake, recorders(clock=lambda: now) as made:
            upload = await made.open([fake.address])
            await refusal(made, "recorder:80")
            now = 10_000.0
            made._recorder("127.0.0.1:1")
            now = 20_000.0
            made._recorder("127.0.0.1:2")
            assert [state.address for state in made.describe()] == [fake.address, "127.0.0.1:2"]
            upload.abort()

    run(scene())


def test_limits_that_are_changed_hold_for_what_comes_after() -> None:
    async def scene() -> None:
        async with FakeRecorder() as fake, recorders() as made:
            fake.hang = "POST"
            made.limits.accept_timeout = 0.05
            made.limits.buffer = 10
            assert "0.05 s" in str(await refusal(made, fake.address))
            fake.hang = ""
            made.limits.accept_timeout = 5.0
            upload = await made.open([fake.address])
            upload.write(b"x" * 10)
            assert upload.blocked

    run(scene())


def test_after_aclose() -> None:
    async def scene() -> None:
        async with FakeRecorder() as fake, recorders() as made:
            v2 = await made.open([fake.address])
            fake.drop()
            fake.version = 1
            v1 = await made.open([fake.address])
            failures: list[str] = []
            v1.failed = failures.append
            await made.aclose()
            await turns()
            assert failures == ["this process is stopping"] and v2.failure
            assert "stopping" in str(await refusal(made, fake.address))

    run(scene())


async def quiet(fake: FakeRecorder) -> None:
    await fake.until(lambda: all(session.end for session in fake.sessions))


async def unconnected(fake: FakeRecorder) -> None:
    await fake.until(lambda: not fake.connections)


Opens = Callable[[Recorders, FakeRecorder], Awaitable[Upload]]


async def open_v1(made: Recorders, fake: FakeRecorder) -> Upload:
    fake.version = 1
    return await made.open([fake.address])


async def open_v2(made: Recorders, fake: FakeRecorder) -> Upload:
    return await made.open([fake.address])


async def open_v2_again(made: Recorders, fake: FakeRecorder) -> Upload:
    (await made.open([fake.address])).abort()
    return await made.open([fake.address])


async def open_after_a_refusal(made: Recorders, fake: FakeRecorder) -> Upload:
    return await made.open([f"127.0.0.1:{unused_port()}", fake.address])


@pytest.mark.parametrize("opens", [open_v1, open_v2, open_v2_again, open_after_a_refusal])
def test_a_cancel_at_any_moment_leaves_nothing(opens: Opens) -> None:
    async def scene() -> None:
        finished = False
        rounds = 0
        while not finished:
            async with FakeRecorder() as fake:
                async with recorders() as made:
                    opening = asyncio.ensure_future(opens(made, fake))
                    await turns(rounds)
                    opening.cancel()
                    try:
                        upload = await opening
                        finished = True
                        upload.abort()
                    except asyncio.CancelledError:
                        pass
                    assert all(state.uploads == 0 for state in made.describe())
                    await quiet(fake)
                await unconnected(fake)
            rounds += 1
        assert rounds > 3
        gc.collect()  # a socket that was left behind warns here

    run(scene())


@pytest.mark.parametrize("version", [1, 2])
def test_a_cancel_of_an_idle_wait_for_acceptance(version: int) -> None:
    async def scene() -> None:
        async with FakeRecorder() as fake, recorders() as made:
            fake.version = version
            fake.accepts = False
            opening = asyncio.ensure_future(made.open([fake.address]))
            await fake.until(lambda: fake.sessions)
            # Accepted and cancelled in one turn: the upload that was made has no owner, and must end.
            opening.cancel()
            fake.sessions[0].accept()
            with pytest.raises(asyncio.CancelledError):
                await opening
            await fake.until(lambda: fake.sessions[0].end)
            assert made.describe()[0].uploads == 0
            assert state(made, fake.address) != "bad"  # it is not the recorder's fault

    run(scene())


def test_a_cancel_of_one_leaves_the_connection_to_the_others() -> None:
    async def scene() -> None:
        async with FakeRecorder() as fake, recorders() as made:
            fake.hang = "HEAD"
            first = asyncio.ensure_future(made.open([fake.address]))
            second = asyncio.ensure_future(made.open([fake.address]))
            await fake.until(lambda: fake.probes)
            first.cancel()
            await turns()
            fake.hang = ""
            next(iter(fake.connections)).respond(1, 200, {}, end=True)
            assert (await second).version == 2
            assert first.cancelled() and fake.dials == 1

    run(scene())


@pytest.mark.parametrize("known", [False, True], ids=["asked for the first time", "known"])
def test_a_recorder_without_acks_is_well_and_not_used_where_they_are_needed(known: bool) -> None:
    async def scene() -> None:
        async with FakeRecorder() as first, FakeRecorder() as second, recorders() as made:
            first.version = 1
            if known:
                (await made.open([first.address])).abort()
            upload = await made.open([first.address, second.address], acks=True)
            assert upload.recorder == second.address
            upload.abort()
            with pytest.raises(NoRecorder, match="confirms nothing before a session's end"):
                await made.open([first.address], acks=True)
            assert {state.address: state.state for state in made.describe()}[first.address] != "bad"
            upload = await made.open([first.address])
            assert upload.version == 1
            upload.abort()

    run(scene())
