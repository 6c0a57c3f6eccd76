"""Sections held against each other, and the files that they name."""

from __future__ import annotations

from pathlib import Path

import pytest

from k8sproxy.config import Config, ConfigError, load, parse
from standins.pki import self_signed


def faults(listen: str, clusters: str = "[{name: a, inCluster: true}]", extra: str = "") -> list[str]:
    text = f"apiVersion: k8sproxy/v1alpha1\nlisten: {listen}\nclusters: {clusters}\n{extra}"
    try:
        assert isinstance(parse(text.encode(), Path("x"), environment={}, files=False), Config)
    except ConfigError as error:
        return [f"{fault.key}: {fault.message}" for fault in error.faults]
    return []


def tls(address: str, inside: str, more: str = "") -> list[str]:
    return faults(f'[{{address: "{address}", tls: {{{inside}}}{more}}}]')


@pytest.mark.parametrize(
    ("address", "inside"),
    [
        ("127.0.0.1:80", "source: none"),
        ("[::1]:80", "source: none"),
        ("tailnet:80", "source: none"),
        ("100.64.0.1:80", "source: none"),
        ("10.0.0.1:80", "source: none, insecure: true"),
        ("0.0.0.0:443", "source: generated, names: [a.example]"),
        ("10.0.0.1:443", "source: generated, directory: ca"),
        ("tailnet:443", "source: generated"),
        ("tailnet:443", "source: tailnet, names: [a.example]"),
        ("0.0.0.0:443", "source: files, cert: c, key: k"),
    ],
)
def test_sound_listeners(address: str, inside: str) -> None:
    assert tls(address, inside) == []


@pytest.mark.parametrize(
    ("address", "inside", "keys"),
    [
        ("10.0.0.1:80", "source: none", ["source"]),
        ("0.0.0.0:80", "source: none, cert: c, names: [a]", ["source", "cert", "names"]),
        ("127.0.0.1:80", "source: files", ["cert", "key"]),
        ("127.0.0.1:80", "source: files, cert: c", ["key"]),
        ("127.0.0.1:80", "source: files, key: k, directory: d, names: [a]", ["cert", "directory", "names"]),
        ("127.0.0.1:80", "source: generated, key: k, insecure: true", ["key", "insecure"]),
        ("0.0.0.0:443", "source: generated", ["names"]),
        ("[::]:443", "source: generated", ["names"]),
        ("tailnet:443", "source: tailnet, names: [a, b], directory: d", ["directory", "names"]),
    ],
)
def test_keys_of_tls_that_do_not_fit(address: str, inside: str, keys: list[str]) -> None:
    assert sorted(fault.split(":")[0] for fault in tls(address, inside)) == sorted(f"listen[0].tls.{k}" for k in keys)


def test_a_proxy_header_is_for_loopback() -> None:
    assert tls("127.0.0.1:80", "source: none", ", proxyProtocol: true") == []
    for address in ("tailnet:80", "0.0.0.0:80", "10.0.0.1:80", "100.64.0.1:80"):
        (fault,) = tls(address, "source: files, cert: c, key: k", ", proxyProtocol: true")
        assert fault.startswith("listen[0].proxyProtocol: is allowed only on a loopback address")


def test_addresses_exclude_each_other() -> None:
    none = "tls: {source: none}"
    one = f'{{address: "127.0.0.1:9002", {none}}}'
    assert faults(f"[{one}]") == ["listen[0].address: admin.address has this address already"]
    assert faults(f"[{one}]", extra='admin: {address: "unix:/x"}') == []
    zero = f'{{address: "127.0.0.1:0", {none}}}'
    assert faults(f"[{zero}, {zero}]") == []
    two = f'{{address: "127.0.0.1:1", {none}}}'
    assert faults(f"[{two}, {zero}, {two}]") == ["listen[2].address: listen[0] has this address already"]


def test_clusters_are_named_where_there_are_several() -> None:
    several = "[{name: a, inCluster: true}, {name: b, kubeconfig: k, context: c}]"
    one = '{address: "127.0.0.1:1", tls: {source: none}%s}'
    assert faults(f"[{one % ', cluster: b'}]", several) == []
    assert faults(f"[{one % ''}]", several) == [
        "listen[0]: cluster is required where there are several (they are: a, b)"
    ]
    assert faults(f"[{one % ', cluster: c'}]", several) == [
        "listen[0].cluster: no cluster has this name (the clusters: a, b)"
    ]
    # A cluster that is refused for something else is there all the same.
    assert faults(f"[{one % ', cluster: b'}]", several.replace("context: c", "x: c")) == ["clusters[1].x: unknown key"]


def test_one_way_to_each_cluster() -> None:
    listen = '[{address: "127.0.0.1:1", tls: {source: none}}]'
    assert faults(listen, "[{name: a}]") == ["clusters[0].kubeconfig: is required, or inCluster: true"]
    assert faults(listen, "[{name: a, inCluster: true, context: c}]") == [
        "clusters[0].context: has no meaning without a kubeconfig"
    ]


KUBECONFIG = "{current-context: one, contexts: [{name: one}, {name: two}]}"


def with_files(tmp_path: Path, cluster: str = "kubeconfig: kubeconfig") -> list[str]:
    path = tmp_path / "config.yaml"
    path.write_text(
        "apiVersion: k8sproxy/v1alpha1\n"
        "listen: [{address: '127.0.0.1:1', tls: {source: files, cert: tls.crt, key: tls.key}}]\n"
        f"clusters: [{{name: a, {cluster}}}]\n"
    )
    try:
        load(path)
    except ConfigError as error:
        return [f"{fault.key}: {fault.message}".replace(f"{tmp_path}/", "") for fault in error.faults]
    return []


@pytest.fixture
def files(tmp_path: Path) -> Path:
    chain, key = self_signed("a.example")
    (tmp_path / "tls.crt").write_bytes(chain)
    (tmp_path / "tls.key").write_bytes(key)
    (tmp_path / "kubeconfig").write_text(KUBECONFIG)
    return tmp_path


def test_files_that_are_there(files: Path) -> None:
    assert with_files(files) == []
    assert with_files(files, "kubeconfig: kubeconfig, context: two") == []


def test_files_that_are_not_there(tmp_path: Path) -> None:
    assert with_files(tmp_path) == [
        "listen[0].tls.cert: tls.crt: No such file or directory",
        "listen[0].tls.key: tls.key: No such file or directory",
        "clusters[0].kubeconfig: kubeconfig: No such file or directory",
    ]
    (tmp_path / "kubeconfig").mkdir()
    assert "clusters[0].kubeconfig: kubeconfig: Is a directory" in with_files(tmp_path)


def test_a_certificate_and_the_key_of_another(files: Path) -> None:
    (files / "tls.key").write_bytes(self_signed("b.example")[1])
    assert with_files(files) == ["listen[0].tls.cert: tls.key is not the key of this certificate"]
    (files / "tls.key").write_bytes(b"x")
    assert "are not a PEM certificate and its key" in with_files(files)[0]
    (files / "tls.key").write_bytes(self_signed("a.example", passphrase=b"x")[1])
    assert with_files(files) == ["listen[0].tls.cert: the key has a passphrase, which nobody can type at a start"]


@pytest.mark.parametrize(
    ("content", "cluster", "fault"),
    [
        ("[", "", "clusters[0].kubeconfig: kubeconfig: not YAML"),
        ("x: y", "", "clusters[0].kubeconfig: kubeconfig: not a kubeconfig, it has no contexts"),
        (KUBECONFIG, ", context: nix", "clusters[0].context: kubeconfig has no such context (its contexts: one, two)"),
        (
            KUBECONFIG.replace("current-context: one", "current-context: nix"),
            "",
            "clusters[0]: kubeconfig has no current context, so context is required (its contexts: one, two)",
        ),
    ],
)
def test_kubeconfigs(files: Path, content: str, cluster: str, fault: str) -> None:
    (files / "kubeconfig").write_text(content)
    assert with_files(files, f"kubeconfig: kubeconfig{cluster}") == [fault]
