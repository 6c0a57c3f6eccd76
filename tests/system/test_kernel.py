"""Kernel mode: nodes with TUN devices in network namespaces, and a proxy that listens on its tailnet addresses.

A bed of its own, since its cluster must be where the namespaces reach it. Root only.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.bed import Bed, Node
from tests.bed.http import request
from tests.system.beds import STANDARD_GRANTS, require_bed
from tests.system.kubectl import STREAMING, Kubectl, write_kubeconfig
from tests.system.proxy import Proxy, reported, wait_until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root makes network namespaces and TUN devices")

PORT = 443
ADMIN_PORT = 9002


@pytest.fixture(scope="module")
def kernel_bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    require_bed()
    with Bed(tmp_path_factory.mktemp("kernel"), kernel=True) as bed:
        bed.add_nodes(proxy={"user": "ops@example.com"}, alice={"user": "alice@example.com"}, ci={"tags": ["tag:ci"]})
        bed.set_grants(STANDARD_GRANTS)
        bed.cluster.bind_group("viewers", "view")
        bed.pod("web")
        yield bed


@pytest.fixture(scope="module")
def proxy(kernel_bed: Bed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """On every tailnet address of its node, and its admin site on every address there is."""
    directory = tmp_path_factory.mktemp("kernel-proxy")
    node = kernel_bed.nodes["proxy"]
    tls = {"source": "generated", "directory": str(directory / "ca")}
    proxy = Proxy(
        directory,
        node,
        kernel_bed.proxy_account_kubeconfig,
        listen=[{"address": f"tailnet:{PORT}", "tls": tls}],
        admin={"address": f"0.0.0.0:{ADMIN_PORT}"},
        prefix=node.exec_prefix,
    )
    proxy.admin = f"http://{own_address(node)}:{ADMIN_PORT}"
    with reported(proxy), proxy:
        yield proxy


def own_address(node: Node) -> str:
    """The node's address in the network below the tailnet."""
    devices = json.loads(subprocess.check_output([*node.exec_prefix, "ip", "-json", "-4", "address"]))
    (found,) = (a["local"] for d in devices if d["ifname"].startswith("up") for a in d["addr_info"])
    return str(found)


def kubectl(proxy: Proxy, node: Node, host: str, path: Path) -> Kubectl:
    write_kubeconfig(path / f"{node.name}.kubeconfig", f"https://{host}:{PORT}", ca=proxy.ca)
    return Kubectl(path / f"{node.name}.kubeconfig", prefix=node.exec_prefix)


@pytest.mark.parametrize("family", ["IPv4", "IPv6"])
def test_every_tailnet_address_is_served(kernel_bed: Bed, proxy: Proxy, tmp_path: Path, family: str) -> None:
    host = proxy.node.tailnet_ip if family == "IPv4" else f"[{proxy.node.tailnet_ip6}]"
    alice = kubectl(proxy, kernel_bed.nodes["alice"], host, tmp_path)
    ci = kubectl(proxy, kernel_bed.nodes["ci"], host, tmp_path)
    assert "alice@example.com" in alice.ok("auth", "whoami")
    assert kernel_bed.nodes["ci"].dns_name in ci.ok("auth", "whoami")
    assert "Forbidden" in ci.fails("delete", "pod", "web")


@pytest.mark.parametrize("protocol", STREAMING)
def test_exec(kernel_bed: Bed, proxy: Proxy, tmp_path: Path, protocol: str) -> None:
    alice = kubectl(proxy, kernel_bed.nodes["alice"], proxy.node.tailnet_ip, tmp_path).speaking(STREAMING[protocol])
    done = alice.run("exec", "-i", "web", "--", "sh", "-c", "cat; exit 9", input=b"words")
    assert (done.returncode, done.stdout) == (9, b"words")


def test_the_network_below_is_not_served(proxy: Proxy) -> None:
    with pytest.raises(ConnectionRefusedError):
        request("GET", f"https://{own_address(proxy.node)}:{PORT}", "/")


def test_admin_site_on_a_wildcard_address(kernel_bed: Bed, proxy: Proxy) -> None:
    """Probes from the network below are served; a peer that comes through the tailnet is not, nor is it on loopback."""
    assert proxy.get("/healthz").ok
    assert "k8sproxy_connections" in proxy.metrics()
    alice, host = kernel_bed.nodes["alice"], proxy.node.tailnet_ip
    assert status_seen_from(alice.exec_prefix, f"http://{host}:{ADMIN_PORT}/metrics") == 403
    assert status_seen_from(proxy.node.exec_prefix, f"http://127.0.0.1:{ADMIN_PORT}/metrics") == 200


def status_seen_from(prefix: Sequence[str], url: str) -> int:
    code = (
        "import sys, urllib.request, urllib.error\n"
        "try: print(urllib.request.urlopen(sys.argv[1], timeout=10).status)\n"
        "except urllib.error.HTTPError as error: print(error.code)"
    )
    return int(subprocess.check_output([*prefix, sys.executable, "-c", code, url]))


def test_a_daemon_that_stops_takes_its_addresses_along(kernel_bed: Bed, proxy: Proxy, tmp_path: Path) -> None:
    """The TUN device goes with the daemon; when both are back, so are the listeners."""
    alice = kubectl(proxy, kernel_bed.nodes["alice"], proxy.node.tailnet_ip, tmp_path)
    proxy.node.stop()
    wait_until(lambda: not proxy.get("/readyz").ok, "end of readiness")
    proxy.node.start()
    wait_until(lambda: proxy.get("/readyz").ok, "readiness")
    wait_until(lambda: alice.run("get", "pods").returncode == 0, "answer")
