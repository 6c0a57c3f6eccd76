from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import ssl
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from k8sproxy.clusters import credentials as module
from k8sproxy.clusters.credentials import EXPIRY_MARGIN, MIN_INTERVAL, ClusterCredentials, CredentialsError
from k8sproxy.tls.certificates import server_context
from standins.pki import Authority
from standins.tls import handshake

CA = Authority()
Section = dict[str, Any]


def kubeconfig(directory: Path, user: Section | None = None, cluster: Section | None = None) -> Path:
    path = directory / "kubeconfig"
    ca = base64.b64encode(CA.pem).decode()
    content = {
        "current-context": "one",
        "contexts": [{"name": "one", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [
            {"name": "c", "cluster": cluster or {"server": "https://api.example", "certificate-authority-data": ca}}
        ],
        "users": [{"name": "u", "user": user or {}}],
    }
    path.write_text(json.dumps(content))
    return path


async def load(directory: Path, user: Section | None = None, cluster: Section | None = None) -> ClusterCredentials:
    return await ClusterCredentials.load("prod", kubeconfig=kubeconfig(directory, user, cluster))


class Clock:
    """Time that passes when told."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def test_a_token(tmp_path: Path) -> None:
    found = asyncio.run(load(tmp_path, {"token": "abc.def-_~+/="}))
    assert found.authorization() == b"Bearer abc.def-_~+/="
    assert (found.host, found.port, found.server_name, found.authority) == (
        "api.example", 443, "api.example", b"api.example",
    )  # fmt: skip
    assert found.warnings == ()


def test_a_user_and_a_password(tmp_path: Path) -> None:
    found = asyncio.run(load(tmp_path, {"username": "me", "password": "x"}))
    assert found.authorization() == b"Basic " + base64.b64encode(b"me:x")


@pytest.mark.parametrize("token", ["a\r\nX-Evil: b", "a b", "ä", "a\0", "=", " "])
def test_what_no_token_can_be(tmp_path: Path, token: str) -> None:
    with pytest.raises(CredentialsError, match="not a bearer token") as error:
        asyncio.run(load(tmp_path, {"token": token}))
    assert "Evil" not in str(error.value)


def test_tls_is_checked_against_the_authority_and_the_name(tmp_path: Path) -> None:
    found = asyncio.run(load(tmp_path, {"token": "x"}))
    context = found.tls()
    assert context is not None
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    server = server_context(*CA.issue("api.example"))
    client, _ = handshake(context, server, found.server_name)
    assert client.selected_alpn_protocol() == "http/1.1"
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(context, server, "other.example")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(context, server_context(*Authority().issue("api.example")), "api.example")


def test_a_client_certificate_is_presented(tmp_path: Path) -> None:
    chain, key = CA.issue("proxy")
    (tmp_path / "tls.crt").write_bytes(chain)
    (tmp_path / "tls.key").write_bytes(key)
    server = server_context(*CA.issue("api.example"))
    server.verify_mode = ssl.CERT_REQUIRED
    server.load_verify_locations(cadata=CA.pem.decode())

    async def scenario() -> None:
        found = await load(tmp_path, {"client-certificate": "tls.crt", "client-key": "tls.key"})
        assert found.authorization() is None
        first = found.tls()
        assert first is not None
        _, side = handshake(first, server, "api.example")
        assert side.getpeercert()
        assert not await found.refresh()
        assert found.tls() is first
        # The certificate before its key: nothing changes until both fit.
        chain, key = CA.issue("proxy2")
        (tmp_path / "tls.crt").write_bytes(chain)
        with pytest.raises(CredentialsError, match="client certificate: the key is not the key"):
            await found.refresh()
        assert found.tls() is first
        (tmp_path / "tls.key").write_bytes(key)
        assert await found.refresh()
        second = found.tls()
        assert second is not None
        assert second is not first
        handshake(second, server, "api.example")

    asyncio.run(scenario())


def test_what_an_administrator_should_be_told(tmp_path: Path) -> None:
    with capture_logs() as logs:
        insecure = asyncio.run(
            load(tmp_path, {"token": "x"}, {"server": "https://x", "insecure-skip-tls-verify": True})
        )
    assert "insecure-skip-tls-verify" in insecure.warnings[0]
    assert logs[0]["log_level"] == "warning"
    assert logs[0]["cluster"] == "prod"
    context = insecure.tls()
    assert context is not None
    handshake(context, server_context(*Authority().issue("anything")), "x")
    plain = asyncio.run(load(tmp_path, None, {"server": "http://127.0.0.1:1"}))
    assert plain.tls() is None
    assert plain.warnings == (
        "plain http:// to the API server",
        "no credentials: requests are anonymous at the API server",
    )


def test_the_system_is_trusted_where_there_is_no_authority(tmp_path: Path) -> None:
    context = asyncio.run(load(tmp_path, {"token": "x"}, {"server": "https://x"})).tls()
    assert context is not None
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.check_hostname
    with pytest.raises(CredentialsError, match="the certificate authority is not PEM"):
        asyncio.run(load(tmp_path, {"token": "x"}, {"server": "https://x", "certificate-authority-data": "aGk="}))


def service_account(directory: Path, token: str, name: str) -> None:
    """As kubelet writes it: a new directory, then ..data renamed onto it."""
    (directory / name).mkdir()
    (directory / name / "token").write_text(token)
    (directory / name / "ca.crt").write_bytes(CA.pem)
    (directory / "..new").symlink_to(name)
    os.replace(directory / "..new", directory / "..data")


def test_a_service_account_whose_token_rotates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    service_account(tmp_path, "one\n", "..1")
    for name in ("token", "ca.crt"):
        (tmp_path / name).symlink_to(f"..data/{name}")

    async def scenario() -> None:
        found = await ClusterCredentials.load("here", service_account=tmp_path)
        assert found.authorization() == b"Bearer one"
        context = found.tls()
        service_account(tmp_path, "two", "..2")
        with capture_logs() as logs:
            assert await found.refresh()
        assert found.authorization() == b"Bearer two"
        assert found.tls() is context  # the CA is the same: connections stay good
        assert "two" not in repr(logs)
        (tmp_path / "..2" / "token").write_text("")
        with pytest.raises(CredentialsError, match=r"/token: not a bearer token: it is empty"):
            await found.refresh()
        assert found.authorization() == b"Bearer two"

    asyncio.run(scenario())


def plugin(directory: Path, clock: Clock | None = None, lifetime: float | None = None) -> Section:
    """A user whose plugin gives token-1, token-2, ... and counts its runs in a file."""
    script = directory / "plugin"
    expires = ""
    if clock is not None and lifetime is not None:
        end = datetime.fromtimestamp(clock.now + lifetime, UTC).isoformat()
        expires = f', "expirationTimestamp": "{end}"'
    script.write_text(
        "#!/bin/sh\n"
        f'echo >>"{directory}/runs"\n'
        f'[ -e "{directory}/broken" ] && exit 1\n'
        f'n=$(wc -l <"{directory}/runs" | tr -d " ")\n'
        'echo "{\\"apiVersion\\": \\"client.authentication.k8s.io/v1\\", \\"kind\\": \\"ExecCredential\\",'
        f' \\"status\\": {{\\"token\\": \\"token-$n\\"{expires.replace(chr(34), chr(92) + chr(34))}}}}}"\n'
    )
    script.chmod(0o755)
    return {"exec": {"command": "./plugin", "apiVersion": "client.authentication.k8s.io/v1"}}


def test_plugins_are_run_again_when_asked_but_not_in_a_storm(tmp_path: Path) -> None:
    clock = Clock()

    async def scenario() -> None:
        path = kubeconfig(tmp_path, plugin(tmp_path))
        found = await ClusterCredentials.load("prod", kubeconfig=path, now=clock)
        assert found.authorization() == b"Bearer token-1"
        assert not await found.refresh_now()
        clock.now += MIN_INTERVAL
        assert sorted(await asyncio.gather(*(found.refresh_now() for _ in range(5)))) == [False] * 4 + [True]
        assert found.authorization() == b"Bearer token-2"
        (tmp_path / "broken").touch()
        clock.now += MIN_INTERVAL
        with pytest.raises(CredentialsError, match="ended with status 1"):
            await found.refresh_now()
        assert not await found.refresh_now()  # a failure counts as well
        assert found.authorization() == b"Bearer token-2"

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("lifetime", "pause"),
    [
        (3600.0, 2880.0),
        (120.0, 120.0 - EXPIRY_MARGIN),
        (60.0, 30.0),
        (1.0, 0.5),
        (-60.0, -48.0),
        (None, None),
    ],
)
def test_when_a_plugin_is_run_again(tmp_path: Path, lifetime: float | None, pause: float | None) -> None:
    clock = Clock()
    path = kubeconfig(tmp_path, plugin(tmp_path, clock, lifetime))
    found = asyncio.run(ClusterCredentials.load("prod", kubeconfig=path, now=clock))
    renewal = found._renewal()
    assert (None if renewal is None else renewal - clock.now) == (None if pause is None else pytest.approx(pause))
    assert MIN_INTERVAL <= found._pause() <= module.FILE_INTERVAL
    if pause is not None:
        clock.now += pause - 0.01
        assert not found._plugin_due()
        clock.now += 0.02
    assert found._plugin_due() is (pause is not None)


def test_when_files_are_looked_at_again(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("x")
    assert asyncio.run(load(tmp_path, {"tokenFile": "token"}))._pause() == module.FILE_INTERVAL
    assert module.FILE_INTERVAL <= 60
    assert asyncio.run(load(tmp_path, {"token": "x"}))._pause() == module.FILE_INTERVAL  # the kubeconfig itself


def test_a_refused_token_is_fetched_anew_in_the_background(tmp_path: Path) -> None:
    clock = Clock()

    async def scenario() -> None:
        path = kubeconfig(tmp_path, plugin(tmp_path))
        found = await ClusterCredentials.load("prod", kubeconfig=path, now=clock)
        clock.now += MIN_INTERVAL
        changed = asyncio.Event()
        refresh = found.refresh

        async def observed(*, plugin: bool = True) -> bool:
            result = await refresh(plugin=plugin)
            changed.set()
            return result

        found.refresh = observed  # type: ignore[method-assign]  # to see the turn end
        task = asyncio.create_task(found.follow())
        for _ in range(100):
            found.suspect()
        await changed.wait()
        assert found.authorization() == b"Bearer token-2"
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scenario())
    assert (tmp_path / "runs").read_text().count("\n") == 2


def test_failures_are_logged_once_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text("one")
    turns: list[tuple[int, Callable[[], object]]] = []

    async def scenario() -> list[str]:
        found = await load(tmp_path, {"tokenFile": "token"})
        steps: list[Callable[[], object]] = [
            (tmp_path / "token").unlink,
            lambda: None,
            lambda: (tmp_path / "token").write_text("a b"),
            lambda: (tmp_path / "token").write_text("two"),
        ]

        async def wait(failures: int) -> None:
            if not steps:
                raise asyncio.CancelledError
            turns.append((failures, steps[0]))
            steps.pop(0)()

        monkeypatch.setattr(found, "_wait", wait)
        with capture_logs() as logs, pytest.raises(asyncio.CancelledError):
            await found.follow()
        assert found.authorization() == b"Bearer two"
        return [str(entry.get("error", entry["event"])) for entry in logs]

    logs = asyncio.run(scenario())
    assert [failures for failures, _ in turns] == [0, 1, 2, 3]
    assert logs == [
        f"{tmp_path}/token: No such file or directory",
        f"{tmp_path}/token: not a bearer token: it is empty, or has characters that a token cannot have",
        "cluster_credentials_changed",
    ]


def test_nothing_is_left_of_a_load_that_is_cancelled(tmp_path: Path) -> None:
    async def scenario() -> None:
        path = kubeconfig(tmp_path, plugin(tmp_path))
        before = len(os.listdir("/proc/self/fd"))
        for delay in (0, 1, 3, 10, 30, 100):
            task = asyncio.create_task(ClusterCredentials.load("prod", kubeconfig=path))
            for _ in range(delay):
                await asyncio.sleep(0)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        assert len(asyncio.all_tasks()) == 1
        assert len(os.listdir("/proc/self/fd")) <= before + 1  # the loop's own, for watching children

    asyncio.run(scenario())


def test_a_changed_kubeconfig_is_read_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        found = await load(tmp_path, {"token": "one"})
        first, context = found.generation, found.tls()
        assert not await found.refresh()
        kubeconfig(tmp_path, {"token": "two"})
        assert await found.refresh()
        assert found.authorization() == b"Bearer two"
        assert found.generation > first
        assert found.tls() is context  # the CA is the same: connections stay good
        other = base64.b64encode(Authority("other").pem).decode()
        kubeconfig(tmp_path, {"token": "two"}, {"server": "https://api.example", "certificate-authority-data": other})
        assert await found.refresh()
        assert found.tls() is not context
        kubeconfig(tmp_path, plugin(tmp_path))
        await found.refresh(plugin=False)  # another way to sign in: the plugin is run whether it is due or not
        assert found.authorization() == b"Bearer token-1"
        assert not await found.refresh(plugin=False)

    asyncio.run(scenario())
    assert (tmp_path / "runs").read_text().count("\n") == 1


def test_a_kubeconfig_that_is_a_mounted_secret(tmp_path: Path) -> None:
    for name, token in (("..1", "one"), ("..2", "two")):
        (tmp_path / name).mkdir()
        kubeconfig(tmp_path / name, {"token": token})
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "kubeconfig").symlink_to("..data/kubeconfig")

    async def scenario() -> None:
        found = await ClusterCredentials.load("prod", kubeconfig=tmp_path / "kubeconfig")
        (tmp_path / "..new").symlink_to("..2")
        os.replace(tmp_path / "..new", tmp_path / "..data")
        assert await found.refresh()
        assert found.authorization() == b"Bearer two"

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "damage",
    ["", "{", "current-context: none", '{"token": "secret-in-a-broken-file"', "\0", "gone"],
)
def test_a_damaged_kubeconfig_changes_nothing(tmp_path: Path, damage: str) -> None:
    async def scenario() -> None:
        found = await load(tmp_path, {"token": "one"})
        path = tmp_path / "kubeconfig"
        whole = path.read_text()
        path.unlink()
        if damage != "gone":
            path.write_text(damage)
        with capture_logs() as logs:
            for _ in range(3):
                with pytest.raises(CredentialsError):
                    await found.refresh()
        assert [entry["event"] for entry in logs] == ["cluster_credentials_failed"]
        assert "secret" not in repr(logs)
        assert found.authorization() == b"Bearer one"
        assert found.complaint
        path.write_text(whole.replace('"one"', '"one" '))
        await found.refresh()
        assert not found.complaint

    asyncio.run(scenario())


def test_another_server_is_not_followed_but_said(tmp_path: Path) -> None:
    async def scenario() -> None:
        found = await load(tmp_path, {"token": "one"})
        ca = base64.b64encode(CA.pem).decode()
        kubeconfig(tmp_path, {"token": "two"}, {"server": "https://other.example", "certificate-authority-data": ca})
        with capture_logs() as logs:
            assert not await found.refresh()
            assert not await found.refresh()
        # What is for the other server must not go to this one.
        assert (found.moved, found.host, found.authorization()) == (True, "api.example", b"Bearer one")
        assert [(entry["event"], entry["server"]) for entry in logs] == [("cluster_moved", "other.example")]

    asyncio.run(scenario())


def test_in_passthrough_mode_a_changed_kubeconfig_gives_no_account(tmp_path: Path) -> None:
    async def scenario() -> None:
        path = kubeconfig(tmp_path, {"token": "one"})
        found = await ClusterCredentials.load("prod", kubeconfig=path, passthrough=True)
        kubeconfig(tmp_path, {"token": "two"})
        await found.refresh()
        assert found.authorization() is None

    asyncio.run(scenario())
