"""What the tests of uploads have in common: a dial over loopback, and recorders that are ended with the test."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

from k8sproxy.recording.recorders import Recorders, Upload, UploadError
from standins.recorder import FakeRecorder


async def dial(host: str, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, (host, port))
    except BaseException:
        sock.close()
        raise
    return sock


@asynccontextmanager
async def recorders(
    *,
    accept_timeout: float = 5.0,
    dial_timeout: float = 2.0,
    ack_timeout: float = 30.0,
    buffer: int = 4 << 20,
    finish_timeout: float = 5.0,
    clock: Callable[[], float] | None = None,
    dial: Callable[..., object] = dial,
) -> AsyncGenerator[Recorders, None]:
    made = Recorders(
        dial,  # type: ignore[arg-type]  # tests give it what does not dial at all
        accept_timeout=accept_timeout,
        dial_timeout=dial_timeout,
        ack_timeout=ack_timeout,
        buffer=buffer,
        finish_timeout=finish_timeout,
        **({} if clock is None else {"clock": clock}),
    )
    try:
        yield made
    finally:
        await made.aclose()


@asynccontextmanager
async def session(
    version: int = 2, *, ack_timeout: float = 30.0, buffer: int = 4 << 20, finish_timeout: float = 5.0
) -> AsyncGenerator[tuple[FakeRecorder, Upload], None]:
    """A recorder, and an upload that it has accepted."""
    async with FakeRecorder() as fake:
        fake.version = version
        async with recorders(ack_timeout=ack_timeout, buffer=buffer, finish_timeout=finish_timeout) as made:
            yield fake, await made.open([fake.address])


def unused_port() -> int:
    """A port of 127.0.0.1 on which nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


async def failure_of(upload: Upload) -> str:
    """Waits until the upload fails; why."""
    told: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    upload.failed = told.set_result  # a second call would be an InvalidStateError
    return await told


async def refusal_of(upload: Upload) -> str:
    """What `finish` raises."""
    try:
        await upload.finish()
    except UploadError as error:
        return str(error)
    raise AssertionError("it finished")


async def turns(count: int = 5) -> None:
    """Lets the loop go round."""
    for _ in range(count):
        await asyncio.sleep(0)
