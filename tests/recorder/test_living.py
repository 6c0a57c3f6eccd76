"""recorder/living.py: what `recorder check --live` asks, of a daemon, folders and buckets."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from recorder import living
from recorder.cli import cli as recorder
from recorder.config import load
from standins.tailscaled import FakeTailscaled
from tests.recorder.serving import write_config
from tests.recorder.store import s3
from tests.recorder.store.storing import run


def asked(folder: Path, store: dict[str, Any], *, daemon: str | None = "Running") -> list[str]:
    config = folder / "recorder.yaml"
    socket = folder / "daemon.sock"
    write_config(config, 1, 2, store=store, tailnet={"socket": str(socket)})
    found: list[str] = []

    async def main() -> None:
        if daemon is None:
            found.extend(await living.ask(load(config)))
            return
        async with FakeTailscaled(socket) as fake:
            fake.backend_state = daemon
            found.extend(await living.ask(load(config)))

    run(main())
    return found


def test_all_is_well_and_nothing_is_left(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    assert asked(tmp_path, {"folder": str(data), "minFree": "1KiB"}) == []
    assert not list(data.rglob("check-*"))
    assert asked(tmp_path, {"url": "memory://"}) == []


def test_a_daemon_that_is_away_or_logged_out(tmp_path: Path) -> None:
    (fault,) = asked(tmp_path, {"url": "memory://"}, daemon=None)
    assert fault.startswith("tailscaled: ")
    (fault,) = asked(tmp_path, {"url": "memory://"}, daemon="NeedsLogin")
    assert fault == "tailscaled is NeedsLogin, not Running"


def test_a_folder_that_is_not_there_full_or_a_file(tmp_path: Path) -> None:
    data = tmp_path / "data"
    (fault,) = asked(tmp_path, {"folder": str(data)})
    assert "is not there" in fault and not data.exists()
    data.mkdir()
    (fault,) = asked(tmp_path, {"folder": str(data), "minFree": "900TiB"})
    assert "MiB are free, and store.minFree requires" in fault
    (tmp_path / "file").write_text("")
    (fault,) = asked(tmp_path, {"folder": str(tmp_path / "file"), "minFree": "1KiB"})
    assert fault.startswith("store: ")


def test_a_daemon_and_a_store_that_never_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(living, "PATIENCE", 0.05)

    async def never(_: object) -> str:
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(living, "_daemon", never)
    monkeypatch.setattr(living, "_store", never)
    assert asked(tmp_path, {"url": "memory://"}) == [
        "tailscaled: no answer within 0.05 s",
        "store: no answer within 0.05 s",
    ]


def test_a_bucket(tmp_path: Path) -> None:
    with s3.running(tmp_path) as server:
        assert asked(tmp_path, {"url": server.url("casts"), "options": server.options}) == []
        (fault,) = asked(tmp_path, {"url": "s3://another/casts", "options": server.options})
        assert fault == "store: the recorder's store has no such bucket"
        wrong = server.options | {"secret_access_key": "wrong"}
        (fault,) = asked(tmp_path, {"url": server.url("casts"), "options": wrong})
        assert "refuses its credentials or its permissions" in fault


def test_the_command(tmp_path: Path) -> None:
    config = tmp_path / "recorder.yaml"
    write_config(config, 1, 2, store={"folder": str(tmp_path / "data")}, tailnet={"socket": str(tmp_path / "none")})
    done = CliRunner().invoke(recorder, ["check", "--live", "--config", str(config)])
    assert done.exit_code == 1
    first, second = done.output.splitlines()
    assert first.startswith("recorder: tailscaled: ") and second.startswith("recorder: store: the folder ")
    assert CliRunner().invoke(recorder, ["check", "--config", str(config)]).exit_code == 0
