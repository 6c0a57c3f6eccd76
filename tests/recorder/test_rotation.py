"""The life of a recorder's key, with the process itself: a first start, a new key, a cut behind it, a lost key."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.recorder.ingest.senders import H2Sender
from tests.recorder.serving import recorder, write_config
from tests.recorder.store.storing import HEADER, lines

# Seconds. Ten starts and stops of the process; 20 are usual, and two busy cores take five times as long.
pytestmark = pytest.mark.timeout(400)


async def session(port: int) -> None:
    sender = await H2Sender.connect(port)
    number = sender.request()
    await sender.send(number, HEADER + lines(3), end=True)
    await sender.until_ended(number)
    await sender.close()


async def serve(folder: Path, sessions: int, **proof: object) -> dict[str, object]:
    """Some sessions; what /readyz tells as well as the entries that were signed."""
    async with recorder(folder, proof=proof) as running:
        for _ in range(sessions):
            await session(running.port)
        while True:
            _, metrics = await running.get("/metrics")
            # Either all is in the store and signed, or nothing can be.
            if "recorder_store_unfinished 0.0" in metrics or "recorder_signing_healthy 0.0" in metrics:
                break
            await asyncio.sleep(0.02)
        _, ready = await running.get("/readyz")
        running.process.terminate()
        assert await running.process.wait() == 0
    return {"ready": ready, "healthy": "recorder_signing_healthy 1.0" in metrics}


def run(folder: Path, sessions: int, **proof: object) -> dict[str, object]:
    return asyncio.run(serve(folder, sessions, **proof))


def call(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-c", "from recorder.cli import main; main()"]
    return subprocess.run(
        [*program, *arguments, "--config", str(folder / "recorder.yaml")], capture_output=True, text=True, check=False
    )


def verify(folder: Path) -> dict[str, object]:
    value: dict[str, object] = json.loads(call(folder, "verify", "--json").stdout)
    return value


def test_a_key_is_changed_and_what_is_cut_behind_it_is_found(tmp_path: Path) -> None:
    assert (run(tmp_path, 2, key="one.pem"))["healthy"]
    program = [sys.executable, "-c", "from recorder.cli import main; main()", "key", str(tmp_path / "two.pem")]
    assert subprocess.run(program, capture_output=True, check=False).returncode == 0
    assert subprocess.run(program, capture_output=True, check=False).returncode == 1
    # Without the old one nothing is signed, and readiness says what to do.
    found = run(tmp_path, 1, key="two.pem", publicKeys=["one.pem.pub"])
    assert "proof.previousKey" in str(found["ready"]) and not found["healthy"]
    assert (run(tmp_path, 1, key="two.pem", previousKey="one.pem"))["healthy"]
    proof = {"key": "two.pem", "publicKeys": ["one.pem.pub"]}
    assert (run(tmp_path, 1, **proof))["healthy"]
    report = verify(tmp_path)
    assert report["well"] is True and report["counts"]["not sealed yet"] == 5, report  # type: ignore[index]
    # The end of the register is cut off, with the recording that it lists.
    register = tmp_path / "data/proof/register/main"
    last = max(register.iterdir())
    (signed,) = json.loads(last.read_text().splitlines()[0])["recordings"]
    last.unlink()
    (place,) = (tmp_path / "data/recordings").glob(f"*/{signed['id']}")
    shutil.rmtree(place)
    report = verify(tmp_path)
    assert report["well"] is False and "the end of the chain was removed" in str(report["faults"])
    found = run(tmp_path, 1, **proof)
    assert "the end of the chain was removed" in str(found["ready"]) and not found["healthy"]
    assert verify(tmp_path)["well"] is False
    # An operator takes it as it is; that is signed, and stays.
    accepted = call(tmp_path, "anchor", "accept", "--yes", "--reason", "lost with disk 7")
    assert accepted.returncode == 0, accepted.stderr
    assert (run(tmp_path, 1, **proof))["healthy"]
    report = verify(tmp_path)
    assert report["well"] is True and "lost with disk 7" in str(report["notes"])
    assert call(tmp_path, "anchor", "show").stdout.count("folder") == 2


@pytest.mark.parametrize("path", ["data/seal.pem", "link/seal.pem", "gone.pem"])
def test_a_recorder_does_not_start_with_a_key_in_its_store_or_without_the_one_it_had(tmp_path: Path, path: str) -> None:
    run(tmp_path, 1, key="one.pem")
    (tmp_path / "link").symlink_to(tmp_path / "data")
    shutil.copy(tmp_path / "one.pem", tmp_path / "data/seal.pem")
    write_config(tmp_path / "recorder.yaml", 1, 0, proof={"key": path})
    done = call(tmp_path, "serve")
    if path == "gone.pem":
        assert done.returncode == 1 and "The recorder does not replace a lost key" in done.stderr
        assert not (tmp_path / "gone.pem").exists()
    else:
        assert done.returncode == 2 and "proof.key: is in store.folder" in done.stderr
        assert "proof.key: is in store.folder" in call(tmp_path, "check").stderr
