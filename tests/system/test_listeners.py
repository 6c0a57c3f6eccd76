"""Where clients connect: certificates of every source, PROXY v2 behind a Tailscale Service, the admin site."""

from __future__ import annotations

import http.client
import signal
import socket
import ssl
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.bed import Bed, Node, free_port, kubernetes_grant
from tests.system.kubectl import Kubectl, write_kubeconfig
from tests.system.proxy import Proxy, wait_until
from tests.system.raw import Connection

SERVICE = "svc:kube"
SERVICE_ADDRESS = "100.100.1.1"
WHOAMI = "/.well-known/k8sproxy/whoami"
NewProxy = Callable[..., Proxy]


def whoami(connection: Connection) -> str:
    with connection:
        return str(connection.ask("GET", WHOAMI).json()["peer"]["loginName"])


# -- certificates


def test_generated_certificate_is_for_the_node_s_names(bed: Bed, shared_proxy: Proxy, alice_node: Node) -> None:
    node, port = shared_proxy.node, shared_proxy.port
    assert whoami(Connection.open(node.dns_name, port, through=alice_node, ca=shared_proxy.ca)) == "alice@example.com"
    # By its address too, and the CA can be had from the proxy itself.
    assert whoami(Connection.open(node.tailnet_ip, port, through=alice_node, ca=shared_proxy.ca)) == "alice@example.com"
    assert shared_proxy.get("/ca.pem").body == shared_proxy.ca.read_bytes()


def test_generated_ca_outlives_the_proxy(new_proxy: NewProxy, alice_node: Node) -> None:
    proxy = new_proxy()
    before = proxy.ca.read_bytes()
    proxy.kill()
    proxy.start()
    assert proxy.ca.read_bytes() == before
    assert proxy.ca.with_name("ca.key").stat().st_mode & 0o077 == 0


def test_certificate_from_files_and_a_newer_one(
    bed: Bed, new_proxy: NewProxy, alice_node: Node, tmp_path: Path
) -> None:
    node = bed.nodes["proxy"]
    port = free_port()
    cert, key = tmp_path / "tls.crt", tmp_path / "tls.key"

    def issue(name: str) -> bytes:
        issued = bed.cluster.issue(name, dns=[node.dns_name])
        for source, target in zip(reversed(issued), (key, cert), strict=True):
            target.with_suffix(".new").write_bytes(source.read_bytes())
            target.with_suffix(".new").rename(target)
        return ssl.PEM_cert_to_DER_cert(cert.read_text())

    def served() -> bytes:
        with Connection.open(node.dns_name, port, through=alice_node, ca=bed.ca_path) as connection:
            assert isinstance(connection.sock, ssl.SSLSocket)
            return connection.sock.getpeercert(binary_form=True) or b""

    first = issue("first")
    files = {"source": "files", "cert": str(cert), "key": str(key)}
    proxy = new_proxy(listen=[{"address": f"127.0.0.1:{port}", "tls": files}])
    assert served() == first
    second = issue("second")
    proxy.signal(signal.SIGHUP)  # it looks by itself too, but not that often
    proxy.wait_event("reloaded")
    assert served() == second


def test_certificate_of_the_tailnet(bed: Bed, new_proxy: NewProxy, alice_node: Node) -> None:
    port = free_port()
    new_proxy(listen=[{"address": f"127.0.0.1:{port}", "tls": {"source": "tailnet"}}])
    name = bed.nodes["proxy"].dns_name
    assert whoami(Connection.open(name, port, through=alice_node, ca=bed.tailnet.ca_path)) == "alice@example.com"


def test_plain_http_inside_the_tailnet(bed: Bed, new_proxy: NewProxy, alice_node: Node, tmp_path: Path) -> None:
    port = free_port()
    new_proxy(listen=[{"address": f"127.0.0.1:{port}", "tls": {"source": "none"}}])
    name = bed.nodes["proxy"].dns_name
    assert whoami(Connection.open(name, port, through=alice_node)) == "alice@example.com"
    kubeconfig = write_kubeconfig(tmp_path / "kubeconfig", f"http://{name}:{port}", socks5=alice_node.socks5)
    assert "default" in Kubectl(kubeconfig).ok("get", "namespaces")


# -- behind a Tailscale Service


@pytest.fixture(params=["127.0.0.1", "127.0.0.2"])
def loopback(request: pytest.FixtureRequest) -> str:
    """Where the Service leads: the address to which a userspace daemon forwards all that is dialled, or another one."""
    return str(request.param)


@pytest.fixture
def service(bed: Bed, new_proxy: NewProxy, grants: Callable[..., None], loopback: str) -> Iterator[Proxy]:
    """A proxy that stands behind svc:kube; mallory's grant there is for the Service alone."""
    node = bed.nodes["proxy"]
    port = free_port()
    proxy = new_proxy(
        listen=[{"address": f"{loopback}:{port}", "tls": {"source": "none"}, "proxyProtocol": True, "service": SERVICE}]
    )
    proxy.port = port
    bed.set_service(SERVICE, SERVICE_ADDRESS, ["proxy"])
    grants([kubernetes_grant("mallory@example.com", ["viewers"], dst=SERVICE)])
    forward = {"TCPForward": f"{loopback}:{port}", "ProxyProtocol": 2}
    assert node.localapi("serve-config", "POST", {"Services": {SERVICE: {"TCP": {"80": forward}}}}).ok
    assert node.localapi("prefs", "PATCH", {"AdvertiseServices": [SERVICE], "AdvertiseServicesSet": True}).ok
    yield proxy
    assert node.localapi("serve-config", "POST", {}).ok
    assert node.localapi("prefs", "PATCH", {"AdvertiseServices": [], "AdvertiseServicesSet": True}).ok


def test_a_service_names_the_client(bed: Bed, service: Proxy) -> None:
    mallory = bed.nodes["mallory"]

    def ask() -> Any:
        try:
            with Connection.open(SERVICE_ADDRESS, 80, through=mallory) as connection:
                pods = connection.ask("GET", "/api/v1/namespaces/default/pods")
                return pods, connection.ask("GET", WHOAMI).json()
        except (OSError, http.client.HTTPException):  # its address takes a moment to reach every node
            return None

    pods, answer = wait_until(ask, "answer from the Service", 30)
    assert pods.status == 200
    assert answer["peer"]["address"] == mallory.tailnet_ip
    assert answer["impersonation"] == {"user": "mallory@example.com", "groups": ["viewers"]}


def proxy_header(source: str, target: str = "127.0.0.1") -> bytes:
    """PROXY v2, TCP over IPv4: 12 bytes of signature, version and command, family, length, addresses, ports."""
    addresses = socket.inet_aton(source) + socket.inet_aton(target) + struct.pack("!HH", 41234, 80)
    return b"\r\n\r\n\x00\r\nQUIT\n" + struct.pack("!BBH", 0x21, 0x11, len(addresses)) + addresses


def test_a_peer_of_the_tailnet_cannot_forge_the_header(bed: Bed, service: Proxy, loopback: str) -> None:
    """ci dials the loopback port, which a userspace daemon makes reachable, and says that it is mallory."""
    forged = proxy_header(bed.nodes["mallory"].tailnet_ip)
    ci = bed.nodes["ci"]
    if loopback != "127.0.0.1":
        # There is nothing at the address to which the daemon forwards.
        with (
            pytest.raises((OSError, http.client.HTTPException)),
            Connection.open(service.node.dns_name, service.port, through=ci, first=forged) as connection,
        ):
            connection.ask("GET", WHOAMI)
        return
    with (
        Connection.open(service.node.dns_name, service.port, through=ci, first=forged) as connection,
        pytest.raises((OSError, http.client.HTTPException)),
    ):
        connection.ask("GET", WHOAMI)
    assert service.wait_event("connection_refused")["cause"] == "proxy_forged"


def test_who_shares_the_loopback_is_trusted_with_the_header(bed: Bed, service: Proxy, loopback: str) -> None:
    """What the documentation says of proxyProtocol; and that the forged header above was a good one."""
    mallory = bed.nodes["mallory"].tailnet_ip
    header = proxy_header(mallory)
    with Connection.open(loopback, service.port, first=header) as connection:
        assert connection.ask("GET", WHOAMI).json()["peer"]["address"] == mallory


# -- the admin site


def test_admin_site_on_loopback(bed: Bed, new_proxy: NewProxy, alice_node: Node) -> None:
    """A userspace daemon leads alice to the same port; only this machine is served."""
    port = free_port()
    proxy = new_proxy(admin={"address": f"127.0.0.1:{port}"})
    assert proxy.get("/healthz").ok
    assert "k8sproxy_connections" in proxy.metrics()
    for path in ("/metrics", "/healthz", "/ca.pem"):
        with Connection.open(proxy.node.dns_name, port, through=alice_node) as connection:
            assert connection.ask("GET", path).status == 403


def test_admin_site_for_those_it_names(bed: Bed, new_proxy: NewProxy) -> None:
    port = free_port()
    proxy = new_proxy(admin={"address": f"127.0.0.1:{port}", "allow": ["alice@example.com"]})
    for name, status in (("alice", 200), ("mallory", 403), ("ci", 403)):
        with Connection.open(proxy.node.dns_name, port, through=bed.nodes[name]) as connection:
            assert connection.ask("GET", "/metrics").status == status


def test_admin_site_on_a_unix_socket(shared_proxy: Proxy) -> None:
    assert shared_proxy.get("/healthz").ok
    assert shared_proxy.get("/readyz").ok
    assert isinstance(shared_proxy.admin, Path)
    assert shared_proxy.admin.stat().st_mode & 0o007 == 0


def test_a_storm_of_slow_questions_fails_no_other_connection(
    bed: Bed, new_proxy: NewProxy, grants: Callable[..., None]
) -> None:
    """Each new connection to a PROXY listener on 127.0.0.1 takes tailscaled 180 ms, with the lock held that answers
    for all others need: a hundred of them at once, and connections to another listener are served as ever."""
    ports = [free_port(), free_port()]
    plain = {"tls": {"source": "none"}}
    proxy = new_proxy(
        listen=[
            {"address": f"127.0.0.1:{ports[0]}", **plain, "proxyProtocol": True},
            {"address": f"127.0.0.1:{ports[1]}", **plain},
        ]
    )
    grants([kubernetes_grant("mallory@example.com", ["viewers"])])
    mallory = bed.nodes["mallory"]
    storm = []
    try:
        for _ in range(100):
            sock = socket.create_connection(("127.0.0.1", ports[0]))
            storm.append(sock)
            sock.sendall(proxy_header(mallory.tailnet_ip))
        for _ in range(5):
            with Connection.open(proxy.node.dns_name, ports[1], through=mallory) as connection:
                answer = connection.ask("GET", WHOAMI)
            assert answer.status == 200, answer.body
            assert answer.json()["impersonation"]["user"] == "mallory@example.com"
    finally:
        for sock in storm:
            sock.close()
