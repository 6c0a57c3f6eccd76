"""How the sections of a file fit together, and whether the files that it names are there.

Each check gives (key, message) pairs and goes on, so that all of a file's faults are told at once. The checks take
the sections that are sound by themselves, by their number in the file: their neighbours may have been refused already.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator, Mapping
from pathlib import Path

import yaml

from k8sproxy.common.config.addresses import TAILNET
from k8sproxy.common.config.faults import Key
from k8sproxy.common.config.loading import Sound
from k8sproxy.config.models import Admin, Cluster, Config, Listen

Found = Iterator[tuple[Key, str]]

# Bytes. A kubeconfig with a hundred clusters and their certificates has about 1 MiB.
_MAX_KUBECONFIG = 16 * 1024 * 1024


def check(sound: Sound, *, files: bool) -> Found:
    """All checks. files: also those of the files that are named."""
    listeners, clusters = sound.numbered(Listen, "listen"), sound.numbered(Cluster, "clusters")
    given = sound.data.get("clusters")
    items = [item.get("name") for item in given if isinstance(item, dict)] if isinstance(given, list) else []
    names = list(dict.fromkeys(name for name in items if isinstance(name, str)))
    yield from check_listeners(listeners, sound.section(Admin, "admin"), names)
    yield from check_clusters(clusters)
    if files:
        yield from check_files(listeners, clusters)


def check_listeners(listeners: Mapping[int, Listen], admin: Admin | None, cluster_names: list[str]) -> Found:
    """cluster_names: of all clusters in the file, also of those that are refused for something else."""
    seen: list[tuple[int, Listen]] = []
    for number, listen in listeners.items():
        here: Key = ("listen", number)
        for other_number, other in seen:
            if listen.address.overlaps(other.address):
                yield (*here, "address"), f"listen[{other_number}] has this address already"
        seen.append((number, listen))
        if admin is not None and admin.address.tcp is not None and listen.address.overlaps(admin.address.tcp):
            yield (*here, "address"), "admin.address has this address already"
        if listen.proxy_protocol and not listen.address.is_loopback:
            yield (
                (*here, "proxyProtocol"),
                "is allowed only on a loopback address: elsewhere any client could claim to be any peer",
            )
        if listen.cluster is not None and listen.cluster not in cluster_names:
            names = ", ".join(cluster_names) or "none"
            yield (*here, "cluster"), f"no cluster has this name (the clusters: {names})"
        elif listen.cluster is None and len(cluster_names) > 1:
            yield here, f"cluster is required where there are several (they are: {', '.join(cluster_names)})"
        yield from _check_tls(listen, (*here, "tls"))


def warnings_of(config: Config) -> list[tuple[Key, str]]:
    """What a sound configuration had better not say: (key, message) pairs."""
    return [
        (
            ("listen", number, "address"),
            "a PROXY listener on this address takes about five new connections a second, because tailscaled must be "
            "asked about each of them, which takes 180 ms; use another loopback address, such as 127.0.0.2, where it "
            "need not be asked (and name the same address in the Service's TCPForward)",
        )
        for number, listen in enumerate(config.listen)
        if listen.proxy_protocol and listen.address.is_dialled_from_tailnet
    ]


def _check_tls(listen: Listen, here: Key) -> Found:
    tls = listen.tls
    if tls.source == "files":
        for name, value in (("cert", tls.cert), ("key", tls.key)):
            if value is None:
                yield (*here, name), "is required with source: files"
    else:
        for name, value in (("cert", tls.cert), ("key", tls.key)):
            if value is not None:
                yield (*here, name), f"has no meaning with source: {tls.source}"
    if tls.directory is not None and tls.source != "generated":
        yield (*here, "directory"), f"has no meaning with source: {tls.source}"
    if tls.names and tls.source not in ("generated", "tailnet"):
        yield (*here, "names"), f"has no meaning with source: {tls.source}"
    if tls.source == "tailnet" and len(tls.names) > 1:
        yield (*here, "names"), "a certificate of the tailnet has only one name"
    if tls.insecure and tls.source != "none":
        yield (*here, "insecure"), f"has no meaning with source: {tls.source}"
    address = listen.address
    if tls.source == "none" and not tls.insecure and not (address.is_loopback or address.is_tailnet):
        yield (
            (*here, "source"),
            "plain HTTP on an address that is neither loopback nor the tailnet's can be read and changed on the way; "
            "set insecure: true if you accept that",
        )
    if tls.source == "generated" and address.host != TAILNET and not tls.names and _is_wildcard(address.host):
        yield (*here, "names"), f"is required here: {address.host} is not a name that a client could use"


def _is_wildcard(host: str) -> bool:
    return host in ("0.0.0.0", "::")  # noqa: S104 - recognised, not bound


def check_clusters(clusters: Mapping[int, Cluster]) -> Found:
    """Names once each; exactly one way to reach each cluster."""
    names: dict[str, int] = {}
    for number, cluster in clusters.items():
        here: Key = ("clusters", number)
        if cluster.name in names:
            yield (*here, "name"), f"clusters[{names[cluster.name]}] has this name already"
        names.setdefault(cluster.name, number)
        if cluster.in_cluster and cluster.kubeconfig is not None:
            yield (*here, "inCluster"), "cannot be true beside a kubeconfig"
        if not cluster.in_cluster and cluster.kubeconfig is None:
            yield (*here, "kubeconfig"), "is required, or inCluster: true"
        if cluster.context is not None and cluster.kubeconfig is None:
            yield (*here, "context"), "has no meaning without a kubeconfig"


def check_files(listeners: Mapping[int, Listen], clusters: Mapping[int, Cluster]) -> Found:
    """Whether what the file names is there, can be read by this user, and is what it should be."""
    for number, listen in listeners.items():
        tls = listen.tls
        if tls.source != "files":
            continue
        bad = False
        for name, path in (("cert", tls.cert), ("key", tls.key)):
            message = _unreadable(path) if path is not None else None
            bad = bad or path is None or message is not None
            if message is not None:
                yield ("listen", number, "tls", name), message
        if not bad and tls.cert is not None and tls.key is not None:
            message = _not_a_pair(tls.cert, tls.key)
            if message is not None:
                yield ("listen", number, "tls", "cert"), message
    for number, cluster in clusters.items():
        if cluster.kubeconfig is None:
            continue
        message = _unreadable(cluster.kubeconfig)
        if message is not None:
            yield ("clusters", number, "kubeconfig"), message
        else:
            yield from _check_context(cluster, cluster.kubeconfig, ("clusters", number))


def _unreadable(path: Path) -> str | None:
    try:
        with open(path, "rb"):  # a directory fails here as well
            return None
    except OSError as error:
        return f"{path}: {error.strerror}"


def _not_a_pair(cert: Path, key: Path) -> str | None:
    def refuse_passphrase() -> str:
        raise ValueError("the key has a passphrase, which nobody can type at a start")

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, refuse_passphrase)
    except ValueError as error:
        return str(error)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            return f"{key} is not the key of this certificate"
        return f"{cert} and {key} are not a PEM certificate and its key ({error.reason or 'OpenSSL gives no reason'})"
    except OSError as error:
        return f"{cert}, {key}: {error.strerror}"
    return None


def _check_context(cluster: Cluster, path: Path, here: Key) -> Found:
    """A quick look, without the kubernetes library: what it makes of the file is said when the proxy starts."""
    if os.path.getsize(path) > _MAX_KUBECONFIG:
        yield (*here, "kubeconfig"), f"{path}: more than {_MAX_KUBECONFIG} bytes"
        return
    try:
        found = yaml.load(path.read_bytes(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, OSError, ValueError, RecursionError):
        yield (*here, "kubeconfig"), f"{path}: not YAML"
        return
    contexts = found.get("contexts") if isinstance(found, dict) else None
    if not isinstance(contexts, list):
        yield (*here, "kubeconfig"), f"{path}: not a kubeconfig, it has no contexts"
        return
    names = [item["name"] for item in contexts if isinstance(item, dict) and isinstance(item.get("name"), str)]
    if cluster.context is not None and cluster.context not in names:
        yield (*here, "context"), f"{path} has no such context (its contexts: {', '.join(names) or 'none'})"
    elif cluster.context is None and found.get("current-context") not in names:
        yield (
            here,
            f"{path} has no current context, so context is required (its contexts: {', '.join(names) or 'none'})",
        )
