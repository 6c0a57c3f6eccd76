"""The manifests at a real API server, and their pod put together by hand around the real tailscaled.

No kubelet here runs images, so the pod's two containers are run as processes: each as its user, with its token and the
shared socket mounted where the manifest says, in a mount namespace of its own.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.bed import Bed, free_port
from tests.bed.http import Reply, request
from tests.bed.tailnet import DAEMON_ENV
from tests.system.kubectl import Kubectl, write_kubeconfig
from tests.system.proxy import command, wait_until

MANIFESTS = Path(__file__).parents[2] / "manifests"
NAMESPACE = "manifests-test"  # the bed's own account lives in the namespace of the manifests
ACCOUNTS = "/var/run/secrets/kubernetes.io/serviceaccount"
OTHER_UID = 65534

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can run processes as other users")


@pytest.fixture(scope="module")
def admin(bed: Bed) -> Kubectl:
    return Kubectl(bed.kubeconfig)


@pytest.fixture(scope="module")
def overlay(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("overlay").resolve()
    resources = [os.path.relpath(MANIFESTS / name, directory) for name in ("base", "recorder")]
    (directory / "kustomization.yaml").write_text(json.dumps({"namespace": NAMESPACE, "resources": resources}))
    return directory


@pytest.fixture(scope="module")
def rendered(admin: Kubectl, overlay: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(admin.ok("kustomize", str(overlay))))


@pytest.fixture(scope="module")
def namespace(bed: Bed, admin: Kubectl, rendered: list[dict[str, Any]]) -> Iterator[str]:
    """The manifests' Namespace, with its Pod Security labels and nothing in it."""
    (found,) = (item for item in rendered if item["kind"] == "Namespace")
    assert found["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    admin.ok("apply", "-f", "-", input=json.dumps(found).encode())
    yield NAMESPACE
    bed.cluster.delete(f"api/v1/namespaces/{NAMESPACE}")
    for kind in ("clusterroles", "clusterrolebindings"):
        bed.cluster.delete(f"apis/rbac.authorization.k8s.io/v1/{kind}/k8sproxy-impersonator")


@pytest.fixture(scope="module")
def deployed(namespace: str, admin: Kubectl, overlay: Path) -> str:
    """Everything, for real."""
    admin.ok("apply", "-k", str(overlay))
    return namespace


def token(bed: Bed, namespace: str, account: str) -> str:
    wanted = {
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenRequest",
        "spec": {"expirationSeconds": 3600},
    }
    reply = bed.cluster.api("POST", f"api/v1/namespaces/{namespace}/serviceaccounts/{account}/token", wanted)
    assert reply.ok, reply.body
    return str(reply.json()["status"]["token"])


def kubectl_of(bed: Bed, namespace: str, account: str) -> Kubectl:
    return Kubectl(bed.cluster.kubeconfig_for(f"{namespace}-{account}", token=token(bed, namespace, account)))


# -- at the API server


def test_a_server_side_dry_run_takes_every_object_without_a_warning(
    namespace: str, admin: Kubectl, overlay: Path, rendered: list[dict[str, Any]]
) -> None:
    done = admin.run("apply", "--dry-run=server", "-k", str(overlay))
    assert done.returncode == 0, done.stderr.decode()
    assert done.stderr == b""
    assert len(done.stdout.splitlines()) == len(rendered)


def test_a_dry_run_does_warn_of_less(namespace: str, admin: Kubectl, rendered: list[dict[str, Any]]) -> None:
    """So that silence means something: the same Deployment with one setting less."""
    (deployment,) = (item for item in rendered if item["kind"] == "Deployment")
    loose = json.loads(json.dumps(deployment))
    del loose["spec"]["template"]["spec"]["initContainers"][0]["securityContext"]["capabilities"]
    done = admin.run("apply", "--dry-run=server", "-f", "-", input=json.dumps(loose).encode())
    assert b'would violate PodSecurity "restricted:latest"' in done.stderr


def test_its_pod_is_admitted(bed: Bed, deployed: str) -> None:
    """Pod Security refuses pods, not Deployments."""
    path = f"api/v1/namespaces/{deployed}/pods"
    pods = bed.cluster.wait_for(path, lambda found: found["items"])["items"]
    assert [pod["metadata"]["labels"]["app.kubernetes.io/component"] for pod in pods] == ["proxy"]


def test_the_proxys_account_can_impersonate_and_nothing_else(bed: Bed, deployed: str) -> None:
    proxy = kubectl_of(bed, deployed, "k8sproxy")
    assert proxy.json("get", "pods", "--as", "alice@example.com", "--as-group", "viewers")
    assert "forbidden" in proxy.fails("get", "pods")
    assert "forbidden" in proxy.fails("get", "secret", "k8sproxy-tailscaled", "-n", deployed)
    for more in (["--as=a@b", "--as-uid=7"], ["--as=system:serviceaccount:kube-system:default"]):
        assert "cannot impersonate" in proxy.fails("get", "pods", *more)
    extra = "--as-user-extra=scopes=all"
    assert "cannot impersonate" in proxy.fails("get", "pods", "--as=a@b", extra)


def test_groups_can_be_limited_by_name(bed: Bed, deployed: str) -> None:
    """docs/security.md's rules: no way to system:masters is left."""
    limited = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": "k8sproxy-impersonator"},
        "rules": [
            {"apiGroups": [""], "resources": ["users"], "verbs": ["impersonate"]},
            {"apiGroups": [""], "resources": ["groups"], "resourceNames": ["viewers"], "verbs": ["impersonate"]},
        ],
    }
    path = "apis/rbac.authorization.k8s.io/v1/clusterroles/k8sproxy-impersonator"
    before = bed.cluster.get(path)
    proxy = kubectl_of(bed, deployed, "k8sproxy")
    bed.cluster.apply(limited)
    try:
        wait_until(
            lambda: "cannot impersonate" in proxy.run("get", "pods", "--as=a@b", "--as-group=other").stderr.decode(),
            "the limited role",
        )
        assert "cannot impersonate" in proxy.fails("get", "secrets", "--as=a@b", "--as-group=system:masters")
        assert proxy.json("get", "pods", "--as=a@b", "--as-group=viewers")
    finally:
        bed.cluster.apply({**limited, "rules": before["rules"] if before else []})


def test_tailscaleds_account_keeps_its_secret_and_nothing_else(bed: Bed, deployed: str) -> None:
    daemon = kubectl_of(bed, deployed, "k8sproxy-tailscaled")
    assert daemon.json("get", "secret", "k8sproxy-tailscaled", "-n", deployed)
    assert "forbidden" in daemon.fails("get", "secret", "k8sproxy-tailscaled-token", "-n", deployed)
    assert "forbidden" in daemon.fails("get", "secrets", "-n", deployed)
    assert "forbidden" in daemon.fails("get", "pods", "--as", "alice@example.com")


# -- the pod, by hand


class Pod:
    """The two containers of the Deployment, as processes.

    What differs from a pod: ports are free ones, since the machine's network is shared; there is no read-only root; and
    the processes may read files in spite of their modes, because Python and the bed may be in root's home.
    """

    def __init__(self, bed: Bed, namespace: str, rendered: list[dict[str, Any]], directory: Path) -> None:
        (deployment,) = (item for item in rendered if item["kind"] == "Deployment")
        (config,) = (
            item for item in rendered if item["kind"] == "ConfigMap" and item["metadata"]["name"] == "k8sproxy"
        )
        spec = deployment["spec"]["template"]["spec"]
        (self.sidecar,), (self.main,) = spec["initContainers"], spec["containers"]
        self.bed = bed
        self.namespace = namespace
        self.directory = directory
        self.environment = {item["name"]: item.get("value") or "" for item in self.sidecar["env"]}
        self.account = spec["serviceAccountName"]
        self.ip = bed.cluster.address
        self.port, self.generated_port, self.admin_port = free_port(), free_port(), free_port(self.ip)
        self.run = directory / "run"
        self.socket = self.run / "tailscaled.sock"
        self.run.mkdir()
        self.run.chmod(0o777)  # as an emptyDir is
        self.config = self._config(config["data"]["k8sproxy.yaml"])

    def _config(self, text: str) -> Path:
        """The ConfigMap's file with ports of this machine, and a second listener, whose certificate can be had here."""
        for old, new in (("127.0.0.1:443", self.port), (":9002", self.admin_port)):
            assert old in text
            text = text.replace(old, f"{old.rpartition(':')[0]}:{new}")
        config = yaml.safe_load(text)
        directory = self.directory / "ca"
        directory.mkdir()
        directory.chmod(0o777)
        tls = {"source": "generated", "directory": str(directory / "ca")}
        config["listen"].append({"address": f"127.0.0.1:{self.generated_port}", "tls": tls})
        path = self.directory / "k8sproxy.yaml"
        path.write_text(json.dumps(config))
        return path

    def _account(self, account: str) -> Path:
        directory = self.directory / account
        directory.mkdir(exist_ok=True)
        (directory / "token").write_text(token(self.bed, self.namespace, account))
        (directory / "namespace").write_text(self.namespace)
        shutil.copy(self.bed.ca_path, directory / "ca.crt")
        return directory

    def _in(self, container: Mapping[str, Any], account: Path | None, argv: list[str]) -> list[str]:
        """argv as the container's user, behind the container's mounts."""
        mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
        where = mounts["socket"]["mountPath"]
        read_only = f"mount -o remount,bind,ro {where}" if mounts["socket"].get("readOnly") else "true"
        user = container["securityContext"]["runAsUser"]
        script = f"""
            run={self.run}; mkdir -p {self.directory}/hold; mount --bind "$run" {self.directory}/hold
            mount -t tmpfs tmpfs /run; mkdir -p {where} {ACCOUNTS}
            mount --bind {self.directory}/hold {where}; {read_only}
            {f"cp {account}/* {ACCOUNTS}/" if account else "true"}
            exec setpriv --reuid={user} --regid={container["securityContext"]["runAsGroup"]} --clear-groups \\
                --no-new-privs --bounding-set=-all,+dac_read_search \\
                --inh-caps=-all,+dac_read_search --ambient-caps=+dac_read_search "$@"
        """
        return ["unshare", "--mount", "sh", "-ec", script, "sh", *argv]

    def start_tailscaled(self) -> None:
        """The first half of what containerboot makes of the sidecar's environment."""
        wanted = self.environment
        api = {
            "KUBERNETES_SERVICE_HOST": self.bed.cluster.address,
            "KUBERNETES_SERVICE_PORT_HTTPS": str(self.bed.cluster.port),
            "TS_KUBERNETES_READ_API_SERVER_ADDRESS_FROM_ENV": "true",
            "POD_NAME": "k8sproxy-by-hand",
        }
        programs = self.bed.tailnet.programs
        argv = [str(programs("tailscaled")), f"--socket={wanted['TS_SOCKET']}", "--port=0", "--no-logs-no-support"]
        argv += [f"--state=kube:{wanted['TS_KUBE_SECRET']}", f"--statedir={self.directory}/tmp"]
        (self.directory / "tmp").mkdir(exist_ok=True)
        (self.directory / "tmp").chmod(0o777)
        assert wanted["TS_USERSPACE"] == "true"
        argv.append("--tun=userspace-networking")
        account = self._account("k8sproxy-tailscaled")
        env = {**DAEMON_ENV, **api, "TS_PERMIT_CERT_UID": wanted["TS_PERMIT_CERT_UID"]}
        self.bed.tailnet.processes.start("pod-tailscaled", self._in(self.sidecar, account, argv), env=env)
        wait_until(self._answers, "LocalAPI of the pod's tailscaled")

    def log_in(self) -> None:
        """The other half, where there is no state yet."""
        wanted = self.environment
        program = str(self.bed.tailnet.programs("tailscale"))
        up = [program, f"--socket={wanted['TS_SOCKET']}", "up", "--auth-key=any", "--timeout=60s"]
        up += [f"--login-server={self.bed.tailnet.control_url}", f"--hostname={wanted['TS_HOSTNAME']}"]
        up += ["--accept-dns=false"]
        done = subprocess.run(self._in(self.sidecar, None, up), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        self.wait_running()

    def wait_running(self) -> None:
        wait_until(lambda: self.status()["BackendState"] == "Running", "login of the pod's tailscaled")

    def start_proxy(self) -> None:
        env = {
            "KUBERNETES_SERVICE_HOST": self.bed.cluster.address,
            "KUBERNETES_SERVICE_PORT": str(self.bed.cluster.port),
            "POD_IP": self.ip,
        }
        assert self.main["args"][:2] == ["serve", "--config"]
        argv = command("serve", "--config", str(self.config))
        process = self.bed.tailnet.processes.start(
            "pod-k8sproxy", self._in(self.main, self._account(self.account), argv), env=env
        )
        wait_until(self._serves, "the generated certificate's listener")
        assert process.popen.poll() is None

    def _answers(self) -> bool:
        with contextlib.suppress(OSError):
            return self.ask("status?peers=false").ok
        return False

    def _serves(self) -> bool:
        with contextlib.suppress(OSError):
            return f"[+]listener 127.0.0.1:{self.generated_port}" in self.readyz()
        return False

    def admin(self, path: str) -> bytes:
        return request("GET", f"http://{self.ip}:{self.admin_port}", path).body

    def readyz(self) -> str:
        return self.admin("/readyz?verbose").decode()

    def status(self) -> Any:
        return self.ask("status?peers=false").json()

    def ask(self, path: str, *, uid: int = 0, method: str = "GET", body: Any = None) -> Reply:
        """A question to the LocalAPI as one user: the daemon goes by the user that connects (SO_PEERCRED)."""
        os.seteuid(uid)
        try:
            return request(method, self.socket, f"/localapi/v0/{path}", body=body)
        finally:
            os.seteuid(0)


@pytest.fixture(scope="module")
def pod(bed: Bed, deployed: str, rendered: list[dict[str, Any]]) -> Iterator[Pod]:
    directory = Path(tempfile.mkdtemp(prefix="pod-"))  # pytest's own folders are closed to other users
    directory.chmod(0o755)
    try:
        pod = Pod(bed, deployed, rendered, directory)
        pod.start_tailscaled()
        pod.log_in()
        yield pod
        for name in ("pod-k8sproxy", "pod-tailscaled"):
            with contextlib.suppress(Exception):
                bed.tailnet.processes.stop(bed.tailnet.processes.first(name))
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@needs_root
def test_the_sidecar_keeps_its_state_in_the_secret(bed: Bed, pod: Pod) -> None:
    secret = bed.cluster.get(f"api/v1/namespaces/{pod.namespace}/secrets/k8sproxy-tailscaled")
    assert secret is not None
    assert {"_machinekey", "_current-profile"} <= set(secret["data"])


@needs_root
def test_the_localapi_answers_any_user_but_takes_orders_from_its_own_alone(pod: Pod) -> None:
    """What the users in the manifest rest on (ipn/ipnserver: actor.Permissions and CanFetchCerts)."""
    proxy = pod.main["securityContext"]["runAsUser"]
    own = pod.sidecar["securityContext"]["runAsUser"]
    domain = pod.status()["Self"]["DNSName"].rstrip(".")
    address = pod.status()["Self"]["TailscaleIPs"][0]
    for uid in (proxy, OTHER_UID):
        assert pod.ask("status", uid=uid).ok
        assert pod.ask(f"whois?addr={address}:0", uid=uid).ok
        assert pod.ask("prefs", method="PATCH", uid=uid, body={"HostnameSet": False}).status == 403
    assert pod.ask("prefs", method="PATCH", uid=own, body={"HostnameSet": False}).status == 200
    # There may be no certificate to be had here; what counts is who is told that it is not for them.
    assert pod.ask(f"cert/{domain}?type=pair", uid=proxy).status != 403
    assert pod.ask(f"cert/{domain}?type=pair", uid=OTHER_UID).status == 403


@needs_root
def test_kubectl_through_the_pod(bed: Bed, pod: Pod, tmp_path: Path) -> None:
    pod.start_proxy()
    name = pod.status()["Self"]["DNSName"].rstrip(".")
    ca = tmp_path / "ca.crt"
    ca.write_bytes(pod.admin("/ca.pem"))
    url = f"https://{name}:{pod.generated_port}"
    alice = Kubectl(write_kubeconfig(tmp_path / "alice", url, ca=ca, socks5=bed.nodes["alice"].socks5))
    mallory = Kubectl(write_kubeconfig(tmp_path / "mallory", url, ca=ca, socks5=bed.nodes["mallory"].socks5))
    assert alice.json("auth", "whoami")["status"] == {
        "userInfo": {"username": "alice@example.com", "groups": ["system:masters", "system:authenticated"]}
    }
    assert "forbidden" in mallory.fails("get", "secrets")
    # The listener of the manifest asks for the tailnet's certificate, and is allowed to.
    (line,) = (line for line in pod.readyz().splitlines() if f"127.0.0.1:{pod.port}" in line)
    assert "not ask" not in line
    # The admin site stands on the pod's address: the daemon forwards to loopback, where nobody listens on that port.
    assert not ipaddress.ip_address(pod.ip).is_loopback
    with pytest.raises(ConnectionRefusedError):
        bed.nodes["alice"].dial(name, pod.admin_port)


@needs_root
def test_the_socket_can_be_connected_to_through_a_read_only_mount(pod: Pod) -> None:
    """Said on its own, since the pod rests on it: a read-only mount keeps others from replacing the socket."""
    code = "import socket,sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); print('connected')"
    code += "\ntry: open(sys.argv[1] + '.x', 'w')\nexcept OSError as error: print(error.strerror)"
    argv = pod._in(pod.main, None, [sys.executable, "-c", code, "/run/tailscale/tailscaled.sock"])
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.stdout.split("\n")[:2] == ["connected", "Read-only file system"], done.stderr


@needs_root
def test_a_new_pod_is_the_same_node(bed: Bed, pod: Pod) -> None:
    """Nothing of the old one is left but the Secret; no key is needed."""
    before = pod.status()["Self"]
    bed.tailnet.processes.stop(bed.tailnet.processes.first("pod-tailscaled"))
    shutil.rmtree(pod.directory / "tmp")
    pod.start_tailscaled()
    pod.wait_running()
    assert {key: pod.status()["Self"][key] for key in ("ID", "DNSName")} == {
        key: before[key] for key in ("ID", "DNSName")
    }
