"""A peer can spend only its own share, on the bed: of the proxy's CPU, and of the places at proxy and recorder.

alice is who takes too much; ci (a tagged node) or mallory is who must not notice.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bench.floods import FLOODS
from tests.bed import Bed, Node, kubernetes_grant
from tests.bed.tailnet import Grant
from tests.system.keeper import CAP_RECORDER, Keeper, with_recorder
from tests.system.kubectl import Kubectl
from tests.system.proxy import Proxy, reported, wait_until
from tests.system.raw import Connection, in_query

WHOAMI = "/.well-known/k8sproxy/whoami"
PODS = "/api/v1/namespaces/default/pods"
MASTERS = ["system:masters"]
IDLE = ("exec", "-i", "web", "--", "cat")


@pytest.fixture(scope="module")
def nodes(bed: Bed) -> dict[str, Node]:
    """The bed's, with the recorder's and that of a proxy which may send there."""
    return with_recorder(bed)


def opened(proxy: Proxy, node: Node) -> Connection:
    return Connection.open(proxy.node.dns_name, proxy.port, through=node, ca=proxy.ca)


def wait_known(proxy: Proxy, node: Node, group: str) -> None:
    """Until the proxy goes by a grant that has this group."""

    def known() -> bool:
        with contextlib.suppress(OSError), opened(proxy, node) as connection:  # a new packet filter may be on its way
            return group in str(connection.ask("GET", WHOAMI).json()["impersonation"])
        return False

    wait_until(known, "the grant in the proxy")


# -- the time of the loop


class Flood:
    """Writes a flood of bench.floods on a connection of its own, from `with` to its end."""

    def __init__(self, proxy: Proxy, node: Node, name: str) -> None:
        first, then = FLOODS[name]
        spelled = first.replace(b"/pods/a/", b"/pods/web/").replace(b"command=a", in_query("sleep", "600").encode())
        self._connection = opened(proxy, node)
        self._sock = self._connection.sock
        self._sock.sendall(spelled)
        assert self._sock.recv(12) == b"HTTP/1.1 101"
        self._piece = then()
        self._thread = threading.Thread(target=self._write, daemon=True)

    def _write(self) -> None:
        with contextlib.suppress(OSError):  # the proxy may end it
            while True:
                self._sock.sendall(self._piece)

    def __enter__(self) -> Flood:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._sock.shutdown(2)
        self._thread.join(30)
        self._connection.__exit__(None, None, None)
        assert not self._thread.is_alive()


@pytest.mark.parametrize("name", ["SPDY pings", "SPDY HEADERS", "WebSocket messages of a byte"])
def test_others_are_answered_while_a_peer_floods(
    bed: Bed, shared_proxy: Proxy, grants: Callable[..., None], web: str, name: str
) -> None:
    grants([kubernetes_grant("alice@example.com", MASTERS), kubernetes_grant("tag:ci", ["viewers", "flooded"])])
    wait_known(shared_proxy, bed.nodes["ci"], "flooded")
    alice = bed.nodes["alice"]
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(Flood(shared_proxy, alice, name))
        with opened(shared_proxy, bed.nodes["ci"]) as open_before:
            for _ in range(10):
                assert open_before.ask("GET", f"{PODS}/{web}").status == 200
                with opened(shared_proxy, bed.nodes["ci"]) as fresh:
                    assert fresh.ask("GET", f"{PODS}/{web}").status == 200


# -- places


@pytest.fixture(scope="module")
def sender(bed: Bed, nodes: dict[str, Node], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """A proxy on a node whose tag the recorder takes sessions from."""
    proxy = Proxy(tmp_path_factory.mktemp("sender"), nodes["sender"], bed.proxy_account_kubeconfig)
    with reported(proxy), proxy:
        yield proxy


@pytest.fixture(scope="module")
def keeper(bed: Bed, nodes: dict[str, Node], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keeper]:
    """A recorder with few places, where grants lead."""
    keeper = Keeper(tmp_path_factory.mktemp("keeper"), nodes["recorder"])
    keeper.config["ingest"] |= {"sessions": 6, "sessionsPerSender": 6, "sessionsPerUser": 3}
    keeper.config["ingest"] |= {"connections": 8, "connectionsPerSender": 4}
    with keeper:
        bed.tailnet.set_recorder_port(keeper.port)
        yield keeper


@pytest.fixture
def recorded(
    nodes: dict[str, Node], sender: Proxy, keeper: Keeper, grants: Callable[..., None]
) -> Callable[[str], None]:
    """Both may have sessions that must be recorded there."""
    rule: dict[str, Any] = {"recorder": ["tag:recorder"], "enforceRecorder": True}

    def change(group: str) -> None:
        whom = ("alice@example.com", "tag:ci")
        look = Grant(["auditor"], ["recorder"], {CAP_RECORDER: [{"users": ["*"], "view": True}]})
        grants([*(kubernetes_grant(who, [*MASTERS, group], **rule) for who in whom), look])
        for name in ("alice", "ci"):
            wait_known(sender, nodes[name], group)
        wait_until(lambda: keeper.welcomes(nodes["auditor"]), "the grant in the recorder")

    return change


def test_idle_sessions_take_one_users_places(
    recorded: Callable[[str], None], keeper: Keeper, sender: Proxy, kubectl: Callable[..., Kubectl], web: str
) -> None:
    recorded("places")
    alice, ci = kubectl("alice", sender), kubectl("ci", sender)
    with contextlib.ExitStack() as stack:
        for number in range(3):
            stack.enter_context(alice.start(*IDLE))
            wait_until(lambda so_far=number: keeper.metrics()["recorder_sessions_open"] > so_far, "the session")  # type: ignore[misc]
        said = alice.fails("exec", web, "--", "echo", "one too many")
        assert "3 sessions of one user at once (ingest.sessionsPerUser)" in said and "one too many" not in said
        assert ci.ok("exec", web, "--", "echo", "another") == "another\n"
        metrics = keeper.metrics()
        assert metrics['recorder_share_largest{limit="user_sessions"}'] == 3
        assert metrics['recorder_refusals_total{cause="user_sessions"}'] >= 1
        assert sender.get("/readyz").ok  # the recorder is well, and the proxy knows
    wait_until(lambda: keeper.metrics()["recorder_sessions_open"] == 0, "places that are free again")
    assert alice.ok("exec", web, "--", "echo", "again") == "again\n"


def test_silent_connections_take_nobodys_places(
    nodes: dict[str, Node],
    recorded: Callable[[str], None],
    keeper: Keeper,
    sender: Proxy,
    kubectl: Callable[..., Kubectl],
    web: str,
) -> None:
    """They come from loopback, as all do behind a userspace daemon; many times as many as there are places."""
    recorded("silent")
    with contextlib.ExitStack() as stack:
        for _ in range(80):
            stack.enter_context(keeper.dial(nodes["mallory"]))
        wait_until(lambda: keeper.metrics()["recorder_connections_waiting"] > 0, "silent connections")
        assert kubectl("ci", sender).ok("exec", web, "--", "echo", "here") == "here\n"
        metrics = keeper.metrics()
        assert metrics['recorder_share_taken{limit="connections"}'] <= 4
        # Nobody knows whose they are before WhoIs has been asked; then one node may have 64 of them.
        wait_until(lambda: keeper.metrics()["recorder_connections_waiting"] <= 64, "those past the share to be ended")
    wait_until(lambda: keeper.metrics()["recorder_connections_waiting"] == 0, "connections that have ended")


def test_silent_connections_give_their_places_at_the_proxy_to_others(
    bed: Bed, new_proxy: Callable[..., Proxy], grants: Callable[..., None], web: str
) -> None:
    grants([kubernetes_grant("mallory@example.com", ["viewers"]), kubernetes_grant("tag:ci", ["viewers"])])
    proxy = new_proxy(limits={"connections": 16, "connectionsPerPeer": 16})
    with contextlib.ExitStack() as stack:
        for _ in range(24):
            stack.enter_context(bed.nodes["mallory"].dial(proxy.node.dns_name, proxy.port))
        with opened(proxy, bed.nodes["ci"]) as connection:
            assert connection.ask("GET", f"{PODS}/{web}").status == 200
        assert proxy.metrics()['k8sproxy_refusals_total{reason="silent_connection"}'] > 0
