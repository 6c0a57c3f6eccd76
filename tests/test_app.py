"""The process from outside its parts: what a signal does while it starts or loads its configuration again."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from k8sproxy.app import App
from k8sproxy.assembly import Assembly
from k8sproxy.config import load

CONFIG = """
apiVersion: k8sproxy/v1alpha1
tailnet: {socket: tailscaled.sock}
listen: [{address: "127.0.0.1:18443", tls: {source: none}}]
clusters: [{name: prod, kubeconfig: kubeconfig}]
admin: {address: "unix:admin.sock"}
"""
KUBECONFIG = """
apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "https://127.0.0.1:1"}}]
users: [{name: u, user: {token: nothing}}]
contexts: [{name: c, context: {cluster: c, user: u}}]
current-context: c
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_start_that_hangs_can_be_stopped(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kubeconfig").write_text(KUBECONFIG)
    path = tmp_path / "k8sproxy.yaml"
    path.write_text(CONFIG)
    undone = []

    async def hang(assembly: Assembly) -> None:
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), number)
        try:
            await asyncio.Event().wait()
        finally:
            undone.append(assembly)

    monkeypatch.setattr(Assembly, "prepare", hang)

    async def run() -> int:
        before = asyncio.all_tasks()
        async with asyncio.timeout(10):
            code = await App(path, load(path)).run()
        assert asyncio.all_tasks() == before
        return code

    assert asyncio.run(run()) == 0
    assert len(undone) == 1


def test_a_reload_that_a_stop_overtakes_listens_on_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kubeconfig").write_text(KUBECONFIG)
    path = tmp_path / "k8sproxy.yaml"
    path.write_text(CONFIG)
    prepare = Assembly.prepare
    taken: list[Assembly | None] = []
    take_over = Assembly.take_over

    def seen(assembly: Assembly, old: Assembly | None) -> None:
        taken.append(old)
        take_over(assembly, old)

    monkeypatch.setattr(Assembly, "take_over", seen)

    async def run() -> int:
        app = App(path, load(path))
        preparing, go_on = asyncio.Event(), asyncio.Event()

        async def slowly(assembly: Assembly) -> None:
            preparing.set()
            await go_on.wait()
            await prepare(assembly)

        async with asyncio.timeout(10):
            process = asyncio.create_task(app.run())
            while not taken:  # noqa: ASYNC110  # nobody tells that a start has come to its end
                await asyncio.sleep(0.001)
            monkeypatch.setattr(Assembly, "prepare", slowly)
            reload = asyncio.create_task(app.reload("a test"))
            await preparing.wait()
            app.terminate()
            go_on.set()
            assert not await reload
            return await process

    assert asyncio.run(run()) == 0
    assert taken == [None]
