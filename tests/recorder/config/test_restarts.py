"""What of a changed configuration waits for a restart."""

from __future__ import annotations

from pathlib import Path

import pytest

from recorder.config import Config, load
from recorder.config.restarts import needs_restart

SMALL = "apiVersion: recorder/v1alpha1\nstore: {folder: data}\n"
WEB = SMALL + 'web: {listen: ["127.0.0.1:8080"]}\n'


def read(folder: Path, text: str) -> Config:
    path = folder / "recorder.yaml"
    path.write_text(text)
    return load(path, environment={})


@pytest.mark.parametrize(
    ("before", "after", "keys"),
    [
        (SMALL, SMALL, []),
        (SMALL, SMALL.replace("data", "other"), ["store"]),
        (SMALL, SMALL + "proof: {key: k}\nencryption: {keys: [e]}\nadmin: {address: '127.0.0.1:1'}\n",
         ["admin", "encryption", "proof"]),
        (WEB, SMALL + "index: {enabled: false}\n", ["index", "web"]),
        (SMALL, SMALL + 'ingest: {listen: ["127.0.0.1:80"]}\n', ["ingest.listen"]),
        (SMALL, SMALL + "tailnet: {socket: t.sock}\n", ["tailnet.socket"]),
        # Who may send goes by the new domain at once.
        (SMALL, SMALL + "tailnet: {capabilityDomain: example.com}\n", []),
        (WEB, WEB + "tailnet: {capabilityDomain: example.com}\n", ["tailnet.capabilityDomain"]),
        (SMALL,
         SMALL + "ingest: {sessions: 5, allow: [a]}\nretention: {maxAge: 90d}\nlog: {level: debug}\n"
         "shutdown: {grace: 1s}\ntailnet: {whoisTTL: 1s}\n",
         []),
    ],
)  # fmt: skip
def test_what_needs_a_restart(tmp_path: Path, before: str, after: str, keys: list[str]) -> None:
    assert needs_restart(read(tmp_path, before), read(tmp_path, after)) == keys
