"""kubectl's everyday commands on objects, over the tailnet, as a user who may do everything."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bed import Bed
from tests.bed.http import request
from tests.bed.kubectl import kubectl as older_kubectl
from tests.system.kubectl import STREAMING, Kubectl
from tests.system.proxy import wait_until

CONFIG_MAP = {
    "apiVersion": "v1",
    "kind": "ConfigMap",
    "metadata": {"name": "colours", "namespace": "default"},
    "data": {"sky": "blue"},
}


@pytest.fixture
def colours(tmp_path: Path) -> Path:
    path = tmp_path / "colours.json"
    path.write_text(json.dumps(CONFIG_MAP))
    return path


def test_version(alice: Kubectl) -> None:
    assert "Server Version: v1." in alice.ok("version")


def test_get_and_describe(alice: Kubectl, web: str) -> None:
    assert web in alice.ok("get", "pods")
    assert "Status:           Running" in alice.ok("describe", "pod", web)


def test_an_object_s_life(alice: Kubectl, colours: Path) -> None:
    assert "created" in alice.ok("apply", "-f", str(colours))
    assert "unchanged" in alice.ok("apply", "-f", str(colours))
    alice.ok("patch", "configmap", "colours", "--type=merge", "-p", '{"data":{"sea":"green"}}')
    assert alice.json("get", "configmap", "colours")["data"] == {"sky": "blue", "sea": "green"}
    assert "serverside-applied" in alice.ok("apply", "--server-side", "--force-conflicts", "-f", str(colours))
    alice.ok("delete", "configmap", "colours")
    assert "not found" in alice.fails("get", "configmap", "colours")


def test_an_object_of_a_mebibyte(alice: Kubectl, bed: Bed, tmp_path: Path) -> None:
    large = {**CONFIG_MAP, "metadata": {"name": "large"}, "data": {"all": "x" * 1_000_000}}
    path = tmp_path / "large.json"
    path.write_text(json.dumps(large))
    alice.ok("create", "-f", str(path))
    assert alice.json("get", "configmap", "large")["data"] == large["data"]
    alice.ok("delete", "configmap", "large")


def test_watch_sees_an_event(alice: Kubectl, bed: Bed) -> None:
    with alice.start("get", "configmaps", "--watch", "-o", "name") as watch:
        watch.expect("configmap/kube-root-ca.crt")  # what was there before
        bed.cluster.apply({**CONFIG_MAP, "metadata": {"name": "seen"}})
        watch.expect("configmap/seen")
    bed.cluster.delete("api/v1/namespaces/default/configmaps/seen")


def test_logs_follow_line_by_line(alice: Kubectl, bed: Bed, tmp_path: Path) -> None:
    go_on = tmp_path / "go-on"
    script = f"echo one; until [ -e {go_on} ]; do sleep 0.05; done; echo two; exec sleep 100"
    bed.pod("talker", command=["sh", "-c", script])
    try:
        with alice.start("logs", "-f", "talker") as logs:
            logs.expect("one\n")
            assert "two" not in logs.out
            go_on.touch()
            logs.expect("two\n")
    finally:
        bed.cluster.delete_pod("talker")


def test_whoami(alice: Kubectl) -> None:
    info = alice.json("auth", "whoami")["status"]["userInfo"]  # type: ignore[index]  # JSON
    assert info["username"] == "alice@example.com"
    assert set(info["groups"]) == {"system:masters", "system:authenticated"}


def test_kubectl_proxy(alice: Kubectl, web: str) -> None:
    with alice.start("proxy", "--port=0") as running:
        running.expect("Starting to serve on ")
        address = wait_until(lambda: running.out.partition("Starting to serve on ")[2].partition("\n")[0], "address")
        reply = request("GET", f"http://{address}", f"/api/v1/namespaces/default/pods/{web}")
        assert reply.json()["metadata"]["name"] == web


@pytest.mark.parametrize("version", ["1.29", "1.34"])
def test_older_kubectls(kubectl: Callable[..., Kubectl], version: str, web: str, colours: Path) -> None:
    alice = kubectl("alice", binary=older_kubectl(version))
    assert f"Client Version: v{version}." in alice.ok("version")
    alice.ok("apply", "-f", str(colours))
    assert "blue" in alice.ok("get", "configmap", "colours", "-o", "yaml")
    alice.ok("delete", "configmap", "colours")
    for env in STREAMING.values():
        done = alice.speaking(env).run("exec", "-i", web, "--", "sh", "-c", "cat; exit 7", input=b"hi")
        assert (done.returncode, done.stdout) == (7, b"hi")
