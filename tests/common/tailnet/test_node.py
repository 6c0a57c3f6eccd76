"""The node's own addresses and certificate, as they change and as they can't be had."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from k8sproxy.common.errors import Refusal
from k8sproxy.common.tailnet.bus import Bus
from k8sproxy.common.tailnet.localapi import LocalAPI
from k8sproxy.common.tailnet.node import (
    BACKOFF_FIRST,
    BACKOFF_MOST_WITHOUT,
    CERTIFICATE_INTERVAL,
    TailnetAddresses,
    TailnetCertificate,
)
from standins.tailscaled import FakeTailscaled, make_certificate
from tests.common.tailnet.leakless import run

NAME = "k8s.tail1234.ts.net"
START = datetime.datetime(2026, 3, 1, tzinfo=datetime.UTC)
DAY = 86400.0


class Clock:
    def __init__(self) -> None:
        self.time = START.timestamp()

    def __call__(self) -> float:
        return self.time

    @property
    def now(self) -> datetime.datetime:
        return datetime.datetime.fromtimestamp(self.time, datetime.UTC)


class Sleeps:
    """Lets a background loop go round until it has slept as often as told, then for ever."""

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds
        self.seconds: list[float] = []
        self.over = asyncio.Event()

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)
        if len(self.seconds) >= self.rounds:
            self.over.set()
            await asyncio.Event().wait()
        await asyncio.sleep(0)


Scene = Callable[[FakeTailscaled, LocalAPI, Clock], Awaitable[None]]


def play(path: Path, scene: Scene) -> None:
    async def main() -> None:
        clock = Clock()
        async with FakeTailscaled(path / "sock") as daemon:
            daemon.renew = lambda domain, min_validity: make_certificate(domain, clock.now)
            api = LocalAPI(daemon.path)
            await scene(daemon, api, clock)
            await api.aclose()

    run(main())


async def stop(task: asyncio.Future[Any]) -> None:
    task.cancel()
    await asyncio.wait((task,))
    assert task.cancelled()


async def refused(question: Awaitable[None], cause: str) -> str:
    with pytest.raises(Refusal) as caught:
        await question
    assert (caught.value.status, caught.value.cause) == (503, cause)
    return caught.value.message


# --- addresses


def test_addresses_and_their_changes(tmp_path: Path) -> None:
    async def scene(daemon: FakeTailscaled, api: LocalAPI, clock: Clock) -> None:
        bus = Bus(api)
        addresses = TailnetAddresses(api, bus)
        assert not addresses.current
        running = asyncio.ensure_future(addresses.run())
        seen = await addresses.wait_changed(0)
        assert addresses.current == ("100.100.1.2", "fd7a:115c:a1e0::2")
        daemon.addresses = ["100.100.1.3"]
        bus.bump()
        await addresses.wait_changed(seen)
        assert list(addresses.current) == ["100.100.1.3"] and addresses.error is None
        await stop(running)

    play(tmp_path, scene)


def test_addresses_are_looked_at_even_if_the_bus_is_silent(tmp_path: Path) -> None:
    async def scene(daemon: FakeTailscaled, api: LocalAPI, clock: Clock) -> None:
        addresses = TailnetAddresses(api, Bus(api), interval=0.01)
        running = asyncio.ensure_future(addresses.run())
        await daemon.until(lambda: daemon.asked["status"] >= 3)
        assert addresses.generation == 1  # the same addresses are no change
        await stop(running)

    play(tmp_path, scene)


@pytest.mark.parametrize("state", ["NoState", "NeedsLogin", "Starting", "Stopped"])
def test_a_daemon_that_is_not_connected_takes_no_address_away(tmp_path: Path, state: str) -> None:
    async def scene(daemon: FakeTailscaled, api: LocalAPI, clock: Clock) -> None:
        addresses = TailnetAddresses(api, Bus(api))
        await addresses.refresh()
        daemon.backend_state, daemon.addresses = state, []
        assert state in await refused(addresses.refresh(), "localapi_unavailable")
        await daemon.stop()
        await refused(addresses.refresh(), "localapi_unavailable")
        assert addresses.current == ("100.100.1.2", "fd7a:115c:a1e0::2") and addresses.generation == 1

    play(tmp_path, scene)


def test_addresses_of_a_daemon_that_comes_late(tmp_path: Path) -> None:
    async def scene(daemon: FakeTailscaled, api: LocalAPI, clock: Clock) -> None:
        daemon.backend_state = "Starting"
        bus = Bus(api)
        addresses = TailnetAddresses(api, bus)
        running = asyncio.ensure_future(addresses.run())
        await daemon.until(lambda: daemon.asked["status"] == 1)
        daemon.backend_state = "Running"
        bus.bump()
        await addresses.wait_changed(0)
        assert addresses.current == ("100.100.1.2", "fd7a:115c:a1e0::2") and daemon.asked["status"] == 2
        await stop(running)

    play(tmp_path, scene)


# --- certificate


def test_a_certificate_is_fetched_once_and_kept(tmp_path: Path) -> None:
    async def scene(daemon: FakeTailscaled, api: LocalAPI, clock: Clock) -> None:
        certificate = TailnetCertificate(api, clock=clock)
        assert certificate.pair is None
        await certificate.refresh()
        assert certificate.pair is not None
        assert (certificate.pair.key_pem, certificate.pair.chain_pem) == daemon.certificates[NAME]
        assert certificate.domain == NAME
        assert certificate.not_after == START + datetime.timedelta(days=90)
        clock.time += 59 * DAY
        await certificate.refresh()
        assert daemon.asked["cert"] == 1 and certificate.generation == 1

    play(tmp_path, scene)


def test_it_is_renewed_before_a_third_of_its_life_is_left(tmp_path: Path) -> None:
    async def scene(daemon: FakeTailscaled, api: LocalAPI, clock: Clock) -> None:
        certificate = TailnetCertificate(api, clock=clock)
        await certificate.refresh()
        before = certificate.pair
        clock.time += 60 * DAY
        await certificate.refresh()
        assert daemon.queries[-1][1]["min_validity"] == f"{30 * 86400}s"
        assert certificate.pair != before and certificate.generation == 2
        assert certificate.not_after == START + datetime.timedelta(days=150)

    play(tmp_path, scene)


def test_an_old_one_in_the_daemons_store_is_served_while_a_new_one_is_made(tmp_path: Path) -> None:
    async def scene(daemon: FakeTailscaled, api: LocalAPI, clock: Clock) -> None:
        daemon.certificates[NAME] = old = make_certificate(NAME, START - datetime.timedelta(days=80))
        daemon.renew = lambda domain, min_validity: daemon.certificates[domain]
        certificate = TailnetCertificate(api, clock=clock)
        await refused(certificate.refresh(), "certificate_malformed")
        assert certificate.pair is not None and certificate.pair.chain_pem == old[1]
        daemon.renew = lambda domain, min_validity: make_certificate(domain, clock.now)
        await certificate.refresh()
        assert certificate.pair.chain_pem != old[1] and certificate.generation == 2

    play(tmp_path, scene)


@pytest.mark.parametrize("fault", ["failing", "busy", "denied", "garbage", "close"])
def test_a_renewal_that_fails_leaves_what_there_is(tmp_path: Path, fault: str) -> None:
    async def scene(daemon: FakeTailscaled, api: LocalAPI, clock: Clock) -> None:
        certificate = TailnetCertificate(api, clock=clock)
        await certificate.refresh()
        before = certificate.pair
        clock.time += 60 * DAY
        daemon.faults["cert"] = fault
        with pytest.raises(Refusal):
            await certificate.refresh()
        assert certificate.pair is before and certificate.generation == 1
        del daemon.faults["cert"]
        await certificate.refresh()
        assert certificate.generation == 2

    play(tmp_path, scene)


def test_a_node_that_is_renamed(tmp_path: Path) -> None:
    async def scene(daemon: FakeTailscaled, api: LocalAPI, clock: Clock) -> None:
        certificate = TailnetCertificate(api, clock=clock)
        await certificate.refresh()
        daemon.name, daemon.cert_domains = "new.tail1234.ts.net.", ["other.tail1234.ts.net", "new.tail1234.ts.net"]
        await certificate.refresh()
        assert certificate.domain == "new.tail1234.ts.net" and certificate.generation == 2

    play(tmp_path, scene)


def test_a_node_whose_own_name_has_no_certificate_takes_the_first_that_has(tmp_path: Path) -> None:
    async def scene(daemon: FakeTailscaled, api: LocalAPI, clock: Clock) -> None:
        daemon.cert_domains = ["other.tail1234.ts.net"]
        certificate = TailnetCertificate(api, clock=clock)
        await certificate.refresh()
        assert certificate.domain == "other.tail1234.ts.net"

    play(tmp_path, scene)


def test_a_tailnet_without_certificates(tmp_path: Path) -> None:
    async def scene(daemon: FakeTailscaled, api: LocalAPI, clock: Clock) -> None:
        daemon.cert_domains = None
        message = await refused(TailnetCertificate(api, clock=clock).refresh(), "certificate_disabled")
        assert "enable HTTPS" in message
        assert daemon.asked["cert"] == 0

    play(tmp_path, scene)


def test_what_is_no_certificate_to_serve(tmp_path: Path) -> None:
    async def scene(daemon: FakeTailscaled, api: LocalAPI, clock: Clock) -> None:
        key, chain = make_certificate(NAME, START)
        other, _ = make_certificate(NAME, START)
        _, expired = pair = make_certificate(NAME, START - datetime.timedelta(days=91))
        assert expired == pair[1]
        broken = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
        unknown = b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"
        certificate = TailnetCertificate(api, clock=clock)
        for bad in ((other, chain), pair, (key, broken), (unknown, chain)):
            daemon.certificates[NAME] = bad
            message = await refused(certificate.refresh(), "certificate_malformed")
            assert "BEGIN" not in message
        assert certificate.pair is None and certificate.generation == 0

    play(tmp_path, scene)


def test_the_background_looks_every_hour_and_waits_longer_after_failures(tmp_path: Path) -> None:
    async def scene(daemon: FakeTailscaled, api: LocalAPI, clock: Clock) -> None:
        daemon.cert_domains = None
        sleeps = Sleeps(6)
        certificate = TailnetCertificate(api, clock=clock, sleep=sleeps)
        running = asyncio.ensure_future(certificate.run())
        await sleeps.over.wait()
        assert certificate.error is not None and "enable HTTPS" in certificate.error
        assert sleeps.seconds == [BACKOFF_FIRST, 10.0, 20.0, 40.0, BACKOFF_MOST_WITHOUT, BACKOFF_MOST_WITHOUT]
        await stop(running)

        daemon.cert_domains = [NAME]
        sleeps = Sleeps(1)
        certificate = TailnetCertificate(api, clock=clock, sleep=sleeps)
        running = asyncio.ensure_future(certificate.run())
        await certificate.wait_changed(0)
        await sleeps.over.wait()
        assert certificate.error is None and sleeps.seconds == [CERTIFICATE_INTERVAL]
        await stop(running)

    play(tmp_path, scene)


def test_the_background_looks_when_it_is_time(tmp_path: Path) -> None:
    async def scene(daemon: FakeTailscaled, api: LocalAPI, clock: Clock) -> None:
        daemon.certificates[NAME] = make_certificate(NAME, START, START + datetime.timedelta(minutes=30))
        sleeps = Sleeps(1)
        certificate = TailnetCertificate(api, clock=clock, sleep=sleeps)
        running = asyncio.ensure_future(certificate.run())
        await sleeps.over.wait()
        assert sleeps.seconds == [20 * 60.0]
        await stop(running)

    play(tmp_path, scene)


@pytest.mark.parametrize("endpoint", ["status", "cert"])
def test_a_cancel_in_the_middle_leaves_nothing(tmp_path: Path, endpoint: str) -> None:
    async def scene(daemon: FakeTailscaled, api: LocalAPI, clock: Clock) -> None:
        daemon.faults[endpoint] = "hang"
        running = asyncio.ensure_future(TailnetCertificate(api, clock=clock).run())
        await daemon.until(lambda: daemon.asked[endpoint] == 1)
        await stop(running)

    play(tmp_path, scene)
