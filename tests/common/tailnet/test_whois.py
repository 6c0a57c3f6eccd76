"""What is kept of WhoIs' answers, for whom and for how long; written as whoever wants to be somebody else."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k8sproxy.common.errors import Refusal
from k8sproxy.common.tailnet.localapi import LocalAPI
from k8sproxy.common.tailnet.peer import Peer
from k8sproxy.common.tailnet.whois import PORTS, SLOW, ClientKey, WhoIs, _Lane
from standins.tailscaled import FakeTailscaled, user_whois
from tests.common.tailnet.leakless import run

ANA = Peer("100.64.0.7", "n-ana", "laptop.", login_name="ana@example.com", capabilities={"x": (1,)})
BEN = Peer("100.64.0.8", "n-ben", "desktop.", login_name="ben@example.com")

LAPTOP = "100.64.0.7"
LOOPBACK = "127.0.0.1"

UNKNOWN = Refusal(403, "peer_unknown", "nobody")
AWAY = Refusal(503, "whois_unavailable", "gone", retry_after=1)


class Daemon(LocalAPI):
    """Questions wait until the test answers them, unless `now` is an answer already."""

    def __init__(self, now: Peer | Exception | None = None) -> None:
        super().__init__("/nonexistent")
        self.now = now
        self.asked: list[str] = []
        self.aspects: list[tuple[str | None, str | None]] = []
        self.open: list[asyncio.Future[Peer]] = []

    async def whois(self, address: str, *, service: str | None = None, destination: str | None = None) -> Peer:
        self.asked.append(address)
        self.aspects.append((service, destination))
        if isinstance(self.now, Exception):
            raise self.now
        if self.now is not None:
            return self.now
        future: asyncio.Future[Peer] = asyncio.get_running_loop().create_future()
        self.open.append(future)
        try:
            return await future
        finally:
            self.open.remove(future)

    def answer(self, answer: Peer | Exception, which: int = 0) -> None:
        if isinstance(answer, Exception):
            self.open[which].set_exception(answer)
        else:
            self.open[which].set_result(answer)


class Clock:
    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


Script = Callable[[Daemon, WhoIs, Clock], Awaitable[None]]


def play(script: Script, now: Peer | Exception | None = None, **options: Any) -> None:
    async def scene() -> None:
        daemon, clock = Daemon(now), Clock()
        whois = WhoIs(daemon, clock=clock, **options)
        try:
            await script(daemon, whois, clock)
        finally:
            await whois.aclose()
        assert not whois._questions and not whois._tasks and not daemon.open

    run(scene())


async def settle() -> None:
    """Lets everything that can go on do so."""
    for _ in range(10):
        await asyncio.sleep(0)


def start(whois: WhoIs, key: ClientKey) -> asyncio.Task[Peer]:
    return asyncio.ensure_future(whois.ask(key))


async def refused(question: Awaitable[Peer], cause: str) -> Refusal:
    with pytest.raises(Refusal) as caught:
        await question
    assert caught.value.cause == cause
    return caught.value


# --- what is kept, and how long


def test_an_answer_is_kept_for_its_time() -> None:
    async def script(daemon: Daemon, whois: WhoIs, clock: Clock) -> None:
        key = whois.open(LAPTOP, 40001)
        assert whois.cached(key) is None
        assert await whois.ask(key) is ANA
        clock.time += 9.999
        assert whois.cached(key) is ANA
        assert await whois.ask(key) is ANA
        assert daemon.asked == ["100.64.0.7:0"]
        clock.time += 0.001
        assert whois.cached(key) is None
        await whois.ask(key)
        assert len(daemon.asked) == 2
        assert (whois.hits, whois.misses, whois.failures) == (2, 2, {})

    play(script, ANA)


def test_its_time_begins_with_the_question() -> None:
    async def script(daemon: Daemon, whois: WhoIs, clock: Clock) -> None:
        key = whois.open(LAPTOP, 40001)
        task = start(whois, key)
        await settle()
        clock.time += 4
        daemon.answer(ANA)
        await task
        clock.time += 6
        assert whois.cached(key) is None

    play(script)


def test_no_time_at_all() -> None:
    async def script(daemon: Daemon, whois: WhoIs, clock: Clock) -> None:
        key = whois.open(LAPTOP, 40001)
        assert await whois.ask(key) is ANA
        assert await whois.ask(key) is ANA
        assert len(daemon.asked) == 2 and whois.hits == 0

    play(script, ANA, ttl=0.0)


def test_all_connections_of_a_tailnet_address_share_an_answer() -> None:
    async def script(daemon: Daemon, whois: WhoIs, clock: Clock) -> None:
        first, second = whois.open(LAPTOP, 40001), whois.open("::ffff:100.64.0.7", 40002)
        await whois.ask(first)
        assert whois.cached(second) is ANA
        whois.close(first)
        whois.close(first)
        assert whois.cached(second) is ANA
        assert await whois.ask(whois.open(LAPTOP, 40001)) is ANA
        assert len(daemon.asked) == 1

    play(script, ANA)


def test_what_a_peer_may_do_to_a_service_is_another_answer() -> None:
    async def script(daemon: Daemon, whois: WhoIs, clock: Clock) -> None:
        await whois.ask(whois.open(LAPTOP, 1))
        assert whois.cached(whois.open(LAPTOP, 1, service="svc:k8s")) is None
        await whois.ask(whois.open(LAPTOP, 1, service="svc:k8s"))
        assert whois.cached(whois.open(LAPTOP, 1, service="svc:other")) is None
        await whois.ask(whois.open(LAPTOP, 1, destination="100.100.9.9"))
        assert daemon.aspects == [(None, None), ("svc:k8s", None), (None, "100.100.9.9")]

    play(script, ANA)


@pytest.mark.parametrize(
    ("ip", "shared"),
    [
        ("100.64.0.0", True),
        ("100.127.255.255", True),
        ("::ffff:100.64.0.7", True),
        ("fd7a:115c:a1e0::7", True),
        ("FD7A:115C:A1E0:0::7", True),
        ("100.63.255.255", False),
        ("100.128.0.0", False),
        ("fd7a:115c:a1e1::7", False),
        ("192.168.1.5", False),  # a userspace subnet router's own address
        ("127.0.0.1", False),
        ("127.8.9.10", False),
        ("::1", False),
        ("::ffff:127.0.0.1", False),
        ("fe80::1%eth0", False),
    ],
)
def test_which_addresses_share_an_answer(ip: str, shared: bool) -> None:
    whois = WhoIs(Daemon())
    first, second = whois.open(ip, 40001), whois.open(ip, 40001)
    assert first.shared is shared
    assert (first.text == second.text) is shared
    assert first.address.endswith(":0" if shared else ":40001")


@pytest.mark.parametrize("ip", ["", "laptop", "100.64.0.7:1", "0x7f.1", "100.64.0.07", "@"])
def test_what_has_no_address_has_no_peer(ip: str) -> None:
    with pytest.raises(Refusal) as caught:
        WhoIs(Daemon()).open(ip, 1)
    assert caught.value.cause == "peer_unknown"


def test_an_equal_answer_is_the_same_peer() -> None:
    async def script(daemon: Daemon, whois: WhoIs, clock: Clock) -> None:
        key = whois.open(LAPTOP, 1)
        first = await whois.ask(key)
        clock.time += 60
        daemon.now = Peer("100.64.0.7", "n-ana", "laptop.", login_name="ana@example.com", capabilities={"x": (1,)})
        assert daemon.now is not first
        assert await whois.ask(key) is first
        whois.invalidate()
        assert await whois.ask(key) is first

    play(script, ANA)


@pytest.mark.parametrize("value", [True, 1.0, 2, "1", None])
def test_an_answer_that_python_alone_calls_equal_is_another_peer(value: object) -> None:
    async def script(daemon: Daemon, whois: WhoIs, clock: Clock) -> None:
        key = whois.open(LAPTOP, 1)
        await whois.ask(key)
        clock.time += 60
        daemon.now = changed = Peer(
            "100.64.0.7", "n-ana", "laptop.", login_name="ana@example.com", capabilities={"x": (value,)}
        )
        assert await whois.ask(key) is changed

    play(script, ANA)


def test_only_so_many_are_kept() -> None:
    async def script(daemon: Daemon, whois: WhoIs, clock: Clock) -> None:
        keys = [whois.open(f"100.64.1.{n}", 1) for n in range(4)]
        for key in keys[:3]:
            await whois.ask(key)
        whois.invalidate()
        await whois.ask(keys[0])  # heard of again, so no longer the oldest
        await whois.ask(keys[3])
        assert set(whois._kept) == {"100.64.1.0", "100.64.1.2", "100.64.1.3"}
        assert whois.cached(keys[0]) is not None and whois.cached(keys[1]) is None

    play(script, ANA, max_kept=3)


# --- refusals


@pytest.mark.parametrize("refusal", [UNKNOWN, AWAY])
def test_a_refusal_is_not_kept(refusal: Refusal) -> None:
    async def script(daemon: Daemon, whois: WhoIs, clock: Clock) -> None:
        key = whois.open(LAPTOP, 1)
        for _ in range(2):
            again = await refused(whois.ask(key), refusal.cause)
            assert (again.status, again.message, again.retry_after) == (
                refusal.status,
                refusal.message,
                refusal.retry_after,
            )
        assert whois.failures == {refusal.cause: 2} and whois.misses == 2
        daemon.now = ANA
        assert await whois.ask(key) is ANA

    play(script, refusal)


def test_an_old_answer_does_not_stand_in_for_a_daemon_that_is_gone() -> None:
    async def script(daemon: Daemon, whois: WhoIs, clock: Clock) -> None:
        key = whois.open(LAPTOP, 1)
        await whois.ask(key)
        clock.time += 10
        daemon.now = AWAY
        await refused(whois.ask(key), "whois_unavailable")
        assert whois.cached(key) is None

    play(script, ANA)


def test_those_who_wait_for_one_question_get_a_refusal_each() -> None:
    async def script(daemon: Daemon, whois: WhoIs, clock: Clock) -> None:
        key = whois.open(LAPTOP, 1)
        tasks = [start(whois, key) for _ in range(3)]
        await settle()
        daemon.answer(AWAY)
        refusals = {id(await refused(task, "whois_unavailable")) for task in tasks}
        assert len(refusals) == 3 and whois.failures == {"whois_unavailable": 1}

    play(script)


def test_a_fault_of_our_own_is_a_refusal() -> None:
    async def script(daemon: Daemon, whois: WhoIs, clock: Clock) -> None:
        await refused(whois.ask(whois.open(LAPTOP, 1)), "whois_malformed")

    play(script, KeyError("x"))


# --- one question at a time


def test_one_question_for_all_who_ask() -> None:
    async def script(daemon: Daemon, whois: WhoIs, clock: Clock) -> None:
        tasks = [start(whois, whois.open(LAPTOP, port)) for port in range(50)]
        await settle()
        assert len(daemon.asked) == 1
        daemon.answer(ANA)
        assert [await task for task in tasks] == [ANA] * 50
        assert whois.misses == 1

    play(script)


def test_who_leaves_does_not_take_the_question_along() -> None:
    async def script(daemon: Daemon, whois: WhoIs, clock: Clock) -> None:
        key = whois.open(LAPTOP, 1)
        first, second = start(whois, key), start(whois, key)
        await settle()
        first.cancel()
        await settle()
        assert first.cancelled() and len(daemon.open) == 1
        daemon.answer(ANA)
        assert await second is ANA

    play(script)


def test_when_all_have_left_the_answer_is_kept_all_the_same() -> None:
    async def script(daemon: Daemon, whois: WhoIs, clock: Clock) -> None:
        key = whois.open(LAPTOP, 1)
        task = start(whois, key)
        await settle()
        task.cancel()
        await settle()
        daemon.answer(ANA)
        await settle()
        assert whois.cached(key) is ANA

    play(script)


@pytest.mark.parametrize("turns", range(6))
def test_a_cancel_at_any_turn_leaves_nothing(turns: int) -> None:
    async def script(daemon: Daemon, whois: WhoIs, clock: Clock) -> None:
        key = whois.open(LAPTOP, 1)
        task = start(whois, key)
        for turn in range(turns):
            await asyncio.sleep(0)
            if turn == 2:
                daemon.answer(ANA)
        task.cancel()
        await asyncio.wait((task,))
        # `play` looks for what is left behind

    play(script)


def test_the_end_refuses_those_who_wait() -> None:
    async def script(daemon: Daemon, whois: WhoIs, clock: Clock) -> None:
        task = start(whois, whois.open(LAPTOP, 1))
        await settle()
        await whois.aclose()
        await refused(task, "whois_unavailable")

    play(script)


# --- changes


def test_a_change_makes_everything_stale() -> None:
    async def script(daemon: Daemon, whois: WhoIs, clock: Clock) -> None:
        keys = [whois.open(LAPTOP, 1), whois.open("100.64.0.8", 1), whois.open(LOOPBACK, 1)]
        for key in keys:
            await whois.ask(key)
        before = whois.generation
        whois.invalidate()
        assert whois.generation == before + 1
        assert [whois.cached(key) for key in keys] == [None, None, None]

    play(script, ANA)


def test_who_asks_after_a_change_does_not_get_an_answer_from_before() -> None:
    async def script(daemon: Daemon, whois: WhoIs, clock: Clock) -> None:
        key = whois.open(LAPTOP, 1)
        early = start(whois, key)
        await settle()
        whois.invalidate()
        late = [start(whois, key), start(whois, key)]
        await settle()
        assert len(daemon.open) == 1  # still one in flight
        daemon.answer(ANA)
        await settle()
        assert await early is ANA
        assert whois.cached(key) is None  # not kept: it may be from before the change
        assert not any(task.done() for task in late) and len(daemon.asked) == 2
        daemon.answer(BEN)
        assert [await task for task in late] == [BEN, BEN]
        assert whois.cached(key) is BEN and len(daemon.asked) == 2

    play(script)


def test_changes_without_end_do_not_keep_anybody_waiting_without_end() -> None:
    async def script(daemon: Daemon, whois: WhoIs, clock: Clock) -> None:
        key = whois.open(LAPTOP, 1)
        start(whois, key).add_done_callback(lambda task: task.result())
        await settle()
        whois.invalidate()
        late = start(whois, key)
        await settle()
        daemon.answer(ANA)
        await settle()
        whois.invalidate()  # while the second question is in flight
        daemon.answer(ANA)
        assert await late == ANA and len(daemon.asked) == 2

    play(script)


def test_waiting_for_a_change() -> None:
    async def script(daemon: Daemon, whois: WhoIs, clock: Clock) -> None:
        waiting = [asyncio.ensure_future(whois.wait_changed(whois.generation)) for _ in range(2)]
        await settle()
        assert not any(task.done() for task in waiting)
        whois.invalidate()
        assert [await task for task in waiting] == [1, 1]
        assert await whois.wait_changed(0) == 1

    play(script)


# --- loopback: a port is not a person


def test_a_new_connection_from_a_port_does_not_see_the_answer_of_the_old() -> None:
    async def script(daemon: Daemon, whois: WhoIs, clock: Clock) -> None:
        old = whois.open(LOOPBACK, 50000)
        assert await whois.ask(old) is ANA
        whois.close(old)
        new = whois.open(LOOPBACK, 50000)
        assert whois.cached(new) is None
        daemon.now = BEN
        assert await whois.ask(new) is BEN
        assert whois.cached(old) is None

    play(script, ANA)


def test_not_even_if_the_old_one_has_not_been_closed_yet() -> None:
    async def script(daemon: Daemon, whois: WhoIs, clock: Clock) -> None:
        old = whois.open(LOOPBACK, 50000)
        await whois.ask(old)
        new = whois.open(LOOPBACK, 50000)
        assert whois.cached(new) is None
        daemon.now = BEN
        assert await whois.ask(new) is BEN
        assert whois.cached(old) is ANA
        whois.close(old)
        assert whois.cached(new) is BEN

    play(script, ANA)


def test_nor_if_the_question_of_the_old_one_is_still_in_flight() -> None:
    async def script(daemon: Daemon, whois: WhoIs, clock: Clock) -> None:
        old = whois.open(LOOPBACK, 50000)
        waiting = start(whois, old)
        await settle()
        whois.close(old)
        new = whois.open(LOOPBACK, 50000)
        asking = start(whois, new)
        await settle()
        await refused(waiting, "whois_unavailable")
        daemon.answer(BEN)
        assert await asking is BEN and len(daemon.asked) == 2
        await refused(whois.ask(old), "whois_unavailable")
        assert len(daemon.asked) == 2

    play(script)


def test_nor_if_its_answer_has_come_but_has_not_been_read() -> None:
    async def script(daemon: Daemon, whois: WhoIs, clock: Clock) -> None:
        old = whois.open(LOOPBACK, 50000)
        waiting = start(whois, old)
        await settle()
        daemon.answer(ANA)
        whois.close(old)  # in the same turn
        new = whois.open(LOOPBACK, 50000)
        await refused(waiting, "whois_unavailable")
        assert whois.cached(old) is None and whois.cached(new) is None and not whois._kept

    play(script)


@pytest.mark.parametrize("turns", range(8))
def test_a_close_at_any_turn_keeps_nothing(turns: int) -> None:
    async def script(daemon: Daemon, whois: WhoIs, clock: Clock) -> None:
        key = whois.open(LOOPBACK, 50000)
        task = start(whois, key)
        for turn in range(turns):
            await asyncio.sleep(0)
            if turn == 3:
                daemon.answer(ANA)
        whois.close(key)
        await asyncio.wait((task,))
        await settle()
        assert whois.cached(key) is None and not whois._kept

    play(script)


def test_a_connection_does_not_become_somebody_else() -> None:
    """Ben holds a connection from a port and waits for the daemon to give that port to Ana."""

    async def script(daemon: Daemon, whois: WhoIs, clock: Clock) -> None:
        key = whois.open(LOOPBACK, 50000)
        await whois.ask(key)
        clock.time += 10
        daemon.now = ANA
        refusal = await refused(whois.ask(key), "peer_changed")
        assert refusal.status == 403 and refusal.close
        assert whois.cached(key) is None and whois.failures == {"peer_changed": 1}
        daemon.now = BEN  # and nobody knows any more whose the connection is
        await refused(whois.ask(key), "peer_changed")

    play(script, BEN)


def test_its_node_may_change_what_it_is() -> None:
    async def script(daemon: Daemon, whois: WhoIs, clock: Clock) -> None:
        key = whois.open(LOOPBACK, 50000)
        await whois.ask(key)
        clock.time += 10
        daemon.now = UNKNOWN
        await refused(whois.ask(key), "peer_unknown")
        daemon.now = Peer("100.64.0.7", "n-ana", "laptop.", tags=("tag:ci",))
        assert await whois.ask(key) is daemon.now

    play(script, ANA)


def test_a_tailnet_address_may_go_to_another_node() -> None:
    async def script(daemon: Daemon, whois: WhoIs, clock: Clock) -> None:
        key = whois.open(LAPTOP, 1)
        await whois.ask(key)
        clock.time += 10
        daemon.now = BEN
        assert await whois.ask(key) is BEN

    play(script, ANA)


Step = tuple[str, int]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["open", "close", "ask", "answer", "change", "later"]),
            st.integers(0, 5),
        ),
        max_size=40,
    )
)
def test_whatever_happens_a_connection_is_only_ever_its_own_peer(steps: list[Step]) -> None:
    """Connections come and go on one port; each asks as it likes, and answers come late or never.

    The daemon answers for the connection that had the port when it was asked; nobody may see another's answer."""

    async def script(daemon: Daemon, whois: WhoIs, clock: Clock) -> None:
        keys: list[ClientKey] = []
        tasks: list[tuple[int, asyncio.Task[Peer]]] = []
        pending: list[tuple[asyncio.Future[Peer], int]] = []

        def owner_of_new_questions() -> None:
            known = {id(future) for future, _ in pending}
            pending.extend((future, len(keys) - 1) for future in daemon.open if id(future) not in known)

        for step, number in steps:
            if step == "open":
                if keys:
                    whois.close(keys[-1])
                keys.append(whois.open(LOOPBACK, 50000))
            elif step == "close" and keys:
                whois.close(keys[number % len(keys)])
            elif step == "ask" and keys:
                tasks.append((len(keys) - 1, start(whois, keys[-1])))
            elif step == "answer" and pending:
                future, owner = pending.pop(number % len(pending))
                if not future.done():
                    future.set_result(Peer("100.64.0.1", f"n{owner}", "x."))
            elif step == "change":
                whois.invalidate()
            elif step == "later":
                clock.time += 3 * number
            await settle()
            owner_of_new_questions()
            for index, key in enumerate(keys):
                peer = whois.cached(key)
                assert peer is None or peer.stable_id == f"n{index}"
        for key in keys:
            whois.close(key)
        for index, task in tasks:
            await asyncio.wait((task,))
            if task.exception() is None:
                assert task.result().stable_id == f"n{index}"
        assert not whois._kept

    play(script)


# --- forged PROXY headers


def test_a_direct_peer_that_the_daemon_knows() -> None:
    async def script(daemon: Daemon, whois: WhoIs, clock: Clock) -> None:
        assert await whois.resolves(LOOPBACK, 50000) is True
        daemon.now = UNKNOWN
        assert await whois.resolves(LOOPBACK, 50000) is False
        daemon.now = ANA
        assert await whois.resolves("::ffff:127.0.0.1", 50000) is True
        assert daemon.asked == ["127.0.0.1:50000"] * 3  # with the port, and asked every time
        assert whois.failures == {} and whois.misses == 3

    play(script, ANA)


@pytest.mark.parametrize(
    "cause", ["whois_denied", "whois_unavailable", "whois_timeout", "whois_malformed", "something_new"]
)
def test_a_direct_peer_of_whom_the_daemon_cannot_say(cause: str) -> None:
    async def script(daemon: Daemon, whois: WhoIs, clock: Clock) -> None:
        with pytest.raises(Refusal) as caught:
            await whois.resolves(LOOPBACK, 50000)
        assert caught.value.cause == cause and whois.failures == {cause: 1}

    play(script, Refusal(503, cause, "no word"))


def test_a_daemon_without_whois_does_not_say_that_nobody_is_there(tmp_path: Path) -> None:
    async def scene() -> None:
        async with FakeTailscaled(tmp_path / "sock") as daemon:
            api = LocalAPI(daemon.path)
            whois = WhoIs(api)
            assert await whois.resolves(LOOPBACK, 50000) is False
            daemon.peers = {"127.0.0.1:50000": user_whois("ana@example.com", "laptop", LAPTOP)}
            assert await whois.resolves(LOOPBACK, 50000) is True
            daemon.faults["whois"] = "missing"
            with pytest.raises(Refusal):
                await whois.resolves(LOOPBACK, 50000)
            await api.aclose()

    run(scene())


def test_over_the_socket(tmp_path: Path) -> None:
    async def scene() -> None:
        async with FakeTailscaled(tmp_path / "sock") as daemon:
            daemon.peers = {LAPTOP: user_whois("ana@example.com", "laptop", LAPTOP)}
            api = LocalAPI(daemon.path)
            whois = WhoIs(api)
            key = whois.open(LAPTOP, 1)
            peers = await asyncio.gather(*(whois.ask(key) for _ in range(20)))
            assert {peer.login_name for peer in peers} == {"ana@example.com"}
            assert daemon.asked["whois"] == 1
            await daemon.stop()
            assert whois.cached(key) is peers[0]
            whois.invalidate()
            await refused(whois.ask(key), "whois_unavailable")
            await whois.aclose()
            await api.aclose()

    run(scene())


# --- storms


def test_a_storm_of_slow_questions_leaves_room_for_others() -> None:
    """256 new connections to a PROXY listener on 127.0.0.1: each needs a question that takes the daemon 180 ms."""

    async def script(daemon: Daemon, whois: WhoIs, clock: Clock) -> None:
        storm = [asyncio.ensure_future(whois.resolves(LOOPBACK, 30000 + number)) for number in range(256)]
        ports = [whois.open(LOOPBACK, 20000 + number) for number in range(100)]
        asking = [asyncio.ensure_future(whois.ask(key)) for key in ports]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert len(daemon.open) == SLOW + PORTS
        key = whois.open(LAPTOP, 1)
        peer = asyncio.ensure_future(whois.ask(key))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert daemon.asked[-1] == "100.64.0.7:0"
        daemon.answer(ANA, len(daemon.open) - 1)
        assert await peer == ANA and not any(question.done() for question in storm + asking)
        answered = 0
        while daemon.open:
            assert len(daemon.open) <= SLOW + PORTS
            daemon.answer(UNKNOWN)
            answered += 1
            for _ in range(5):
                await asyncio.sleep(0)
        assert answered == 356
        assert [await question for question in storm] == [False] * 256
        outcomes = await asyncio.gather(*asking, return_exceptions=True)
        assert {outcome.cause for outcome in outcomes if isinstance(outcome, Refusal)} == {"peer_unknown"}

    play(script)


def test_who_leaves_the_lane_takes_no_place_in_it() -> None:
    async def script(daemon: Daemon, whois: WhoIs, clock: Clock) -> None:
        storm = [asyncio.ensure_future(whois.resolves(LOOPBACK, 30000 + number)) for number in range(10)]
        keys = [whois.open(LOOPBACK, 20000 + number) for number in range(10)]
        asking = [asyncio.ensure_future(whois.ask(key)) for key in keys]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        for question in storm:
            question.cancel()
        for key in keys:
            whois.close(key)
        await asyncio.gather(*storm, *asking, return_exceptions=True)
        assert not daemon.open
        daemon.now = ANA
        assert await whois.resolves(LOOPBACK, 1) is True
        assert await whois.ask(whois.open(LOOPBACK, 2)) == ANA

    play(script)


def test_a_question_that_gets_no_place_is_refused() -> None:
    async def script(daemon: Daemon, whois: WhoIs, clock: Clock) -> None:
        daemon.timeout = 0.01  # of the wait for a place; the daemon of this test has no limit of its own
        asking = [asyncio.ensure_future(whois.ask(whois.open(LOOPBACK, 20000 + number))) for number in range(PORTS + 1)]
        with pytest.raises(Refusal) as caught:
            await asking[-1]
        assert (caught.value.status, caught.value.cause) == (503, "whois_timeout")
        while daemon.open:
            daemon.answer(ANA)
            await asyncio.sleep(0)
        assert await asyncio.gather(*asking[:-1]) == [ANA] * PORTS

    play(script)


def test_what_is_asked_again_waits_in_its_owners_row() -> None:
    """A user has a hundred connections behind a userspace daemon, and something changes on the tailnet."""

    async def script(daemon: Daemon, whois: WhoIs, clock: Clock) -> None:
        daemon.now = ANA
        many = [whois.open(LOOPBACK, 20000 + number) for number in range(100)]
        await asyncio.gather(*map(whois.ask, many))
        daemon.now = BEN
        one = whois.open(LOOPBACK, 30000)
        assert await whois.ask(one) == BEN
        daemon.now = None
        whois.invalidate()
        first = len(daemon.asked)
        asking = [start(whois, key) for key in many]
        await settle()
        other = start(whois, one)
        await settle()
        answered = 0
        while daemon.open:
            daemon.answer(BEN if daemon.asked[first + answered] == one.address else ANA)
            answered += 1
            await settle()
        assert daemon.asked[first:].index(one.address) <= PORTS + 1, "not behind the hundred"
        assert await other == BEN and await asyncio.gather(*asking) == [ANA] * 100
        assert whois._ports._free == PORTS and not whois._ports._rows

    play(script)


def test_who_leaves_an_owners_row_gives_its_place_on() -> None:
    async def script(daemon: Daemon, whois: WhoIs, clock: Clock) -> None:
        lane = _Lane(1)
        await lane.acquire("a")
        waiting = [asyncio.ensure_future(lane.acquire(owner)) for owner in ("a", "a", "b")]
        await settle()
        lane.release()
        waiting[0].cancel()  # it has been given the place, and has not woken
        waiting[1].cancel()
        await settle()
        assert [task.cancelled() for task in waiting] == [True, True, False] and waiting[2].done()
        lane.release()
        await lane.acquire("a")
        lane.release()
        assert not lane._rows

    play(script)
