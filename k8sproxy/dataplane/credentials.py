"""How the proxy itself signs in to a cluster: one object a cluster, always ready to be asked, kept fresh behind.

    Recipe (kubeconfig.py: where things come from) -> ClusterCredentials: authorization(), tls()    for each request
                                                      follow(): looks at files, runs plugins        in the background

The hot path reads two attributes and never waits. What is fresh is fetched whole (token and certificate belong
together) and swapped in; when that fails, the old values go on and the log says so once: an expired token gets a 401
from the API server, which is an honest answer. A 401 is also a hint: `rejected()` asks for fresh credentials soon, at
most every few seconds, since a storm of refusals must not become a storm of plugins.

Times: files are looked at every 30 s. Kubelet rotates a service account's token when a fifth of its hour is left, so
there are many looks in which to see the new one. A plugin's answer is renewed when a fifth of its life is left, at
the latest a minute before it ends; without an expirationTimestamp, on a 401 alone (as client-go does).
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

import structlog

from k8sproxy.dataplane.execplugin import ExecCredential, run_plugin
from k8sproxy.dataplane.kubeconfig import SERVICE_ACCOUNT, CredentialsError, Recipe, read_in_cluster, read_kubeconfig
from k8sproxy.dataplane.pem import CertificateError, load_pair, restrict

__all__ = ["ClusterCredentials", "CredentialsError"]

_log = structlog.get_logger(__name__)

# Seconds; why these is above.
FILE_INTERVAL = 30.0
EXPIRY_MARGIN = 60.0
# Seconds between two refreshes that 401s ask for, and after the first failure; failures double it.
MIN_INTERVAL = 5.0
MAX_INTERVAL = 60.0

# What may stand behind "Bearer " (RFC 6750 section 2.1, b64token).
_TOKEN = re.compile(rb"[A-Za-z0-9._~+/-]+=*\Z")

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class _Material:
    """Everything that one refresh fetched, compared to see whether anything has changed."""

    authorization: bytes | None = field(default=None, repr=False)
    ca: bytes | None = field(default=None, repr=False)
    client_cert: bytes | None = field(default=None, repr=False)
    client_key: bytes | None = field(default=None, repr=False)


class ClusterCredentials:
    """The proxy's account at one cluster. Made by `load`, which fetches everything once.

    host, port, server_name, authority: where the API server is, what its certificate is checked against, the Host
    field. base_path: what stands before every target, "" or "/x". warnings: what an administrator should be told.
    """

    def __init__(self, name: str, recipe: Recipe, *, now: Clock | None = None) -> None:
        self.name = name
        self.host = recipe.host
        self.port = recipe.port
        self.server_name = recipe.server_name
        self.authority = recipe.authority
        self.base_path = recipe.base_path
        self.warnings: tuple[str, ...] = ()
        self._recipe = recipe
        self._now = now or (lambda: datetime.now(UTC).timestamp())
        self._material: _Material | None = None
        self._authorization: bytes | None = None
        self._context: ssl.SSLContext | None = None
        self._expires: float | None = None
        self._fetched = 0.0  # when what is in use was fetched
        self._tried = 0.0  # when fetching was last begun
        self._lock = asyncio.Lock()
        self._wanted = asyncio.Event()
        self._complaint = ""
        if recipe.tls and not recipe.verify:
            self.warnings += ("insecure-skip-tls-verify: anyone on the way can be this API server",)
        if not recipe.tls:
            self.warnings += ("plain http:// to the API server",)
        if not (recipe.token or recipe.basic or recipe.plugin or recipe.client_cert):
            self.warnings += ("no credentials: requests are anonymous at the API server",)

    @classmethod
    async def load(
        cls,
        name: str,
        *,
        kubeconfig: Path | None = None,
        context: str | None = None,
        service_account: Path = SERVICE_ACCOUNT,
        passthrough: bool = False,
        now: Clock | None = None,
    ) -> ClusterCredentials:
        """From a kubeconfig, or from the pod's service account where there is none. Raises CredentialsError.

        passthrough: take the address and the CA alone; clients bring their own credentials, and an account of the
        proxy's (a client certificate is sent on every connection) must not stand in for one that they lack.
        name: the cluster's name, for the log. The file is read in a thread; a changed kubeconfig takes a new load.
        """
        if kubeconfig is not None:
            recipe = await asyncio.to_thread(read_kubeconfig, kubeconfig, context)
        else:
            recipe = await asyncio.to_thread(read_in_cluster, service_account)
        if passthrough:
            recipe = replace(recipe, token=None, basic=None, plugin=None, client_cert=None, client_key=None)
        credentials = cls(name, recipe, now=now)
        await credentials.refresh()
        for warning in credentials.warnings:
            _log.warning("cluster_credentials", cluster=name, warning=warning)
        return credentials

    def authorization(self) -> bytes | None:
        """The value of the Authorization field right now; None where a client certificate (or nothing) does."""
        return self._authorization

    def tls(self) -> ssl.SSLContext | None:
        """The context for the next connection; another object once its certificates have changed. None is http."""
        return self._context

    def rejected(self) -> None:
        """A request was answered with 401: have fresh credentials fetched soon. Cheap, never waits."""
        self._wanted.set()

    async def refresh_now(self) -> bool:
        """Fetch now, unless that was done within MIN_INTERVAL; whether anything changed. Raises CredentialsError."""
        async with self._lock:
            if self._now() - self._tried < MIN_INTERVAL:
                return False
            return await self._refresh()

    async def refresh(self) -> bool:
        """Fetch everything now; whether anything changed. Raises CredentialsError, and leaves all as it was."""
        async with self._lock:
            return await self._refresh()

    async def follow(self) -> NoReturn:
        """Keep everything fresh, for ever; failures are logged, once each, and tried again."""
        failures = 0
        while True:
            await self._wait(failures)
            try:
                await self.refresh()
                failures, self._complaint = 0, ""
            except CredentialsError as error:
                failures += 1
                if str(error) != self._complaint:
                    self._complaint = str(error)
                    _log.warning("cluster_credentials_failed", cluster=self.name, error=self._complaint)

    async def _wait(self, failures: int) -> None:
        """Until something may have changed: a time has come, or a 401."""
        pause = self._pause()
        if failures:
            pause = min(MIN_INTERVAL * 2 ** min(failures - 1, 10), MAX_INTERVAL)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await self._wanted.wait()
                await asyncio.sleep(max(0.0, MIN_INTERVAL - (self._now() - self._tried)))
        self._wanted.clear()

    def _pause(self) -> float | None:
        """Seconds until credentials are to be looked at again without a hint; None is never."""
        recipe = self._recipe
        if recipe.plugin is not None and self._expires is not None:
            left = self._expires - self._fetched
            due = self._expires - max(left / 5, min(EXPIRY_MARGIN, left / 2))
            return max(MIN_INTERVAL, due - self._now())
        contents = (recipe.ca, recipe.client_cert, recipe.client_key, recipe.token)
        if any(content is not None and content.path is not None for content in contents):
            return FILE_INTERVAL
        return None

    async def _refresh(self) -> bool:
        recipe = self._recipe
        self._tried = self._now()
        answer = await run_plugin(recipe.plugin) if recipe.plugin is not None else None
        material = await asyncio.to_thread(self._fetch, answer)
        before = self._material
        if before is None or _certificates(material) != _certificates(before):
            self._context = _client_context(recipe, material) if recipe.tls else None
        self._authorization = material.authorization
        self._material = material
        self._expires = answer.expires.timestamp() if answer is not None and answer.expires is not None else None
        self._fetched = self._now()
        if before is not None and material != before:
            _log.info("cluster_credentials_changed", cluster=self.name)
        return material != before

    def _fetch(self, answer: ExecCredential | None) -> _Material:
        recipe = self._recipe
        authorization = recipe.basic
        token = answer.token if answer is not None else recipe.token.read().strip() if recipe.token else None
        if token is not None:
            if not _TOKEN.match(token):
                where = f"{recipe.token.path}: " if recipe.token is not None and recipe.token.path else ""
                raise CredentialsError(f"{where}no bearer token: it is empty or has characters that none can have")
            authorization = b"Bearer " + token
        cert = recipe.client_cert.read() if recipe.client_cert else None
        key = recipe.client_key.read() if recipe.client_key else None
        if answer is not None and answer.client_cert is not None:
            cert, key = answer.client_cert, answer.client_key
        return _Material(authorization, recipe.ca.read() if recipe.ca else None, cert, key)


def _certificates(material: _Material) -> tuple[bytes | None, bytes | None, bytes | None]:
    return material.ca, material.client_cert, material.client_key


def _client_context(recipe: Recipe, material: _Material) -> ssl.SSLContext:
    """TLS 1.2 or later, HTTP/1.1 alone, the API server's certificate checked against its CA and name.

    As Go's crypto/x509 checks it, since kubectl would: a name counts only among the subject alternative names, never
    as the subject's common name; every certificate of the kubeconfig's authority is a root, an intermediate one too.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    restrict(context)
    context.hostname_checks_common_name = False
    if not recipe.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif material.ca is None:
        context.load_default_certs()
    else:
        try:
            context.load_verify_locations(cadata=material.ca.decode("ascii"))
            context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        except (ssl.SSLError, ValueError):
            raise CredentialsError("the certificate authority is not PEM") from None
    if material.client_cert is not None and material.client_key is not None:
        try:
            load_pair(context, material.client_cert, material.client_key)
        except CertificateError as error:
            raise CredentialsError(f"client certificate: {error}") from None
    return context
