"""Sealer, retention and encryption, as the configuration says."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest

from recorder.app import StartError, open_store
from recorder.config import Config, ConfigError, load
from recorder.holds import Match
from recorder.keeping import Keeping, KeepingError, keyring, public_keys, rules, signer
from recorder.retention import Rule
from tests.recorder.proof.stage import PROXY, header, run

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
        signer(with_keys, make=False)
    own = signer(with_keys)
    assert own is not None and signer(with_keys, make=False) is not None
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
        keeping = Keeping(settings, store)
        await store.open()
        keeping.start()
        writer = await store.begin(header(command="a secret command"), PROXY)
        await writer.wait_acked(0)
        names = {metric.name for metric in keeping.metrics()}
        assert names == {
            "recorder_removed", "recorder_retention_healthy", "recorder_days_sealed", "recorder_sealing_healthy",
            "recorder_proof_mismatches",
        }  # fmt: skip
        keeping.reload(config(tmp_path, "retention: {maxAge: 1d}"))
        assert keeping.pruner.rules.max_age == DAY
        await keeping.aclose()
        await store.aclose()

    run(check())
    for path in (tmp_path / "data").rglob("*"):
        assert not path.is_file() or b"secret" not in path.read_bytes(), path
