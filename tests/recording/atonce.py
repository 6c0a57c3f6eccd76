"""Recordings that wait for nothing: what was said is on the wire a turn of the loop later."""

from __future__ import annotations

import pytest

from k8sproxy.recording import outbox


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "WAIT", 0.0)
    monkeypatch.setattr(outbox, "BATCH", 1)
