"""Sealer, retention and encryption, as the configuration says."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from k8sproxy.common.errors import StartError
from recorder.config import Config, ConfigError, load
from recorder.model import End
from recorder.opening import open_store
from recorder.proof import Signer
from recorder.proof.report import Status
from recorder.proof.witness import FolderWitness
from recorder.retention.holds import Match
from recorder.retention.rules import Rule
from recorder.retention.service import Keeping, KeepingError, first_key, keyring, public_keys, rules, signer
from standins.pki import Authority
from tests.recorder.proof.sealed import PROXY, Stage, header, run, statuses
from tests.recorder.serving import recorder, write_config

DAY = 86400.0


def config(tmp_path: Path, more: str = "") -> Config:
    path = tmp_path / "recorder.yaml"
    path.write_text(f"apiVersion: recorder/v1alpha1\nstore: {{folder: data, minFree: 1}}\n{more}")
    return load(path)


def faults(tmp_path: Path, more: str) -> str:
    with pytest.raises(ConfigError) as error:
        config(tmp_path, more)
    return str(error.value)


def test_rules(tmp_path: Path) -> None:
    text = """
retention:
  maxAge: 90d
  maxBytes: 1TiB
  eventsMaxAge: 30d
  rules:
  - match: {clusters: [prod], users: ["*@example.com"]}
    keep: forever
  - match: {sessionTypes: [ssh]}
    keep: 12h
"""
    found = rules(config(tmp_path, text).retention)
    assert (found.max_age, found.max_bytes, found.events_max_age) == (90 * DAY, 1 << 40, 30 * DAY)
    assert found.rules == (
        Rule(Match(clusters=("prod",), users=("*@example.com",)), None),
        Rule(Match(session_types=("ssh",)), DAY / 2),
    )
    assert rules(config(tmp_path).retention).nothing


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("retention: {maxAge: 10}", "retention.maxAge: must be a duration"),
        ("retention: {maxAge: 1s}", 'retention.maxAge: must be from "1h"'),
        ("retention: {rules: [{match: {clusters: [a]}}]}", "retention.rules[0].keep: is required"),
        ("retention: {rules: [{keep: 1d}]}", "retention.rules[0].match: is required"),
        ("retention: {rules: [{match: {cluster: [a]}, keep: 1d}]}", "cluster: unknown key"),
        ("proof: {delay: 2d}", "proof.delay: must be from 0s to 24h"),
        ("encryption: {key: x}", "encryption.key: unknown key"),
    ],
)
def test_faults_of_the_configuration(tmp_path: Path, text: str, fault: str) -> None:
    assert fault in faults(tmp_path, text)


def test_keys(tmp_path: Path) -> None:
    nothing = config(tmp_path)
    assert signer(nothing) is None and keyring(nothing) is None and len(public_keys(nothing, None)) == 0
    with_keys = config(tmp_path, "proof: {key: seal.pem, publicKeys: [old.pub]}\nencryption: {keys: [k]}")
    with pytest.raises(KeepingError, match=r"proof\.key"):
        signer(with_keys)
    Signer.make_file(tmp_path / "seal.pem")
    own = signer(with_keys)
    assert own is not None
    with pytest.raises(KeepingError, match=r"proof\.publicKeys"):
        public_keys(with_keys, own)
    (tmp_path / "old.pub").write_bytes(own.public_pem)
    assert own.id in public_keys(with_keys, own)
    with pytest.raises(KeepingError, match=r"encryption\.keys"):
        keyring(with_keys)
    with pytest.raises(StartError, match=r"encryption\.keys"):
        open_store(with_keys)


def test_a_recorder_that_seals_and_encrypts(tmp_path: Path) -> None:
    (tmp_path / "k").write_bytes(base64.b64encode(os.urandom(32)))
    (tmp_path / "k").chmod(0o600)
    settings = config(tmp_path, "proof: {key: seal.pem}\nencryption: {keys: [k]}")

    async def check() -> None:
        store = open_store(settings)
        keeping = Keeping(settings, store, await first_key(settings, store.blobs))
        keeping.open()
        await store.open()
        keeping.start()
        writer = await store.begin(header(command="a secret command"), PROXY)
        await writer.wait_acked(0)
        names = {metric.name for metric in keeping.metrics()}
        assert names == {
            "recorder_removed", "recorder_retention_healthy", "recorder_days_sealed", "recorder_sealing_healthy",
            "recorder_proof_mismatches",
            "recorder_register_entries", "recorder_signing_healthy",
        }  # fmt: skip
        keeping.reload(config(tmp_path, "retention: {maxAge: 1d}"))
        assert keeping.pruner.rules.max_age == DAY
        await keeping.aclose()
        await store.aclose()

    run(check())
    for path in (tmp_path / "data").rglob("*"):
        assert not path.is_file() or b"secret" not in path.read_bytes(), path


def test_a_running_recorder_removes_nothing_that_is_not_as_it_was_sealed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process itself: a hold, an edited recording.json, and one that may go; what log, readiness, metrics say."""
    stage = Stage(tmp_path / "data")
    stage.signer = Signer.make_file(tmp_path / "seal.pem")
    now = time.time()

    async def fill() -> tuple[str, str, str]:
        async with stage.store() as store:
            held, edited, old = [await stage.record(store) for _ in range(3)]
            await store.add_event(b'{"source":{"node":"ana.ts.net.","nodeUser":"ana@example.com"}}', PROXY)
            await stage.settled(store)
            await store.eventlog.drain()
        return held, edited, old

    with monkeypatch.context() as context:
        context.setattr(time, "time", lambda: now - 10 * DAY)
        held, edited, old = run(fill())
    stage.clock = now
    run(stage.seal())
    for chain, head in stage.witness.heads.items():
        run(FolderWitness(tmp_path / "anchor").remember(chain, head))
    path = stage.place(edited) / "recording.json"
    path.write_text(path.read_text().replace("ana@example.com", "bob@example.com"))

    async def main() -> None:
        arguments = ["prune", "--config", str(tmp_path / "recorder.yaml"), held, "--hold", "--reason", "case", "--json"]
        write_config(tmp_path / "recorder.yaml", 1, 2, proof={"key": "seal.pem"})
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", "from recorder.cli import main; main()", *arguments),
            stdout=asyncio.subprocess.PIPE,
        )
        answer, _ = await process.communicate()
        assert process.returncode == 0 and json.loads(answer)[0]["signed"] is True
        retention = {"maxAge": "1d", "eventsMaxAge": "1d"}
        async with recorder(tmp_path, proof={"key": "seal.pem"}, retention=retention) as running:
            told = await running.logged("proof_mismatch")
            assert (told["subject"], told["what"]) == (edited, "recording.json is not what was sealed")
            assert (await running.logged("removed"))["subject"] == old
            while "[!]retention" not in (await running.get("/readyz"))[1]:  # noqa: ASYNC110 - the pass has no event
                await asyncio.sleep(0.02)
            status, text = await running.get("/readyz")
            assert status == 200 and f"{edited} differs from what was sealed and is not removed" in text
            _, metrics = await running.get("/metrics")
            assert "recorder_proof_mismatches 1.0" in metrics and "recorder_retention_healthy 0.0" in metrics

    run(main())
    report = run(stage.verify(witnesses=[FolderWitness(tmp_path / "anchor")]))
    assert not report.well and statuses(report)[edited] == "changed"
    assert statuses(report)[held] == "ok" and statuses(report)[old] == "removed"
    assert [name for name, status in statuses(report).items() if name.startswith("events/")] and all(
        status == "ok" for name, status in statuses(report).items() if name.startswith("events/")
    )


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("proof: {key: data/seal.pem}", "proof.key"),
        ("proof: {key: link/seal.pem}", "proof.key"),
        ("proof: {key: seal.pem, previousKey: data/x/old.pem}", "proof.previousKey"),
        ("proof: {key: seal.pem, anchor: {folder: data/anchor}}", "proof.anchor.folder"),
        ("proof: {key: seal.pem, publicKeys: [a.pub, data/b.pub]}", "proof.publicKeys[1]"),
        ("encryption: {keys: [link/k]}", "encryption.keys[0]"),
    ],
)
def test_no_key_in_the_folder_that_it_protects(tmp_path: Path, text: str, key: str) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "data")
    assert f"{key}: is in store.folder" in faults(tmp_path, text)


@pytest.mark.parametrize("more", ["", ", anchor: {timeStamps: {url: 'http://127.0.0.1:9/', certificates: ca.pem}}"])
def test_a_key_is_made_at_the_first_start_on_an_empty_store_alone(tmp_path: Path, more: str) -> None:
    if more:
        (tmp_path / "ca.pem").write_bytes(Authority().pem)
    settings = config(tmp_path, f"proof: {{key: seal.pem{more}}}")

    async def first() -> Signer | None:
        store = open_store(settings)
        try:
            return await first_key(settings, store.blobs)
        finally:
            await store.aclose()

    made = run(first())
    assert made is not None and (again := run(first())) is not None and again.id == made.id
    (tmp_path / "seal.pem").unlink()
    (tmp_path / "anchor").mkdir()
    (tmp_path / "anchor/manifests").write_text(f"1 {'a' * 64}\n")
    with pytest.raises(KeepingError, match="the anchor remembers what was signed"):
        run(first())
    (tmp_path / "anchor/manifests").unlink()
    for top in ("recordings", "events", "proof", "holds"):
        path = tmp_path / "data" / top / "x"
        path.mkdir(parents=True)
        with pytest.raises(KeepingError, match="does not exist, but the store is not empty"):
            run(first())
        assert not (tmp_path / "seal.pem").exists()
        path.rmdir()
        path.parent.rmdir()
    assert run(first()) is not None


def test_what_is_on_its_way_into_the_store_is_told_as_not_signed_yet(tmp_path: Path) -> None:
    """Its signature comes when it is in the store, however long that takes: the lists alone would call it unknown."""
    settings = config(tmp_path, "proof: {key: seal.pem}")

    async def check() -> None:
        store = open_store(settings)
        keeping = Keeping(settings, store, await first_key(settings, store.blobs))
        await store.open()  # nobody signs: the register is not started
        writer = await store.begin(header(), PROXY)
        running = await keeping.standing(writer.recording)
        assert running is not None and running.status is Status.OPEN
        recording = await writer.finish(End.CLEAN)
        late = replace(recording, ended=recording.started - 7200.0)
        found = await keeping.standing(late)
        assert found is not None and found.status is Status.UNSEALED and "on its way" in found.detail
        await store.aclose()

    run(check())


def test_nothing_is_told_where_there_are_no_keys(tmp_path: Path) -> None:
    settings = config(tmp_path)

    async def check() -> None:
        store = open_store(settings)
        await store.open()
        recording = await (await store.begin(header(), PROXY)).finish(End.CLEAN)
        assert await Keeping(settings, store, None).standing(recording) is None
        await store.aclose()

    run(check())
