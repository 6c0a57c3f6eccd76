"""The commands beside `serve`, as an administrator uses them."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.bed import Bed, Node, kubernetes_grant
from tests.system.kubectl import Kubectl
from tests.system.proxy import Proxy, command, wait_until
from tests.system.raw import Connection

POD = "/api/v1/namespaces/default/pods/web"


def k8sproxy(*arguments: str, code: int = 0) -> str:
    """What the command prints; it must end with that code."""
    done = subprocess.run(command(*arguments), capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == code, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def as_json(*arguments: str, code: int = 0) -> Any:
    return json.loads(k8sproxy(*arguments, "--json", code=code))


def test_check(shared_proxy: Proxy, tmp_path: Path) -> None:
    k8sproxy("check", str(shared_proxy.file))
    bad = tmp_path / "bad.yaml"
    bad.write_text("apiVersion: k8sproxy/v1alpha1\nlisten: []\nclusters:\n  - {name: c, kubeconfig: /nowhere}\nx: 1\n")
    done = subprocess.run(command("check", str(bad)), capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2
    for word in ("listen", "x", "5"):
        assert word in done.stdout + done.stderr


def test_serve_refuses_a_bad_file(shared_proxy: Proxy, tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("apiVersion: k8sproxy/v1alpha1\n")
    k8sproxy("serve", "--config", str(bad), code=2)


def test_whois(bed: Bed, shared_proxy: Proxy, alice_node: Node) -> None:
    config = str(shared_proxy.file)
    said = k8sproxy("whois", f"{alice_node.tailnet_ip}:1", "--config", config)
    assert "alice@example.com" in said
    assert "system:masters" in said
    k8sproxy("whois", "100.127.255.254:1", "--config", config, code=1)


def test_explain(bed: Bed, shared_proxy: Proxy, alice_node: Node) -> None:
    peer = ["explain", "--peer", alice_node.tailnet_ip, "--config", str(shared_proxy.file)]
    assert "alice@example.com" in k8sproxy(*peer)
    assert "system:masters" in k8sproxy(*peer, "--verb", "get", "--path", POD)
    assert as_json(*peer, "--path", f"{POD}/exec", "--upgrade", "websocket")
    k8sproxy("explain", "--peer", "100.127.255.254", "--config", str(shared_proxy.file), code=1)


def test_explain_says_what_serve_does(bed: Bed, shared_proxy: Proxy) -> None:
    """Both are asked about the same: they must not fall out."""
    for name in ("alice", "ci", "mallory"):
        node = bed.nodes[name]
        said = as_json("explain", "--peer", node.tailnet_ip, "--path", POD, "--config", str(shared_proxy.file))
        with Connection.open(shared_proxy.node.dns_name, shared_proxy.port, through=node, ca=shared_proxy.ca) as client:
            identity = client.ask("GET", "/.well-known/k8sproxy/whoami").json()["impersonation"]
        assert json.dumps(identity["user"]) in json.dumps(said)
        for group in identity["groups"]:
            assert json.dumps(group) in json.dumps(said)


@pytest.mark.parametrize("way", ["--ca", "--fetch-ca"])
def test_kubeconfig(shared_proxy: Proxy, alice_node: Node, tmp_path: Path, way: str) -> None:
    ca = [way, str(shared_proxy.ca)] if way == "--ca" else [way]
    through = f"socks5://{alice_node.socks5}"
    path = tmp_path / "kubeconfig"
    path.write_text(k8sproxy("kubeconfig", shared_proxy.url, *ca, "--context-name", "bed", "--proxy-url", through))
    kubectl = Kubectl(path)
    assert kubectl.ok("config", "current-context") == "bed\n"
    assert "alice@example.com" in kubectl.ok("auth", "whoami")


def test_explain_a_session_that_must_be_recorded(
    bed: Bed, shared_proxy: Proxy, alice_node: Node, grants: Callable[..., None]
) -> None:
    grants([kubernetes_grant("alice@example.com", ["system:masters"], enforceRecorder=True)])
    peer = ["explain", "--peer", alice_node.tailnet_ip, "--config", str(shared_proxy.file)]
    k8sproxy(*peer, "--path", POD)
    assert "record" in k8sproxy(*peer, "--path", f"{POD}/exec", "--upgrade", "websocket", code=1)


def test_a_misspelt_field_of_a_grant(
    bed: Bed, shared_proxy: Proxy, alice_node: Node, grants: Callable[..., None]
) -> None:
    """The real control server and daemon pass it on as it is; it enforces nothing, and everybody says so."""
    grants([kubernetes_grant("alice@example.com", ["system:masters", "misspelt"], enforceRecoder=True)])
    note = "has the unknown field 'enforceRecoder'; did you mean enforceRecorder?"
    config = ["--config", str(shared_proxy.file)]
    wait_until(lambda: note in k8sproxy("whois", f"{alice_node.tailnet_ip}:1", *config), "the grant")
    assert note in k8sproxy("explain", "--peer", alice_node.tailnet_ip, *config)

    def asked() -> bool:
        with (
            contextlib.suppress(OSError),  # a dial that meets the new packet filter on its way
            Connection.open(
                shared_proxy.node.dns_name, shared_proxy.port, through=alice_node, ca=shared_proxy.ca
            ) as connection,
        ):
            who = connection.ask("GET", "/.well-known/k8sproxy/whoami").json()
            return "misspelt" in who["impersonation"]["groups"] and not who["enforceRecorder"]
        return False

    for _ in range(3):
        wait_until(asked, "the grant in the proxy")
    said = shared_proxy.wait_event("grant_unknown_field")
    assert said["peer"] == "alice@example.com" and note in said["fields"][0]
    assert len(shared_proxy.events("grant_unknown_field")) == 1
