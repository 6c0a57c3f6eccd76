"""The bed: a tailnet and a cluster, started together and ended together."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

from .cluster import Cluster
from .netns import Network
from .processes import Processes
from .programs import Programs
from .tailnet import Grant, Node, Tailnet


class Bed:
    """Real parts for system tests, benchmarks and the demo; see README.md.

    directory: everything that is written goes there; it must not be in use by another bed.
    address: what the cluster listens on and what its node and pods have as their address. With loopback, the API
        server refuses nodes/proxy, pods/proxy and services/proxy; any other address of this machine allows them.
    kernel: nodes get kernel TUN devices, in network namespaces of their own (root only); address is then chosen.
    cluster, tailnet: leave one half out.
    audit: keep an audit log; benchmarks may not want it.
    progress: told a line at each step.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        cluster: bool = True,
        tailnet: bool = True,
        address: str = "127.0.0.1",
        kernel: bool = False,
        domain: str = "tail.example.ts.net",
        recorder_port: int = 80,
        audit: bool = True,
        progress: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.directory = Path(directory).absolute()
        self._wanted = (cluster, tailnet)
        self._address = address
        self._kernel = kernel
        self._domain = domain
        self._recorder_port = recorder_port
        self._audit = audit
        self._progress = progress
        self._processes: Processes | None = None
        self._network: Network | None = None
        self._cluster: Cluster | None = None
        self._tailnet: Tailnet | None = None
        self.proxy_account_kubeconfig = Path()
        self.proxy_account_cert_kubeconfig = Path()

    def __enter__(self) -> Bed:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Build what is missing, start both halves, return when they are ready."""
        begin = time.monotonic()
        self.directory.mkdir(parents=True, exist_ok=True)
        programs = Programs(self._progress)
        processes = self._processes = Processes(self.directory / "logs")
        want_cluster, want_tailnet = self._wanted
        if self._kernel:
            self._network = Network(processes)
            self._address = self._network.address
        if want_tailnet:
            self._progress("bed: starting the control server")
            self._tailnet = Tailnet(
                self.directory / "tailnet",
                processes,
                programs,
                address=self._address if self._kernel else "127.0.0.1",
                domain=self._domain,
                recorder_port=self._recorder_port,
            )
        if want_cluster:
            self._progress("bed: starting etcd, kube-apiserver, kube-controller-manager, kubelet-lite")
            self._cluster = Cluster(
                self.directory / "cluster", processes, programs, address=self._address, audit=self._audit
            )
            self._cluster.start()
            self.proxy_account_kubeconfig, self.proxy_account_cert_kubeconfig = self._cluster.make_proxy_account()
        self._progress(f"bed: ready after {time.monotonic() - begin:.1f} s")

    def stop(self) -> None:
        """End everything. Safe to call twice."""
        if self._processes:
            self._processes.close()
            self._processes = None
        if self._tailnet:
            self._tailnet.close()
        self._network = None

    # The tailnet

    @property
    def tailnet(self) -> Tailnet:
        assert self._tailnet, "this bed has no tailnet, or is not started"
        return self._tailnet

    @property
    def nodes(self) -> dict[str, Node]:
        return self.tailnet.nodes

    def add_node(self, name: str, *, user: str | None = None, tags: Sequence[str] = (), socks5: bool = True) -> Node:
        """Start a daemon and log it in as a user, or with tags; NAME@example.com where neither is given."""
        namespace = self._network.add(name) if self._network else None
        return self.tailnet.add_node(name, user=user, tags=tags, socks5=socks5, namespace=namespace)

    def add_nodes(self, **nodes: Mapping[str, Any]) -> dict[str, Node]:
        """Several nodes at once: add_nodes(proxy={"tags": ["tag:k8s"]}, alice={"user": "alice@example.com"})."""
        with ThreadPoolExecutor(max_workers=len(nodes) or 1) as pool:
            futures = {name: pool.submit(self.add_node, name, **arguments) for name, arguments in nodes.items()}
        return {name: future.result() for name, future in futures.items()}

    def set_grants(self, grants: Sequence[Grant | Mapping[str, Any]], *, quiet: bool = False) -> None:
        """Replace all grants: an empty list takes every capability away. See Tailnet.set_grants."""
        self.tailnet.set_grants(grants, quiet=quiet)

    def set_service(self, name: str, address: str, hosts: Sequence[str]) -> None:
        """A Tailscale Service "svc:x" and the nodes that serve it. See Tailnet.set_service."""
        self.tailnet.set_service(name, address, hosts)

    # The cluster

    @property
    def cluster(self) -> Cluster:
        assert self._cluster, "this bed has no cluster, or is not started"
        return self._cluster

    @property
    def kubeconfig(self) -> Path:
        """Cluster-admin, directly at the API server."""
        return self.cluster.kubeconfig

    @property
    def apiserver_url(self) -> str:
        return self.cluster.apiserver_url

    @property
    def ca_path(self) -> Path:
        return self.cluster.ca_path

    @property
    def audit_log(self) -> Path:
        return self.cluster.audit_log

    def pod(self, name: str, namespace: str = "default", **arguments: Any) -> Any:
        """Make a pod; returns it when it is Running. See Cluster.pod."""
        return self.cluster.pod(name, namespace, **arguments)

    def describe(self) -> dict[str, Any]:
        """All that somebody outside needs, as JSON types."""
        found: dict[str, Any] = {"directory": str(self.directory)}
        if self._cluster:
            found["cluster"] = {
                "url": self.apiserver_url,
                "ca": str(self.ca_path),
                "kubeconfig": str(self.kubeconfig),
                "proxy_account_kubeconfig": str(self.proxy_account_kubeconfig),
                "proxy_account_cert_kubeconfig": str(self.proxy_account_cert_kubeconfig),
                "audit_log": str(self.audit_log),
            }
        if self._tailnet:
            found["tailnet"] = {
                "control_url": self.tailnet.control_url,
                "admin_url": self.tailnet.admin_url,
                "domain": self.tailnet.domain,
                "ca": str(self.tailnet.ca_path),
                "nodes": {
                    node.name: {
                        "user": node.user,
                        "tags": list(node.tags),
                        "socket": str(node.socket),
                        "socks5": node.socks5,
                        "tailnet_ip": node.tailnet_ip,
                        "dns_name": node.dns_name,
                        "exec_prefix": node.exec_prefix,
                    }
                    for node in self.nodes.values()
                },
            }
        return found
