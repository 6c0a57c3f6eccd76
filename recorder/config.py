"""The configuration: one YAML file, checked whole, with every fault told by its line.

pydantic knows keys and PyYAML knows places; a walk over the YAML's nodes gives both, so that a fault names its line.
Durations and sizes carry their units ("90s", "64MiB"). `${NAME}` in a value is that environment variable; a dollar sign
is written `$$`. Unknown keys are faults. Messages never repeat a value: secrets come out of the environment.

Secrets of an object store are best left to files and to the environment that its SDKs read.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic.alias_generators import to_camel

from k8sproxy.common.sockets import join_address
from k8sproxy.common.tailnet.peer import is_tailnet, read_name
from recorder.proof.places import is_inside, read_mounts

# Bytes: a bound on what a wrong path can make the parser read.
MAX_FILE = 1 << 20
# Levels and values, counting each use of an alias: the schema needs four levels and some dozen values.
_MAX_DEPTH = 20
_MAX_VALUES = 10_000

_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|s|m|h|d))+\Z", re.ASCII)
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", re.ASCII)
_SECONDS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE = re.compile(r"(\d{1,15})(B|KiB|MiB|GiB|TiB)?\Z", re.ASCII)
_BYTES = {None: 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_REFERENCE = re.compile(r"\$\$|\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_DOMAIN = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?\Z")
_OBJECT = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?\Z")
_STAMPER = re.compile(r"https?://[A-Za-z0-9.\[\]:-]+(?:/[!-~]*)?\Z", re.ASCII)
_SERVER = re.compile(r"https://(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(?::\d{1,5})?/?\Z", re.ASCII)
_SCHEMES = ("s3", "s3a", "gs", "az", "adl", "azure", "abfs", "abfss", "memory", "http", "https")
# What each kind of store takes for a name at the most, old ones included: S3 had capitals and underscores once. The
# rule, and what to tell whoever breaks it.
_S3_NAME = (
    re.compile(r"(?!\d+\.\d+\.\d+\.\d+\Z)(?!.*\.\.)[A-Za-z0-9._-]{3,255}"),
    "bucket: 3 or more letters, digits, dots, dashes and underscores, not two dots in a row, not an IP address",
)
_AZURE_NAME = (
    re.compile(r"\$(?:root|web|logs)|(?!.*--)[a-z0-9](?:[a-z0-9-]{1,61}[a-z0-9])"),
    "container: 3 to 63 lower-case letters, digits and single dashes between them",
)
_BUCKETS = {
    "s3": _S3_NAME,
    "s3a": _S3_NAME,
    "gs": (
        re.compile(r"(?!\d+\.\d+\.\d+\.\d+\Z)(?!.*\.\.)[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]"),
        "bucket: 3 or more lower-case letters, digits, dots, dashes and underscores, a letter or digit at both ends",
    ),
    "az": _AZURE_NAME,
    "azure": _AZURE_NAME,
}

Place = tuple[int, int]
Key = tuple[str | int, ...]


class ConfigError(Exception):
    """A configuration that is refused. faults: a line each, "FILE:LINE:COLUMN: key: what is wrong"."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = tuple(faults)


def parse_duration(value: object) -> float:
    """Seconds. Raises ValueError with a message for the reader."""
    if not isinstance(value, str) or len(value) > 40 or not _DURATION.match(value):
        raise ValueError('must be a duration with its unit, such as "500ms", "10s", "5m", "1h30m" or "90d"')
    return sum(float(number) * _SECONDS[unit] for number, unit in _PART.findall(value))


def parse_size(value: object) -> int:
    """Bytes. Raises ValueError with a message for the reader."""
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    match = _SIZE.match(text) if isinstance(text, str) else None
    if match is None:
        raise ValueError('must be a size, such as "64KiB", "1GiB" or a number of bytes')
    return int(match[1]) * _BYTES[match[2]]


def _duration(low: str, high: str) -> BeforeValidator:
    lowest, highest = parse_duration(low), parse_duration(high)

    def check(value: object) -> float:
        seconds = value if isinstance(value, float) else parse_duration(value)
        if not lowest <= seconds <= highest:
            raise ValueError(f"must be from {low} to {high}")
        return seconds

    return BeforeValidator(check)


def _number(low: int, high: int) -> BeforeValidator:
    def check(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"must be a whole number from {low} to {high}")
        return value

    return BeforeValidator(check)


def _path(value: object, info: ValidationInfo) -> Path:
    """A path; a relative one is taken from the directory of the file."""
    if isinstance(value, Path):
        return value
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError("must be a path")
    base = (info.context or {}).get("base")
    try:
        path = Path(value).expanduser()
    except RuntimeError:
        raise ValueError("begins with ~ for a user whose home is not known") from None
    return Path(base) / path if base is not None else path


def _matching(pattern: re.Pattern[str], wanted: str) -> BeforeValidator:
    def check(value: object) -> str:
        if not isinstance(value, str) or len(value) > 320 or not pattern.match(value):
            raise ValueError(f"must be {wanted}")
        return value

    return BeforeValidator(check)


def _network(value: object) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    if isinstance(value, ipaddress.IPv4Network | ipaddress.IPv6Network):
        return value
    try:
        if not isinstance(value, str):
            raise ValueError
        return ipaddress.ip_network(value)
    except ValueError:
        raise ValueError('must be an address or a network, such as "127.0.0.1" or "10.0.0.0/8"') from None


class Address(BaseModel):
    """Where to listen: "tailnet:80" (all addresses of this node), "IP:PORT" or "[IPv6]:PORT"; never a name."""

    model_config = ConfigDict(frozen=True)

    host: str
    port: int

    @property
    def is_tailnet(self) -> bool:
        """Whether it can be reached over the tailnet alone."""
        return self.host == "tailnet" or is_tailnet(ipaddress.ip_address(self.host))

    def __str__(self) -> str:
        return join_address(self.host, self.port)


def parse_address(value: object) -> Address:
    """Raises ValueError with a message for the reader."""
    if isinstance(value, Address):
        return value
    wanted = 'must be "tailnet:PORT", "IP:PORT" or "[IPv6]:PORT"'
    host, colon, port = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    if not colon or not (port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= 65535):
        raise ValueError(wanted)
    if host == "tailnet":
        return Address(host="tailnet", port=int(port))
    bracketed = host.startswith("[") and host.endswith("]")
    try:
        address = ipaddress.ip_address(host[1:-1] if bracketed else host)
    except ValueError:
        raise ValueError(f"{wanted}, not a host name") from None
    if bracketed is not (address.version == 6) or "%" in host:
        raise ValueError(wanted)
    return Address(host=str(address), port=int(port))


def _url(value: object) -> str:
    scheme, colon, rest = value.partition("://") if isinstance(value, str) else ("", "", "")
    if not colon or scheme not in _SCHEMES or (not rest and scheme != "memory"):
        raise ValueError('must be the URL of an object store, such as "s3://bucket/prefix", "gs://.." or "az://.."')
    if "@" in rest.partition("/")[0] and not scheme.startswith("abfs"):
        raise ValueError("must hold no credentials")
    rule = _BUCKETS.get(scheme)
    if rule is not None and not rule[0].fullmatch(rest.partition("/")[0]):
        raise ValueError(f"{scheme}:// is followed by the name of a {rule[1]}")
    return str(value)


def _index_url(value: object, info: ValidationInfo) -> str:
    scheme, _, rest = value.partition(":") if isinstance(value, str) else ("", "", "")
    if scheme == "sqlite" and rest and "\0" not in rest:
        return f"sqlite:{_path(rest, info)}"
    try:
        if scheme not in ("postgresql", "postgres") or not rest.startswith("//"):
            raise ValueError
        urlsplit(str(value))
    except ValueError:  # its own message may repeat a part of the password
        raise ValueError(
            'must be "sqlite:PATH" or "postgresql://USER@HOST/DATABASE" (in a password, / ? # @ [ and ] are written as '
            "% and two hex digits)"
        ) from None
    return str(value)


FilePath = Annotated[Path, BeforeValidator(_path)]
ListenAddress = Annotated[Address, BeforeValidator(parse_address)]
Who = Annotated[str, BeforeValidator(read_name)]
Network = Annotated[ipaddress.IPv4Network | ipaddress.IPv6Network, BeforeValidator(_network)]
Size = Annotated[int, BeforeValidator(parse_size)]


class Section(BaseModel):
    """What all sections share: frozen, unknown keys refused, a key with nothing after it as good as absent."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", alias_generator=to_camel, validate_by_name=True, arbitrary_types_allowed=True
    )

    @model_validator(mode="before")
    @classmethod
    def _drop_empty(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        known = {field.alias for field in cls.model_fields.values()}
        return {name: item for name, item in value.items() if item is not None or name not in known}


class Tailnet(Section):
    """The local tailscaled."""

    socket: FilePath = Field(
        default=Path("/var/run/tailscale/tailscaled.sock"), description="The unix socket of tailscaled's LocalAPI."
    )
    whois_ttl: Annotated[float, _duration("0s", "10m")] = Field(
        default=10.0, alias="whoisTTL", description="How long an answer about a peer counts (default 10s)."
    )
    capability_domain: Annotated[str, _matching(_DOMAIN, "a domain name")] = Field(
        default="tailscale.com",
        description="Grants are read from DOMAIN/cap/recorder (default tailscale.com).",
    )


class Store(Section):
    """Where recordings and events are kept: a folder, or an object store."""

    folder: FilePath | None = Field(default=None, description="A folder on a local disk.")
    url: Annotated[str, BeforeValidator(_url)] | None = Field(
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
        str, _matching(re.compile(r"[a-z0-9][a-z0-9-]{0,62}\Z"), "lower-case letters, digits, dashes")
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

    listen: tuple[ListenAddress, ...] = Field(
        default=(Address(host="tailnet", port=80),),
        min_length=1,
        description="Addresses for both versions of the wire (default tailnet:80, where senders expect a recorder).",
    )
    allow: tuple[Who, ...] = Field(
        default=(), description="Login names and tags that may send, besides those with a grant."
    )
    insecure_allow: tuple[Network, ...] = Field(
        default=(),
        description="For development only: addresses that may send without being asked who they are.",
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

    listen: tuple[ListenAddress, ...] = Field(
        default=(), description="Addresses of the web site and its JSON API (default none: it is off)."
    )
    hosts: tuple[Annotated[str, _matching(_DOMAIN, "a host name in lower case, without a port")], ...] = Field(
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
    title: str = Field(default="Recorder", min_length=1, max_length=100, description="What the site calls itself.")
    insecure_allow: tuple[Network, ...] = Field(
        default=(),
        description="For development only: addresses that may see everything without being asked who they are.",
    )


class Index(Section):
    """Where recordings are found."""

    url: Annotated[str, BeforeValidator(_index_url)] | None = Field(
        default=None,
        description='"sqlite:PATH" or "postgresql://..". Default: sqlite beside a folder store, in its folder.',
    )
    enabled: StrictBool = Field(default=True, description="Whether there is an index; without one nothing is found.")


class Admin(Section):
    """Health, readiness and metrics."""

    address: ListenAddress = Field(
        default=Address(host="127.0.0.1", port=9003), description="One address, never on the tailnet."
    )

    @model_validator(mode="after")
    def _not_on_tailnet(self) -> Admin:
        if self.address.is_tailnet:
            raise ValueError("must not be an address of the tailnet")
        return self


class Log(Section):
    """What goes to standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["json", "console"] = "json"


class Shutdown(Section):
    """What SIGTERM does."""

    grace: Annotated[float, _duration("0s", "24h")] = Field(
        default=20.0, description="How long sessions may go on after SIGTERM before they are cut (default 20s)."
    )


class ConfigMap(Section):
    """A ConfigMap that is there, which the recorder's service account may get and patch."""

    name: Annotated[str, _matching(_OBJECT, "the name of a ConfigMap")] = Field(description="Its name.")
    namespace: Annotated[str, _matching(_OBJECT, "the name of a namespace")] | None = Field(
        default=None, description="Default: the pod's own."
    )
    account: FilePath = Field(
        default=Path("/var/run/secrets/kubernetes.io/serviceaccount"),
        description="A folder with token, ca.crt and namespace of a service account, as kubelet mounts it.",
    )
    server: Annotated[str, _matching(_SERVER, "an https:// URL without a path")] | None = Field(
        default=None, description="The API server, https://HOST:PORT. Default: that of the pod's cluster."
    )


class TimeStamps(Section):
    """A time stamp service (RFC 3161), which stamps the manifests of days, besides a folder or a ConfigMap."""

    url: Annotated[str, _matching(_STAMPER, "an http:// or https:// URL without credentials")] = Field(
        description="Where it is asked."
    )
    certificates: FilePath = Field(description="Its certificate, or that of who has issued it, in PEM.")


class Anchor(Section):
    """Where it is remembered how far the signed chains had come: outside of the store, since a store that was taken
    back to yesterday looks like one that was not."""

    folder: FilePath | None = Field(
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
        description="The Ed25519 key that recordings and days are signed with, in PEM; never in the store's folder. It "
        "is made at the first start on an empty store, or with `recorder key`. Default: nothing is signed.",
    )
    previous_key: FilePath | None = Field(
        default=None,
        description="The private key of before, for the one start at which it hands over to a new one.",
    )
    public_keys: tuple[FilePath, ...] = Field(
        default=(), description="Public keys of before, in PEM: what they signed while they were in force is believed."
    )
    anchor: Anchor = Anchor()
    seal_days: StrictBool = Field(
        default=True,
        description="Whether this recorder signs the manifests of days; false for all but one of several that share an "
        "object store (default true).",
    )
    delay: Annotated[float, _duration("0s", "24h")] = Field(
        default=3600.0, description="How long after midnight (UTC) a day is sealed (default 1h)."
    )


class Encryption(Section):
    """Encryption at rest, with AES-256-GCM."""

    keys: tuple[FilePath, ...] = Field(
        default=(),
        description="Files with 32 bytes in base64 or hex each. The first encrypts; the others, from before, are "
        "for reading. Default: nothing is encrypted.",
    )


class RetentionMatch(Section):
    """Which recordings: all fields that are given hold. Globs with * and ?."""

    clusters: tuple[str, ...] = ()
    namespaces: tuple[str, ...] = ()
    users: tuple[str, ...] = ()
    session_types: tuple[str, ...] = ()


def _keep(value: object) -> float | None:
    if value is None or value == "forever":
        return None
    seconds = value if isinstance(value, float) else parse_duration(value)
    if not 3600 <= seconds <= 36500 * 86400:
        raise ValueError('must be from "1h" to "36500d", or "forever"')
    return seconds


Keep = Annotated[float | None, BeforeValidator(_keep)]


class RetentionRule(Section):
    """The first rule that matches a recording says how long it is kept, and for that long it is."""

    match: RetentionMatch
    keep: Keep = Field(description='How long after its end, such as "90d", or "forever".')


class Retention(Section):
    """What is removed when. Default: nothing. What is held (`recorder prune --hold`) never is."""

    max_age: Keep = Field(default=None, description="What no rule matches goes when it has been over for that long.")
    max_bytes: Size | None = Field(
        default=None, description="Oldest first, what no rule matches goes until all recordings take no more than that."
    )
    events_max_age: Annotated[float | None, BeforeValidator(_keep)] = Field(
        default=None, description="API events go by whole days when they are that old."
    )
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


def load(path: Path, *, environment: Mapping[str, str] | None = None) -> Config:
    """Read, check and return the configuration in `path`; relative paths in it are taken from its directory.
    Raises ConfigError with every fault that is found."""
    try:
        with open(path, "rb") as file:
            raw = file.read(MAX_FILE + 1)
    except OSError as error:
        raise ConfigError([f"{path}: can't be read: {error.strerror}"]) from None
    if len(raw) > MAX_FILE:
        raise ConfigError([f"{path}: has more than {MAX_FILE} bytes"])
    try:
        document = _Document(raw.decode("utf-8-sig"), os.environ if environment is None else environment)
    except UnicodeDecodeError:
        raise ConfigError([f"{path}: not UTF-8"]) from None
    except _BrokenError as broken:
        raise ConfigError([f"{path}:{broken.place[0]}:{broken.place[1]}: {broken}"]) from None
    faults = list(document.faults)
    if not isinstance(document.data, dict):
        faults.append(((), "the file is empty" if document.data is None else "the file must be a mapping of keys"))
    else:
        try:
            context = {"base": Path(path).absolute().parent}
            config = Config.model_validate(document.data, context=context, by_alias=True, by_name=False)
            faults += _together(config)
            if not faults:
                return config
        except ValidationError as error:
            faulty = {key for key, _ in faults}
            found = error.errors(include_url=False, include_input=False)
            for details in found:
                key = details["loc"]
                if details["type"] == "too_short" and any(
                    other["loc"][: len(key)] == key != other["loc"] for other in found
                ):
                    continue  # pydantic counts no faulty items: those are what is wrong, the list isn't empty
                if key not in faulty:
                    faults.append((key, _message(details["type"], details["msg"], details.get("ctx", {}))))
    placed = sorted((document.place(key), key, message) for key, message in _unique(faults))
    raise ConfigError(
        [
            f"{path}:{line}:{column}: " + (f"{_dotted(key)}: " if key else "") + message
            for (line, column), key, message in placed
        ]
    )


def _together(config: Config) -> list[tuple[Key, str]]:
    """What is wrong between sections."""
    faults: list[tuple[Key, str]] = []
    if config.web.listen and (not config.index.enabled or (config.index.url is None and config.store.folder is None)):
        faults.append((("web", "listen"), "needs an index, and there is none: index.url"))
    faults += _beside(config)
    taken = {config.admin.address: "admin.address"}
    for section, addresses in (("ingest", config.ingest.listen), ("web", config.web.listen)):
        for number, address in enumerate(addresses):
            if address.port and address in taken:
                faults.append(((section, "listen", number), f"is the address of {taken[address]} too"))
            taken.setdefault(address, f"{section}.listen[{number}]")
    return faults


def _beside(config: Config) -> list[tuple[Key, str]]:
    """Keys and anchors in the folder that they are to protect."""
    folder, proof = config.store.folder, config.proof
    if folder is None:
        return []
    files: list[tuple[Key, Path | None]] = [
        (("proof", "key"), proof.key),
        (("proof", "previousKey"), proof.previous_key),
        (("proof", "anchor", "folder"), proof.anchor.folder),
        (
            ("proof", "anchor", "timeStamps", "certificates"),
            proof.anchor.time_stamps.certificates if proof.anchor.time_stamps is not None else None,
        ),
    ]
    files += [(("proof", "publicKeys", number), path) for number, path in enumerate(proof.public_keys)]
    files += [(("encryption", "keys", number), path) for number, path in enumerate(config.encryption.keys)]
    mounts = read_mounts()
    return [
        (key, "is in store.folder (by its name, a link or a mount), where it would protect nothing: keep it elsewhere")
        for key, path in files
        if path is not None and is_inside(path, folder, mounts)
    ]


def _unique(faults: list[tuple[Key, str]]) -> list[tuple[Key, str]]:
    return list(dict.fromkeys(faults))


def _dotted(key: Key) -> str:
    text = ""
    for part in key:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _message(kind: str, text: str, context: Mapping[str, Any]) -> str:
    """What pydantic says, in the words of someone who writes YAML. It never holds the value."""
    match kind:
        case "missing":
            return "is required"
        case "extra_forbidden":
            return "unknown key"
        case "literal_error":
            return f"must be {str(context['expected']).replace(chr(39), '')}"
        case "model_type" | "model_attributes_type" | "dict_type":
            return "must be a mapping of keys"
        case "tuple_type":
            return "must be a list"
        case "too_short":
            return "must not be empty"
        case "bool_type":
            return "must be true or false"
        case "string_type":
            return "must be text (put it in quotes)"
    return text.removeprefix("Value error, ")


class _BrokenError(Exception):
    """The text is no YAML document, or one that is refused whole."""

    def __init__(self, message: str, place: Place) -> None:
        super().__init__(message)
        self.place = place


class _Document:
    """data: dict, list, str, int, float, bool or None. faults: those found while it was built."""

    def __init__(self, text: str, environment: Mapping[str, str]) -> None:
        self.faults: list[tuple[Key, str]] = []
        self._environment = environment
        self._places: dict[Key, Place] = {}
        self._values = 0
        self._constructor = yaml.constructor.SafeConstructor()
        try:
            root = yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            message = " ".join(filter(None, (error.context, error.problem)))
            raise _BrokenError(f"not YAML: {message}", _place(mark) if mark else (1, 1)) from None
        except (yaml.YAMLError, RecursionError):
            raise _BrokenError("not YAML", (1, 1)) from None
        self.data: object = self._value(root, (), 0) if root is not None else None

    def place(self, key: Key) -> Place:
        """Line and column of this key, or of the nearest thing around it that stands in the file."""
        while key and key not in self._places:
            key = key[:-1]
        return self._places.get(key, (1, 1))

    def _value(self, node: yaml.Node, key: Key, depth: int) -> object:
        self._values += 1
        if self._values > _MAX_VALUES or depth > _MAX_DEPTH:
            raise _BrokenError("too many values, or nested too deeply (aliases unfolded)", _place(node.start_mark))
        if isinstance(node, yaml.MappingNode):
            values: dict[str, object] = {}
            for name_node, child in node.value:
                name = str(name_node.value) if isinstance(name_node, yaml.ScalarNode) else ""
                if not name or name in values or name_node.tag.endswith(":merge"):
                    self._places[*key, name or "?"] = _place(name_node.start_mark)
                    self.faults.append(((*key, name or "?"), "is there twice" if name in values else "is no plain key"))
                    continue
                self._places[*key, name] = _place(name_node.start_mark)
                values[name] = self._value(child, (*key, name), depth + 1)
            return values
        if isinstance(node, yaml.SequenceNode):
            items: list[object] = []
            for number, child in enumerate(node.value):
                self._places[*key, number] = _place(child.start_mark)
                items.append(self._value(child, (*key, number), depth + 1))
            return items
        return self._scalar(node, key)

    def _scalar(self, node: yaml.Node, key: Key) -> object:
        text, missing = str(node.value), []

        def put_in(match: re.Match[str]) -> str:
            if match[1] is None:
                return "$"
            if match[1] not in self._environment:
                missing.append(match[1])
            return self._environment.get(match[1], "")

        replaced = _REFERENCE.sub(put_in, text)
        if missing:
            self.faults.append((key, f"the environment variable {missing[0]} is not set"))
        kind = node.tag.removeprefix("tag:yaml.org,2002:")
        if kind not in ("null", "bool", "int", "float") or replaced != text:
            if kind not in ("null", "bool", "int", "float", "str", "timestamp", "value"):
                self.faults.append((key, "YAML tags are not supported"))
            return replaced
        try:
            plain: object = self._constructor.construct_object(yaml.ScalarNode(node.tag, text), deep=True)
        except (ValueError, yaml.YAMLError):
            self.faults.append((key, f"not a YAML {kind}"))
            return None
        return plain


def _place(mark: yaml.Mark) -> Place:
    return mark.line + 1, mark.column + 1
