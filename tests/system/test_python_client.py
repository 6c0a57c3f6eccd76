"""The Python client through the proxy: its requests, its watch and its own WebSocket exec."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client, config, watch
from kubernetes.stream import stream

from tests.bed import Bed, Node, free_port
from tests.system.kubectl import Kubectl, write_kubeconfig
from tests.system.proxy import Proxy
from tests.system.raw import local_port


@pytest.fixture
def api(shared_proxy: Proxy, alice_node: Node, tmp_path: Path) -> Iterator[Any]:
    """alice's. It speaks no SOCKS5, so a port of this machine leads to the proxy."""
    with local_port(alice_node, shared_proxy.node.dns_name, shared_proxy.port) as port:
        kubeconfig = write_kubeconfig(tmp_path / "kubeconfig", f"https://127.0.0.1:{port}", ca=shared_proxy.ca)
        with config.new_client_from_config(str(kubeconfig)) as made:  # type: ignore[no-untyped-call]  # no types there
            yield client.CoreV1Api(made)


def test_reads(api: Any, web: str) -> None:
    assert web in {pod.metadata.name for pod in api.list_namespaced_pod("default").items}


def test_watches(api: Any, web: str) -> None:
    events: Any = watch.Watch()  # type: ignore[no-untyped-call]
    seen = set()
    for event in events.stream(api.list_namespaced_pod, "default", timeout_seconds=20):
        seen.add(event["object"].metadata.name)
        if web in seen:
            events.stop()
    assert web in seen


def test_executes(api: Any, web: str) -> None:
    _execute(api, web)


@pytest.fixture
def gateway(new_proxy: Callable[..., Proxy], bed: Bed, tmp_path: Path) -> Iterator[Callable[[bool], Any]]:
    """The client's API through `kubectl proxy` of alice's, by a listener that allows its origin or not."""
    port, plain, allowing = free_port(), free_port(), free_port()
    tls = {"source": "generated", "directory": str(tmp_path / "ca")}
    proxy = new_proxy(
        listen=[
            {"address": f"127.0.0.1:{plain}", "tls": tls},
            {"address": f"127.0.0.1:{allowing}", "tls": tls, "allowOrigins": [f"http://127.0.0.1:{port}"]},
        ]
    )
    with contextlib.ExitStack() as stack:

        def through(allowed: bool) -> Any:
            # kubectl proxy dials by itself where an upgrade is asked for, without the kubeconfig's SOCKS5.
            way = local_port(bed.nodes["alice"], proxy.node.dns_name, allowing if allowed else plain)
            path = tmp_path / f"{allowed}.kubeconfig"
            write_kubeconfig(path, f"https://127.0.0.1:{stack.enter_context(way)}", ca=tmp_path / "ca" / "ca.crt")
            running = stack.enter_context(Kubectl(path).start("proxy", f"--port={port}", "--reject-paths=^/nothing"))
            running.expect("Starting to serve")
            stack.callback(running.popen.kill)
            made = client.ApiClient(client.Configuration(host=f"http://127.0.0.1:{port}"))
            return client.CoreV1Api(stack.enter_context(made))

        yield through


@pytest.mark.parametrize("allowed", [True, False], ids=["allowed", "not-allowed"])
def test_executes_through_kubectl_proxy(gateway: Callable[[bool], Any], web: str, allowed: bool) -> None:
    """Its WebSocket says that it comes from http://127.0.0.1:PORT, and kubectl proxy passes that on."""
    api = gateway(allowed)
    assert web in {pod.metadata.name for pod in api.list_namespaced_pod("default").items}
    if allowed:
        _execute(api, web)
    else:
        with pytest.raises(client.ApiException, match="another site"):
            _execute(api, web)


def _execute(api: Any, web: str) -> None:
    command = ["sh", "-c", "read line; echo heard $line; echo problem >&2; exit 3"]
    session = stream(
        api.connect_get_namespaced_pod_exec,
        web,
        "default",
        command=command,
        stdin=True,
        stdout=True,
        stderr=True,
        tty=False,
        _preload_content=False,
    )
    try:
        session.write_stdin("word\n")
        session.run_forever(timeout=20)
        assert session.read_stdout() == "heard word\n"
        assert session.read_stderr() == "problem\n"
        assert session.returncode == 3
    finally:
        session.close()
        session.sock.shutdown()  # close() leaves the socket to the garbage collector once the other end has closed


def test_the_bed_is_not_asked_directly(api: Any, shared_proxy: Proxy) -> None:
    """The tests above would pass against the API server itself."""
    before = len(shared_proxy.events("request"))
    api.list_namespaced_pod("default")
    assert shared_proxy.wait_event("request", before)["user"] == "alice@example.com"
