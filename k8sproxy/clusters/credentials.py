"""How the proxy itself signs in to a cluster: one object a cluster, always ready to be asked, kept fresh behind.

    Recipe (kubeconfig.py: where things come from) -> ClusterCredentials: authorization(), tls()    for each request
                                                      follow(): looks at files, runs plugins        in the background

The hot path reads two attributes and never waits. What is fresh is fetched whole (token and certificate belong
together) and swapped in; when that fails, the old values go on and the log says so once. Whether the API server still
takes them is asked elsewhere (account.py), which also has them fetched again when a request meets a 401:
`refresh_now()`, at most every few seconds, since a storm of refusals must not become a storm of plugins.

Times: files, the kubeconfig itself among them, are looked at every 30 s, and at once where a request met a 401 or a
certificate that is not trusted. Kubelet rotates a service account's token when a fifth of its hour is left, so there
are many looks in which to see the new one. A plugin's answer is renewed when a fifth of its life is left, at the
latest a minute before it ends; without an expirationTimestamp, on a 401 alone (as client-go does).

A kubeconfig that names another server is not followed here: connections, their pool and the Host field belong to a
server for life. `moved` says so, and the configuration is put into force anew (app.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import math
import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

import structlog

from k8sproxy.clusters.execplugin import ExecCredential, run_plugin
from k8sproxy.clusters.kubeconfig import (
    SERVICE_ACCOUNT,
    Content,
    CredentialsError,
    Recipe,
    read_in_cluster,
    read_kubeconfig,
)
from k8sproxy.common.tailnet.changes import Changes
from k8sproxy.tls.pem import CertificateError, load_pair, restrict

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


class ClusterCredentials(Changes):
    """The proxy's account at one cluster. Made by `load`, which fetches everything once; changed with each new value.

    host, port, server_name, authority: where the API server is, what its certificate is checked against, the Host
    field. base_path: what stands before every target, "" or "/x". warnings: what an administrator should be told.
    """

    def __init__(
        self, name: str, recipe: Recipe, *, now: Clock | None = None, reread: Callable[[], Recipe] | None = None
    ) -> None:
        super().__init__()
        self.name = name
        self.host = recipe.host
        self.port = recipe.port
        self.server_name = recipe.server_name
        self.authority = recipe.authority
        self.base_path = recipe.base_path
        self.warnings: tuple[str, ...] = ()
        self.complaint = ""  # why they could not be fetched the last time, "" where they could
        self.moved = False  # the kubeconfig names another server
        self._recipe = recipe
        self._reread = reread or (lambda: recipe)
        self._now = now or (lambda: datetime.now(UTC).timestamp())
        self._material: _Material | None = None
        self._answer: ExecCredential | None = None
        self._authorization: bytes | None = None
        self._context: ssl.SSLContext | None = None
        self._expires: float | None = None
        self._fetched = 0.0  # when what is in use was fetched
        self._tried = 0.0  # when fetching was last begun
        self._ran = 0.0  # when the plugin was last run
        self._lock = asyncio.Lock()
        self._wanted = asyncio.Event()
        if recipe.tls and not recipe.verify:
            self.warnings += ("insecure-skip-tls-verify: anyone on the network path can pretend to be this API server",)
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
        name: the cluster's name, for the log. Files are read in a thread.
        """

        def read() -> Recipe:
            recipe = (
                read_kubeconfig(kubeconfig, context) if kubeconfig is not None else read_in_cluster(service_account)
            )
            if passthrough:
                recipe = replace(recipe, token=None, basic=None, plugin=None, client_cert=None, client_key=None)
            return recipe

        reread = _Reread(kubeconfig, read) if kubeconfig is not None else None
        recipe = await asyncio.to_thread(reread or read)
        credentials = cls(name, recipe, now=now, reread=reread)
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

    def suspect(self) -> None:
        """Something speaks against them: have them fetched again soon. Cheap, never waits."""
        self._wanted.set()

    async def refresh_now(self) -> bool:
        """Read files now, and run the plugin unless that was done within MIN_INTERVAL; whether anything changed.

        Raises CredentialsError.
        """
        async with self._lock:
            return await self._refresh(plugin=self._now() - self._ran >= MIN_INTERVAL)

    async def refresh(self, *, plugin: bool = True) -> bool:
        """Fetch everything now; whether anything changed. Raises CredentialsError, and leaves all as it was.

        plugin: False where the plugin's last answer still does, and only files are looked at.
        """
        async with self._lock:
            return await self._refresh(plugin=plugin)

    async def follow(self) -> NoReturn:
        """Keep everything fresh, for ever; failures are logged, once each, and tried again."""
        failures = 0
        while True:
            await self._wait(failures)
            try:
                await self.refresh(plugin=self._plugin_due())
                failures = 0
            except CredentialsError:
                failures += 1

    async def _wait(self, failures: int) -> None:
        """Until something may have changed: a time has come, or somebody suspects them."""
        pause = self._pause()
        if failures:
            pause = min(MIN_INTERVAL * 2 ** min(failures - 1, 10), MAX_INTERVAL)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await self._wanted.wait()
                await asyncio.sleep(max(0.0, MIN_INTERVAL - (self._now() - self._tried)))

    def _plugin_due(self) -> bool:
        """Whether the plugin is to be run, and not only files to be looked at."""
        return self._wanted.is_set() or bool(self.complaint) or (self._renewal() or math.inf) <= self._now()

    def _renewal(self) -> float | None:
        """When the plugin is to be run again without a hint; None is never."""
        if self._recipe.plugin is None or self._expires is None:
            return None
        left = self._expires - self._fetched
        return self._expires - max(left / 5, min(EXPIRY_MARGIN, left / 2))

    def _pause(self) -> float:
        """Seconds until something is to be looked at again without a hint."""
        renewal = self._renewal()
        return FILE_INTERVAL if renewal is None else max(MIN_INTERVAL, min(FILE_INTERVAL, renewal - self._now()))

    async def _refresh(self, *, plugin: bool) -> bool:
        """What fails is said in the log once, until something else fails or nothing does."""
        self._tried = self._now()
        self._wanted.clear()
        try:
            changed = await self._fetch_all(plugin=plugin)
        except CredentialsError as error:
            if self._material is not None and str(error) != self.complaint:
                _log.warning("cluster_credentials_failed", cluster=self.name, error=str(error))
            self.complaint = str(error)
            raise
        if plugin or self._recipe.plugin is None:
            self.complaint = ""
        return changed

    async def _fetch_all(self, *, plugin: bool) -> bool:
        recipe = await asyncio.to_thread(self._reread)
        before = self._material
        if _server(recipe) != _server(self._recipe):
            if not self.moved:
                _log.warning("cluster_moved", cluster=self.name, server=recipe.authority.decode("ascii", "replace"))
            self.moved = True
            return False
        answer = self._answer
        if recipe.plugin is None:
            answer = None
        elif plugin or answer is None or recipe.plugin != self._recipe.plugin:
            self._ran = self._now()
            answer = await run_plugin(recipe.plugin)
        material = await asyncio.to_thread(_fetch, recipe, answer)
        if (
            before is None
            or recipe.verify is not self._recipe.verify
            or _certificates(material) != _certificates(before)
        ):
            self._context = _client_context(recipe, material) if recipe.tls else None
        if answer is not self._answer or before is None:
            self._fetched = self._now()
        self._recipe, self._answer, self._material = recipe, answer, material
        self._authorization = material.authorization
        self._expires = answer.expires.timestamp() if answer is not None and answer.expires is not None else None
        if before is not None and material != before:
            _log.info("cluster_credentials_changed", cluster=self.name)
            self.bump()
        return material != before


class _Reread:
    """Gives a kubeconfig's recipe, and reads it again only where its bytes have changed. Blocks."""

    def __init__(self, path: Path, read: Callable[[], Recipe]) -> None:
        self._path = path
        self._read = read
        self._digest = b""
        self._recipe: Recipe | None = None

    def __call__(self) -> Recipe:
        digest = hashlib.sha256(Content(path=self._path).read()).digest()
        if self._recipe is None or digest != self._digest:
            # In this order: what is written meanwhile is seen at the next look.
            self._recipe, self._digest = self._read(), digest
        return self._recipe


def _server(recipe: Recipe) -> tuple[object, ...]:
    """What makes an API server another one."""
    return (recipe.host, recipe.port, recipe.tls, recipe.server_name, recipe.authority, recipe.base_path)


def _fetch(recipe: Recipe, answer: ExecCredential | None) -> _Material:
    """Everything that a recipe and its plugin's answer give. Blocks. Raises CredentialsError."""
    authorization = recipe.basic
    token = answer.token if answer is not None else recipe.token.read().strip() if recipe.token else None
    if token is not None:
        if not _TOKEN.match(token):
            where = f"{recipe.token.path}: " if recipe.token is not None and recipe.token.path else ""
            raise CredentialsError(
                f"{where}not a bearer token: it is empty, or has characters that a token cannot have"
            )
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
