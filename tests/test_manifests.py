"""The image's recipe and the manifests, as far as they can be judged without an engine and a cluster.

What a real API server says to the manifests is in system/test_manifests.py.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from k8sproxy.config import Config, load
from recorder.config import load as load_recorder

ROOT = Path(__file__).parents[1]
BASE, RECORDER = ROOT / "manifests/base", ROOT / "manifests/recorder"
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROXY_UID = 65532


# -- the Dockerfile


def instructions() -> list[tuple[str, str]]:
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in text.splitlines() if line)]


def stages() -> list[list[tuple[str, str]]]:
    """The instructions of each stage, FROM first."""
    found: list[list[tuple[str, str]]] = []
    for word, rest in instructions():
        if word == "FROM":
            found.append([])
        if found:
            found[-1].append((word, rest))
    return found


def copied() -> Iterator[str]:
    """What is copied out of the context."""
    for word, rest in instructions():
        if word == "COPY" and not rest.startswith("--from="):
            *sources, _ = shlex.split(rest)
            yield from sources


def of(stage: list[tuple[str, str]], word: str) -> list[str]:
    return [rest for found, rest in stage if found == word]


def exec_form(value: str) -> list[str]:
    found = yaml.safe_load(value)
    assert isinstance(found, list), f"shell form: {value}"
    return found


def context(directory: Path) -> Path:
    """What a builder would see after its COPY instructions, by the rules of .dockerignore that are in use here."""
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for source in copied():
        assert source.rstrip("/") in kept, f".dockerignore keeps {source} out"
        if source.endswith("/"):
            ignore = shutil.ignore_patterns("__pycache__", "*.pyc")
            shutil.copytree(ROOT / source, directory / source, ignore=ignore)
        else:
            shutil.copy(ROOT / source, directory / source)
    return directory


def test_what_the_image_copies_is_there() -> None:
    for source in copied():
        assert (ROOT / source).exists(), source


def test_the_image_runs_as_a_numbered_user_that_is_not_root() -> None:
    *_, last = stages()
    assert of(last, "USER") == [f"{PROXY_UID}:{PROXY_UID}"]


def test_the_image_starts_a_console_script_and_nothing_is_run_in_its_last_stage() -> None:
    *_, last = stages()
    (entry,) = (exec_form(value) for value in of(last, "ENTRYPOINT"))
    (arguments,) = (exec_form(value) for value in of(last, "CMD"))
    assert entry == ["k8sproxy"]
    assert arguments[0] == "serve"
    assert {"k8sproxy", "recorder"} <= set(PROJECT["project"]["scripts"])
    assert not of(last, "RUN")


def test_both_stages_have_one_python_which_the_project_supports() -> None:
    (version,) = (rest.partition("=")[2] for word, rest in instructions() if rest.startswith("PYTHON_VERSION="))
    assert [of(stage, "FROM")[0].split()[0] for stage in stages()] == ["python:${PYTHON_VERSION}-slim"] * 2
    lowest = PROJECT["project"]["requires-python"].removeprefix(">=")
    assert tuple(map(int, version.split("."))) >= tuple(map(int, lowest.split(".")))


def test_its_label_has_the_projects_version() -> None:
    *_, last = stages()
    assert f"VERSION={PROJECT['project']['version']}" in of(last, "ARG")
    (labels,) = (dict(item.split("=", 1) for item in shlex.split(rest)) for rest in of(last, "LABEL"))
    assert labels["org.opencontainers.image.title"] == PROJECT["project"]["name"]
    assert labels["org.opencontainers.image.description"] == PROJECT["project"]["description"]
    assert labels["org.opencontainers.image.licenses"] == PROJECT["project"]["license"]


def test_the_wheel_can_be_built_from_what_is_copied(tmp_path: Path) -> None:
    source = tmp_path / "src"
    source.mkdir()
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run(
        [*command, "--wheel-dir", str(tmp_path), str(context(source))], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
        (scripts,) = (file.read(name).decode() for name in names if name.endswith("entry_points.txt"))
    assert {"k8sproxy/example.yaml", "k8sproxy/py.typed", "recorder/py.typed"} <= set(names)
    modules = {str(path.relative_to(ROOT)) for top in ("k8sproxy", "recorder") for path in (ROOT / top).rglob("*.py")}
    assert modules <= set(names)
    assert "k8sproxy = k8sproxy.cli:main" in scripts
    assert "recorder = recorder.cli:main" in scripts


# -- the manifests


@pytest.fixture(scope="module", params=[BASE, RECORDER], ids=["base", "recorder"])
def objects(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return render(request.param)


@pytest.fixture(scope="module")
def base() -> list[dict[str, Any]]:
    return render(BASE)


def render(directory: Path) -> list[dict[str, Any]]:
    kubectl = Path(sys.executable).with_name("kubectl")
    done = subprocess.run([kubectl, "kustomize", directory], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def one(objects: list[dict[str, Any]], kind: str, name: str = "") -> dict[str, Any]:
    (found,) = (item for item in objects if item["kind"] == kind and name in ("", item["metadata"]["name"]))
    return found


def pod_spec(objects: list[dict[str, Any]]) -> dict[str, Any]:
    (found,) = (item for item in objects if item["kind"] in ("Deployment", "StatefulSet"))
    spec = found["spec"]["template"]["spec"]
    assert isinstance(spec, dict)
    return spec


def containers(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    spec = pod_spec(objects)
    return [*spec["initContainers"], *spec["containers"]]


def proxy_config(base: list[dict[str, Any]], tmp_path: Path) -> Config:
    path = tmp_path / "k8sproxy.yaml"
    path.write_text(one(base, "ConfigMap")["data"][path.name])
    return load(path, environment={"POD_IP": "10.1.2.3"})


def test_every_container_is_locked_down(objects: list[dict[str, Any]]) -> None:
    spec = pod_spec(objects)
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    for container in containers(objects):
        security = container["securityContext"]
        assert security["runAsUser"] > 0
        assert security["allowPrivilegeEscalation"] is False
        assert security["readOnlyRootFilesystem"] is True
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert container["resources"]["requests"].keys() >= {"cpu", "memory"}
        assert "memory" in container["resources"]["limits"]


def test_tailscaled_is_a_sidecar_with_a_user_of_its_own(objects: list[dict[str, Any]]) -> None:
    sidecar, main = containers(objects)
    assert sidecar["restartPolicy"] == "Always"
    assert sidecar["securityContext"]["runAsUser"] != main["securityContext"]["runAsUser"]
    sockets = {
        container["name"]: next(mount for mount in container["volumeMounts"] if mount["name"] == "socket")
        for container in (sidecar, main)
    }
    assert sockets[sidecar["name"]]["mountPath"] == sockets[main["name"]]["mountPath"]
    assert sockets[main["name"]]["readOnly"] is True, "nobody but tailscaled may put a socket there"
    environment = {item["name"]: item.get("value") for item in sidecar["env"]}
    assert environment["TS_USERSPACE"] == "true"
    assert Path(str(environment["TS_SOCKET"])).parent == Path(sockets[main["name"]]["mountPath"])


def test_the_proxy_may_fetch_certificates(base: list[dict[str, Any]]) -> None:
    sidecar, main = containers(base)
    environment = {item["name"]: item.get("value") for item in sidecar["env"]}
    assert environment["TS_PERMIT_CERT_UID"] == str(main["securityContext"]["runAsUser"]) == str(PROXY_UID)


def test_the_configuration_is_sound_and_fits_the_pod(base: list[dict[str, Any]], tmp_path: Path) -> None:
    config = proxy_config(base, tmp_path)
    sidecar, main = containers(base)
    environment = {item["name"]: item.get("value") for item in sidecar["env"]}
    assert str(config.tailnet.socket) == environment["TS_SOCKET"]
    assert config.clusters[0].in_cluster
    (listen,) = config.listen
    assert listen.address.host == "127.0.0.1", "where a userspace daemon connects to"
    (sysctl,) = pod_spec(base)["securityContext"]["sysctls"]
    assert listen.address.port >= int(sysctl["value"])
    assert config.admin.address.tcp is not None
    assert not config.admin.address.tcp.is_loopback, "kubelet could not probe it, and the tailnet could reach it"
    assert [port["containerPort"] for port in main["ports"]] == [config.admin.address.tcp.port]
    assert pod_spec(base)["terminationGracePeriodSeconds"] > config.shutdown.grace
    assert main["readinessProbe"]["timeoutSeconds"] > config.tailnet.whois_timeout
    mounts = {mount["name"]: mount["mountPath"] for mount in main["volumeMounts"]}
    assert main["args"] == ["serve", "--config", f"{mounts['config']}/k8sproxy.yaml"]


def test_tokens_go_where_they_belong(base: list[dict[str, Any]]) -> None:
    """The proxy's container has the token of its account, the sidecar one that opens its state and nothing else."""
    volumes = {volume["name"]: volume for volume in pod_spec(base)["volumes"]}
    where = "/var/run/secrets/kubernetes.io/serviceaccount"
    sidecar, main = (
        next(volumes[mount["name"]] for mount in container["volumeMounts"] if mount["mountPath"] == where)
        for container in containers(base)
    )
    secret = one(base, "Secret", sidecar["secret"]["secretName"])
    account = secret["metadata"]["annotations"]["kubernetes.io/service-account.name"]
    assert one(base, "ServiceAccount", account)
    assert account != pod_spec(base)["serviceAccountName"]
    assert any("serviceAccountToken" in source for source in main["projected"]["sources"])


def test_the_proxys_account_may_impersonate_users_and_groups_and_nothing_else(base: list[dict[str, Any]]) -> None:
    account = pod_spec(base)["serviceAccountName"]
    bindings = [item for item in base if item["kind"] in ("ClusterRoleBinding", "RoleBinding")]
    (mine,) = (item for item in bindings if account in [subject["name"] for subject in item["subjects"]])
    assert mine["kind"] == "ClusterRoleBinding"
    role = one(base, "ClusterRole", mine["roleRef"]["name"])
    assert role["rules"] == [{"apiGroups": [""], "resources": ["users", "groups"], "verbs": ["impersonate"]}]


def test_tailscaleds_account_may_keep_one_secret(base: list[dict[str, Any]]) -> None:
    role = one(base, "Role")
    sidecar, _ = containers(base)
    environment = {item["name"]: item.get("value") for item in sidecar["env"]}
    (secrets,) = (rule for rule in role["rules"] if "secrets" in rule["resources"])
    assert secrets["resourceNames"] == [environment["TS_KUBE_SECRET"]]
    assert set(secrets["verbs"]) == {"get", "update", "patch"}
    assert one(base, "Secret", environment["TS_KUBE_SECRET"] or "")
    (events,) = (rule for rule in role["rules"] if rule is not secrets)
    assert events["resources"] == ["events"]


def test_an_overlay_moves_everything_to_its_own_namespace(tmp_path: Path) -> None:
    shutil.copytree(BASE, tmp_path / "base")
    (tmp_path / "kustomization.yaml").write_text("namespace: elsewhere\nresources: [base]\n")
    for item in render(tmp_path):
        for subject in item.get("subjects", ()):
            assert subject["namespace"] == "elsewhere", item["metadata"]["name"]
        expected = None if item["kind"] in ("Namespace", "ClusterRole", "ClusterRoleBinding") else "elsewhere"
        assert item["metadata"].get("namespace") == expected


def test_one_pod_at_a_time(base: list[dict[str, Any]]) -> None:
    """Its state is one node of the tailnet."""
    spec = one(base, "Deployment")["spec"]
    assert spec["replicas"] == 1
    assert spec["strategy"] == {"type": "Recreate"}


def test_the_recorders_configuration_is_one(tmp_path: Path) -> None:
    config = load_recorder(RECORDER / "recorder.yaml", environment={"POD_IP": "10.0.0.7"})
    assert str(config.admin.address) == "10.0.0.7:9090"
    assert str(config.store.folder) == "/var/lib/recorder"


def test_images_are_pinned(objects: list[dict[str, Any]]) -> None:
    version = PROJECT["project"]["version"]
    for container in containers(objects):
        name, _, tag = container["image"].rpartition(":")
        assert tag == version if name == "k8sproxy" else re.fullmatch(r"v\d+\.\d+\.\d+", tag)
    for item in objects:
        if item["kind"] == "StatefulSet":
            assert item["spec"]["replicas"] == 1, "two would be two stores"


def test_the_overlay_in_the_documentation_fits(tmp_path: Path) -> None:
    """docs/getting-started.md, for tailnets without certificates."""
    text = (ROOT / "docs/getting-started.md").read_text()
    (overlay,) = (block for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL) if "behavior: replace" in block)
    shutil.copytree(BASE, tmp_path / "manifests/base")
    (tmp_path / "kustomization.yaml").write_text(overlay)
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "k8sproxy-ca", "namespace": "k8sproxy"},
    }
    (tmp_path / "ca.yaml").write_text(yaml.safe_dump(claim))
    settings = yaml.safe_load((BASE / "k8sproxy.yaml").read_text())
    settings["listen"][0]["tls"] = {"source": "generated"}
    (tmp_path / "k8sproxy.yaml").write_text(yaml.safe_dump(settings))
    objects = render(tmp_path)
    (listen,) = proxy_config(objects, tmp_path / "manifests").listen
    _, main = containers(objects)
    mounts = {mount["mountPath"]: mount["name"] for mount in main["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod_spec(objects)["volumes"]}
    assert listen.tls.source == "generated"
    assert volumes[mounts[str(listen.tls.ca_directory.parent)]]["persistentVolumeClaim"] == {"claimName": "k8sproxy-ca"}
    assert pod_spec(objects)["securityContext"]["fsGroup"] == main["securityContext"]["runAsUser"]
