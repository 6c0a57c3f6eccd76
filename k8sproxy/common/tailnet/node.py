"""What this node is on the tailnet: the addresses to listen on, and the certificate for its name.

Both change while the program runs, and both are kept up to date in the background: `run` looks, the attributes hold
what is known, `generation` and `wait_changed` tell of a change. A daemon that is away or starting changes nothing:
listeners stay open and the certificate stays in use, since neither is anybody's identity. (Who a client is, WhoIs alone
says, and that refuses meanwhile.)
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import NoReturn

import structlog
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509 import load_pem_x509_certificates

from k8sproxy.common.errors import Refusal
from k8sproxy.common.tailnet.answers import CertificatePair, NodeStatus
from k8sproxy.common.tailnet.bus import Bus
from k8sproxy.common.tailnet.changes import Changes
from k8sproxy.common.tailnet.localapi import LocalAPI

# Seconds between looks at the addresses when the bus says nothing. They change when an administrator changes them.
ADDRESSES_INTERVAL = 30.0

# Of a certificate's life, what must be left. Let's Encrypt's 90 days leave 30 to get over any failure.
RENEW_BELOW = 1 / 3
# Seconds between looks at the certificate: a node that is renamed has its new one within the hour.
CERTIFICATE_INTERVAL = 3600.0
# Seconds before the first and at most between later attempts after a failure: a minute while there is nothing to serve,
# a quarter of an hour while there is. An attempt may be an ACME order, of which the daemon itself makes only so many
# (it answers 429 then).
BACKOFF_FIRST, BACKOFF_MOST_WITHOUT, BACKOFF_MOST = 5.0, 60.0, 900.0

Sleep = Callable[[float], Awaitable[None]]

_log = structlog.get_logger(__name__)


class TailnetAddresses(Changes):
    """The node's own tailnet addresses.

    current: as text, in the daemon's order; empty until they are known. error: why the last look failed, or None.
    """

    def __init__(self, localapi: LocalAPI, bus: Bus, *, interval: float = ADDRESSES_INTERVAL) -> None:
        super().__init__()
        self.current: tuple[str, ...] = ()
        self.error: str | None = None
        self._localapi = localapi
        self._bus = bus
        self._interval = interval

    async def refresh(self) -> None:
        """Looks once. Raises Refusal where the daemon can't say."""
        status = _running(await self._localapi.status())
        if status.addresses != self.current:
            _log.info("tailnet_addresses", addresses=status.addresses)
            self.current = status.addresses
            self.bump()

    async def run(self) -> NoReturn:
        """Looks whenever the bus tells of a change, and at intervals; ends only by being cancelled."""
        while True:
            seen = self._bus.generation
            try:
                await self.refresh()
            except Refusal as refusal:
                if self.error != refusal.message:
                    _log.warning("tailnet_addresses_unknown", error=refusal.message)
                self.error = refusal.message
            else:
                self.error = None
            try:
                async with asyncio.timeout(self._interval):
                    await self._bus.wait_changed(seen)
            except TimeoutError:
                pass


class TailnetCertificate(Changes):
    """The certificate for this node's name, out of the daemon, renewed before a third of its life is left.

    pair: key and chain, None until there are any. domain: the name they are for. not_after: when they end. error: why
    the last look failed, or None. clock: seconds since the epoch.
    """

    def __init__(
        self, localapi: LocalAPI, *, clock: Callable[[], float] = time.time, sleep: Sleep = asyncio.sleep
    ) -> None:
        super().__init__()
        self.pair: CertificatePair | None = None
        self.domain: str | None = None
        self.not_after: datetime | None = None
        self.error: str | None = None
        self._localapi = localapi
        self._clock = clock
        self._sleep = sleep
        self._renew_at = 0.0

    async def refresh(self) -> None:
        """Looks once: fetches the certificate if there is none yet, if the node has another name, or if it is time.

        Raises Refusal: `certificate_disabled` where the tailnet has no certificates, `certificate_malformed` for what
        is no certificate to serve, and those of LocalAPI. What there was is still there then.
        """
        domain = _cert_domain(_running(await self._localapi.status()))
        if self.pair is not None and self.domain == domain and self._clock() < self._renew_at:
            return
        # What the daemon has is taken first, so that there is something to serve while a new one is made.
        min_validity = 0.0
        if self.pair is None or self.domain != domain:
            self._take(domain, await self._localapi.certificate(domain))
            if self._clock() < self._renew_at:
                return
        assert self.not_after is not None  # noqa: S101 - _take has set it
        min_validity = self.not_after.timestamp() - self._renew_at
        self._take(domain, await self._localapi.certificate(domain, min_validity))
        if self._clock() >= self._renew_at:
            raise Refusal(503, "certificate_malformed", f"tailscaled has no newer certificate for {domain}")

    async def run(self) -> NoReturn:
        """Keeps it fresh; ends only by being cancelled."""
        delay = BACKOFF_FIRST
        while True:
            try:
                await self.refresh()
            except Refusal as refusal:
                if self.error != refusal.message:
                    _log.warning("tailnet_certificate_failed", error=refusal.message)
                self.error = refusal.message
                await self._sleep(delay)
                delay = min(delay * 2, BACKOFF_MOST_WITHOUT if self.pair is None else BACKOFF_MOST)
            else:
                self.error, delay = None, BACKOFF_FIRST
                await self._sleep(min(max(self._renew_at - self._clock(), 1.0), CERTIFICATE_INTERVAL))

    def _take(self, domain: str, pair: CertificatePair) -> None:
        not_before, not_after = _validity(pair)
        if not_after.timestamp() <= self._clock():
            raise Refusal(503, "certificate_malformed", f"tailscaled's certificate for {domain} has expired")
        life: timedelta = not_after - not_before
        self._renew_at = not_after.timestamp() - life.total_seconds() * RENEW_BELOW
        if pair == self.pair:
            return
        self.pair, self.domain, self.not_after = pair, domain, not_after
        _log.info("tailnet_certificate", domain=domain, not_after=not_after.isoformat())
        self.bump()


def _running(status: NodeStatus) -> NodeStatus:
    """Only a running daemon's word counts: one that starts has no addresses and no names yet."""
    if status.backend_state != "Running":
        raise Refusal(
            503, "localapi_unavailable", f"tailscaled is not connected to its tailnet: {status.backend_state}"
        )
    return status


def _cert_domain(status: NodeStatus) -> str:
    if not status.cert_domains:
        raise Refusal(
            503,
            "certificate_disabled",
            "this tailnet gives its nodes no certificates: enable HTTPS certificates on the admin console's DNS page, "
            "or set the listener's tls.source to generated or files",
        )
    name = status.name.removesuffix(".")
    return name if name in status.cert_domains else status.cert_domains[0]


def _validity(pair: CertificatePair) -> tuple[datetime, datetime]:
    """When the leaf begins and ends to be valid (UTC), its key checked to be the one that comes with it."""
    try:
        leaf = load_pem_x509_certificates(pair.chain_pem)[0]
        key = load_pem_private_key(pair.key_pem, None)
        matching = key.public_key() == leaf.public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise Refusal(503, "certificate_malformed", "tailscaled's certificate or its key can't be read") from None
    if not matching:
        raise Refusal(503, "certificate_malformed", "tailscaled's key does not belong to its certificate")
    return leaf.not_valid_before_utc, leaf.not_valid_after_utc
