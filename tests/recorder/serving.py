"""`recorder serve` as a process of its own, without a tailnet: whoever comes from loopback may send."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.recorder.ingest.senders import exchange


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@dataclass
class Process:
    process: asyncio.subprocess.Process
    port: int
    admin: int
    config: Path

    async def get(self, path: str) -> tuple[int, str]:
        status, _, body = await exchange(self.admin, f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        return status, body.decode()

    async def ready(self) -> None:
        while True:
            assert self.process.returncode is None
            with contextlib.suppress(OSError):
                if (await self.get("/readyz"))[0] == 200:
                    return
            await asyncio.sleep(0.05)

    async def readiness(self, wanted: int) -> str:
        """What /readyz says, once it has that status."""
        async with asyncio.timeout(30):
            while True:
                with contextlib.suppress(OSError):
                    status, text = await self.get("/readyz")
                    if status == wanted:
                        return text
                await asyncio.sleep(0.02)

    async def logged(self, event: str) -> dict[str, object]:
        """The next line of the log with this event."""
        assert self.process.stderr is not None
        while line := await self.process.stderr.readline():
            with contextlib.suppress(ValueError):
                value: dict[str, object] = json.loads(line)
                if value.get("event") == event:
                    return value
        raise AssertionError(f"the log ended without {event}")


def write_config(path: Path, port: int, admin: int, **changes: object) -> None:
    config: dict[str, object] = {
        "apiVersion": "recorder/v1alpha1",
        "tailnet": {"socket": "nobody.sock"},
        "store": {"folder": "data", "minFree": "1MiB"},
        "index": {"enabled": False},
        "ingest": {"listen": [f"127.0.0.1:{port}"], "insecureAllow": ["127.0.0.1"]},
        "admin": {"address": f"127.0.0.1:{admin}"},
        "shutdown": {"grace": "30s"},
    }
    path.write_text(yaml.safe_dump(config | changes))


@asynccontextmanager
async def recorder(folder: Path, *, prefix: Sequence[str] = (), **changes: object) -> AsyncIterator[Process]:
    """One that is ready. prefix: words before its command. changes: sections of its configuration."""
    async with serving(folder, free_port(), free_port(), prefix=prefix, **changes) as running:
        async with asyncio.timeout(60):
            await running.ready()
        yield running


@asynccontextmanager
async def serving(
    folder: Path, port: int, admin: int, *, prefix: Sequence[str] = (), **changes: object
) -> AsyncIterator[Process]:
    """One that has been started."""
    config = folder / "recorder.yaml"
    write_config(config, port, admin, **changes)
    process = await asyncio.create_subprocess_exec(
        *prefix, sys.executable, "-c", "from recorder.cli import main; main()", "serve", "--config", str(config),
        stderr=asyncio.subprocess.PIPE, limit=1 << 20,
    )  # fmt: skip
    running = Process(process, port, admin, config)
    try:
        yield running
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()
        process._transport.close()  # type: ignore[attr-defined]  # or it warns when it is collected
