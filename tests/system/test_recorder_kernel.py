"""Kernel mode: the recorder on its node's own addresses, port 80 as senders expect it, and a grant that lets one send.

A bed of its own, without a cluster. Root only.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.bed import Bed, Node
from tests.bed.http import request
from tests.bed.tailnet import Grant
from tests.system.beds import require_bed
from tests.system.keeper import API, CAP_RECORDER, Keeper
from tests.system.proxy import wait_until
from tests.system.test_kernel import own_address, status_seen_from

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root makes network namespaces and TUN devices")

ADMIN_PORT = 9003
# Prints the status of a session of the first version, sent in two pieces.
SEND = r"""
import http.client, sys
header = b'{"version": 2, "width": 80, "height": 24, "sessionID": "%s"}\n' % sys.argv[2].encode()
pieces = [header, b'[0.5, "o", "here"]\n']
connection = http.client.HTTPConnection(sys.argv[1], 80, timeout=10)
connection.request("POST", "/record", body=iter(pieces), encode_chunked=True, headers={"Transfer-Encoding": "chunked"})
print(connection.getresponse().status)
"""
GET = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=10).read().decode())"


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Node]]:
    require_bed()
    with Bed(tmp_path_factory.mktemp("kernel"), kernel=True, cluster=False) as bed:
        bed.add_nodes(
            recorder={"tags": ["tag:recorder"]},
            sender={"tags": ["tag:anything"]},
            auditor={"user": "auditor@example.com"},
        )
        bed.set_grants(
            [
                Grant(["sender"], ["tag:recorder"], {CAP_RECORDER: [{"send": True}]}),
                Grant(["auditor"], ["tag:recorder"], {CAP_RECORDER: [{"users": ["*"]}]}),
            ]
        )
        yield bed.nodes


@pytest.fixture(scope="module")
def keeper(nodes: dict[str, Node], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keeper]:
    node = nodes["recorder"]
    keeper = Keeper(
        tmp_path_factory.mktemp("keeper"),
        node,
        prefix=node.exec_prefix,
        ingest={},  # tailnet:80, and nobody but whom a grant names
        web={"listen": ["tailnet:8080"]},
        admin={"address": f"{own_address(node)}:{ADMIN_PORT}"},
    )
    with keeper:
        yield keeper


def sent(who: Node, host: str) -> str:
    """The status that a session sent from there gets; its id says from where it came, and where to."""
    argv = [*who.exec_prefix, sys.executable, "-c", SEND, host, f"{who.name} {host}"]
    return subprocess.check_output(argv, text=True).strip()


@pytest.mark.parametrize("family", ["IPv4", "IPv6"])
def test_every_tailnet_address_takes_sessions(nodes: dict[str, Node], keeper: Keeper, family: str) -> None:
    host = keeper.node.tailnet_ip if family == "IPv4" else keeper.node.tailnet_ip6
    shown = host if family == "IPv4" else f"[{host}]"
    assert sent(nodes["sender"], host) == "200"
    assert sent(nodes["auditor"], host) == "403"
    url = f"http://{shown}:8080{API}/sessions?state=clean"

    def listed() -> list[str]:
        text = subprocess.check_output([*nodes["auditor"].exec_prefix, sys.executable, "-c", GET, url], text=True)
        return [session["sessionId"] for session in json.loads(text)["items"]]

    wait_until(lambda: f"sender {host}" in listed(), "the session in the list")
    assert not any(name.startswith("auditor") for name in listed())
    assert status_seen_from(nodes["sender"].exec_prefix, url) == 403


def test_the_network_below_is_not_served(keeper: Keeper) -> None:
    for port in (80, 8080):
        with pytest.raises(ConnectionRefusedError):
            request("GET", f"http://{own_address(keeper.node)}:{port}", "/")


def test_the_admin_site_is_not_on_the_tailnet(nodes: dict[str, Node], keeper: Keeper) -> None:
    assert keeper.admin("/metrics").ok
    url = f"http://{keeper.node.tailnet_ip}:{ADMIN_PORT}/healthz"
    with pytest.raises(subprocess.CalledProcessError):
        subprocess.run([*nodes["sender"].exec_prefix, sys.executable, "-c", GET, url], check=True, capture_output=True)
