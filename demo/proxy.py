"""Runs the real `k8sproxy serve` as a process of its own, from its configuration to its end."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp

_READY_TIMEOUT = 10.0  # seconds: what `make demo` promises for everything
_END_TIMEOUT = 5.0  # seconds from SIGTERM to SIGKILL: more than the grace in the configuration


class NotReady(Exception):
    """The proxy ended, or didn't become ready in time; the message says what it logged last."""


@contextlib.asynccontextmanager
async def serving(config: Path, admin: Path, log: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """The proxy as a process, ready. admin: its admin site's unix socket. log: where its stderr and stdout go."""
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
        yield process
    finally:
        await end(process)


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
