"""The parts that one configuration describes: clusters, certificates, listeners, the admin site.

A new Assembly is made while the old one runs. `prepare` does everything that can fail; a failure leaves nothing behind.
Then the new one takes over the listening sockets that both have in common, and only then the old one is closed. Open
connections find their routes through their listener's Permit, which the new assembly changes, so a reload holds from
the next request on and drops none.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
from collections.abc import Callable, Coroutine, Iterable
from time import monotonic
from typing import Any

import structlog
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from k8sproxy.access.decision import Snapshot
from k8sproxy.audit.events import Events
from k8sproxy.clusters.account import Account, AccountState
from k8sproxy.clusters.credentials import ClusterCredentials, CredentialsError
from k8sproxy.common.errors import Refusal, StartError
from k8sproxy.common.sockets import join_address
from k8sproxy.common.tailnet.localapi import LocalAPI
from k8sproxy.common.tailnet.node import TailnetAddresses, TailnetCertificate
from k8sproxy.common.tailnet.peer import is_tailnet
from k8sproxy.common.tailnet.whois import WhoIs
from k8sproxy.common.tasks import Tasks
from k8sproxy.config import Cluster, Config, Listen, warnings_of
from k8sproxy.dataplane.dial import Dialer
from k8sproxy.dataplane.limits import Limits
from k8sproxy.dataplane.listener import Listener, Server, Terms, Trust
from k8sproxy.dataplane.routes import Permit, Route, Routes
from k8sproxy.dataplane.upstream import Endpoint, Upstream
from k8sproxy.recording.recorders import Recorders
from k8sproxy.tls.certificates import CertificateError, FileCertificate, ServerCertificate
from k8sproxy.tls.localca import GeneratedCertificate

_log = structlog.get_logger("k8sproxy")

# Seconds between looks at the pools for connections that have been idle too long.
_SWEEP_SECONDS = 5.0


class Tailnet:
    """The daemon, and what is asked of it by more than one part."""

    def __init__(self, config: Config) -> None:
        self.socket = config.tailnet.socket
        self.timeout = config.tailnet.whois_timeout
        self.localapi = LocalAPI(str(config.tailnet.socket), timeout=config.tailnet.whois_timeout)
        self.whois = WhoIs(self.localapi, ttl=config.tailnet.whois_ttl)
        self.addresses = TailnetAddresses(self.localapi, self.whois.bus)
        self.certificate = TailnetCertificate(self.localapi)
        self.dialer = Dialer(self.localapi)
        self._tasks = Tasks()
        self._following: set[str] = set()

    def follow(self, *, addresses: bool, certificate: bool) -> None:
        """Start following the bus, and what the configuration needs of the rest. Again with more does no harm."""
        wanted: list[tuple[str, Callable[[], Coroutine[Any, Any, Any]]]] = [("bus", self.whois.watch_changes)]
        if addresses:
            wanted.append(("addresses", self.addresses.run))
        if certificate:
            wanted.append(("certificate", self.certificate.run))
        for name, work in wanted:
            if name not in self._following:
                self._following.add(name)
                self._tasks.start(work(), f"tailnet {name}")

    def same(self, config: Config) -> bool:
        """Whether a configuration speaks of this daemon in this way."""
        return self.socket == config.tailnet.socket and self.timeout == config.tailnet.whois_timeout

    async def close(self) -> None:
        """Let go of the daemon."""
        await self._tasks.aclose()
        await self.whois.aclose()
        await self.localapi.aclose()


class Assembly:
    """The parts of one configuration. `prepare` may raise StartError; `close` undoes it."""

    def __init__(self, config: Config, server: Server, tailnet: Tailnet) -> None:
        self.config = config
        self.tailnet = tailnet
        self.upstreams: dict[str, Upstream] = {}
        self.limits = limits_of(config)
        self._server = server
        self._tasks = Tasks()
        self._credentials: list[ClusterCredentials] = []
        self._certificates: dict[int, ServerCertificate] = {}
        self._terms: dict[int, Terms] = {}
        # (configured host, port, bound IP) -> listener; "tailnet" stands for several.
        self._listeners: dict[tuple[str, int, str], Listener] = {}
        self._not_listening: dict[int, str] = {}  # why not, on an address of the tailnet's

    # -- making it

    async def prepare(self) -> None:
        """Make clusters and certificates, without opening a socket. Raises StartError, and leaves nothing behind."""
        try:
            for cluster in self.config.clusters:
                await self._add_cluster(cluster)
            for number, listen in enumerate(self.config.listen):
                await self._add_certificate(number, listen)
                self._terms[number] = self._terms_of(number, listen)
        except (CredentialsError, CertificateError) as error:
            await self.close()
            raise StartError(str(error)) from error
        except BaseException:
            await self.close()
            raise

    async def _add_cluster(self, cluster: Cluster) -> None:
        credentials = await ClusterCredentials.load(
            cluster.name, kubeconfig=cluster.kubeconfig, context=cluster.context, passthrough=not _impersonates(cluster)
        )
        account = Account(credentials) if _impersonates(cluster) else None
        endpoint = Endpoint(
            host=credentials.host,
            port=credentials.port,
            server_name=credentials.server_name,
            authority=credentials.authority,
            base_path=credentials.base_path,
            tls=credentials.tls,
            authorization=credentials.authorization,
            suspect=credentials.suspect,
            account=account,
        )
        self.upstreams[cluster.name] = Upstream(cluster.name, endpoint, self.limits, self._server.buffer)
        self._credentials.append(credentials)
        self._tasks.start(credentials.follow(), f"credentials of {cluster.name}")
        if account is not None:
            self._tasks.start(account.follow(), f"account at {cluster.name}")

    async def _add_certificate(self, number: int, listen: Listen) -> None:
        tls = listen.tls
        if tls.source == "files" and tls.cert is not None and tls.key is not None:
            files = FileCertificate(tls.cert, tls.key)
            await files.load()
            self._certificates[number] = files
            self._tasks.start(files.follow(), f"certificate {tls.cert}")
        elif tls.source == "generated":
            names = _certificate_names(listen, await self._node_names() or ())
            generated = GeneratedCertificate(tls.ca_directory, names)
            await generated.renew()
            self._certificates[number] = generated
            self._tasks.start(generated.follow(), "generated certificate")
            self._tasks.start(self._follow_names(generated, listen), "generated certificate's names")
        elif tls.source == "tailnet":
            certificate = ServerCertificate("the tailnet's certificate")
            self._certificates[number] = certificate
            self.tailnet.follow(addresses=False, certificate=True)
            self._tasks.start(self._follow_tailnet(certificate), "tailnet certificate")

    async def _node_names(self) -> tuple[str, ...] | None:
        """The node's own names and addresses, None while the daemon can't say."""
        try:
            status = await self.tailnet.localapi.status()
        except Refusal as refusal:
            _log.warning("tailnet_name_unknown", error=refusal.message)
            return None
        full = status.name.removesuffix(".")
        return (full, full.partition(".")[0], *status.addresses) if full else None

    async def _follow_names(self, certificate: GeneratedCertificate, listen: Listen) -> None:
        """Give a generated certificate the node's name and addresses when they change, or are known at last.

        While the daemon is gone or starts, the certificate stays as it is: clients come back before the name does.
        """
        bus = self.tailnet.whois.bus
        seen = bus.generation
        while True:
            await bus.wait_changed(seen)
            seen = bus.generation
            names = await self._node_names()
            if names is not None:
                certificate.set_names(_certificate_names(listen, names))
                await certificate.try_now(certificate.renew)

    async def _follow_tailnet(self, certificate: ServerCertificate) -> None:
        source = self.tailnet.certificate
        while True:
            seen = source.generation
            pair = source.pair
            if pair is not None:
                try:
                    certificate.install(pair.chain_pem, pair.key_pem)
                except CertificateError as error:
                    _log.warning("certificate_refused", error=str(error))
            await source.wait_changed(seen)

    def _terms_of(self, number: int, listen: Listen) -> Terms:
        cluster = self.config.cluster_of(listen)
        route = Route(
            self.upstreams[cluster.name],
            Snapshot(self.config.tailnet.grants, impersonate=_impersonates(cluster)),
            origins=frozenset(origin.encode("ascii") for origin in listen.allow_origins),
        )
        certificate = self._certificates.get(number)
        return Terms(
            trust=Trust.PROXY if listen.proxy_protocol else Trust.DIRECT,
            tls=certificate.context if certificate is not None else None,
            permit=Permit(Routes(route)),
            service=listen.service,
        )

    # -- putting it into force

    def take_over(self, old: Assembly | None) -> None:
        """Open the listeners, taking over those that `old` has open. Raises StartError; then `old` has them all still.

        Nothing is awaited in here: there is no moment at which an address has no listener or two configurations.
        """
        held = old._listeners if old is not None else {}
        # A socket may be configured by another name now: tailnet:443, and the address that this stands for.
        free = {(ip, port): listener for (_, port, ip), listener in held.items()}
        opened: dict[tuple[str, int, str], Listener] = {}
        chosen: dict[tuple[str, int, str], tuple[Listener, Terms]] = {}
        try:
            for number, listen in enumerate(self.config.listen):
                for ip in self._addresses(listen):
                    key = (listen.address.host, listen.address.port, ip)
                    listener = free.pop((ip, listen.address.port), None)
                    if listener is None:
                        listener = opened[key] = self._server.listen(ip, listen.address.port, self._terms[number])
                    chosen[key] = (listener, self._terms[number])
        except OSError as error:
            for listener in opened.values():
                listener.close()
            raise StartError(_cannot_listen(ip, listen.address.port, error)) from error
        if old is not None:
            self._succeed(old)
        for key, (listener, terms) in chosen.items():
            listener.terms = terms
            self._listeners[key] = listener
        for listener in free.values():
            listener.close()
        held.clear()
        for key, listener in opened.items():
            _log.info("listening", address=join_address(*listener.address), configured=key[0])
        self._tasks.start(self._sweep(), "sweep")
        if any(listen.address.host == "tailnet" for listen in self.config.listen):
            self.tailnet.follow(addresses=True, certificate=False)
            self._tasks.start(self._follow_addresses(), "tailnet listeners")

    def _succeed(self, old: Assembly) -> None:
        """Take over the connections of `old`. They belong to what is configured, not to the sockets that are open just
        now: an address of the tailnet may be gone, and the connections on it still there."""
        terms = {_name(listen): self._terms[number] for number, listen in enumerate(self.config.listen)}
        for number, listen in enumerate(old.config.listen):
            self._server.succeed(old._terms[number], terms.get(_name(listen)))

    def _addresses(self, listen: Listen) -> Iterable[str]:
        return self.tailnet.addresses.current if listen.address.host == "tailnet" else (listen.address.host,)

    async def _follow_addresses(self) -> None:
        """Listen on every tailnet address of the node, whatever they are now. One that can't be is tried again."""
        source = self.tailnet.addresses
        while True:
            seen = source.generation
            failed = False
            for number, listen in enumerate(self.config.listen):
                if listen.address.host == "tailnet":
                    failed |= not self._match_addresses(number, listen, source.current)
            if failed:
                await asyncio.sleep(_SWEEP_SECONDS)
            else:
                await source.wait_changed(seen)

    def _match_addresses(self, number: int, listen: Listen, current: tuple[str, ...]) -> bool:
        host, port = listen.address.host, listen.address.port
        for key in [key for key in self._listeners if key[:2] == (host, port) and key[2] not in current]:
            self._listeners.pop(key).close()
            _log.info("listener_closed", address=join_address(key[2], port))
        self._not_listening.pop(number, None)
        for ip in current:
            if (host, port, ip) in self._listeners:
                continue
            try:
                listener = self._listeners[host, port, ip] = self._server.listen(ip, port, self._terms[number])
                _log.info("listening", address=join_address(*listener.address), configured="tailnet")
            except OSError as error:
                fault = _cannot_listen(ip, port, error)
                self._not_listening.setdefault(number, fault)
                _log.warning("listen_failed", address=join_address(ip, port), error=fault)
        return number not in self._not_listening

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            now = monotonic()
            for upstream in self.upstreams.values():
                upstream.sweep(now)

    # -- what it says of itself

    async def checks(self) -> dict[str, str | None]:
        """Readiness, part by part: None where a part is well, else what is wrong with it."""
        result: dict[str, str | None] = {}
        try:
            status = await self.tailnet.localapi.status()
            running = status.backend_state == "Running"
            result["tailnet"] = None if running else f"tailscaled is {status.backend_state}"
        except Refusal as refusal:
            result["tailnet"] = refusal.message
        for number, listen in enumerate(self.config.listen):
            certificate = self._certificates.get(number)
            # Where nobody listens, a certificate is of no use: that comes first.
            fault = self._not_listening.get(number)
            if fault is None and certificate is not None and not certificate.ready:
                fault = self.tailnet.certificate.error or "there is no certificate yet"
            elif fault is None and not any(
                key[:2] == (listen.address.host, listen.address.port) for key in self._listeners
            ):
                fault = self.tailnet.addresses.error or "not listening yet"
            result[f"listener {listen.address}"] = fault
        for name, upstream in self.upstreams.items():
            if upstream.endpoint.account is not None:
                result[f"cluster {name}"] = upstream.endpoint.account.fault()
        return result

    def warnings(self) -> dict[str, str]:
        """What is well, and had better be otherwise, by the names of the checks."""
        said = dict(warnings_of(self.config))
        return {
            f"listener {listen.address}": said["listen", number, "address"]
            for number, listen in enumerate(self.config.listen)
            if ("listen", number, "address") in said
        }

    def moved(self) -> bool:
        """Whether a cluster's kubeconfig names another server since the last call: this has to be prepared anew."""
        moved = [credentials for credentials in self._credentials if credentials.moved]
        for credentials in moved:
            credentials.moved = False
        return bool(moved)

    def ca_pem(self) -> bytes | None:
        """The generated CA that clients need, None where no listener has one."""
        for certificate in self._certificates.values():
            if isinstance(certificate, GeneratedCertificate):
                return certificate.ca_pem
        return None

    def metrics(self) -> Iterable[Metric]:
        """The gauges of pools and WhoIs."""
        idle = GaugeMetricFamily("k8sproxy_upstream_idle", "Idle upstream connections.", labels=("cluster",))
        active = GaugeMetricFamily("k8sproxy_upstream_active", "Upstream connections in use.", labels=("cluster",))
        opened = CounterMetricFamily("k8sproxy_upstream_opened", "Upstream connections made.", labels=("cluster",))
        for name, upstream in self.upstreams.items():
            idle.add_metric((name,), upstream.idle)
            active.add_metric((name,), upstream.active)
            opened.add_metric((name,), upstream.opened)
        accepted = GaugeMetricFamily(
            "k8sproxy_cluster_account_accepted",
            "Whether the API server accepts the proxy's own credentials.",
            labels=("cluster",),
        )
        for name, upstream in self.upstreams.items():
            account = upstream.endpoint.account
            if account is not None and account.state is not AccountState.UNTRIED:
                accepted.add_metric((name,), account.state is AccountState.ACCEPTED)
        streams = GaugeMetricFamily("k8sproxy_open_streams", "Exchanges running now, by kind.", labels=("kind",))
        for kind, count in self._server.running().items():
            streams.add_metric((kind,), count)
        whois = self.tailnet.whois
        yield from (idle, active, opened, accepted, streams)
        yield CounterMetricFamily("k8sproxy_whois_hits", "Peers whose answer from tailscaled is cached.", whois.hits)
        yield CounterMetricFamily("k8sproxy_whois_misses", "Questions to tailscaled.", whois.misses)
        failures = CounterMetricFamily("k8sproxy_whois_failures", "Questions without an answer.", labels=("reason",))
        for cause, number in whois.failures.items():
            failures.add_metric((cause,), number)
        yield failures

    # -- letting go

    def stop_listening(self) -> None:
        """Accept nothing more."""
        for listener in self._listeners.values():
            listener.close()
        self._listeners.clear()

    async def close(self) -> None:
        """Let go of everything that has not been taken over. Requests that run keep their upstream connections."""
        self.stop_listening()
        await self._tasks.aclose()
        for upstream in self.upstreams.values():
            upstream.close()


def _name(listen: Listen) -> tuple[str, int]:
    """What a listener is known by from one configuration to the next."""
    return listen.address.host, listen.address.port


def limits_of(config: Config) -> Limits:
    """The data plane's limits out of the configuration's."""
    limits = config.limits
    return Limits(
        head_bytes=limits.head_bytes,
        header_count=limits.header_count,
        head_timeout=limits.head_timeout,
        idle_timeout=limits.idle_timeout,
        handshake_timeout=limits.handshake_timeout,
        connections=limits.connections,
        connections_per_peer=limits.connections_per_peer,
        connect_timeout=limits.upstream_connect_timeout,
        pool_size=limits.upstream_idle,
        pool_idle_timeout=limits.upstream_idle_timeout,
    )


def set_recording_limits(recorders: Recorders, dialer: Dialer, config: Config) -> None:
    """Give the recorder wire's client the configuration's limits; they hold for the next session."""
    dialer.timeout = config.recording.dial_timeout
    limits, recording = recorders.limits, config.recording
    limits.dial_timeout = recording.dial_timeout
    limits.accept_timeout = recording.accept_timeout
    limits.ack_timeout = recording.ack_timeout
    limits.finish_timeout = recording.finish_timeout
    limits.buffer = recording.buffer
    recorders.buffers.total, recorders.buffers.share = recording.total_buffer, recording.peer_buffer


def set_event_settings(events: Events, config: Config) -> None:
    """Give events the configuration's settings; they hold for the next request."""
    settings, wanted = events.settings, config.events
    settings.body_bytes, settings.redact = wanted.body_bytes, wanted.redact
    events.queues.limit = wanted.queue


def _certificate_names(listen: Listen, node: Iterable[str]) -> tuple[str, ...]:
    """What a generated certificate is for: the configured names, the listener's address, the node's own."""
    names = list(listen.tls.names)
    if listen.address.host != "tailnet" and listen.address.host not in ("0.0.0.0", "::"):  # noqa: S104
        names.append(listen.address.host)
    if listen.address.is_loopback:
        names.append("localhost")
    return tuple(dict.fromkeys((*names, *node))) or ("localhost",)


def _cannot_listen(ip: str, port: int, error: OSError) -> str:
    """What is wrong with an address, and what may be the matter with one of the tailnet's."""
    if error.errno != errno.EADDRNOTAVAIL:
        return f"cannot listen on {join_address(ip, port)}: {error.strerror}"
    fault = f"{ip} is not an address of this machine"
    if is_tailnet(ipaddress.ip_address(ip)):
        fault += "; does tailscaled run in userspace mode? then listen on 127.0.0.1"
    return fault


def _impersonates(cluster: Cluster) -> bool:
    return cluster.mode == "impersonate"
