from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k8sproxy.clusters.execplugin import MAX_OUTPUT, read_exec_credential, run_plugin
from k8sproxy.clusters.kubeconfig import CredentialsError, ExecPlugin

V1 = "client.authentication.k8s.io/v1"


def plugin(script: str, api_version: str = V1, cluster: dict[str, object] | None = None) -> ExecPlugin:
    """A plugin that is a Python script; `answer(**status)` prints its ExecCredential."""
    prelude = (
        "import json, os, sys, time\n"
        f"def answer(**status): print(json.dumps(dict(apiVersion={V1!r}, kind='ExecCredential', status=status)))\n"
    )
    return ExecPlugin(sys.executable, ("-S", "-c", prelude + script), {"E": "e"}, api_version, cluster, "install it")


def refused(what: ExecPlugin) -> str:
    with pytest.raises(CredentialsError) as error:
        asyncio.run(run_plugin(what))
    return str(error.value)


def test_a_token_with_its_end() -> None:
    found = asyncio.run(run_plugin(plugin("answer(token='abc', expirationTimestamp='2026-01-02T03:04:05Z')")))
    assert found.token == b"abc"
    assert found.expires == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert "abc" not in repr(found)


def test_a_certificate() -> None:
    found = asyncio.run(run_plugin(plugin("answer(clientCertificateData='c', clientKeyData='k')")))
    assert (found.token, found.client_cert, found.client_key, found.expires) == (None, b"c", b"k", None)


def test_what_it_is_told() -> None:
    script = "assert sys.stdin.read() == ''; answer(token=os.environ['E'] + os.environ['KUBERNETES_EXEC_INFO'])"
    found = asyncio.run(run_plugin(plugin(script, cluster={"server": "https://x"})))
    assert found.token is not None
    assert found.token.startswith(b"e{")
    assert json.loads(found.token[1:]) == {
        "apiVersion": V1,
        "kind": "ExecCredential",
        "spec": {"interactive": False, "cluster": {"server": "https://x"}},
    }


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("sys.exit(3)", "ended with status 3"),
        ("print('hunter2')", "its output is not JSON"),
        ("print('[' * 100000)", "its output is not JSON"),
        ("print(json.dumps(dict(kind='x')))", "is not an ExecCredential"),
        ("print('[]')", "is not an ExecCredential"),
        ("print(json.dumps(dict(kind='ExecCredential', apiVersion='v2')))", f"is not of apiVersion {V1}"),
        (f"print(json.dumps(dict(kind='ExecCredential', apiVersion={V1!r})))", "has no status"),
        ("answer()", "neither a token nor a certificate"),
        ("answer(token='')", "neither a token nor a certificate"),
        ("answer(token=5)", "token is not text"),
        ("answer(clientKeyData='hunter2')", "go together"),
        ("answer(token='hunter2', expirationTimestamp='soon')", "expirationTimestamp is not an RFC 3339 time"),
        (f"sys.stdout.write('x' * {MAX_OUTPUT + 1})", "of output"),
    ],
)
def test_answers_that_are_none(script: str, message: str) -> None:
    found = refused(plugin(script))
    assert message in found
    assert "hunter2" not in found


def test_programs_that_cannot_be_run(tmp_path: Path) -> None:
    missing = ExecPlugin(str(tmp_path / "nix"), (), {}, V1, None, "install it")
    assert refused(missing) == f"exec: {tmp_path}/nix: No such file or directory (install it)"
    assert "NUL" in refused(ExecPlugin("true", ("a\0",), {}, V1))
    assert refused(plugin("", "v1alpha1")).startswith("exec: apiVersion must be")


def child_script(pid_file: Path) -> str:
    """A plugin that starts a child, says so and then hangs, both deaf to anything but SIGKILL."""
    return (
        "import signal, subprocess\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen(['sleep', '1000'])\n"
        f"open({str(pid_file)!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}')\n"
        "time.sleep(1000)\n"
    )


def test_one_that_hangs_is_killed_with_what_it_started(tmp_path: Path) -> None:
    pid_file = tmp_path / "pids"

    async def scenario(cancel: bool) -> None:
        os.mkfifo(pid_file)
        task = asyncio.create_task(run_plugin(plugin(child_script(pid_file)), seconds=30 if cancel else 3))
        pids = [int(pid) for pid in (await asyncio.to_thread(pid_file.read_text)).split()]
        pid_file.unlink()
        assert len(pids) == 2
        ends = [os.pidfd_open(pid) for pid in pids]  # readable once the process has ended
        if cancel:
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            with pytest.raises(CredentialsError, match="no answer within 3 s"):
                await task
        for end in ends:
            assert select.select([end], [], [], 30)[0]
            os.close(end)

    asyncio.run(scenario(cancel=True))
    asyncio.run(scenario(cancel=False))


@given(st.binary() | st.recursive(st.none() | st.text(), lambda x: st.dictionaries(
    st.sampled_from(["kind", "apiVersion", "status", "token", "expirationTimestamp"]), x)).map(
    lambda value: json.dumps(value).encode()))  # fmt: skip
def test_any_output_is_a_credential_or_an_error(output: bytes) -> None:
    with contextlib.suppress(CredentialsError):
        read_exec_credential(output, ExecPlugin("x", (), {}, V1))
