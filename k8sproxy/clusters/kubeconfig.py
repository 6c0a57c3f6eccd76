"""How to reach a cluster and how to sign in there, as a kubeconfig or a pod's service account says it.

The kubernetes library reads and resolves the file (`KubeConfigMerger`, `FileOrData`) and finds the API server from
inside a pod. Its own way to sign in is not used: it writes keys into temporary files, logs what a plugin complains of,
and goes on without credentials. What is read here is a `Recipe`: where each credential comes from, not the credential.
Precedence and relative paths are client-go's (k8s.io/client-go/tools/clientcmd/client_config.go, loader.go): a token
file goes before a token, paths are relative to the kubeconfig, a plugin counts where there is no token and no password.

The library takes a second to import, so that is done here, inside the functions, which are called in a thread.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")

# Bytes of a file with a credential. Chains and tokens have a few KiB; a larger one is the wrong file.
MAX_FILE = 1024 * 1024


class CredentialsError(Exception):
    """The proxy's own credentials for a cluster cannot be had. The message never holds one."""


@dataclass(frozen=True, slots=True)
class Content:
    """Bytes that stand in the kubeconfig, or in a file that is read anew each time."""

    data: bytes | None = field(default=None, repr=False)
    path: Path | None = None

    def read(self) -> bytes:
        """Blocks on the file. Raises CredentialsError."""
        if self.path is None:
            return self.data or b""
        try:
            with open(self.path, "rb") as file:
                content = file.read(MAX_FILE + 1)
        except OSError as error:
            raise CredentialsError(f"{self.path}: {error.strerror}") from None
        if len(content) > MAX_FILE:
            raise CredentialsError(f"{self.path}: more than {MAX_FILE} bytes")
        return content


@dataclass(frozen=True, slots=True)
class ExecPlugin:
    """A program that gives credentials (client.authentication.k8s.io). cluster: what it is told, if it wants to be."""

    command: str
    args: tuple[str, ...]
    environment: Mapping[str, str] = field(repr=False)
    api_version: str
    cluster: Mapping[str, object] | None = field(default=None, repr=False)
    install_hint: str = ""


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that is needed to reach one cluster.

    base_path: what stands before every path, "" or "/x/y". server_name: what the certificate is held against. ca: None
    is the system's CAs. token, basic and plugin: at most one is there.
    """

    host: str
    port: int
    tls: bool
    server_name: str
    authority: bytes
    base_path: str
    verify: bool = True
    ca: Content | None = None
    client_cert: Content | None = None
    client_key: Content | None = None
    token: Content | None = None
    basic: bytes | None = field(default=None, repr=False)
    plugin: ExecPlugin | None = None


def read_kubeconfig(path: Path, context: str | None = None) -> Recipe:
    """The recipe of `context` (None: the current one). Blocks. Raises CredentialsError."""
    import yaml
    from kubernetes.config import ConfigException
    from kubernetes.config.kube_config import ConfigNode, KubeConfigMerger

    try:
        with open(path, encoding="utf-8") as file:
            # As a file object, since it takes a path for a list of paths, and a colon in it for the next one.
            node: Any = ConfigNode("kubeconfig", KubeConfigMerger(file).config)  # type: ignore[no-untyped-call]  # has none
        name = context or node["current-context"]
        chosen = node["contexts"].get_with_name(name)["context"]
        cluster = _plain(node["clusters"].get_with_name(chosen["cluster"])["cluster"])
        user_name = chosen.safe_get("user")
        user = _plain(node["users"].get_with_name(user_name)["user"]) if user_name else {}
        return _recipe(cluster, user, path.absolute().parent)
    except CredentialsError as error:
        raise CredentialsError(f"kubeconfig {path}: {error}") from None
    except OSError as error:
        raise CredentialsError(f"kubeconfig {path}: {error.strerror}") from None
    except ConfigException as error:  # it names keys and items, never values
        raise CredentialsError(f"kubeconfig {path}: {error}") from None
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, KeyError, RecursionError):
        # A YAML error's text shows the line that it is in, which may hold a token.
        raise CredentialsError(f"kubeconfig {path}: not the YAML of a kubeconfig") from None


def read_in_cluster(directory: Path = SERVICE_ACCOUNT, environment: Mapping[str, str] | None = None) -> Recipe:
    """The recipe of the pod that this runs in. Blocks. Raises CredentialsError."""
    from kubernetes.client import Configuration
    from kubernetes.config import ConfigException
    from kubernetes.config.incluster_config import InClusterConfigLoader

    configuration = Configuration()
    try:
        loader: Any = InClusterConfigLoader(  # type: ignore[no-untyped-call]  # the library has no types
            token_filename=str(directory / "token"),
            cert_filename=str(directory / "ca.crt"),
            try_refresh_token=False,
            environ=os.environ if environment is None else environment,
        )
        loader.load_and_set(configuration)
        host, port, _, authority, _ = _server(configuration.host)
    except (ConfigException, OSError, ValueError) as error:
        raise CredentialsError(f"in-cluster credentials: {error}") from None
    return Recipe(
        host=host,
        port=port,
        tls=True,
        server_name=host,
        authority=authority,
        base_path="",
        ca=Content(path=directory / "ca.crt"),
        token=Content(path=directory / "token"),
    )


def _plain(node: Any) -> dict[str, Any]:
    value = getattr(node, "value", node)
    if not isinstance(value, dict):
        raise TypeError
    return value


def _recipe(cluster: dict[str, Any], user: dict[str, Any], base: Path) -> Recipe:
    host, port, tls, authority, base_path = _server(str(cluster.get("server") or ""))
    if cluster.get("proxy-url"):
        raise CredentialsError("proxy-url is not supported: the API server must be reachable without a proxy")
    if user.get("auth-provider"):
        raise CredentialsError("Kubernetes removed auth-provider in 1.26: use an exec plugin")
    for name in ("as", "as-groups", "as-uid", "as-user-extra"):
        if user.get(name):
            raise CredentialsError(f"{name} is not supported: this account impersonates the clients")
    if not tls and not _is_loopback(host):
        raise CredentialsError("an http:// server is allowed only on a loopback address")
    verify = not cluster.get("insecure-skip-tls-verify")
    ca = _content(cluster, "certificate-authority", base)
    if not verify and ca is not None:
        raise CredentialsError("insecure-skip-tls-verify and a certificate authority cannot be used together")
    cert, key = _content(user, "client-certificate", base), _content(user, "client-key", base)
    if (cert is None) is not (key is None):
        raise CredentialsError("client-certificate and client-key go together")
    token, basic, plugin = _sign_in(user, cluster, base)
    return Recipe(
        host=host,
        port=port,
        tls=tls,
        # Without the dot that makes a name absolute: no certificate has it (crypto/x509, VerifyHostname).
        server_name=str(cluster.get("tls-server-name") or host).removesuffix("."),
        authority=authority,
        base_path=base_path,
        verify=verify,
        ca=ca,
        client_cert=cert,
        client_key=key,
        token=token,
        basic=basic,
        plugin=plugin,
    )


def _sign_in(
    user: dict[str, Any], cluster: dict[str, Any], base: Path
) -> tuple[Content | None, bytes | None, ExecPlugin | None]:
    if user.get("tokenFile"):
        return Content(path=base / str(user["tokenFile"])), None, None
    if user.get("token"):
        return Content(data=str(user["token"]).encode()), None, None
    if user.get("username") or user.get("password"):
        pair = f"{user.get('username') or ''}:{user.get('password') or ''}"
        return None, b"Basic " + base64.b64encode(pair.encode()), None
    return (None, None, _plugin(user["exec"], cluster, base)) if user.get("exec") else (None, None, None)


def _plugin(settings: dict[str, Any], cluster: dict[str, Any], base: Path) -> ExecPlugin:
    command = str(settings.get("command") or "")
    if not command:
        raise CredentialsError("exec: command is missing")
    if settings.get("interactiveMode") == "Always":
        raise CredentialsError("exec: interactiveMode Always is not supported: there is no terminal")
    if os.sep in command:
        command = str(base / command)  # a bare name is looked up in PATH
    return ExecPlugin(
        command=command,
        args=tuple(str(arg) for arg in settings.get("args") or ()),
        environment={str(item["name"]): str(item["value"]) for item in settings.get("env") or ()},
        api_version=str(settings.get("apiVersion") or ""),
        cluster=_cluster_information(cluster, base) if settings.get("provideClusterInfo") else None,
        install_hint=str(settings.get("installHint") or ""),
    )


def _cluster_information(cluster: dict[str, Any], base: Path) -> dict[str, object]:
    """client.authentication.k8s.io/v1, type Cluster."""
    information: dict[str, object] = {"server": cluster.get("server")}
    for name in ("tls-server-name", "insecure-skip-tls-verify"):
        if cluster.get(name):
            information[name] = cluster[name]
    ca = _content(cluster, "certificate-authority", base)
    if ca is not None:
        information["certificate-authority-data"] = base64.b64encode(ca.read()).decode()
    for extension in cluster.get("extensions") or ():
        if extension.get("name") == "client.authentication.k8s.io/exec":
            information["config"] = extension.get("extension")
    return information


def _content(section: dict[str, Any], name: str, base: Path) -> Content | None:
    from kubernetes.config.kube_config import FileOrData

    if section.get(f"{name}-data"):
        try:
            found: Any = FileOrData(section, name)  # type: ignore[no-untyped-call]  # the library has no types
            data = found.as_data()
            return Content(data=base64.b64decode(str(data), validate=True))
        except (binascii.Error, ValueError):
            raise CredentialsError(f"{name}-data is not base64") from None
    return Content(path=base / str(section[name])) if section.get(name) else None


def _server(url: str) -> tuple[str, int, bool, bytes, str]:
    """host, port, whether TLS, what goes into the Host field, base path."""
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")  # client-go takes a bare host for http
        port = parts.port
    except ValueError:
        raise CredentialsError("server is not a URL") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
        raise CredentialsError("server is not an http:// or https:// URL of a host")
    if parts.query or parts.fragment or not url.isascii() or any(character <= " " for character in url):
        raise CredentialsError("server is not a URL of a host and a path")
    tls = parts.scheme == "https"
    return parts.hostname, port or (443 if tls else 80), tls, parts.netloc.encode(), parts.path.rstrip("/")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
