"""What a recorder says of itself while its parts come one after the other. tests/recorder/test_app.py has them all."""

from __future__ import annotations

import asyncio
from pathlib import Path

from recorder.report import Parts, checks, metrics, warnings
from recorder.store import Store
from recorder.store.blobs import FolderBlobs


def test_before_there_are_parts() -> None:
    assert checks(Parts(), starting="it waits", draining=False) == {
        "starting": "it waits",
        "draining": None,
        "store": "the store is not open",
        "removal": None,
    }
    assert warnings(Parts()) == {}
    names = {family.name for family in metrics(Parts(), {"ok": 1, "refused": 2})}
    assert {"recorder_reloads", "recorder_commit_seconds", "recorder_ack_seconds"} <= names
    assert "recorder_store_healthy" not in names and "recorder_sessions" not in names


def test_with_a_store(tmp_path: Path) -> None:
    async def main() -> None:
        store = Store(FolderBlobs(tmp_path), None)
        await store.open()
        parts = Parts(store=store)
        found = checks(parts, starting=None, draining=True)
        assert found == {
            **{"starting": None, "draining": "the recorder is stopping"},
            **{"store": store.healthy, "removal": store.removal_fault},
        }
        names = {family.name for family in metrics(parts, {})}
        assert {"recorder_store_healthy", "recorder_store_held_bytes"} <= names and "recorder_commits" not in names
        await store.aclose()

    asyncio.run(main())
