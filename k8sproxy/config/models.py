"""The shape of the configuration file, apiVersion k8sproxy/v1alpha1.

Each class is one section; keys are camelCase in the file and snake_case here; everything is frozen. What a field may
hold is decided here; how sections fit together (and whether files are there) is `checks.py`'s. The descriptions are the
documentation of the file: `example.yaml` repeats those of the limits word for word, and a test holds the two together.

Nothing in the file is a secret: certificates' keys, kubeconfigs and tokens are files that it names, so a configuration
may be shown, and lives in a ConfigMap while its secrets live in Secrets.
"""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, StrictBool, ValidationInfo

from k8sproxy.access.grants import GrantSettings
from k8sproxy.access.ownrules import DEFAULT_DOMAIN
from k8sproxy.common.config.addresses import AdminAddress, ListenAddress, parse_admin_address, parse_listen_address
from k8sproxy.common.config.sections import DOMAIN, FilePath, FolderPath, Section, Who, matching, path_of
from k8sproxy.common.config.units import duration_between, number_between, size_between

_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_DNS_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*\.?\Z", re.IGNORECASE)
_SERVICE = re.compile(rf"svc:{_LABEL}\Z")
_CLUSTER_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?\Z")
_socket_path = path_of("socket")
_ORIGIN = re.compile(rf"(https?)://({_LABEL}(?:\.{_LABEL})*|\[[0-9a-f:.]+\])(?::([0-9]{{1,5}}))?")


def _admin_address(value: object, info: ValidationInfo) -> AdminAddress:
    address = parse_admin_address(value)
    return AdminAddress(unix=_socket_path(str(address.unix), info)) if address.unix is not None else address


def _certificate_name(value: object) -> str:
    """A DNS name (a wildcard as its first label is one) or an IP address, for a certificate's subject alternatives."""
    if not isinstance(value, str) or len(value) > 253:
        raise ValueError("must be a DNS name or an IP address")
    try:
        return str(ipaddress.ip_address(value))
    except ValueError:
        if not _DNS_NAME.match(value.removeprefix("*.")):
            raise ValueError("must be a DNS name or an IP address") from None
        return value.rstrip(".").lower()


def _origin(value: object) -> str:
    """A web origin, spelt as browsers do: lower case, without the scheme's own port."""
    if value == "null":
        raise ValueError("must not be null: every sandboxed frame of every web page sends that origin")
    match = _ORIGIN.fullmatch(value.lower()) if isinstance(value, str) and len(value) <= 320 else None
    if match is None:
        raise ValueError("must be an origin: http://HOST, https://HOST, and a port where it is not 80 or 443; no path")
    scheme, host, port = match.groups()
    if port is not None and not 0 < int(port) <= 65535:
        raise ValueError("must have a port from 1 to 65535")
    plain = port is None or int(port) == {"http": 80, "https": 443}[scheme]
    return f"{scheme}://{host}" if plain else f"{scheme}://{host}:{int(port)}"


CertificateName = Annotated[str, BeforeValidator(_certificate_name)]
ServiceName = Annotated[str, matching(_SERVICE, "the name of a Tailscale Service, such as svc:kube")]
ClusterName = Annotated[str, matching(_CLUSTER_NAME, "1 to 63 letters, digits, dots, dashes or underscores")]
Origin = Annotated[str, BeforeValidator(_origin)]


class Tailnet(Section):
    """The local tailscaled, and how long its answers count."""

    socket: FilePath = Field(
        default=Path("/var/run/tailscale/tailscaled.sock"), description="The unix socket of tailscaled's LocalAPI."
    )
    whois_ttl: Annotated[float, BeforeValidator(duration_between("0s", "10m"))] = Field(
        default=10.0,
        alias="whoisTTL",
        description="How long an answer about a peer is used before tailscaled is asked again (default 10s). A "
        "withdrawn grant ends no later than this; the daemon's change notices usually end it at once.",
    )
    whois_timeout: Annotated[float, BeforeValidator(duration_between("100ms", "1m"))] = Field(
        default=5.0,
        description="How long the daemon may take for an answer (default 5s; it takes milliseconds). After this the "
        "client gets a 503 and the next request asks again.",
    )
    capability_domain: Annotated[str, matching(DOMAIN, "a domain name in lower case")] = Field(
        default=DEFAULT_DOMAIN,
        description="Rules of the proxy's own, such as {recording: acknowledged}, are read from DOMAIN/cap/k8sproxy "
        "(default tailscale.com). The recorder has a key of the same name for its own rules.",
    )
    unknown_grant_fields: Literal["warn", "refuse"] = Field(
        default="warn",
        description="An unknown field of a Kubernetes grant, such as enforceRecoder: warn (default) logs it and "
        "ignores it, as Tailscale's proxy does; refuse rejects the peer until the policy is corrected.",
    )

    @property
    def grants(self) -> GrantSettings:
        """How grants are read."""
        return GrantSettings(self.capability_domain, refuse_unknown=self.unknown_grant_fields == "refuse")


class ListenTLS(Section):
    """Whether a listener speaks TLS, and where its certificate comes from."""

    source: Literal["tailnet", "files", "generated", "none"] = Field(
        description="tailnet: the daemon's certificate for this node's name. files: cert and key. generated: a CA of "
        "the proxy's own, kept in directory. none: plain HTTP."
    )
    cert: FilePath | None = Field(default=None, description="files: the certificate and its chain, PEM.")
    key: FilePath | None = Field(default=None, description="files: the private key, PEM, without a passphrase.")
    directory: FolderPath | None = Field(
        default=None,
        description="generated: where the CA is kept (default /var/lib/k8sproxy/ca). It must outlive restarts.",
    )
    names: tuple[CertificateName, ...] = Field(
        default=(),
        description="generated: names and addresses for the certificate, besides the listener's and the node's own. "
        "tailnet: at most one, the domain to ask the daemon for (default: the node's own).",
    )
    insecure: StrictBool = Field(
        default=False,
        description="none: required where the address is neither loopback nor the tailnet's; anyone on the network "
        "path can read the traffic.",
    )

    @property
    def ca_directory(self) -> Path:
        """generated: where the CA is kept."""
        return self.directory or Path("/var/lib/k8sproxy/ca")


class Listen(Section):
    """One listener: where clients connect, and which cluster they reach."""

    address: Annotated[ListenAddress, BeforeValidator(parse_listen_address)] = Field(
        description='"tailnet:PORT" (every tailnet address of this node), "IP:PORT" or "[IPv6]:PORT".'
    )
    tls: ListenTLS
    proxy_protocol: StrictBool = Field(
        default=False,
        description="A PROXY v2 header names the client, as a Tailscale Service sends it. Loopback only, and any user "
        "of this machine can then claim to be any peer. Use 127.0.0.2: on 127.0.0.1 and ::1 tailscaled must be asked "
        "about every new connection, which takes 180 ms.",
    )
    service: ServiceName | None = Field(
        default=None,
        description="The Tailscale Service whose grants count here, svc:NAME (default: the node's own grants).",
    )
    cluster: ClusterName | None = Field(default=None, description="The cluster's name; needed where there are several.")
    allow_origins: tuple[Origin, ...] = Field(
        default=(),
        description="Origins of web pages that may act with the identity of the user who opens them, such as "
        "http://127.0.0.1:8001 of a kubectl proxy that programs run exec through (default: none but this listener's "
        "own).",
    )


class Cluster(Section):
    """One API server, and the proxy's own account there."""

    name: ClusterName
    kubeconfig: FilePath | None = Field(default=None, description="A kubeconfig file with the account of the proxy.")
    context: str | None = Field(
        default=None, min_length=1, description="Its context (default: the file's current one)."
    )
    in_cluster: StrictBool = Field(default=False, description="Use the pod's service account instead of a kubeconfig.")
    mode: Literal["impersonate", "passthrough"] = Field(
        default="impersonate",
        description="impersonate: the tailnet says who the client is. passthrough: the client's own credentials go "
        "through; the tailnet only says whether it may connect.",
    )


class Admin(Section):
    """Where /healthz, /readyz and /metrics are."""

    address: Annotated[AdminAddress, BeforeValidator(_admin_address)] = Field(
        default=AdminAddress(tcp=ListenAddress("127.0.0.1", 9002)), description='"IP:PORT" or "unix:/PATH".'
    )
    allow: tuple[Who, ...] = Field(
        default=(),
        description="Who of the tailnet may see it: login names, as the control server gives them, and tags. A "
        "userspace daemon makes loopback ports "
        "reachable from the tailnet; a peer that is not named here is refused.",
    )


class Log(Section):
    """What is logged, to stderr."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["json", "console"] = "json"
    requests: StrictBool = Field(default=True, description="One line for each request.")


class Limits(Section):
    """Bounds on what one client, or all of them, can take. Attributes are bytes, seconds or plain counts."""

    head_bytes: Annotated[int, BeforeValidator(size_between("4KiB", "1MiB"))] = Field(
        default=64 * 1024,
        description="Bytes of a request's or a response's head (default 64KiB). kubectl sends under 2KiB; a long label "
        "selector or a proxied application's cookies need more.",
    )
    header_count: Annotated[int, BeforeValidator(number_between(16, 4096))] = Field(
        default=128, description="Header fields in a head (default 128). kubectl sends about 10, a browser about 30."
    )
    head_timeout: Annotated[float, BeforeValidator(duration_between("100ms", "5m"))] = Field(
        default=10.0,
        description="Time from a request's first byte to the end of its head (default 10s). A head is one or two "
        "packets; without this a client that never ends its head holds a connection for ever.",
    )
    idle_timeout: Annotated[float, BeforeValidator(duration_between("1s", "24h"))] = Field(
        default=300.0,
        description="How long a connection may stand between two requests (default 5m). It is longer than the 90s "
        "after which Go clients close theirs, so that no request meets a closing connection; watches are not idle.",
    )
    handshake_timeout: Annotated[float, BeforeValidator(duration_between("100ms", "5m"))] = Field(
        default=10.0,
        description="Time for the PROXY header and the TLS handshake of a client (default 10s, as kubectl's own). A "
        "handshake takes a few round trips, under 1s on a relayed tailnet.",
    )
    connections_per_peer: Annotated[int, BeforeValidator(number_between(1, 1_000_000))] = Field(
        default=2048,
        description="Connections of one user, with all their nodes, or of one tagged node (default 2048). A "
        "port-forward or a watch takes one each: this is far above what a person does and below what would leave "
        "nothing for others.",
    )
    sessions_per_peer: Annotated[int, BeforeValidator(number_between(1, 1_000_000))] = Field(
        default=256,
        description="Sessions (exec, attach, port-forward) at once of one user, with all their nodes, or of one tagged "
        "node (default 256). Each that is recorded takes a place at the recorder for as long as it is open.",
    )
    connections: Annotated[int, BeforeValidator(number_between(1, 1_000_000))] = Field(
        default=10_000,
        description="Connections of all peers (default 10000). An idle one takes about 60KiB and two descriptors, so "
        "this is 600MiB and needs ulimit -n above 20000.",
    )
    upstream_connect_timeout: Annotated[float, BeforeValidator(duration_between("100ms", "5m"))] = Field(
        default=5.0,
        description="Time to connect to an API server, TLS included (default 5s). It is near; one that takes longer is "
        "down, and kubectl should hear of it.",
    )
    upstream_idle: Annotated[int, BeforeValidator(number_between(0, 100_000))] = Field(
        default=1024,
        description="Idle connections kept to one API server (default 1024). Each that is missing costs a TLS "
        "handshake on both sides, so there should be as many as requests at once; one takes about 20KiB.",
    )
    upstream_idle_timeout: Annotated[float, BeforeValidator(duration_between("1s", "1h"))] = Field(
        default=60.0,
        description="How long such a connection is kept (default 60s). It is below the 90s after which an API server "
        "drops it, so that no request crosses its end.",
    )


class Recording(Section):
    """How sessions reach a recorder. Which sessions and which recorders is the tailnet policy's to say."""

    dial_timeout: Annotated[float, BeforeValidator(duration_between("100ms", "1m"))] = Field(
        default=2.0,
        description="Time for one recorder to be reached and to accept a session (default 2s). On the tailnet this "
        "takes milliseconds; the next recorder should be asked while the user still waits.",
    )
    accept_timeout: Annotated[float, BeforeValidator(duration_between("100ms", "5m"))] = Field(
        default=5.0,
        description="Time for all recorders together (default 5s). After it the session is refused, or goes on "
        "unrecorded, as its grant says.",
    )
    ack_timeout: Annotated[float, BeforeValidator(duration_between("1s", "10m"))] = Field(
        default=30.0,
        description="How long a recorder may leave bytes unconfirmed (default 30s, as other senders have it). One that "
        "says nothing for longer has failed.",
    )
    finish_timeout: Annotated[float, BeforeValidator(duration_between("100ms", "5m"))] = Field(
        default=5.0,
        description="Time for the last confirmation at a session's end (default 5s). Where recording is enforced, "
        "the user waits for it, and sees the session fail if it does not come.",
    )
    buffer: Annotated[int, BeforeValidator(size_between("64KiB", "1GiB"))] = Field(
        default=4 * 1024 * 1024,
        description="Bytes of a session that may wait for a slow recorder (default 4MiB). As long as they fit, nobody "
        "notices; then output waits (recording enforced) or is left out of the recording.",
    )
    peer_buffer: Annotated[int, BeforeValidator(size_between("1MiB", "64GiB"))] = Field(
        default=32 * 1024 * 1024,
        description="The same of all sessions of one user, with all their nodes, or of one tagged node (default 32MiB: "
        "eight that are full). A session may hold 64KiB all the same.",
    )
    total_buffer: Annotated[int, BeforeValidator(size_between("1MiB", "64GiB"))] = Field(
        default=256 * 1024 * 1024,
        description="The same of all sessions together (default 256MiB). A session may hold 64KiB all the same, so "
        "that terminals go on while the recordings of others have stalled.",
    )


class Events(Section):
    """API requests told to a recorder, where a grant says enableEvents."""

    # The most: a recorder takes 16 MiB in one request, and base64 makes four bytes of three.
    body_bytes: Annotated[int, BeforeValidator(size_between("0", "8MiB"))] = Field(
        default=64 * 1024,
        description="Bytes of a request's body that its API event has (default 64KiB; 0 for none). Nearly every "
        "object that people apply is smaller; one that is cut is marked so.",
    )
    queue: Annotated[int, BeforeValidator(number_between(1, 1_000_000))] = Field(
        default=10_000,
        description="Events that may wait for a slow recorder (default 10000). They are kept in memory, and a grant "
        "that enforces recording refuses requests when it is full.",
    )
    redact: StrictBool = Field(
        default=True,
        description="Leave out what is secret (default true): the data of Secrets, tokens, credentials in queries. "
        "Set it to false only where the recorder may store secrets.",
    )


class Shutdown(Section):
    """How the proxy ends."""

    grace: Annotated[float, BeforeValidator(duration_between("0s", "1h"))] = Field(
        default=30.0,
        description="How long running requests may take to end after SIGTERM (default 30s, as a pod's grace period). "
        "Watches end at once; what is left after this time is closed.",
    )


class Config(Section):
    """A whole file. Made by `k8sproxy.config.load`, which also holds the sections against each other."""

    api_version: Literal["k8sproxy/v1alpha1"]
    tailnet: Tailnet = Tailnet()
    listen: tuple[Listen, ...] = Field(min_length=1)
    clusters: tuple[Cluster, ...] = Field(min_length=1)
    admin: Admin = Admin()
    log: Log = Log()
    limits: Limits = Limits()
    recording: Recording = Recording()
    events: Events = Events()
    shutdown: Shutdown = Shutdown()

    def cluster_of(self, listen: Listen) -> Cluster:
        """The cluster that a listener leads to: the one that it names, else the only one."""
        if listen.cluster is None:
            return self.clusters[0]
        return next(cluster for cluster in self.clusters if cluster.name == listen.cluster)
