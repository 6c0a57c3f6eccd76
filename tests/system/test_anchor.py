"""The recorder's anchor in a ConfigMap of a real API server, with the account and the role of the manifests."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from recorder.proof import KeyFault
from recorder.proof.configmap import ConfigMapWitness
from recorder.proof.keys import Anchor
from tests.bed import Bed
from tests.recorder.ingest.senders import H2Sender
from tests.recorder.proof.sealed import run
from tests.recorder.serving import recorder
from tests.recorder.store.storing import HEADER, lines

MANIFESTS = Path(__file__).parents[2] / "manifests/recorder"
ACCOUNT, NAME = "k8sproxy-recorder", "k8sproxy-recorder-anchor"
_serial = itertools.count(1)


@pytest.fixture
def account(bed: Bed, tmp_path: Path) -> Iterator[Path]:
    """What kubelet would mount."""
    namespace = f"anchor-test-{next(_serial)}"
    bed.cluster.namespace(namespace)
    objects: list[dict[str, Any]] = list(yaml.safe_load_all((MANIFESTS / "anchor.yaml").read_text()))
    objects.append({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": ACCOUNT}})
    objects.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "another"}})
    for item in objects:
        item["metadata"]["namespace"] = namespace
        for subject in item.get("subjects", ()):
            subject["namespace"] = namespace
    bed.cluster.apply(*objects)
    path = f"api/v1/namespaces/{namespace}/serviceaccounts/{ACCOUNT}/token"
    wanted = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 3600}}
    reply = bed.cluster.api("POST", path, wanted)
    assert reply.ok, reply.body
    folder = tmp_path / "account"
    folder.mkdir()
    (folder / "token").write_text(reply.json()["status"]["token"])
    (folder / "namespace").write_text(namespace)
    shutil.copy(bed.ca_path, folder / "ca.crt")
    yield folder
    bed.cluster.delete(f"api/v1/namespaces/{namespace}")


def test_the_recorders_account_keeps_its_anchor_and_nothing_else(bed: Bed, account: Path) -> None:
    def witness(name: str = NAME) -> ConfigMapWitness:
        return ConfigMapWitness(name, account=account, server=bed.cluster.apiserver_url)

    async def check() -> None:
        first, second, another, none = witness(), witness(), witness("another"), witness("none")
        assert await first.recall() == {}
        # Two at once: each finds the other's version in its way, and reads again.
        heads = {f"register r{number}": Anchor(number, f"{number}" * 64) for number in range(1, 5)}
        await asyncio.gather(
            *((first, second)[number % 2].remember(*item) for number, item in enumerate(heads.items()))
        )
        assert await second.recall() == heads
        for other in (another, none):
            with pytest.raises(KeyFault, match="answers 403"):
                await other.recall()
        (account / "token").write_text("nonsense")
        with pytest.raises(KeyFault, match="answers 401"):
            await first.recall()
        for one in (first, second, another, none):
            await one.aclose()

    run(check())


def test_a_volume_that_is_taken_back_to_an_earlier_state_is_found(bed: Bed, account: Path, tmp_path: Path) -> None:
    """The real `recorder serve`: sessions, a snapshot, more sessions, the snapshot again."""
    anchor = {"configMap": {"name": NAME, "account": str(account), "server": bed.cluster.apiserver_url}}
    proof = {"key": "seal.pem", "anchor": anchor}

    async def session(port: int) -> None:
        sender = await H2Sender.connect(port)
        number = sender.request()
        await sender.send(number, HEADER + lines(3), end=True)
        await sender.until_ended(number)
        await sender.close()

    async def serve(sessions: int, *, alarm: bool = False) -> None:
        async with recorder(tmp_path, proof=proof) as running:
            if alarm:
                assert "restored to an earlier state" in str((await running.logged("anchor_fault"))["fault"])
                status, text = await running.get("/readyz")
                assert status == 200 and "[!]signing the store has no number" in text
                assert "recorder_signing_healthy 0.0" in (await running.get("/metrics"))[1]
            for _ in range(sessions):
                await session(running.port)
            running.process.terminate()
            assert await running.process.wait() == 0

    async def verify(code: int) -> str:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", "from recorder.cli import main; main()", "verify"),
            *("--config", str(tmp_path / "recorder.yaml")),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        out, _ = await process.communicate()
        assert process.returncode == code, out.decode()
        return out.decode()

    def kept() -> dict[str, str]:
        namespace = (account / "namespace").read_text()
        found = bed.cluster.get(f"api/v1/namespaces/{namespace}/configmaps/{NAME}")
        data: dict[str, str] = (found or {})["data"]
        return data

    async def check() -> None:
        await serve(1)
        assert "compared with ConfigMap" in await verify(0)
        shutil.copytree(tmp_path / "data", tmp_path / "snapshot")
        await serve(2)
        assert "2 not sealed yet" not in await verify(0)
        before = kept()
        shutil.rmtree(tmp_path / "data")
        shutil.copytree(tmp_path / "snapshot", tmp_path / "data")
        assert "the end of the chain was removed" in await verify(1)
        await serve(2, alarm=True)
        assert kept() == before
        assert "does not match ConfigMap" in await verify(1)

    asyncio.run(check())
