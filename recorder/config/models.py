"""The shape of the recorder's configuration file, apiVersion recorder/v1alpha1.

Each class is one section; keys are camelCase in the file and snake_case here; everything is frozen. What a field may
hold is decided here and in `values.py`; how sections fit together is `checks.py`'s. The descriptions are the
documentation of the file.

Secrets of an object store are best left to files and to the environment that its SDKs read.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, StrictBool, model_validator

from k8sproxy.common.config.addresses import TAILNET, ListenAddress, parse_listen_address
from k8sproxy.common.config.sections import DOMAIN, FilePath, FolderPath, Network, Section, Who, matching
from k8sproxy.common.config.units import duration_between, number_between, parse_size
from recorder.config.values import IndexURL, Keep, StoreURL

_OBJECT = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?\Z")
_STAMPER = re.compile(r"https?://[A-Za-z0-9.\[\]:-]+(?:/[!-~]*)?\Z", re.ASCII)
_SERVER = re.compile(r"https://(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(?::\d{1,5})?/?\Z", re.ASCII)


def _seconds(low: str, high: str) -> BeforeValidator:
    return BeforeValidator(duration_between(low, high))


def _number(low: int, high: int) -> BeforeValidator:
    return BeforeValidator(number_between(low, high))


def _admin_address(value: object) -> ListenAddress:
    address = parse_listen_address(value)
    if address.is_tailnet:
        raise ValueError("must not be an address of the tailnet")
    return address


Address = Annotated[ListenAddress, BeforeValidator(parse_listen_address)]
Size = Annotated[int, BeforeValidator(parse_size)]


class Tailnet(Section):
    """The local tailscaled."""

    socket: FilePath = Field(
        default=Path("/var/run/tailscale/tailscaled.sock"), description="The unix socket of tailscaled's LocalAPI."
    )
    whois_ttl: Annotated[float, _seconds("0s", "10m")] = Field(
        default=10.0, alias="whoisTTL", description="How long an answer about a peer counts (default 10s)."
    )
    capability_domain: Annotated[str, matching(DOMAIN, "a domain name")] = Field(
        default="tailscale.com",
        description="Grants are read from DOMAIN/cap/recorder (default tailscale.com).",
    )


class Store(Section):
    """Where recordings and events are kept: a folder, or an object store."""

    folder: FolderPath | None = Field(default=None, description="A folder on a local disk.")
    url: StoreURL | None = Field(
        default=None, description="An object store: s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX."
    )
    options: dict[str, str] = Field(
        default={},
        description="url: settings of the object store (endpoint, region, allow_http, virtual_hosted_style_request..).",
    )
    option_files: dict[str, FilePath] = Field(
        default={}, description="url: settings whose values are read from files, as secrets are mounted."
    )
    instance: Annotated[
        str, matching(re.compile(r"[a-z0-9][a-z0-9-]{0,62}\Z"), "lower-case letters, digits, dashes")
    ] = Field(
        default="main",
        description="url: the name of this recorder's own journal. Two recorders that share a prefix need two names, "
        "and a name must outlive restarts.",
    )
    min_free: Size = Field(
        default=256 << 20, description="folder: bytes that must be left for new sessions to be taken (default 256MiB)."
    )

    @model_validator(mode="after")
    def _one(self) -> Store:
        if (self.folder is None) is (self.url is None):
            raise ValueError("needs exactly one of folder and url")
        if self.folder is not None and (self.options or self.option_files):
            raise ValueError("options go with url")
        return self


class Ingest(Section):
    """Where sessions and events are taken, and from whom."""

    listen: tuple[Address, ...] = Field(
        default=(ListenAddress(TAILNET, 80),),
        min_length=1,
        description="Addresses for both versions of the wire (default tailnet:80, where senders expect a recorder).",
    )
    allow: tuple[Who, ...] = Field(
        default=(), description="Login names and tags that may send, besides those with a grant."
    )
    insecure_allow: tuple[Network, ...] = Field(
        default=(),
        description="For development only: addresses that may send without being identified.",
    )
    sessions: Annotated[int, _number(1, 100_000)] = Field(
        default=5000, description="Sessions at once; more are refused (default 5000)."
    )
    sessions_per_sender: Annotated[int, _number(1, 100_000)] | None = Field(
        default=None, description="Sessions at once of one sending node (default: four fifths of `sessions`)."
    )
    sessions_per_user: Annotated[int, _number(1, 100_000)] | None = Field(
        default=None,
        description="Sessions at once of one user, as their headers name them (default: a tenth of `sessions`).",
    )
    connections: Annotated[int, _number(1, 100_000)] = Field(
        default=4096, description="Connections of senders at once (default 4096)."
    )
    connections_per_sender: Annotated[int, _number(1, 100_000)] | None = Field(
        default=None, description="Connections at once of one sending node (default: four fifths of `connections`)."
    )
    event_bytes: Size = Field(
        default=64 << 20, description="Bytes of requests with API events that are read at once (default 64MiB)."
    )
    event_bytes_per_sender: Size | None = Field(
        default=None, description="The same, of one sending node (default: half of `eventBytes`)."
    )


class Web(Section):
    """Where people look at recordings."""

    listen: tuple[Address, ...] = Field(
        default=(), description="Addresses of the web site and its JSON API (default none: it is off)."
    )
    hosts: tuple[Annotated[str, matching(DOMAIN, "a host name in lower case, without a port")], ...] = Field(
        default=(),
        description="Names under which the site is reached; requests for others are refused (default: this node's own "
        "name on the tailnet). IP addresses are always fine.",
    )
    connections: Annotated[int, _number(1, 100_000)] = Field(
        default=1024, description="Connections at once (default 1024)."
    )
    connections_per_peer: Annotated[int, _number(1, 100_000)] | None = Field(
        default=None, description="Connections at once of one node (default: an eighth of `connections`)."
    )
    title: str = Field(default="Recorder", min_length=1, max_length=100, description="The title of the site's pages.")
    insecure_allow: tuple[Network, ...] = Field(
        default=(),
        description="For development only: addresses that may see everything without being identified.",
    )


class Index(Section):
    """Where recordings are found."""

    url: IndexURL | None = Field(
        default=None,
        description='"sqlite:PATH" or "postgresql://..". Default: sqlite beside a folder store, in its folder.',
    )
    enabled: StrictBool = Field(default=True, description="Whether there is an index; without one there is no search.")


class Admin(Section):
    """Health, readiness and metrics."""

    address: Annotated[ListenAddress, BeforeValidator(_admin_address)] = Field(
        default=ListenAddress("127.0.0.1", 9003), description="One address, never on the tailnet."
    )


class Log(Section):
    """What goes to standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["json", "console"] = "json"


class Shutdown(Section):
    """What SIGTERM does."""

    grace: Annotated[float, _seconds("0s", "24h")] = Field(
        default=20.0, description="How long sessions may go on after SIGTERM before they are cut (default 20s)."
    )


class ConfigMap(Section):
    """A ConfigMap that is there, which the recorder's service account may get and patch."""

    name: Annotated[str, matching(_OBJECT, "the name of a ConfigMap")] = Field(description="Its name.")
    namespace: Annotated[str, matching(_OBJECT, "the name of a namespace")] | None = Field(
        default=None, description="Default: the pod's own."
    )
    account: FolderPath = Field(
        default=Path("/var/run/secrets/kubernetes.io/serviceaccount"),
        description="A folder with token, ca.crt and namespace of a service account, as kubelet mounts it.",
    )
    server: Annotated[str, matching(_SERVER, "an https:// URL without a path")] | None = Field(
        default=None, description="The API server, https://HOST:PORT. Default: that of the pod's cluster."
    )


class TimeStamps(Section):
    """A time stamp service (RFC 3161), which stamps the manifests of days, besides a folder or a ConfigMap."""

    url: Annotated[str, matching(_STAMPER, "an http:// or https:// URL without credentials")] = Field(
        description="The URL of the service."
    )
    certificates: FilePath = Field(description="Its certificate, or its issuer's, in PEM.")


class Anchor(Section):
    """Where it is remembered how far the signed chains had come: outside of the store, since a store that was taken
    back to yesterday looks like one that was not."""

    folder: FolderPath | None = Field(
        default=None,
        description="A folder on another volume than the store (default: `anchor` beside the key).",
    )
    config_map: ConfigMap | None = Field(default=None, description="A ConfigMap, besides the folder or in its place.")
    time_stamps: TimeStamps | None = Field(
        default=None, description="A time stamp service (RFC 3161), besides folder or ConfigMap."
    )


class Proof(Section):
    """What is signed, so that it can be told whether something was changed (`recorder verify`)."""

    key: FilePath | None = Field(
        default=None,
        description="The Ed25519 key that signs recordings and days, in PEM; never in the store's folder. The "
        "recorder makes it at the first start on an empty store; `recorder key` makes one, too. Default: nothing is "
        "signed.",
    )
    previous_key: FilePath | None = Field(
        default=None,
        description="The previous private key, for the one start at which it hands over to the new one.",
    )
    public_keys: tuple[FilePath, ...] = Field(
        default=(), description="Previous public keys, in PEM: what they signed while they were current is trusted."
    )
    anchor: Anchor = Anchor()
    seal_days: StrictBool = Field(
        default=True,
        description="Whether this recorder signs the manifests of days; false for all but one of several that share an "
        "object store (default true).",
    )
    delay: Annotated[float, _seconds("0s", "24h")] = Field(
        default=3600.0, description="How long after midnight (UTC) a day is sealed (default 1h)."
    )


class Encryption(Section):
    """Encryption at rest, with AES-256-GCM."""

    keys: tuple[FilePath, ...] = Field(
        default=(),
        description="Files with 32 bytes each, in base64 or hex. The first key encrypts; the others are earlier keys, "
        "for reading. Default: nothing is encrypted.",
    )


class RetentionMatch(Section):
    """Which recordings: all fields that are given hold. Globs with * and ?."""

    clusters: tuple[str, ...] = ()
    namespaces: tuple[str, ...] = ()
    users: tuple[str, ...] = ()
    session_types: tuple[str, ...] = ()


class RetentionRule(Section):
    """The first rule that matches a recording says how long it is kept, and for that long it is."""

    match: RetentionMatch
    keep: Keep = Field(description='How long a recording is kept after its end, such as "90d", or "forever".')


class Retention(Section):
    """What is removed when. Default: nothing. What is held (`recorder prune --hold`) never is."""

    max_age: Keep = Field(
        default=None, description="A recording that no rule matches is removed this long after its end."
    )
    max_bytes: Size | None = Field(
        default=None,
        description="Recordings that no rule matches are removed, oldest first, until all take no more than this.",
    )
    events_max_age: Keep = Field(default=None, description="API events of this age are removed, in whole days.")
    rules: tuple[RetentionRule, ...] = Field(default=(), description="Exceptions, in order.")


class Config(Section):
    """The whole file."""

    api_version: Literal["recorder/v1alpha1"]
    tailnet: Tailnet = Tailnet()
    store: Store
    index: Index = Index()
    ingest: Ingest = Ingest()
    web: Web = Web()
    admin: Admin = Admin()
    log: Log = Log()
    shutdown: Shutdown = Shutdown()
    proof: Proof = Proof()
    encryption: Encryption = Encryption()
    retention: Retention = Retention()
