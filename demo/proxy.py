"""Runs the real `k8sproxy serve` as a process of its own, from its configuration to its end."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from demo.workspace import Workspace

_READY_TIMEOUT = 10.0  # seconds: what `make demo` promises for everything
_END_TIMEOUT = 5.0  # seconds from SIGTERM to SIGKILL: more than the grace in the configuration


class NotReady(Exception):
    """The proxy ended, or didn't become ready in time; the message says what it logged last."""


@dataclass(frozen=True)
class Proxy:
    """A proxy that is ready. port: of its listener on 127.0.0.1. ca: the PEM of its own CA. log: its stderr."""

    process: asyncio.subprocess.Process
    port: int
    ca: bytes
    log: Path


@contextlib.asynccontextmanager
async def serving(space: Workspace, port: int, daemon: Path, cluster: Path, *names: str) -> AsyncIterator[Proxy]:
    """Runs the proxy. daemon: the LocalAPI's socket; cluster: its account's kubeconfig; names: for its certificate."""
    admin = space.socket("admin.sock")
    config = space.write("k8sproxy.yaml", _configuration(space, port, daemon, cluster, admin, names))
    log = space.root / "k8sproxy.log"
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            str(Path(sys.executable).with_name("k8sproxy")),
            "serve",
            "--config",
            str(config),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # a Ctrl-C is for the demo, which ends the proxy in its turn
        )
    try:
        await _ready(process, admin, log)
        yield Proxy(process, port, _ca_directory(space).joinpath("ca.crt").read_bytes(), log)
    finally:
        await end(process)


def free_port() -> int:
    """A port that nothing listens on. Somebody could take it before the proxy does: it says so then, and ends."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _ca_directory(space: Workspace) -> Path:
    return space.root / "ca"


def _configuration(
    space: Workspace, port: int, daemon: Path, cluster: Path, admin: Path, names: Sequence[str]
) -> dict[str, Any]:
    def text(path: Path) -> str:
        return str(path).replace("$", "$$")  # ${NAME} stands for an environment variable there

    tls = {"source": "generated", "directory": text(_ca_directory(space)), "names": list(names)}
    return {
        "apiVersion": "k8sproxy/v1alpha1",
        "tailnet": {"socket": text(daemon)},
        "listen": [{"address": f"127.0.0.1:{port}", "tls": tls}],
        "clusters": [{"name": "demo", "kubeconfig": text(cluster)}],
        "admin": {"address": f"unix:{text(admin)}"},
        "shutdown": {"grace": "1s"},
    }


async def end(process: asyncio.subprocess.Process) -> None:
    """Ends a process: politely, then not."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(_END_TIMEOUT):
                await process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
    await process.wait()


async def _ready(process: asyncio.subprocess.Process, admin: Path, log: Path) -> None:
    connector = aiohttp.UnixConnector(str(admin))
    try:
        async with asyncio.timeout(_READY_TIMEOUT), aiohttp.ClientSession(connector=connector) as session:
            while process.returncode is None:
                with contextlib.suppress(aiohttp.ClientError):
                    async with session.get("http://admin/readyz") as response:
                        if response.status == 200:
                            return
                await asyncio.sleep(0.05)  # nothing tells of a socket that is about to be
    except TimeoutError:
        raise NotReady(f"k8sproxy is not ready after {_READY_TIMEOUT:g} s; its log:\n{_tail(log)}") from None
    raise NotReady(f"k8sproxy ended with exit code {process.returncode}; its log:\n{_tail(log)}")


def _tail(log: Path, lines: int = 20) -> str:
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
