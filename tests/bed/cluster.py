"""A real Kubernetes control plane on one address: etcd, kube-apiserver, kube-controller-manager, kubelet-lite."""

from __future__ import annotations

import http.client
import json
import ssl
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .http import Reply, request
from .processes import BedError, Process, Processes, free_port
from .programs import Programs

NODE_NAME = "bed"
PROXY_NAMESPACE = "k8sproxy"
PROXY_ACCOUNT = "k8sproxy"

# What tests rely on: accounts and the certificate in their tokens, roles that aggregate (view, edit, admin),
# namespaces that can be deleted, services that find their pods, deployments. The rest only takes time.
CONTROLLERS = (
    "clusterrole-aggregation-controller",
    "deployment-controller",
    "endpoints-controller",
    "endpointslice-controller",
    "garbage-collector-controller",
    "namespace-controller",
    "replicaset-controller",
    "root-ca-certificate-publisher-controller",
    "serviceaccount-controller",
)

# Who did what is what tests ask the audit log: impersonatedUser is there at level Metadata. One entry a request,
# at its end (a watch or an exec: also at its start), and none of the cluster's own.
AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [
        {
            "level": "None",
            "users": ["system:apiserver", "system:kube-controller-manager", "system:node:bed", "bed:driver"],
        },
        {"level": "Metadata"},
    ],
}


class Cluster:
    """A control plane. kubeconfig: cluster-admin. ca_path: signs everything, clients' certificates too."""

    def __init__(
        self,
        directory: Path,
        processes: Processes,
        programs: Programs,
        *,
        address: str = "127.0.0.1",
        audit: bool = True,
    ) -> None:
        self._programs = programs
        self._processes = processes
        self._audit = audit
        self.directory = directory
        self.pki = directory / "pki"
        self.address = address
        self.ca_path = self.pki / "ca.crt"
        self.audit_log = directory / "audit.log"
        self.kubeconfig = directory / "admin.kubeconfig"
        self.port = free_port(address)
        self.apiserver_url = f"https://{address}:{self.port}"
        self.pki.mkdir(parents=True, exist_ok=True)
        subprocess.run([programs("pki"), "ca", "--dir", self.pki], check=True)
        self.issue("apiserver", dns=["kubernetes", "kubernetes.default.svc", "localhost"], ips=[address, "127.0.0.1"])
        self.issue("kubelet", ips=[address])
        self.issue("apiserver-kubelet-client", cn="kube-apiserver-kubelet-client", orgs=["system:masters"])
        self.kubeconfig_for("admin", user="admin", groups=["system:masters"], path=self.kubeconfig)
        self._controllers = self.kubeconfig_for(
            "controller-manager", user="system:kube-controller-manager", groups=["system:masters"]
        )
        self._kubelet = self.kubeconfig_for("kubelet-lite", user="system:node:bed", groups=["system:masters"])
        self.issue("driver", cn="bed:driver", orgs=["system:masters"])
        self._context = ssl.create_default_context(cafile=str(self.ca_path))
        self._context.load_cert_chain(self.pki / "driver.crt", self.pki / "driver.key")

    def start(self) -> None:
        """Start everything; returns when the cluster takes pods."""
        etcd_url, etcd = self._start_etcd()
        apiserver = self._start_apiserver(etcd_url)
        etcd.wait_until(lambda: _healthy(etcd_url, "/readyz"), "readiness")
        apiserver.wait_until(lambda: _healthy(self.apiserver_url, "/readyz", self._context), "readiness")
        controllers = self._start_controllers()
        kubelet = self._start_kubelet()
        controllers.wait_until(lambda: self.get("api/v1/namespaces/default/serviceaccounts/default"), "default account")
        kubelet.wait_until(lambda: self.get(f"api/v1/nodes/{NODE_NAME}"), "Node object")

    def _start_etcd(self) -> tuple[str, Process]:
        client, peer = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
        argv: list[str | Path] = [
            self._programs("etcd"),
            f"--data-dir={self.directory / 'etcd'}",
            "--name=bed",
            "--log-level=warn",
        ]
        argv += [f"--listen-client-urls={client}", f"--advertise-client-urls={client}"]
        argv += [f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}", f"--initial-cluster=bed={peer}"]
        argv += ["--unsafe-no-fsync"]  # nobody misses the data after a power cut
        return client, self._processes.start("etcd", argv, abrupt=True)

    def _start_apiserver(self, etcd_url: str) -> Process:
        pki = self.pki
        argv: list[str | Path] = [self._programs("kube-apiserver"), f"--etcd-servers={etcd_url}"]
        argv += [f"--bind-address={self.address}", f"--secure-port={self.port}", f"--advertise-address={self.address}"]
        argv += [f"--tls-cert-file={pki / 'apiserver.crt'}", f"--tls-private-key-file={pki / 'apiserver.key'}"]
        argv += [f"--client-ca-file={self.ca_path}", "--authorization-mode=RBAC", "--allow-privileged=true"]
        argv += ["--service-account-issuer=https://kubernetes.default.svc"]
        argv += [f"--service-account-key-file={pki / 'sa.pub'}", f"--service-account-signing-key-file={pki / 'sa.key'}"]
        argv += [f"--kubelet-certificate-authority={self.ca_path}", "--kubelet-preferred-address-types=InternalIP"]
        argv += [f"--kubelet-client-certificate={pki / 'apiserver-kubelet-client.crt'}"]
        argv += [f"--kubelet-client-key={pki / 'apiserver-kubelet-client.key'}"]
        argv += ["--service-cluster-ip-range=10.96.0.0/16"]
        # The kubernetes Service would get a loopback address as its endpoint, which validation refuses.
        argv += ["--endpoint-reconciler-type=none", "--profiling=false"]
        if self._audit:
            policy = self.directory / "audit-policy.json"
            policy.write_text(json.dumps(AUDIT_POLICY))
            argv += [f"--audit-policy-file={policy}", f"--audit-log-path={self.audit_log}"]
        return self._processes.start("kube-apiserver", argv, abrupt=True)

    def _start_controllers(self) -> Process:
        argv: list[str | Path] = [self._programs("kube-controller-manager"), f"--kubeconfig={self._controllers}"]
        argv += [f"--root-ca-file={self.ca_path}", f"--service-account-private-key-file={self.pki / 'sa.key'}"]
        argv += [f"--controllers={','.join(CONTROLLERS)}", "--use-service-account-credentials=false"]
        argv += ["--leader-elect=false", "--secure-port=0", "--profiling=false"]
        return self._processes.start("kube-controller-manager", argv, abrupt=True)

    def _start_kubelet(self) -> Process:
        argv: list[str | Path] = [self._programs("kubelet-lite"), f"--kubeconfig={self._kubelet}"]
        argv += [f"--listen={self.address}:{free_port(self.address)}", f"--node-name={NODE_NAME}"]
        argv += [f"--root-dir={self.directory / 'containers'}", f"--client-ca-file={self.ca_path}"]
        argv += [f"--tls-cert-file={self.pki / 'kubelet.crt'}", f"--tls-private-key-file={self.pki / 'kubelet.key'}"]
        return self._processes.start("kubelet-lite", argv)

    # Certificates and kubeconfigs

    def issue(
        self, name: str, *, cn: str = "", orgs: Sequence[str] = (), dns: Sequence[str] = (), ips: Sequence[str] = ()
    ) -> tuple[Path, Path]:
        """A certificate from the bed's CA, for either end of TLS, and its key. To the API server: user cn of orgs."""
        argv: list[str | Path] = [self._programs("pki"), "issue", "--dir", self.pki, "--name", name, "--cn", cn or name]
        for flag, values in (("--org", orgs), ("--dns", dns), ("--ip", ips)):
            for value in values:
                argv += [flag, value]
        subprocess.run(argv, check=True)
        return self.pki / f"{name}.crt", self.pki / f"{name}.key"

    def kubeconfig_for(
        self,
        name: str,
        *,
        user: str = "",
        groups: Sequence[str] = (),
        token: str = "",
        server: str = "",
        ca_path: Path | None = None,
        anonymous: bool = False,
        path: Path | None = None,
    ) -> Path:
        """Write NAME.kubeconfig: with a new client certificate, a token, or (anonymous) credentials that nobody knows.

        server and ca_path lead elsewhere than to the API server: to a proxy. (JSON is YAML.)
        """
        credentials: dict[str, str] = {}
        if token or anonymous:
            # Without any, kubectl asks for a user name.
            credentials = {"token": token or "unused"}
        else:
            certificate, key = self.issue(f"client-{name}", cn=user or name, orgs=groups)
            credentials = {"client-certificate": str(certificate), "client-key": str(key)}
        cluster = {"server": server or self.apiserver_url, "certificate-authority": str(ca_path or self.ca_path)}
        if cluster["server"].startswith("http:"):
            del cluster["certificate-authority"]
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "bed", "cluster": cluster}],
            "users": [{"name": name, "user": credentials}],
            "contexts": [{"name": "bed", "context": {"cluster": "bed", "user": name, "namespace": "default"}}],
            "current-context": "bed",
        }
        path = path or self.directory / f"{name}.kubeconfig"
        path.write_text(json.dumps(config, indent=2))
        path.chmod(0o600)
        return path

    # The API, as system:masters

    def api(self, method: str, path: str, body: Any = None, *, content_type: str = "application/json") -> Reply:
        headers = {"Content-Type": content_type} if body is not None else {}
        return request(
            method, self.apiserver_url, f"/{path}", body=body, headers=headers, context=self._context, timeout=60
        )

    def get(self, path: str) -> Any | None:
        """The object at path, or None."""
        reply = self.api("GET", path)
        return reply.json() if reply.ok else None

    def apply(self, *manifests: Mapping[str, Any]) -> None:
        """Create or replace objects, as `kubectl apply --server-side --force-conflicts` does."""
        for manifest in manifests:
            meta = manifest["metadata"]
            path = f"{self._collection(manifest)}/{meta['name']}?fieldManager=bed&force=true"
            reply = self.api("PATCH", path, dict(manifest), content_type="application/apply-patch+yaml")
            if not reply.ok:
                raise BedError(f"apply {manifest['kind']} {meta['name']}: {reply.body.decode(errors='replace')}")

    def delete(self, path: str) -> None:
        reply = self.api("DELETE", path)
        if not reply.ok and reply.status != 404:
            raise BedError(f"delete {path}: {reply.body.decode(errors='replace')}")

    def _collection(self, manifest: Mapping[str, Any]) -> str:
        version = manifest["apiVersion"]
        base = f"apis/{version}" if "/" in version else f"api/{version}"
        for resource in (self.get(base) or {}).get("resources", ()):
            if resource["kind"] == manifest["kind"] and "/" not in resource["name"]:
                if resource["namespaced"]:
                    base += f"/namespaces/{manifest['metadata'].get('namespace', 'default')}"
                return f"{base}/{resource['name']}"
        raise BedError(f"the API server knows no {version} {manifest['kind']}")

    def namespace(self, name: str, labels: Mapping[str, str] | None = None) -> None:
        """Make a namespace, ready for pods."""
        self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": dict(labels or {})}})
        self.wait_for(f"api/v1/namespaces/{name}/serviceaccounts/default", lambda account: True)

    def pod(
        self,
        name: str,
        namespace: str = "default",
        *,
        command: Sequence[str] = (),
        containers: Sequence[Mapping[str, Any]] = (),
        labels: Mapping[str, str] | None = None,
        **spec: Any,
    ) -> Any:
        """Make a pod with one container, main, or with the given ones; returns it when it is Running."""
        main: dict[str, Any] = {"name": "main", "image": "bed"}
        if command:
            main["command"] = list(command)
        manifest = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": namespace, "labels": dict(labels or {"app": name})},
            # A test that deletes a pod does not want to wait for a shell that ignores SIGTERM.
            "spec": {"terminationGracePeriodSeconds": 1, "containers": [dict(c) for c in containers] or [main], **spec},
        }
        self.apply(manifest)
        return self.wait_for(
            f"api/v1/namespaces/{namespace}/pods/{name}",
            lambda pod: pod["status"].get("phase") not in (None, "Pending"),
        )

    def delete_pod(self, name: str, namespace: str = "default") -> None:
        """Delete a pod and wait until it is gone."""
        path = f"api/v1/namespaces/{namespace}/pods/{name}"
        self.delete(path)
        self._any_process().wait_until(lambda: self.get(path) is None or None, f"end of pod {name}")

    def wait_for(self, path: str, condition: Any, timeout: float = 30) -> Any:
        """The object at path, once condition(object) is true."""

        def check() -> Any | None:
            found = self.get(path)
            return found if found is not None and condition(found) else None

        return self._any_process().wait_until(check, f"{path} as it should be", timeout)

    def bind_group(self, group: str, role: str = "view") -> None:
        """Give a group a ClusterRole (view, edit, cluster-admin, ...) everywhere."""
        self.apply(_binding(f"bed-{group}-{role}".replace(":", "-"), role, {"kind": "Group", "name": group}))

    # The proxy's own account

    def make_proxy_account(self) -> tuple[Path, Path]:
        """An account that may impersonate and nothing else: kubeconfigs with its token, and with a certificate."""
        name = f"{PROXY_ACCOUNT}-impersonate"
        account = {"kind": "ServiceAccount", "name": PROXY_ACCOUNT, "namespace": PROXY_NAMESPACE}
        self.namespace(PROXY_NAMESPACE)
        self.apply(
            {
                "apiVersion": "v1",
                "kind": "ServiceAccount",
                "metadata": {"name": PROXY_ACCOUNT, "namespace": PROXY_NAMESPACE},
            },
            {
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": "ClusterRole",
                "metadata": {"name": name},
                "rules": [
                    {"apiGroups": [""], "resources": ["users", "groups"], "verbs": ["impersonate"]},
                    {
                        "apiGroups": ["authentication.k8s.io"],
                        "resources": ["userextras/*", "uids"],
                        "verbs": ["impersonate"],
                    },
                ],
            },
            _binding(name, name, account),
            _binding(f"{name}-user", name, {"kind": "User", "name": PROXY_ACCOUNT}),
        )
        wanted = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"expirationSeconds": 86400},
        }
        path = f"api/v1/namespaces/{PROXY_NAMESPACE}/serviceaccounts/{PROXY_ACCOUNT}/token"
        token = self.api("POST", path, wanted).json()["status"]["token"]
        (self.directory / "k8sproxy.token").write_text(token)
        return (
            self.kubeconfig_for("k8sproxy", token=token),
            self.kubeconfig_for("k8sproxy-cert", user=PROXY_ACCOUNT),
        )

    # The audit log

    def audit_events(self) -> list[Any]:
        """All audit events so far, oldest first. The API server writes one before it ends its answer."""
        if not self.audit_log.exists():
            return []
        with self.audit_log.open() as file:
            return [json.loads(line) for line in file if line.endswith("\n")]

    def _any_process(self) -> Process:
        return self._processes.first("kube-apiserver")


def _binding(name: str, role: str, subject: Mapping[str, str]) -> dict[str, Any]:
    if subject["kind"] != "ServiceAccount":
        subject = {"apiGroup": "rbac.authorization.k8s.io", **subject}
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": name},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": [dict(subject)],
    }


def _healthy(url: str, path: str, context: ssl.SSLContext | None = None) -> bool | None:
    try:
        return request("GET", url, path, context=context, timeout=5).ok or None
    except (OSError, http.client.HTTPException):
        return None
