"""The life of a program: what signals do in each state, reloads, exit codes."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop
from structlog.testing import capture_logs

from k8sproxy.common import program
from k8sproxy.common.config.faults import ConfigError, Fault
from k8sproxy.common.errors import StartError
from k8sproxy.common.program import Life, Program
from tests.lives import assert_documented


class Sample(Program[str]):
    """Its configuration is the text of its file. It does what the text says."""

    grace = 7.0

    def __init__(self, path: Path) -> None:
        super().__init__(path, path.read_text(), _load)
        self.steps: list[str] = []
        self.running = asyncio.Event()
        self.over = asyncio.Event()
        self.replaced = asyncio.Event()

    async def start(self) -> Mapping[str, object]:
        self.steps.append("start")
        if self.config == "cannot start":
            raise StartError("an address is taken")
        if self.config == "hang":
            self.running.set()
            await asyncio.Event().wait()
        self.running.set()
        return {"what": self.config}

    async def replace(self, config: str) -> Mapping[str, object]:
        if config == "unusable":
            raise StartError("another address is taken")
        self.replaced.set()
        return {"with": config}

    async def drain(self, grace: float) -> int:
        self.steps.append(f"drain {grace:g}")
        if grace:
            await self.over.wait()
        return 0 if grace else 3

    async def close(self) -> None:
        self.steps.append("close")


def _load(path: Path) -> str:
    text = path.read_text()
    if text == "faulty":
        raise ConfigError([Fault(path, 1, 2, "key", "is wrong")])
    return text


@asynccontextmanager
async def running(folder: Path, text: str = "a") -> AsyncIterator[tuple[Sample, asyncio.Task[int]]]:
    path = folder / "file"
    path.write_text(text)
    sample = Sample(path)
    task = asyncio.create_task(sample.run())
    await sample.running.wait()
    try:
        yield sample, task
    finally:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            asyncio.get_running_loop().remove_signal_handler(number)
        if not task.done():
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


def test_the_table_of_states() -> None:
    assert_documented(Life)


async def test_it_drains_at_a_signal(tmp_path: Path) -> None:
    with capture_logs() as logs:
        async with running(tmp_path) as (sample, task):
            await sample.until(Life.RUNNING)
            os.kill(os.getpid(), signal.SIGTERM)
            await sample.until(Life.DRAINING)
            assert not await sample.reload("too late")
            sample.over.set()
            assert await task == 0
    assert sample.steps == ["start", "drain 7", "close"] and sample.life is Life.ENDED and not sample.tasks
    assert [(line["event"], line.get("cut"), line.get("grace"), line.get("what")) for line in logs] == [
        ("started", None, None, "a"),
        ("draining", None, 7.0, None),
        ("stopped", 0, None, None),
    ]


async def test_a_second_signal_cuts(tmp_path: Path) -> None:
    with capture_logs() as logs:
        async with running(tmp_path) as (sample, task):
            await sample.until(Life.RUNNING)
            os.kill(os.getpid(), signal.SIGINT)
            await sample.until(Life.DRAINING)
            os.kill(os.getpid(), signal.SIGTERM)
            assert await task == 0
            sample.terminate()  # a third one, when nothing is left to do
    assert sample.steps == ["start", "drain 7", "drain 0", "close"]
    assert logs[-1]["cut"] == 3


async def test_a_start_is_given_up_at_a_signal(tmp_path: Path) -> None:
    with capture_logs() as logs:
        async with running(tmp_path, "hang") as (sample, task):
            os.kill(os.getpid(), signal.SIGHUP)  # waits for the start, which never ends
            os.kill(os.getpid(), signal.SIGTERM)
            assert await task == 0
    assert sample.steps == ["start", "close"] and sample.life is Life.ENDED
    assert [line["event"] for line in logs] == ["stopped"] and sample.reloads == {"ok": 0, "refused": 0}


async def test_a_start_that_fails(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("cannot start")
    sample = Sample(path)
    with capture_logs() as logs:
        assert await sample.run() == 1
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        asyncio.get_running_loop().remove_signal_handler(number)
    assert sample.steps == ["start", "close"] and sample.life is Life.ENDED
    assert logs == [{"event": "start_failed", "error": "an address is taken", "log_level": "error"}]


async def test_reloads(tmp_path: Path) -> None:
    with capture_logs() as logs:
        async with running(tmp_path) as (sample, _):
            await sample.until(Life.RUNNING)
            for text, done in (("faulty", False), ("unusable", False), ("b", True)):
                sample.path.write_text(text)
                assert await sample.reload("a test") is done
                assert sample.config == ("b" if done else "a")
    assert sample.reloads == {"ok": 1, "refused": 2}
    assert [(line.get("faults"), line.get("with")) for line in logs if "why" in line] == [
        ([f"{sample.path}:1:2: key: is wrong"], None),
        (["another address is taken"], None),
        (None, "b"),
    ]


async def test_a_hangup_reloads(tmp_path: Path) -> None:
    async with running(tmp_path) as (sample, _):
        await sample.until(Life.RUNNING)
        sample.path.write_text("b")
        os.kill(os.getpid(), signal.SIGHUP)
        await sample.replaced.wait()
        await sample.tasks.finished()
        assert sample.config == "b"


async def test_a_changed_file_reloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "LOOK_SECONDS", 0)
    told: asyncio.Queue[str] = asyncio.Queue()
    looked: asyncio.Queue[None] = asyncio.Queue()
    reasons = ["a kubeconfig has changed"]

    def other() -> str | None:
        looked.put_nowait(None)
        return reasons.pop() if reasons else None

    async with running(tmp_path) as (sample, _):
        await sample.until(Life.RUNNING)

        async def reload(why: str) -> bool:
            done = await Program.reload(sample, why)
            told.put_nowait(why)
            return done

        sample.reload = reload  # type: ignore[method-assign]
        sample.tasks.start(sample.follow_file(other), "file")
        assert await told.get() == "a kubeconfig has changed"
        sample.path.unlink()  # as in the middle of a replacement
        for _ in range(looked.qsize() + 2):
            await looked.get()
        (tmp_path / "new").write_text("b")
        (tmp_path / "new").replace(sample.path)
        assert await told.get() == "the file has changed"
        for _ in range(looked.qsize() + 2):
            await looked.get()
        assert told.empty() and sample.config == "b"
        await sample.tasks.aclose()


def test_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("cannot start")
    monkeypatch.setattr(program, "configure_logging", lambda level, style: None)
    monkeypatch.setattr(gc, "freeze", lambda: None)
    assert program.run(lambda: Sample(tmp_path / "file"), level="info", style="json") == 1

    def interrupted(_: Any) -> int:
        _.close()
        raise KeyboardInterrupt

    monkeypatch.setattr(uvloop, "run", interrupted)
    assert program.run(lambda: Sample(tmp_path / "file"), level="info", style="json") == 130
