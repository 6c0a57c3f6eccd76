"""The proxy's own account at the API server: rejected, mended, moved; what users and administrators read meanwhile."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from standins.pki import Authority
from tests.bed import Bed
from tests.bed.cluster import PROXY_ACCOUNT, PROXY_NAMESPACE
from tests.system.kubectl import STREAMING, Kubectl
from tests.system.proxy import Proxy, wait_until

NewProxy = Callable[..., Proxy]
NOT_ACCEPTED = "the API server does not accept the proxy's own credentials; tell the administrator of the proxy"
ACCOUNTS = f"api/v1/namespaces/{PROXY_NAMESPACE}/serviceaccounts"


@pytest.fixture
def kubeconfig(bed: Bed, tmp_path: Path) -> Path:
    """A kubeconfig of the proxy's account, for one test to change."""
    path = tmp_path / "proxy-account.kubeconfig"
    shutil.copy(bed.proxy_account_kubeconfig, path)
    return path


def set_token(path: Path, token: str) -> None:
    config = json.loads(path.read_text())
    config["users"][0]["user"]["token"] = token
    beside = path.with_suffix(".new")
    beside.write_text(json.dumps(config))
    os.replace(beside, path)


def token_of(path: Path) -> str:
    return str(json.loads(path.read_text())["users"][0]["user"]["token"])


def temporary_account(bed: Bed, name: str) -> str:
    """A token of a new service account that may impersonate."""
    cluster = bed.cluster
    meta = {"name": name, "namespace": PROXY_NAMESPACE}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": f"{PROXY_ACCOUNT}-impersonate"}
    cluster.apply(
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta},
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": name},
            "roleRef": role,
            "subjects": [{"kind": "ServiceAccount", **meta}],
        },
    )
    wanted = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 3600}}
    return str(cluster.api("POST", f"{ACCOUNTS}/{name}/token", wanted).json()["status"]["token"])


def readiness(proxy: Proxy) -> str:
    reply = proxy.get("/readyz?verbose")
    return f"{reply.status} {reply.body.decode()}"


def test_a_deleted_account_is_told_as_what_it_is_and_a_new_token_mends_it(
    bed: Bed, new_proxy: NewProxy, kubectl: Callable[..., Kubectl], kubeconfig: Path, web: str
) -> None:
    good = token_of(kubeconfig)
    set_token(kubeconfig, temporary_account(bed, "doomed"))
    proxy = new_proxy(kubeconfig=kubeconfig)
    alice = kubectl("alice", proxy)
    alice.ok("get", "pods")
    bed.cluster.delete(f"{ACCOUNTS}/doomed")

    def rejected() -> str | None:
        # The API server remembers a good token for 10 s.
        done = alice.run("get", "pods")
        return done.stderr.decode() if done.returncode else None

    said = wait_until(rejected, "refusal of a deleted account", 30)
    assert NOT_ACCEPTED in said
    assert "logged in" not in said
    for streaming in STREAMING.values():
        said = alice.speaking(streaming).fails("exec", web, "--", "true")
        assert "logged in" not in said
        assert NOT_ACCEPTED in said
    assert f"[-]cluster bed {NOT_ACCEPTED}" in readiness(proxy)
    assert readiness(proxy).startswith("503 ")
    assert proxy.metrics()['k8sproxy_cluster_account_accepted{cluster="bed"}'] == 0
    assert proxy.metrics()['k8sproxy_refusals_total{reason="upstream_unauthorized"}'] >= 3
    assert proxy.wait_event("cluster_account_rejected")["level"] == "warning"
    # The administrator puts a good token into the file, and does nothing else.
    set_token(kubeconfig, good)
    wait_until(lambda: alice.run("get", "pods").returncode == 0, "a request with the new token")
    proxy.wait_event("cluster_account_accepted")
    wait_until(lambda: readiness(proxy).startswith("200 "), "readiness")
    assert proxy.metrics()['k8sproxy_cluster_account_accepted{cluster="bed"}'] == 1
    assert good not in proxy.log()


def test_a_replaced_token_costs_kubectl_nothing(
    bed: Bed, new_proxy: NewProxy, kubectl: Callable[..., Kubectl], kubeconfig: Path
) -> None:
    good = token_of(kubeconfig)
    set_token(kubeconfig, temporary_account(bed, "replaced"))
    proxy = new_proxy(kubeconfig=kubeconfig)
    alice = kubectl("alice", proxy)
    alice.ok("get", "pods")
    set_token(kubeconfig, good)
    bed.cluster.delete(f"{ACCOUNTS}/replaced")

    def renewed() -> bool:
        # The request that meets the 401 has the file read, and kubectl sends it again.
        alice.ok("get", "pods")
        return 'k8sproxy_refusals_total{reason="upstream_renewed"}' in proxy.metrics()

    wait_until(renewed, "a request that met the old token", 25)
    assert proxy.events("cluster_account_rejected") == []


def test_an_invalid_account_at_the_start_shows_before_anybody_asks(
    new_proxy: NewProxy, bed: Bed, kubeconfig: Path, tmp_path: Path
) -> None:
    set_token(kubeconfig, "nobody-knows-this-token")
    proxy = Proxy(tmp_path / "invalid", bed.nodes["proxy"], kubeconfig)
    try:
        proxy.start(ready=False)
        proxy.wait_event("cluster_account_rejected")
        proxy.wait_event("started")  # its admin site is there
        wait_until(lambda: f"[-]cluster bed {NOT_ACCEPTED}" in readiness(proxy), "readiness that says so")
    finally:
        proxy.kill()


def test_a_client_certificate_that_the_api_server_does_not_know(
    bed: Bed, kubectl: Callable[..., Kubectl], tmp_path: Path
) -> None:
    config = json.loads(bed.proxy_account_cert_kubeconfig.read_text())
    certificate, key = Authority("kubernetes").issue("k8sproxy")
    (tmp_path / "other.crt").write_bytes(certificate)
    (tmp_path / "other.key").write_bytes(key)
    config["users"][0]["user"] = {"client-certificate": "other.crt", "client-key": "other.key"}
    path = tmp_path / "certificate.kubeconfig"
    path.write_text(json.dumps(config))
    proxy = Proxy(tmp_path / "certificate", bed.nodes["proxy"], path)
    try:
        proxy.start(ready=False)
        proxy.wait_event("cluster_account_rejected")
        said = kubectl("alice", proxy).fails("get", "pods")
        assert NOT_ACCEPTED in said
        path.write_text(bed.proxy_account_cert_kubeconfig.read_text())
        alice = kubectl("alice", proxy)
        # A connection that was made with the old certificate is not used for a new request.
        wait_until(lambda: alice.run("get", "pods").returncode == 0, "a request with the new certificate")
    finally:
        proxy.kill()


def test_a_wrong_authority_is_said_and_mended(
    bed: Bed, kubectl: Callable[..., Kubectl], kubeconfig: Path, tmp_path: Path
) -> None:
    config = json.loads(kubeconfig.read_text())
    authority = tmp_path / "authority.crt"
    authority.write_bytes(Authority("another").pem)
    config["clusters"][0]["cluster"]["certificate-authority"] = str(authority)
    kubeconfig.write_text(json.dumps(config))
    proxy = Proxy(tmp_path / "authority", bed.nodes["proxy"], kubeconfig)
    try:
        proxy.start(ready=False)
        proxy.wait_event("started")
        wait_until(lambda: "[-]cluster bed the API server's certificate is not trusted" in readiness(proxy), "it said")
        alice = kubectl("alice", proxy)
        assert "TLS with the API server" in alice.fails("get", "pods")
        authority.write_bytes(bed.cluster.ca_path.read_bytes())
        wait_until(lambda: alice.run("get", "pods").returncode == 0, "a request with the new authority")
        wait_until(lambda: readiness(proxy).startswith("200 "), "readiness")
    finally:
        proxy.kill()


def test_a_kubeconfig_that_names_another_server_is_put_into_force(
    bed: Bed, new_proxy: NewProxy, kubectl: Callable[..., Kubectl], kubeconfig: Path
) -> None:
    config = json.loads(kubeconfig.read_text())
    proxy = new_proxy(kubeconfig=kubeconfig)
    alice = kubectl("alice", proxy)
    alice.ok("get", "pods")
    # The same address under another name: what the certificate is checked against is a part of which server it is.
    config["clusters"][0]["cluster"]["tls-server-name"] = "kubernetes"
    kubeconfig.write_text(json.dumps(config))
    event = wait_until(lambda: [e for e in proxy.events("reloaded") if "another server" in e["why"]], "reload", 60)
    assert event[0]["why"] == "a kubeconfig names another server"
    alice.ok("get", "pods")
