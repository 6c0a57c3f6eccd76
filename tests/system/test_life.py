"""The process's life under load: drain, reload, what it counts and what it never says."""

from __future__ import annotations

import http.client
import json
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.bed import Bed, Node, free_port
from tests.system.kubectl import Kubectl, Running, write_kubeconfig
from tests.system.proxy import Proxy, wait_until
from tests.system.raw import Connection

CONFIG_MAPS = "/api/v1/namespaces/default/configmaps"
NewProxy = Callable[..., Proxy]


@dataclass
class Streams:
    """What is open while the process is told something: a watch and an exec that waits for a file."""

    connection: Connection
    watch: Any
    shell: Running
    go_on: Path

    def watch_sees(self, bed: Bed, name: str) -> None:
        """Make an object, and wait for the watch to tell of it."""
        manifest = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "default"}}
        bed.cluster.apply(manifest)
        while json.loads(self.watch.readline())["object"]["metadata"]["name"] != name:
            pass
        bed.cluster.delete(f"api/v1/namespaces/default/configmaps/{name}")

    def shell_ends(self) -> None:
        """Let the command end, and see all of it arrive."""
        self.go_on.touch()
        assert self.shell.wait() == 3
        assert self.shell.out == "up\ndone\n"


@pytest.fixture
def open_streams(
    kubectl: Callable[..., Kubectl], alice_node: Node, web: str, tmp_path: Path
) -> Iterator[Callable[[Proxy], Streams]]:
    with ExitStack() as stack:

        def start(proxy: Proxy) -> Streams:
            connection = Connection.open(proxy.node.dns_name, proxy.port, through=alice_node, ca=proxy.ca)
            stack.enter_context(connection)
            watch = stack.enter_context(connection.begin("GET", f"{CONFIG_MAPS}?watch=1"))
            assert json.loads(watch.readline())["type"] == "ADDED"
            go_on = tmp_path / "go-on"
            script = f"echo up; until [ -e {go_on} ]; do sleep 0.05; done; echo done; exit 3"
            shell = stack.enter_context(kubectl("alice", proxy).start("exec", web, "--", "sh", "-c", script))
            shell.expect("up\n")
            return Streams(connection, watch, shell, go_on)

        yield start


# -- the end


def test_sigterm_lets_what_runs_end(
    new_proxy: NewProxy, open_streams: Callable[[Proxy], Streams], alice_node: Node
) -> None:
    proxy = new_proxy()
    streams = open_streams(proxy)
    with Connection.open(proxy.node.dns_name, proxy.port, through=alice_node, ca=proxy.ca) as idle:
        assert idle.ask("GET", "/version").status == 200
        proxy.signal(signal.SIGTERM)
        proxy.wait_event("draining")
        assert idle.sock.recv(1) == b""  # a connection between two requests is ended at once
    streams.watch.read()  # a watch ends as a whole response does: IncompleteRead otherwise
    with pytest.raises(OSError):
        Connection.open(proxy.node.dns_name, proxy.port, through=alice_node, ca=proxy.ca)
    assert proxy.running
    streams.shell_ends()
    assert proxy.process.wait(10) == 0
    assert proxy.events("stopped")[0]["cut"] == 0


@pytest.mark.parametrize(
    "accept",
    [
        "application/json",
        "application/vnd.kubernetes.protobuf;stream=watch",
        "application/json;as=Table;v=v1;g=meta.k8s.io",
    ],
    ids=["json", "protobuf", "table"],
)
def test_a_drain_ends_a_watch_between_two_events(bed: Bed, new_proxy: NewProxy, alice_node: Node, accept: str) -> None:
    """Of objects that the API server writes in many chunks, while they come; and at once, not with the grace time."""
    proxy = new_proxy(shutdown={"grace": "1h"})
    metadata = {"name": "large", "namespace": "default"}
    with Connection.open(proxy.node.dns_name, proxy.port, through=alice_node, ca=proxy.ca) as connection:
        query = f"{CONFIG_MAPS}?watch=1&fieldSelector=metadata.name%3Dlarge&includeObject=Object"
        watch = connection.begin("GET", query, {"Accept": accept})
        for number in range(3):
            data = {"x": f"{number}" * 300_000}
            bed.cluster.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})
        body = watch.read(100_000)  # in the middle of the first event
        proxy.signal(signal.SIGTERM)
        proxy.wait_event("draining")
        body += watch.read()
        assert proxy.process.wait(20) == 0
        assert proxy.events("stopped")[0]["cut"] == 0
    bed.cluster.delete(f"{CONFIG_MAPS.lstrip('/')}/large")
    if "protobuf" in accept:
        while body:
            size = int.from_bytes(body[:4])
            assert len(body) >= 4 + size
            body = body[4 + size :]
    else:
        events = [json.loads(line) for line in body.splitlines()]
        assert body.endswith(b"}\n") and events[0]["type"] == "ADDED"


def test_the_grace_time_ends(new_proxy: NewProxy, open_streams: Callable[[Proxy], Streams]) -> None:
    proxy = new_proxy(shutdown={"grace": "1s"})
    streams = open_streams(proxy)
    proxy.signal(signal.SIGTERM)
    assert proxy.process.wait(10) == 0
    assert proxy.events("stopped")[0]["cut"] == 1
    assert streams.shell.wait() != 0


def test_a_second_signal_ends_it_at_once(new_proxy: NewProxy, open_streams: Callable[[Proxy], Streams]) -> None:
    proxy = new_proxy(shutdown={"grace": "1h"})
    open_streams(proxy)
    proxy.signal(signal.SIGTERM)
    proxy.wait_event("draining")
    proxy.signal(signal.SIGTERM)
    assert proxy.process.wait(10) == 0


# -- reload


def test_sighup_drops_nothing(bed: Bed, new_proxy: NewProxy, open_streams: Callable[[Proxy], Streams]) -> None:
    proxy = new_proxy()
    streams = open_streams(proxy)
    for number in range(3):
        proxy.config["limits"] = {"headBytes": f"{32 + number}KiB"}
        proxy.write()
        proxy.signal(signal.SIGHUP)
        proxy.wait_event("reloaded", number)
        streams.watch_sees(bed, f"after-reload-{number}")
    streams.shell_ends()
    assert not proxy.events("response_cut")


def test_another_service_ends_what_was_let_in_by_the_old_one(
    new_proxy: NewProxy, open_streams: Callable[[Proxy], Streams], alice_node: Node
) -> None:
    """The grants of one Service count nowhere else: whoever is connected has to come again."""
    proxy = new_proxy()
    streams = open_streams(proxy)
    with Connection.open(proxy.node.dns_name, proxy.port, through=alice_node, ca=proxy.ca) as idle:
        assert idle.ask("GET", "/version").status == 200
        proxy.config["listen"][0]["service"] = "svc:other"
        proxy.write()
        proxy.signal(signal.SIGHUP)
        proxy.wait_event("reloaded")
        assert idle.sock.recv(1) == b""
    assert streams.shell.wait() != 0
    assert "the configuration of this listener has changed" in streams.shell.err
    assert not streams.go_on.exists()
    with pytest.raises((OSError, http.client.IncompleteRead)):
        streams.watch.read()
    assert proxy.wait_event("response_cut")["cause"] == "listener_changed"
    assert {line["cause"] for line in proxy.events("response_cut")} == {"listener_changed"}
    with Connection.open(proxy.node.dns_name, proxy.port, through=alice_node, ca=proxy.ca) as fresh:
        assert fresh.ask("GET", "/.well-known/k8sproxy/whoami").status == 200


def test_plain_http_to_tls_is_told(new_proxy: NewProxy, alice_node: Node, tmp_path: Path) -> None:
    proxy = new_proxy()
    server = proxy.url.replace("https://", "http://")
    kubectl = Kubectl(write_kubeconfig(tmp_path / "plain", server, socks5=alice_node.socks5))
    assert "this listener speaks TLS" in kubectl.fails("get", "pods")


def test_a_changed_file_is_taken_up(bed: Bed, new_proxy: NewProxy, alice_node: Node) -> None:
    proxy = new_proxy()
    listeners = proxy.config["listen"]
    second = free_port()
    proxy.config["listen"] = [*listeners, proxy.generated(second)]
    proxy.write()
    assert proxy.wait_event("reloaded")["why"] == "the file has changed"
    with Connection.open(proxy.node.dns_name, second, through=alice_node, ca=proxy.ca) as connection:
        assert connection.ask("GET", "/version").status == 200
        proxy.config["listen"] = listeners
        proxy.write()
        proxy.wait_event("reloaded", 1)
        # No more connections there, but the one that is open goes on.
        assert connection.ask("GET", "/version").status == 200
    with pytest.raises(OSError):
        Connection.open(proxy.node.dns_name, second, through=alice_node, ca=proxy.ca)


def test_a_bad_file_changes_nothing(
    bed: Bed, new_proxy: NewProxy, open_streams: Callable[[Proxy], Streams], kubectl: Callable[..., Kubectl]
) -> None:
    proxy = new_proxy()
    streams = open_streams(proxy)
    proxy.write("apiVersion: k8sproxy/v1alpha1\nlisten: nonsense\nunknown: true\n")
    faults = " ".join(proxy.wait_event("reload_refused")["faults"])
    assert "listen" in faults and "unknown" in faults
    taken = free_port()
    with open_port(taken):
        proxy.config["listen"].append(proxy.generated(taken))
        proxy.write()
        assert str(taken) in proxy.wait_event("reload_refused", 1)["faults"][0]
    streams.watch_sees(bed, "after-refused-reload")
    assert "default" in kubectl("alice", proxy).ok("get", "namespaces")
    proxy.config["listen"].pop()
    proxy.write()
    proxy.wait_event("reloaded")
    streams.shell_ends()
    metrics = proxy.metrics()
    assert metrics['k8sproxy_reloads_total{result="refused"}'] == 2
    assert metrics['k8sproxy_reloads_total{result="ok"}'] == 1


def open_port(port: int) -> socket.socket:
    """Somebody else's listener."""
    return socket.create_server(("127.0.0.1", port))


# -- what it says


def test_metrics_after_traffic(
    bed: Bed, new_proxy: NewProxy, open_streams: Callable[[Proxy], Streams], kubectl: Callable[..., Kubectl]
) -> None:
    proxy = new_proxy()
    streams = open_streams(proxy)
    alice, mallory = kubectl("alice", proxy), kubectl("mallory", proxy)
    alice.ok("get", "--raw", "/api/v1/namespaces/default/pods")
    mallory.fails("get", "--raw", "/api/v1/namespaces/default/pods")
    alice.fails("get", "--raw", "/api/v1/namespaces/default/pods", "--as", "bob")
    with Connection.open("127.0.0.1", proxy.port, ca=proxy.ca) as stranger:
        assert stranger.ask("GET", "/api").status == 403
    metrics = proxy.metrics()
    assert metrics['k8sproxy_open_streams{kind="watch"}'] == 1
    assert metrics['k8sproxy_open_streams{kind="upgrade"}'] == 1
    assert metrics["k8sproxy_connections"] >= 2
    assert metrics['k8sproxy_requests_total{code="200",resource="pods",verb="list"}'] == 1
    # Once by the API server, once by the proxy itself, which counts its refusals by their reason too.
    assert metrics['k8sproxy_requests_total{code="403",resource="pods",verb="list"}'] == 2
    assert metrics['k8sproxy_refusals_total{reason="client_impersonation"}'] == 1
    assert metrics['k8sproxy_refusals_total{reason="peer_unknown"}'] == 1
    assert metrics['k8sproxy_whois_failures_total{reason="peer_unknown"}'] == 1
    assert metrics["k8sproxy_whois_misses_total"] >= 4
    assert metrics["k8sproxy_added_latency_seconds_count"] > 0
    assert 0 < metrics["k8sproxy_added_latency_seconds_sum"] < 1
    streams.shell_ends()
    streams.connection.sock.close()
    streams.watch.close()

    def settled() -> bool:
        now = proxy.metrics()
        return all(now[f'k8sproxy_open_streams{{kind="{kind}"}}'] == 0 for kind in ("watch", "upgrade", "request"))

    wait_until(settled, "end of all streams")
    wait_until(lambda: proxy.metrics()["k8sproxy_connections"] == 0, "end of all connections")
    final = proxy.metrics()
    assert any(k.startswith('k8sproxy_requests_total{code="101",resource="pods/exec"') for k in final)


def test_the_account_s_token_is_never_told(
    bed: Bed, new_proxy: NewProxy, kubectl: Callable[..., Kubectl], web: str
) -> None:
    proxy = new_proxy(log={"level": "debug"})
    token = (bed.cluster.directory / "k8sproxy.token").read_text()
    alice = kubectl("alice", proxy)
    said = [
        alice.ok("get", "pods", "-v=9"),
        alice.ok("exec", web, "--", "true"),
        alice.run("get", "--raw", "/api/v1/nodes/nobody/proxy/pods").stderr.decode(),
        alice.run("get", "pods", "--as", "bob", "-v=9").stderr.decode(),
        alice.run("get", "--raw", "/.well-known/k8sproxy/whoami").stdout.decode(),
    ]
    said += [proxy.get(path).body.decode() for path in ("/metrics", "/readyz?verbose", "/ca.pem")]
    proxy.signal(signal.SIGTERM)
    proxy.process.wait(10)
    said.append(proxy.log())
    signature = token.rpartition(".")[2]
    assert len(signature) > 40
    for text in said:
        assert token not in text
        assert signature not in text
