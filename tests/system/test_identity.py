"""Who a connection is: a user, a tagged node, a peer without a grant, nobody; and what happens when that changes."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bed import CAP_KUBERNETES, Bed, Grant, kubernetes_grant
from tests.system.kubectl import Kubectl, write_kubeconfig
from tests.system.proxy import Proxy, wait_until
from tests.system.raw import Answer, Connection

PODS = "/api/v1/namespaces/default/pods"
WHOAMI = "/.well-known/k8sproxy/whoami"
SetGrants = Callable[..., None]


def connect(bed: Bed, proxy: Proxy, name: str) -> Connection:
    return Connection.open(proxy.node.dns_name, proxy.port, through=bed.nodes[name], ca=proxy.ca)


# -- who is who


def test_a_user(bed: Bed, shared_proxy: Proxy) -> None:
    with connect(bed, shared_proxy, "alice") as connection:
        answer = connection.ask("GET", WHOAMI).json()
    assert answer["peer"]["loginName"] == "alice@example.com"
    assert answer["impersonation"] == {"user": "alice@example.com", "groups": ["system:masters"]}


def test_a_tagged_node_is_its_name(kubectl: Callable[..., Kubectl], bed: Bed, web: str) -> None:
    ci = kubectl("ci")
    info = ci.json("auth", "whoami")["status"]["userInfo"]  # type: ignore[index]  # JSON
    assert info["username"] == bed.nodes["ci"].dns_name
    assert set(info["groups"]) == {"viewers", "system:authenticated"}
    assert web in ci.ok("get", "pods")
    assert "Forbidden" in ci.fails("delete", "pod", web)


def test_a_tagged_node_without_groups_has_its_tags(
    kubectl: Callable[..., Kubectl], bed: Bed, grants: SetGrants, web: str
) -> None:
    grants([kubernetes_grant("tag:ci", recorderAddrs=[])])
    bed.cluster.bind_group("tag:ci", "view")
    assert web in kubectl("ci").ok("get", "pods")


def test_a_peer_without_a_grant_is_refused_by_the_api_server(kubectl: Callable[..., Kubectl]) -> None:
    refused = kubectl("mallory").fails("get", "pods")
    assert 'User "mallory@example.com" cannot list resource "pods"' in refused


def test_an_unknown_peer_is_refused_by_the_proxy(shared_proxy: Proxy) -> None:
    """A process of this machine, beside the tailnet: no daemon knows its connection."""
    with Connection.open("127.0.0.1", shared_proxy.port, ca=shared_proxy.ca) as connection:
        answer = connection.ask("GET", "/api")
        again = connection.ask("GET", "/api")
    assert (answer.status, again.status) == (403, 403)
    assert answer.message.startswith("k8sproxy: ")
    assert answer.json()["kind"] == "Status"


def test_kubectl_tells_an_unknown_peer_why(shared_proxy: Proxy, tmp_path: Path) -> None:
    path = write_kubeconfig(tmp_path / "kubeconfig", f"https://127.0.0.1:{shared_proxy.port}", ca=shared_proxy.ca)
    assert "k8sproxy: tailscaled knows no peer" in Kubectl(path).fails("get", "pods")


def test_nobody_may_ask_to_be_somebody_else(alice: Kubectl) -> None:
    assert "kubectl --as" in alice.fails("get", "pods", "--as", "bob@example.com")
    assert "kubectl --as" in alice.fails("get", "--raw", PODS, "--as", "bob@example.com")
    alice.ok("get", "pods")  # so that kubectl knows the API and need not ask for it
    assert "kubectl --as" in alice.fails("get", "pods", "--as", "alice@example.com", "--as-group", "viewers")


def test_what_a_client_says_of_itself_is_dropped(bed: Bed, shared_proxy: Proxy) -> None:
    path = f"{PODS}?labelSelector=audit%3Dforged"
    headers = {
        "X-Remote-User": "root",
        "X-Remote-Group": "system:masters",
        "Authorization": "Bearer forged",
        "X-Forwarded-For": "192.0.2.77",
        "X-Real-Ip": "192.0.2.78",
        "Connection": "Impersonate-User, Authorization",
    }
    with connect(bed, shared_proxy, "ci") as connection:
        assert connection.ask("GET", path, headers).status == 200
    event = wait_until(lambda: next((e for e in bed.cluster.audit_events() if e["requestURI"] == path), None), "event")
    assert event["user"]["username"] == "system:serviceaccount:k8sproxy:k8sproxy"
    assert event["impersonatedUser"]["username"] == bed.nodes["ci"].dns_name
    assert event["impersonatedUser"]["groups"] == ["viewers", "system:authenticated"]
    assert event["sourceIPs"] == [bed.nodes["ci"].tailnet_ip, bed.cluster.address]


# -- grants that change


@pytest.mark.parametrize("quiet", [False, True], ids=["told by the bus", "by the time limit"])
def test_a_changed_grant_counts_on_an_open_connection(
    bed: Bed, shared_proxy: Proxy, grants: SetGrants, quiet: bool
) -> None:
    with connect(bed, shared_proxy, "mallory") as connection:
        assert connection.ask("GET", PODS).status == 403
        grants([kubernetes_grant("mallory@example.com", ["viewers"])], quiet=quiet)
        _wait_for_status(connection, 200)
        grants([], quiet=quiet)
        _wait_for_status(connection, 403)


def _wait_for_status(connection: Connection, status: int) -> Answer:
    """Within the ten seconds for which an answer is kept, and some for two busy cores."""

    def ask() -> Answer | None:
        answer = connection.ask("GET", PODS)
        return answer if answer.status == status else None

    return wait_until(ask, f"answer {status}", 13.0)


@pytest.mark.parametrize("quiet", [False, True], ids=["told by the bus", "by the time limit"])
def test_a_withdrawn_grant_ends_a_watch(
    bed: Bed, shared_proxy: Proxy, grants: SetGrants, web: str, quiet: bool
) -> None:
    with connect(bed, shared_proxy, "alice") as connection:
        watch = connection.begin("GET", f"{PODS}?watch=1")
        assert watch.status == 200
        assert json.loads(watch.readline())["object"]["metadata"]["name"] == web
        seen = len(shared_proxy.events("response_cut"))
        grants([], quiet=quiet)
        assert shared_proxy.wait_event("response_cut", seen)["cause"] == "grant_withdrawn"
        with watch, pytest.raises(http.client.IncompleteRead):  # it must not look complete
            watch.read()


def test_a_withdrawn_grant_ends_a_shell(bed: Bed, kubectl: Callable[..., Kubectl], grants: SetGrants, web: str) -> None:
    with kubectl("alice").start("exec", "-i", web, "--", "sh", "-c", "echo up; cat") as running:
        running.expect("up")
        grants([])
        assert running.wait() != 0


def test_a_malformed_capability_refuses_everything(bed: Bed, shared_proxy: Proxy, grants: SetGrants) -> None:
    grants(
        [
            kubernetes_grant("mallory@example.com", ["system:masters"]),
            Grant(["mallory@example.com"], ["*"], {CAP_KUBERNETES: [{"impersonate": {"groups": "all"}}]}),
        ]
    )
    with connect(bed, shared_proxy, "mallory") as connection:
        answer = connection.ask("GET", "/version")
    assert answer.status == 403
    assert CAP_KUBERNETES in answer.message
    assert "groups" in answer.message


# -- the daemon


def test_a_daemon_that_stops_and_comes_back(
    bed: Bed, new_proxy: Callable[..., Proxy], kubectl: Callable[..., Kubectl]
) -> None:
    proxy = new_proxy(tailnet={"socket": str(bed.nodes["proxy"].socket), "whoisTimeout": "1s"})
    alice = kubectl("alice", proxy)
    alice.ok("get", "pods")
    proxy.node.stop()
    try:
        with Connection.open("127.0.0.1", proxy.port, ca=proxy.ca) as connection:
            answer = connection.ask("GET", "/api")
            assert answer.status == 503
            assert "tailscaled" in answer.message
            ready = proxy.get("/readyz")
            assert (ready.status, b"tailnet" in ready.body) == (503, True)
            assert proxy.get("/healthz").status == 200
    finally:
        proxy.node.start()
    wait_until(lambda: proxy.get("/readyz").ok, "readiness")
    alice.ok("get", "pods")
    with Connection.open("127.0.0.1", proxy.port, ca=proxy.ca) as connection:
        assert connection.ask("GET", "/api").status == 403  # it is the daemon that answers again
    assert len(proxy.events("certificate_installed")) == 1  # the node's name was not forgotten meanwhile


def test_the_log_says_who_did_what(bed: Bed, shared_proxy: Proxy, alice: Kubectl, tmp_path: Path) -> None:
    path = "/api/v1/namespaces/default/secrets"
    alice.ok("get", "--raw", path)
    lines = wait_until(lambda: [e for e in shared_proxy.events("request") if e["path"] == path], "line of the request")
    assert lines[-1]["user"] == "alice@example.com"
    assert lines[-1]["address"] == bed.nodes["alice"].tailnet_ip
    assert (lines[-1]["verb"], lines[-1]["code"]) == ("list", 200)
