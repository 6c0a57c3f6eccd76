"""Uploads that wait for nothing: what is written is on the wire a turn of the loop later, so that nobody has to wait."""

from __future__ import annotations

import pytest

from k8sproxy.recording import upload


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "COALESCE", 0.0)
