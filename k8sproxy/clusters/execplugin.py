"""Running an exec plugin: a program that prints credentials (client.authentication.k8s.io, KEP-541).

It is told what it needs in KUBERNETES_EXEC_INFO and prints an ExecCredential. What it prints is a secret and what it
complains of may hold one, so neither goes into an error or a log; its stderr goes where the proxy's own goes. It gets
no stdin, a time limit, and is killed when that passes or the call is cancelled, with whatever it has started.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from dataclasses import dataclass, field
from datetime import UTC, datetime

from k8sproxy.clusters.kubeconfig import CredentialsError, ExecPlugin

# Seconds. Plugins ask a cloud's token service: about 1 s; a few retries of theirs fit in.
TIMEOUT = 60.0
# Bytes. A token or a certificate with its key: a few KiB.
MAX_OUTPUT = 1024 * 1024

_VERSIONS = ("client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1")


@dataclass(frozen=True, slots=True)
class ExecCredential:
    """status of an ExecCredential. expires: None is "until the API server refuses it"."""

    token: bytes | None = field(repr=False)
    client_cert: bytes | None = field(repr=False)
    client_key: bytes | None = field(repr=False)
    expires: datetime | None


async def run_plugin(plugin: ExecPlugin, *, seconds: float = TIMEOUT) -> ExecCredential:
    """Run it once, for at most `seconds`. Raises CredentialsError."""
    if plugin.api_version not in _VERSIONS:
        raise CredentialsError(f"exec: apiVersion must be {' or '.join(_VERSIONS)}")
    spec: dict[str, object] = {"interactive": False}
    if plugin.cluster is not None:
        spec["cluster"] = plugin.cluster
    information = {"apiVersion": plugin.api_version, "kind": "ExecCredential", "spec": spec}
    environment = {**os.environ, **plugin.environment, "KUBERNETES_EXEC_INFO": json.dumps(information)}
    try:
        process = await asyncio.create_subprocess_exec(
            plugin.command,
            *plugin.args,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            env=environment,
            start_new_session=True,  # so that what it starts can be killed with it
            limit=MAX_OUTPUT,
        )
    except (OSError, ValueError) as error:
        hint = f" ({plugin.install_hint})" if plugin.install_hint else ""
        reason = error.strerror if isinstance(error, OSError) else "a NUL byte in its arguments"
        raise CredentialsError(f"exec: {plugin.command}: {reason}{hint}") from None
    try:
        async with asyncio.timeout(seconds):
            output = await _read(process, plugin.command)
            status = await process.wait()
    except TimeoutError:
        raise CredentialsError(f"exec: {plugin.command}: no answer within {seconds:g} s") from None
    finally:
        await _end(process)
    if status != 0:
        raise CredentialsError(f"exec: {plugin.command}: ended with status {status}")
    return read_exec_credential(output, plugin)


async def _read(process: asyncio.subprocess.Process, command: str) -> bytes:
    assert process.stdout is not None  # noqa: S101 - asked for above
    output = bytearray()
    while piece := await process.stdout.read(65536):
        output += piece
        if len(output) > MAX_OUTPUT:
            raise CredentialsError(f"exec: {command}: more than {MAX_OUTPUT} bytes of output")
    return bytes(output)


async def _end(process: asyncio.subprocess.Process) -> None:
    """Kill what is left of the plugin's process group and wait for the plugin itself."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        while process.returncode is None:
            # Killed, so this takes no time, and a second cancel (the process's end) must not leave it unwaited for.
            with contextlib.suppress(asyncio.CancelledError):
                await process.wait()
    transport = getattr(process, "_transport", None)  # asyncio closes the pipe only once the other end has
    if transport is not None:
        transport.close()


def read_exec_credential(output: bytes, plugin: ExecPlugin) -> ExecCredential:
    """Raises CredentialsError."""

    def refuse(why: str) -> CredentialsError:
        return CredentialsError(f"exec: {plugin.command}: {why}")

    try:
        answer = json.loads(output)
    except (ValueError, RecursionError):
        raise refuse("its output is not JSON") from None
    if not isinstance(answer, dict) or answer.get("kind") != "ExecCredential":
        raise refuse("its output is not an ExecCredential")
    if answer.get("apiVersion") != plugin.api_version:
        raise refuse(f"its output is not of apiVersion {plugin.api_version}")
    status = answer.get("status")
    if not isinstance(status, dict):
        raise refuse("its ExecCredential has no status")
    values: dict[str, bytes | None] = {}
    for name in ("token", "clientCertificateData", "clientKeyData"):
        value = status.get(name)
        if value is not None and not isinstance(value, str):
            raise refuse(f"{name} is not text")
        values[name] = value.encode() if value else None
    if (values["clientCertificateData"] is None) is not (values["clientKeyData"] is None):
        raise refuse("clientCertificateData and clientKeyData go together")
    if values["token"] is None and values["clientCertificateData"] is None:
        raise refuse("its answer has neither a token nor a certificate")
    expires = None
    if status.get("expirationTimestamp") is not None:
        try:
            expires = datetime.fromisoformat(str(status["expirationTimestamp"]))
        except ValueError:
            raise refuse("expirationTimestamp is not an RFC 3339 time") from None
        expires = expires if expires.tzinfo else expires.replace(tzinfo=UTC)
    return ExecCredential(values["token"], values["clientCertificateData"], values["clientKeyData"], expires)
