from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from k8sproxy.clusters.kubeconfig import MAX_FILE, Content, CredentialsError, Recipe, read_in_cluster, read_kubeconfig

Section = dict[str, Any]


def write(directory: Path, cluster: Section | None = None, user: Section | None = None, **more: object) -> Path:
    path = directory / "kube:config"  # a colon is no separator here
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "one",
        "contexts": [{"name": "one", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": cluster or {"server": "https://api.example:6443"}}],
        "users": [{"name": "u", "user": user or {}}],
        **more,
    }
    path.write_text(json.dumps(content))  # JSON is YAML
    return path


def recipe(directory: Path, cluster: Section | None = None, user: Section | None = None, **more: object) -> Recipe:
    return read_kubeconfig(write(directory, cluster, user, **more))


def refused(directory: Path, cluster: Section | None = None, user: Section | None = None, **more: object) -> str:
    with pytest.raises(CredentialsError) as error:
        recipe(directory, cluster, user, **more)
    return str(error.value).removeprefix(f"kubeconfig {directory / 'kube:config'}: ")


@pytest.mark.parametrize(
    ("server", "host", "port", "authority", "base_path"),
    [
        ("https://api.example", "api.example", 443, b"api.example", ""),
        ("https://api.example:6443/", "api.example", 6443, b"api.example:6443", ""),
        ("https://[2001:db8::1]:6443", "2001:db8::1", 6443, b"[2001:db8::1]:6443", ""),
        ("https://rancher.example/k8s/clusters/c-1/", "rancher.example", 443, b"rancher.example", "/k8s/clusters/c-1"),
        ("http://127.0.0.1:8001", "127.0.0.1", 8001, b"127.0.0.1:8001", ""),
        ("http://localhost", "localhost", 80, b"localhost", ""),
        ("http://[::1]:80", "::1", 80, b"[::1]:80", ""),
    ],
)
def test_servers(tmp_path: Path, server: str, host: str, port: int, authority: bytes, base_path: str) -> None:
    found = recipe(tmp_path, {"server": server})
    assert (found.host, found.port, found.authority, found.base_path) == (host, port, authority, base_path)
    assert found.tls is server.startswith("https")
    assert found.server_name == host


@pytest.mark.parametrize(
    ("cluster", "message"),
    [
        ({"server": ""}, "server is not an http:// or https:// URL"),
        ({"x": 1}, "server is not an http:// or https:// URL"),
        ({"server": "ftp://x"}, "server is not an http:// or https:// URL"),
        ({"server": "https://u:hunter2@x"}, "server is not an http:// or https:// URL"),
        ({"server": "https://x:y"}, "server is not a URL"),
        ({"server": "https://x/?a"}, "server is not a URL of a host and a path"),
        ({"server": "https://x/a b"}, "server is not a URL of a host and a path"),
        ({"server": "http://api.example"}, "an http:// server is allowed only on a loopback address"),
        ({"server": "http://10.0.0.1"}, "an http:// server is allowed only on a loopback address"),
        ({"server": "https://x", "proxy-url": "socks5://hunter2@x"}, "proxy-url is not supported"),
        (
            {"server": "https://x", "insecure-skip-tls-verify": True, "certificate-authority": "x"},
            "cannot be used together",
        ),
        ({"server": "https://x", "certificate-authority-data": "%"}, "certificate-authority-data is not base64"),
    ],
)
def test_clusters_that_are_refused(tmp_path: Path, cluster: Section, message: str) -> None:
    found = refused(tmp_path, cluster)
    assert message in found
    assert "hunter2" not in found


@pytest.mark.parametrize(
    ("user", "message"),
    [
        ({"auth-provider": {"name": "gcp"}}, "removed auth-provider"),
        ({"as": "admin"}, "as is not supported"),
        ({"as-groups": ["admins"]}, "as-groups is not supported"),
        ({"client-certificate": "x"}, "client-certificate and client-key go together"),
        ({"client-key-data": "aHVudGVyMg=="}, "client-certificate and client-key go together"),
        ({"client-key-data": "hunter2%", "client-certificate": "x"}, "client-key-data is not base64"),
        ({"exec": {"apiVersion": "x"}}, "exec: command is missing"),
        ({"exec": {"command": "x", "interactiveMode": "Always"}}, "interactiveMode Always is not supported"),
        ({"exec": "hunter2"}, "not the YAML of a kubeconfig"),
        ({"exec": {"command": "x", "env": [{"value": "hunter2"}]}}, "not the YAML of a kubeconfig"),
    ],
)
def test_users_that_are_refused(tmp_path: Path, user: Section, message: str) -> None:
    found = refused(tmp_path, None, user)
    assert message in found
    assert "hunter2" not in found


def test_files_that_are_no_kubeconfig(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with pytest.raises(CredentialsError, match="No such file or directory"):
        read_kubeconfig(path)
    for content in (b"", b"hunter2", b"token: 'hunter2", b"[hunter2]", b"a: \xff", b"[" * 5000, b"contexts: hunter2"):
        path.write_bytes(content)
        with pytest.raises(CredentialsError) as error:
            read_kubeconfig(path, "one")
        assert "hunter2" not in str(error.value)
    path = write(tmp_path)
    with pytest.raises(CredentialsError, match=r"Expected object with name nix in .*/contexts list"):
        read_kubeconfig(path, "nix")
    broken: list[Section] = [{"current-context": ""}, {"contexts": []}, {"clusters": None}, {"users": []}]
    for more in [*broken, {"contexts": ["x"]}]:
        assert refused(tmp_path, **more)


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    found = recipe(
        tmp_path,
        {"server": "https://x", "certificate-authority": "ca.crt", "tls-server-name": "kube.example"},
        {"client-certificate": "a/tls.crt", "client-key": "/k/tls.key"},
    )
    assert found.server_name == "kube.example"
    assert found.ca == Content(path=tmp_path / "ca.crt")
    assert found.client_cert == Content(path=tmp_path / "a" / "tls.crt")
    assert found.client_key == Content(path=Path("/k/tls.key"))


def test_data_goes_before_files(tmp_path: Path) -> None:
    cluster = {"server": "https://x", "certificate-authority": "f", "certificate-authority-data": "aGk="}
    assert recipe(tmp_path, cluster).ca == Content(data=b"hi")


def test_one_way_to_sign_in_as_kubectl_would_choose(tmp_path: Path) -> None:
    everything: Section = {
        "tokenFile": "t",
        "token": "abc",
        "username": "me",
        "password": "pässword",
        "exec": {"command": "x", "apiVersion": "v"},
    }
    found = recipe(tmp_path, None, everything)
    assert (found.token, found.basic, found.plugin) == (Content(path=tmp_path / "t"), None, None)
    del everything["tokenFile"]
    found = recipe(tmp_path, None, everything)
    assert (found.token, found.basic, found.plugin) == (Content(data=b"abc"), None, None)
    del everything["token"]
    found = recipe(tmp_path, None, everything)
    assert (found.token, found.plugin) == (None, None)
    assert found.basic == b"Basic " + base64.b64encode("me:pässword".encode())
    del everything["username"], everything["password"]
    found = recipe(tmp_path, None, everything)
    assert found.plugin is not None
    assert (found.token, found.basic) == (None, None)
    found = recipe(tmp_path, contexts=[{"name": "one", "context": {"cluster": "c"}}], users=None)
    assert (found.token, found.basic, found.plugin) == (None, None, None)


def test_plugins(tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_bytes(b"hi")
    cluster: Section = {
        "server": "https://x",
        "certificate-authority": "ca.crt",
        "tls-server-name": "y",
        "extensions": [{"name": "z"}, {"name": "client.authentication.k8s.io/exec", "extension": {"audience": "a"}}],
    }
    settings: Section = {
        "command": "./bin/login",
        "args": ["a", 1],
        "env": [{"name": "E", "value": "hunter2"}],
        "apiVersion": "client.authentication.k8s.io/v1",
        "provideClusterInfo": True,
        "installHint": "install it",
    }
    plugin = recipe(tmp_path, cluster, {"exec": settings}).plugin
    assert plugin is not None
    assert plugin.command == str(tmp_path / "bin" / "login")
    assert (plugin.args, plugin.environment, plugin.install_hint) == (("a", "1"), {"E": "hunter2"}, "install it")
    assert plugin.cluster == {
        "server": "https://x",
        "certificate-authority-data": "aGk=",
        "tls-server-name": "y",
        "config": {"audience": "a"},
    }
    plugin = recipe(tmp_path, cluster, {"exec": {"command": "login", "env": None}}).plugin
    assert plugin is not None
    assert (plugin.command, plugin.cluster) == ("login", None)


def test_secrets_are_in_no_repr(tmp_path: Path) -> None:
    secret = base64.b64encode(b"hunter2").decode()
    users: list[Section] = [
        {"token": "hunter2"},
        {"username": "me", "password": "hunter2"},
        {"client-certificate-data": secret, "client-key-data": secret},
        {"exec": {"command": "x", "env": [{"name": "E", "value": "hunter2"}]}},
    ]
    for user in users:
        text = repr(recipe(tmp_path, None, user))
        assert "hunter2" not in text
        assert secret not in text
        assert base64.b64encode(b"me:hunter2").decode() not in text


def test_the_service_account_of_a_pod(tmp_path: Path) -> None:
    environment = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "KUBERNETES_SERVICE_PORT": "6443"}
    with pytest.raises(CredentialsError, match="in-cluster credentials: Service host/port is not set"):
        read_in_cluster(tmp_path, {})
    with pytest.raises(CredentialsError, match="in-cluster credentials: Service token file does not exist"):
        read_in_cluster(tmp_path, environment)
    (tmp_path / "token").write_text("hunter2")
    (tmp_path / "ca.crt").write_text("x")
    found = read_in_cluster(tmp_path, environment)
    assert (found.host, found.port, found.server_name, found.tls) == ("10.0.0.1", 6443, "10.0.0.1", True)
    assert (found.token, found.ca) == (Content(path=tmp_path / "token"), Content(path=tmp_path / "ca.crt"))
    found = read_in_cluster(tmp_path, {**environment, "KUBERNETES_SERVICE_HOST": "fd00::1"})
    assert (found.host, found.authority) == ("fd00::1", b"[fd00::1]:6443")


def test_a_file_is_read_within_bounds(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_bytes(b"x" * MAX_FILE)
    assert len(Content(path=path).read()) == MAX_FILE
    path.write_bytes(b"x" * (MAX_FILE + 1))
    with pytest.raises(CredentialsError, match="more than"):
        Content(path=path).read()
    with pytest.raises(CredentialsError, match="Is a directory"):
        Content(path=tmp_path).read()
