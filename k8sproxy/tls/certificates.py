"""The certificate that a listener presents, fresh at all times, never fetched in a handshake.

A `ServerCertificate` holds the SSLContext for the next handshake. What it holds is replaced as a whole: `install` makes
a new context beside the old one and swaps them, so a handshake in flight keeps the one that it began with, and a pair
that is no good changes nothing. Where the pairs come from:

    tailnet     whoever asks the LocalAPI calls install(chain, key)
    files       FileCertificate looks at the files again and again; its owner runs follow()
    generated   GeneratedCertificate (`localca.py`)

The context is the same for every server name, and for clients that send none: who the client is doesn't depend on it.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

import structlog
from cryptography import x509

from k8sproxy.tls.pem import CertificateError, load_pair, restrict

__all__ = ["CertificateError", "FileCertificate", "ServerCertificate", "server_context"]

_log = structlog.get_logger(__name__)

# Seconds between two looks at certificate files. Certificates are renewed days before they end; a minute is what
# kubelet itself may take to bring a changed Secret into a pod.
CHECK_INTERVAL = 30.0

Sleep = Callable[[float], Awaitable[object]]


def server_context(chain_pem: bytes, key_pem: bytes) -> ssl.SSLContext:
    """A context for handshakes of clients: TLS 1.2 or later, HTTP/1.1 alone. Raises CertificateError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    restrict(context)
    # Session tickets of TLS 1.3 cost a tenth of a handshake. kubectl ends before it could use one, and client-go, like
    # most clients, keeps none.
    context.num_tickets = 0
    load_pair(context, chain_pem, key_pem)
    return context


class ServerCertificate:
    """The certificate of one listener. what: what the log and errors call it."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.not_after: datetime | None = None  # of the leaf, UTC
        self._pair: tuple[bytes, bytes] | None = None
        self._context: ssl.SSLContext | None = None
        self._complaint = ""

    @property
    def ready(self) -> bool:
        """Whether there is one."""
        return self._context is not None

    def context(self) -> ssl.SSLContext:
        """For the next handshake; cheap. Raises CertificateError where none was installed yet."""
        if self._context is None:
            raise CertificateError(f"{self.what}: there is no certificate yet")
        return self._context

    def install(self, chain_pem: bytes, key_pem: bytes) -> bool:
        """Use this pair from the next handshake on; False where it is in use already. Raises CertificateError."""
        if (chain_pem, key_pem) == self._pair:
            return False
        context = server_context(chain_pem, key_pem)
        try:
            leaf = x509.load_pem_x509_certificate(chain_pem)
        except ValueError:
            raise CertificateError("the first certificate of the chain cannot be read") from None
        # An expired one is taken: clients say so better than a port that doesn't answer.
        self.not_after = leaf.not_valid_after_utc
        if self.not_after <= datetime.now(UTC):
            _log.warning("certificate_expired", what=self.what, not_after=self.not_after.isoformat())
        self._context, self._pair = context, (chain_pem, key_pem)
        _log.info("certificate_installed", what=self.what, not_after=self.not_after.isoformat())
        return True

    async def try_now(self, refresh: Callable[[], Awaitable[bool]]) -> None:
        """One turn of following a source: what is wrong with it is logged, once, and the old pair stays."""
        try:
            await refresh()
            self._complaint = ""
        except CertificateError as error:
            if str(error) != self._complaint:
                self._complaint = str(error)
                _log.warning("certificate_refresh_failed", what=self.what, error=self._complaint)


class FileCertificate(ServerCertificate):
    """A certificate and its key from files, loaded again when they change.

    The contents are compared, not the times: a Secret that is mounted is swapped as a symbolic link to a directory, and
    a pair is only taken whole, so that a look between the writing of the one file and of the other changes nothing.
    """

    def __init__(self, cert: Path, key: Path) -> None:
        super().__init__(f"certificate {cert}")
        self._cert = cert
        self._key = key

    async def load(self) -> bool:
        """Read the files now; whether they have changed. Raises CertificateError."""
        try:
            chain, key = await asyncio.to_thread(self._read)
        except OSError as error:
            raise CertificateError(f"{error.filename}: {error.strerror}") from None
        return self.install(chain, key)

    async def follow(self, sleep: Sleep = asyncio.sleep) -> NoReturn:
        """Look at the files every CHECK_INTERVAL seconds, for ever."""
        while True:
            await sleep(CHECK_INTERVAL)
            await self.try_now(self.load)

    def _read(self) -> tuple[bytes, bytes]:
        return self._cert.read_bytes(), self._key.read_bytes()
