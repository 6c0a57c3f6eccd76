"""pods/exec of the stand-in cluster: a WebSocket at one end, a real process at the other.

The "container" is a process of this machine with the rights of whoever runs the demo, in a folder of its own and with
an environment that has nothing of theirs. The protocol is v5.channel.k8s.io, or v4 for clients that can't close stdin
(KEP-4006): the first byte of a binary message is its channel. How the process ended goes over the error channel as a
Status, from which kubectl takes its exit code.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import pty
import signal
import struct
import termios
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import WSMsgType, web

PROTOCOLS = ("v5.channel.k8s.io", "v4.channel.k8s.io")
_STDIN, _STDOUT, _STDERR, _ERROR, _RESIZE, _CLOSE = 0, 1, 2, 3, 4, 255
_CHUNK = 32 * 1024  # bytes a message: the size that the kubelet's own copy loop reads


class _ClientGone(Exception):
    """The WebSocket ended before the process did."""


@dataclass
class _Container:
    """A running process: where its input goes, what its outputs are, and how its terminal is resized."""

    process: asyncio.subprocess.Process
    stdin: asyncio.StreamWriter | None
    outputs: dict[int, asyncio.StreamReader]
    resize: Callable[[int, int], None]


async def serve(request: web.Request, pod: str, home: Path) -> web.StreamResponse:
    """Runs the query's `command` for this WebSocket until the process ends or the client goes.

    home: the folder that it starts in, which exists.
    """
    client = web.WebSocketResponse(protocols=PROTOCOLS, max_msg_size=0, compress=False)
    if not client.can_prepare(request).ok:
        return web.Response(status=400, text="exec wants a WebSocket here: the stand-in doesn't speak SPDY\n")
    command = request.query.getall("command", [])
    if not command:
        return web.Response(status=400, text="you must specify at least one command for the container\n")
    await client.prepare(request)
    environment = {"PATH": os.defpath, "HOME": str(home), "HOSTNAME": pod, "PS1": f"{pod}$ "}
    start = _with_terminal if request.query.get("tty") == "true" else _with_pipes
    wants_stdin = request.query.get("stdin") == "true"
    try:
        async with start(command, home, environment, wants_stdin) as container:
            status = await _attend(client, container)
    except _ClientGone:
        return client
    except (OSError, ValueError) as error:  # no such command, or one with a NUL
        status = _failure("InternalError", f"error executing command in container: {error}", code=500)
    with contextlib.suppress(ConnectionError):
        await client.send_bytes(bytes([_ERROR]) + json.dumps(status).encode())
        await client.close()
    return client


@contextlib.asynccontextmanager
async def _with_pipes(
    command: list[str], home: Path, environment: dict[str, str], wants_stdin: bool
) -> AsyncIterator[_Container]:
    pipe, null = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=pipe if wants_stdin else null,
        stdout=pipe,
        stderr=pipe,
        cwd=home,
        env=environment,
        start_new_session=True,
    )
    outputs = {number: stream for number, stream in ((_STDOUT, process.stdout), (_STDERR, process.stderr)) if stream}
    async with _ending(process):
        yield _Container(process, process.stdin, outputs, lambda columns, rows: None)


@contextlib.asynccontextmanager
async def _with_terminal(
    command: list[str], home: Path, environment: dict[str, str], _: bool
) -> AsyncIterator[_Container]:
    main, terminal = pty.openpty()
    with contextlib.ExitStack() as stack:
        reading = stack.enter_context(os.fdopen(main, "rb", buffering=0))
        writing = stack.enter_context(os.fdopen(os.dup(main), "wb", buffering=0))
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=terminal,
                stdout=terminal,
                stderr=terminal,
                cwd=home,
                env=environment | {"TERM": "xterm"},
                start_new_session=True,
                # Without a controlling terminal Ctrl-C would be a byte like any other.
                preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
            )
        finally:
            os.close(terminal)
        async with _ending(process):
            loop = asyncio.get_running_loop()
            output = asyncio.StreamReader(limit=_CHUNK)
            source, _protocol = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(output), reading)
            sink, flow = await loop.connect_write_pipe(lambda: asyncio.streams.FlowControlMixin(loop), writing)

            def resize(columns: int, rows: int) -> None:
                fcntl.ioctl(writing, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

            try:
                yield _Container(process, asyncio.StreamWriter(sink, flow, None, loop), {_STDOUT: output}, resize)
            finally:
                source.close()
                sink.close()


@contextlib.asynccontextmanager
async def _ending(process: asyncio.subprocess.Process) -> AsyncIterator[None]:
    """Ends the process, and what it started in its session, unless all ended by itself."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its own group: it was started as a session's leader
        while process.returncode is None:
            # Killed, so this takes no time, and a second cancel (the server's end) must not leave it unwaited for.
            with contextlib.suppress(asyncio.CancelledError):
                await process.wait()
        raise


async def _attend(client: web.WebSocketResponse, container: _Container) -> dict[str, Any]:
    """Moves bytes both ways until the outputs end. Returns the Status of the process, or raises _ClientGone."""
    try:
        async with asyncio.TaskGroup() as group:
            inputs = group.create_task(_inputs(client, container))
            pumps = [group.create_task(_output(client, *output)) for output in container.outputs.items()]
            await asyncio.wait(pumps)
            code = await container.process.wait()
            inputs.cancel()
    except* (_ClientGone, ConnectionError):
        raise _ClientGone from None
    return _status(code)


async def _inputs(client: web.WebSocketResponse, container: _Container) -> None:
    async for message in client:
        if message.type is not WSMsgType.BINARY or not message.data:
            continue
        channel, data = message.data[0], message.data[1:]
        if channel == _STDIN and container.stdin is not None and not container.stdin.is_closing():
            container.stdin.write(data)
            with contextlib.suppress(ConnectionError):  # it closed its stdin: what follows is dropped
                await container.stdin.drain()
        elif channel == _CLOSE and data == bytes([_STDIN]) and container.stdin is not None:
            container.stdin.close()
        elif channel == _RESIZE:
            size = json.loads(data)
            container.resize(int(size["Width"]), int(size["Height"]))
    raise _ClientGone


async def _output(client: web.WebSocketResponse, channel: int, stream: asyncio.StreamReader) -> None:
    with contextlib.suppress(OSError):  # EIO: how a terminal says that its last process has gone
        while data := await stream.read(_CHUNK):
            await client.send_bytes(bytes([channel]) + data)


def _status(code: int) -> dict[str, Any]:
    """The Status for an exit code; a negative one is a signal, which a shell counts as 128 and the signal."""
    if code == 0:
        return {"metadata": {}, "status": "Success"}
    number = code if code > 0 else 128 - code
    message = f"command terminated with non-zero exit code: exit status {number}"
    causes = [{"reason": "ExitCode", "message": str(number)}]
    return _failure("NonZeroExitCode", message) | {"details": {"causes": causes}}


def _failure(reason: str, message: str, code: int = 0) -> dict[str, Any]:
    status: dict[str, Any] = {"metadata": {}, "status": "Failure", "reason": reason, "message": message}
    return status | ({"code": code} if code else {})
