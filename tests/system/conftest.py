"""One bed for the whole folder, four nodes on it, and one proxy that most tests share.

    proxy      the node that proxies run on         alice     a user: cluster-admin
    ci         a node with tag:ci: may look          mallory   a user without a grant

A test that changes grants gets them back as they were (`grants`). A test that needs a proxy of its own makes one
(`new_proxy`). Whatever fails, the logs of the proxies that the test had are part of its report.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.bed import Bed, Node, kubernetes_grant
from tests.system.beds import STANDARD_GRANTS, own_address, require_bed
from tests.system.kubectl import Kubectl, write_kubeconfig
from tests.system.proxy import REPORTED, Proxy, reported, wait_until
from tests.system.raw import Connection
from tests.system.recorders import Recorder, Sink

_serial = itertools.count(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.bed)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    outcome: Any = yield
    report = outcome.get_result()
    if report.failed:
        for proxy in REPORTED:
            report.sections.append((f"log of the proxy in {proxy.directory.name}", proxy.log_tail()))


@pytest.fixture(scope="session")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    require_bed()
    with Bed(tmp_path_factory.mktemp("bed"), address=own_address()) as bed:
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
    proxy = Proxy(tmp_path_factory.mktemp("shared"), bed.nodes["proxy"], bed.proxy_account_kubeconfig)
    with reported(proxy), proxy:
        yield proxy


@pytest.fixture
def new_proxy(bed: Bed, tmp_path: Path) -> Iterator[Callable[..., Proxy]]:
    """Starts a proxy on the bed's proxy node; arguments as those of Proxy."""
    with contextlib.ExitStack() as stack:
        names = (f"proxy{number}" for number in itertools.count())

        def start(**arguments: Any) -> Proxy:
            kubeconfig = arguments.pop("kubeconfig", bed.proxy_account_kubeconfig)
            proxy = Proxy(tmp_path / next(names), bed.nodes["proxy"], kubeconfig, **arguments)
            stack.enter_context(reported(proxy))
            return stack.enter_context(proxy)

        yield start


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


@pytest.fixture
def record(bed: Bed, shared_proxy: Proxy, grants: Callable[..., None]) -> Callable[..., None]:
    """alice's grant for this test: cluster-admin, with these recorders.

    record("IP:PORT", .., enforce=False, proxy=shared_proxy, who="alice", **rule) returns when the proxy goes by it,
    which shows in a group that the grant has besides, in place of those before it; keep=True: behind those.
    """

    groups: list[str] = []

    def change(
        *addresses: str,
        enforce: bool = False,
        proxy: Proxy | None = None,
        who: str = "alice",
        keep: bool = False,
        **rule: Any,
    ) -> None:
        group = f"grant-{next(_serial)}"
        groups[:] = [*groups, group] if keep else [group]
        if addresses:
            rule["recorderAddrs"] = list(addresses)
        whom = {"alice": "alice@example.com", "ci": "tag:ci"}[who]
        grants([kubernetes_grant(whom, ["system:masters", *groups], enforceRecorder=enforce, **rule)])
        to = proxy or shared_proxy

        def known() -> bool:
            # A dial that meets the new packet filter on its way is refused.
            with (
                contextlib.suppress(OSError),
                Connection.open(to.node.dns_name, to.port, through=bed.nodes[who], ca=to.ca) as connection,
            ):
                answer = connection.ask("GET", "/.well-known/k8sproxy/whoami")
                return group in (json.loads(answer.body)["impersonation"] or {}).get("groups", ())
            return False

        wait_until(known, "the grant in the proxy")

    return change


@pytest.fixture
def connect(bed: Bed, shared_proxy: Proxy) -> Callable[[], contextlib.AbstractContextManager[Connection]]:
    """A connection of alice's to the shared proxy, for requests spelled by hand."""

    def connected() -> contextlib.AbstractContextManager[Connection]:
        proxy = shared_proxy
        return Connection.open(proxy.node.dns_name, proxy.port, through=bed.nodes["alice"], ca=proxy.ca)

    return connected


@pytest.fixture
def sink() -> Iterator[Sink]:
    """A recorder of the wire's first version, independent of the product."""
    with Sink() as sink:
        yield sink


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    """A recorder of the second version."""
    with Recorder() as recorder:
        yield recorder
