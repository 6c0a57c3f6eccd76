"""One bed for the whole folder, four nodes on it, and one proxy that most tests share.

    proxy      the node that proxies run on         alice     a user: cluster-admin
    ci         a node with tag:ci: may look          mallory   a user without a grant

A test that changes grants gets them back as they were (`grants`). A test that needs a proxy of its own makes one
(`new_proxy`). Whatever fails, the logs of the proxies that the test had are part of its report.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import bed as bed_package
from tests.bed import Bed, Node, kubernetes_grant
from tests.system.kubectl import Kubectl, write_kubeconfig
from tests.system.proxy import Proxy

STANDARD_GRANTS = [
    kubernetes_grant("alice@example.com", ["system:masters"]),
    kubernetes_grant("tag:ci", ["viewers"]),
]
_BED_DIRECTORY = Path(bed_package.__file__).parent
_proxies: list[Proxy] = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.bed)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    outcome: Any = yield
    report = outcome.get_result()
    if report.failed:
        for proxy in _proxies:
            report.sections.append((f"log of the proxy in {proxy.directory.name}", proxy.log_tail()))


def _missing() -> str | None:
    """Why there can be no bed here."""
    if shutil.which("go") is None:
        return "Go is not installed"
    make = ["make", "--silent", "--question", "-C", str(_BED_DIRECTORY), "all"]
    if subprocess.run(make, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False).returncode:
        return "the bed's programs are not built (make bed)"
    return None


def _address() -> str:
    """This machine's own address where it has one: the API server refuses nodes/proxy to loopback addresses."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
        probe.connect(("192.0.2.1", 9))  # TEST-NET-1 (RFC 5737); nothing is sent
        return str(probe.getsockname()[0])
    return "127.0.0.1"


@pytest.fixture(scope="session")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    if missing := _missing():
        if os.environ.get("K8SPROXY_REQUIRE_BED") == "1":
            pytest.fail(missing)
        pytest.skip(missing)
    with Bed(tmp_path_factory.mktemp("bed"), address=_address()) as bed:
        bed.add_nodes(
            proxy={"user": "ops@example.com"},
            alice={"user": "alice@example.com"},
            ci={"tags": ["tag:ci"]},
            mallory={"user": "mallory@example.com"},
        )
        bed.set_grants(STANDARD_GRANTS)
        bed.cluster.bind_group("viewers", "view")
        yield bed


@pytest.fixture
def grants(bed: Bed) -> Iterator[Callable[..., None]]:
    """Bed.set_grants, for this test alone."""
    yield bed.set_grants
    bed.set_grants(STANDARD_GRANTS)


@pytest.fixture(scope="session")
def alice_node(bed: Bed) -> Node:
    return bed.nodes["alice"]


@pytest.fixture(scope="session")
def shared_proxy(bed: Bed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    with Proxy(tmp_path_factory.mktemp("shared"), bed.nodes["proxy"], bed.proxy_account_kubeconfig) as proxy:
        _proxies.append(proxy)
        yield proxy
        _proxies.remove(proxy)


@pytest.fixture
def new_proxy(bed: Bed, tmp_path: Path) -> Iterator[Callable[..., Proxy]]:
    """Starts a proxy on the bed's proxy node; arguments as those of Proxy."""
    made: list[Proxy] = []

    def start(**arguments: Any) -> Proxy:
        kubeconfig = arguments.pop("kubeconfig", bed.proxy_account_kubeconfig)
        proxy = Proxy(tmp_path / f"proxy{len(made)}", bed.nodes["proxy"], kubeconfig, **arguments)
        made.append(proxy)
        _proxies.append(proxy)
        proxy.start()
        return proxy

    yield start
    for proxy in made:
        proxy.kill()
        _proxies.remove(proxy)


@pytest.fixture
def kubectl(bed: Bed, shared_proxy: Proxy, tmp_path: Path) -> Callable[..., Kubectl]:
    """kubectl of a node: kubectl("alice"), through the shared proxy or another one."""

    def make(name: str, proxy: Proxy | None = None, **arguments: Any) -> Kubectl:
        to = proxy or shared_proxy
        path = tmp_path / f"{name}-{to.directory.name}.kubeconfig"
        write_kubeconfig(path, to.url, ca=to.ca, socks5=bed.nodes[name].socks5)
        return Kubectl(path, **arguments)

    return make


@pytest.fixture
def alice(kubectl: Callable[..., Kubectl]) -> Kubectl:
    return kubectl("alice")


@pytest.fixture(scope="session")
def web(bed: Bed) -> str:
    """A pod with a shell."""
    bed.pod("web")
    return "web"
