"""401: whose it is, and what its client reads."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import json
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from k8sproxy.clusters import account as module
from k8sproxy.clusters.account import NOT_ACCEPTED, Account, AccountState
from k8sproxy.clusters.credentials import ClusterCredentials
from standins.pki import Authority
from tests.clusters.test_credentials import Clock, kubeconfig, plugin
from tests.dataplane.proxied import Raw, Stage, get, post, reply
from tests.lives import assert_documented

# As kube-apiserver answers where it does not know who asks.
UNAUTHORIZED = json.dumps(
    {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": "Unauthorized",
        "reason": "Unauthorized",
        "code": 401,
    }
).encode()


@pytest.mark.parametrize(
    "path",
    ["/api/v1/pods", "/version", "/apis/metrics.k8s.io/v1beta1/nodes", "/api/v1/namespaces/a/pods/web/log"],
)
async def test_a_rejected_account_is_not_the_clients_fault(path: str) -> None:
    async with Stage() as stage:
        stage.account.state = AccountState.REJECTED
        client, upstream, _ = await stage.exchange(get(path))
        await upstream.send(reply(UNAUTHORIZED, "401 Unauthorized"))
        assert (await client.response()).refusal() == (502, f"k8sproxy: {NOT_ACCEPTED}")
        assert stage.account.doubted == 1


async def test_a_401_from_behind_the_api_server_passes_whole() -> None:
    async with Stage() as stage:
        client, upstream, _ = await stage.exchange(get("/api/v1/namespaces/a/pods/web/log"))
        answer = reply(b"the kubelet wants credentials", "401 Unauthorized", "Audit-Id: 7")
        for at in range(0, len(answer), 7):
            await upstream.send(answer[at : at + 7])
        response = await client.response()
        assert (response.status, response.body) == (401, b"the kubelet wants credentials")
        assert response.fields["audit-id"] == "7"
        # The connection is good for the next request, on both sides.
        await client.send(get())
        await upstream.head()
        await upstream.send(reply(b"next"))
        assert (await client.response()).body == b"next"


@pytest.mark.parametrize(
    "status", ["400 Bad Request", "403 Forbidden", "407 Proxy Authentication Required", "503 Busy"]
)
async def test_other_refusals_are_no_doubt_of_the_account(status: str) -> None:
    async with Stage() as stage:
        client, upstream, _ = await stage.exchange(get())
        await upstream.send(reply(b"no", status))
        assert (await client.response()).body == b"no" and stage.account.doubted == 0


async def test_a_401_without_a_length_passes_to_its_end() -> None:
    async with Stage() as stage:
        client, upstream, _ = await stage.exchange(get())
        await upstream.send(b"HTTP/1.1 401 Unauthorized\r\nConnection: close\r\n\r\nfirst ")
        await upstream.send(b"second")
        await upstream.end()
        assert (await client.response()).status == 401
        assert stage.account.doubted == 1


async def test_a_401_that_is_held_back_may_be_of_any_length() -> None:
    body = bytes(300_000)
    async with Stage() as stage:
        client, upstream, _ = await stage.exchange(get())
        await upstream.send(reply(body, "401 Unauthorized"))
        response = await client.response()
        assert (response.status, response.body) == (401, body)


@pytest.mark.parametrize(
    "path",
    [
        "/api/v1/namespaces/a/pods/web/proxy/login",
        "/api/v1/namespaces/a/services/web:80/proxy/",
        "/api/v1/nodes/one/proxy/metrics",
        "/apis/cluster.karmada.io/v1alpha1/clusters/member/proxy/api/v1/pods",
    ],
)
async def test_an_applications_401_is_nobodys_business(path: str) -> None:
    async with Stage() as stage:
        client, upstream, _ = await stage.exchange(get(path))
        await upstream.send(reply(b"log in here", "401 Unauthorized", "WWW-Authenticate: Basic realm=x"))
        response = await client.response()
        assert (response.status, response.body) == (401, b"log in here")
        assert stage.account.doubted == 0


async def test_behind_a_proxy_subresource_a_rejected_account_is_told_too() -> None:
    async with Stage() as stage:
        stage.account.state = AccountState.REJECTED
        client, upstream, _ = await stage.exchange(get("/api/v1/namespaces/a/pods/web/proxy/login"))
        await upstream.send(reply(UNAUTHORIZED, "401 Unauthorized"))
        assert (await client.response()).status == 502


async def test_a_request_that_met_old_credentials_is_to_be_sent_again() -> None:
    async with Stage() as stage:
        client, upstream, _ = await stage.exchange(post(b"{}"))
        stage.authorization = b"Bearer renewed"
        await upstream.send(reply(UNAUTHORIZED, "401 Unauthorized"))
        response = await client.response()
        assert (response.status, response.fields["retry-after"]) == (503, "1")
        assert "have been renewed" in response.refusal()[1]


async def test_a_request_that_met_an_old_client_certificate_is_to_be_sent_again() -> None:
    """The certificate is the connection's."""
    async with Stage(tls=True) as stage:
        upstream, context = stage.upstream, stage.upstream.endpoint.tls()
        now = [context]
        upstream.endpoint = dataclasses.replace(upstream.endpoint, tls=lambda: now[0])
        client, peer, _ = await stage.exchange(get())
        now[0] = ssl.create_default_context()
        await peer.send(reply(UNAUTHORIZED, "401 Unauthorized"))
        response = await client.response()
        assert response.status == 503 and "have been renewed" in response.refusal()[1]


async def test_credentials_of_clients_are_their_own() -> None:
    async with Stage(impersonate=False) as stage:
        client, upstream, _ = await stage.exchange(get())
        await upstream.send(reply(UNAUTHORIZED, "401 Unauthorized"))
        response = await client.response()
        assert (response.status, response.body) == (401, UNAUTHORIZED)


async def test_a_client_that_goes_while_a_401_is_settled() -> None:
    async with Stage() as stage:
        asked, answer = asyncio.Event(), asyncio.Event()

        async def doubt() -> AccountState:
            asked.set()
            await answer.wait()
            return AccountState.ACCEPTED

        stage.account.doubt = doubt  # type: ignore[method-assign]  # one that waits
        client, upstream, _ = await stage.exchange(get())
        await upstream.send(reply(UNAUTHORIZED, "401 Unauthorized"))
        await asked.wait()
        await client.end()
        answer.set()
        await stage.until(lambda: stage.upstream.active == 0)
        await stage.until(lambda: not stage.shared.per_peer)


# -- the account itself, against an API server that a test plays


async def _with_account(
    directory: Path,
    stage: Stage,
    play: Callable[[Account, ClusterCredentials, Path, Callable[[bytes], Awaitable[bytes]]], Awaitable[None]],
    user: dict[str, Any] | None = None,
) -> None:
    """Run play(account, credentials, kubeconfig, answer): answer(response) answers the account's next question."""
    clock = Clock()
    path = kubeconfig(directory, user or {"token": "one"}, {"server": f"http://127.0.0.1:{stage.api.port}/base"})
    credentials = await ClusterCredentials.load("prod", kubeconfig=path, now=clock)
    clock.now += 100
    account = Account(credentials)

    async def answer(response: bytes) -> bytes:
        peer: Raw = await stage.api.accept()
        head = await peer.head()
        await peer.send(response)
        await peer.end()
        return head

    await play(account, credentials, path, answer)


async def test_the_state_follows_what_the_api_server_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SETTLED", 0.0)

    async def play(
        account: Account, credentials: ClusterCredentials, path: Path, answer: Callable[[bytes], Awaitable[bytes]]
    ) -> None:
        assert (account.state, account.fault()) == (AccountState.UNTRIED, None)
        with capture_logs() as logs:
            for response, state in (
                (reply(b"{}"), AccountState.ACCEPTED),
                (reply(UNAUTHORIZED, "401 Unauthorized"), AccountState.REJECTED),
                (b"nonsense\r\n\r\n", AccountState.REJECTED),
                (reply(UNAUTHORIZED, "401 Unauthorized"), AccountState.REJECTED),
                (reply(b"", "403 Forbidden"), AccountState.ACCEPTED),
                (b"nonsense\r\n\r\n", AccountState.ACCEPTED),
            ):
                settled, head = await asyncio.gather(account.doubt(), answer(response))
                assert settled is account.state is state
                assert head.startswith(b"GET /base/version HTTP/1.1\r\n")
                assert b"Authorization: Bearer one\r\n" in head
                assert b"impersonate" not in head.lower()
                assert (account.fault() == NOT_ACCEPTED) is (state is AccountState.REJECTED)
        assert [entry["event"] for entry in logs] == ["cluster_account_rejected", "cluster_account_accepted"]
        assert "Bearer" not in repr(logs)

    async with Stage() as stage:
        await _with_account(tmp_path, stage, play)


async def test_many_doubts_are_one_question(tmp_path: Path) -> None:
    async def play(
        account: Account, credentials: ClusterCredentials, path: Path, answer: Callable[[bytes], Awaitable[bytes]]
    ) -> None:
        doubts = [account.doubt() for _ in range(100)]
        *settled, _ = await asyncio.gather(*doubts, answer(reply(UNAUTHORIZED, "401 Unauthorized")))
        assert set(settled) == {AccountState.REJECTED}

    async with Stage() as stage:
        await _with_account(tmp_path, stage, play)


async def test_a_doubt_has_the_kubeconfig_read_again(tmp_path: Path) -> None:
    async def play(
        account: Account, credentials: ClusterCredentials, path: Path, answer: Callable[[bytes], Awaitable[bytes]]
    ) -> None:
        path.write_text(path.read_text().replace('"token": "one"', '"token": "two"'))
        _, head = await asyncio.gather(account.doubt(), answer(reply(b"{}")))
        assert b"Authorization: Bearer two\r\n" in head
        assert credentials.authorization() == b"Bearer two"

    async with Stage() as stage:
        await _with_account(tmp_path, stage, play)


async def test_only_a_401_to_the_account_itself_runs_its_plugin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An aggregated API may answer 401 as often as its owner likes."""
    monkeypatch.setattr(module, "SETTLED", 0.0)

    async def play(
        account: Account, credentials: ClusterCredentials, path: Path, answer: Callable[[bytes], Awaitable[bytes]]
    ) -> None:
        settled, head = await asyncio.gather(account.doubt(), answer(reply(b"{}")))
        assert settled is AccountState.ACCEPTED and b"Authorization: Bearer token-1\r\n" in head
        assert credentials.authorization() == b"Bearer token-1" and not credentials._wanted.is_set()

        async def twice() -> bytes:
            await answer(reply(UNAUTHORIZED, "401 Unauthorized"))
            return await answer(reply(b"{}"))

        with capture_logs() as logs:
            settled, head = await asyncio.gather(account.doubt(), twice())
        assert settled is AccountState.ACCEPTED and b"Authorization: Bearer token-2\r\n" in head
        assert [entry["event"] for entry in logs] == [
            "cluster_credentials_changed"
        ]  # it was never in doubt for anybody

    async with Stage() as stage:
        await _with_account(tmp_path, stage, play, plugin(tmp_path))


async def test_an_account_that_is_found_rejected_is_renewed_before_a_request_meets_it(tmp_path: Path) -> None:
    async def play(
        account: Account, credentials: ClusterCredentials, path: Path, answer: Callable[[bytes], Awaitable[bytes]]
    ) -> None:
        follow = asyncio.create_task(account.follow())
        await answer(reply(UNAUTHORIZED, "401 Unauthorized"))
        await stage.until(lambda: account.state is AccountState.REJECTED)
        assert credentials._wanted.is_set()
        follow.cancel()
        await asyncio.gather(follow, return_exceptions=True)

    async with Stage() as stage:
        await _with_account(tmp_path, stage, play)


async def test_it_is_asked_again_when_credentials_change(tmp_path: Path) -> None:
    async def play(
        account: Account, credentials: ClusterCredentials, path: Path, answer: Callable[[bytes], Awaitable[bytes]]
    ) -> None:
        follow = asyncio.create_task(account.follow())
        await answer(reply(UNAUTHORIZED, "401 Unauthorized"))
        credentials.bump()
        await answer(reply(b"{}"))
        await stage.until(lambda: account.state is AccountState.ACCEPTED)
        follow.cancel()
        await asyncio.gather(follow, return_exceptions=True)

    async with Stage() as stage:
        await _with_account(tmp_path, stage, play)


async def test_a_certificate_that_is_not_trusted_is_said(tmp_path: Path) -> None:
    async with Stage(tls=True) as stage:

        class Mistrusting(ClusterCredentials):
            suspected = 0

            def suspect(self) -> None:
                self.suspected += 1

        data = base64.b64encode(Authority("another").pem).decode()
        server = f"https://127.0.0.1:{stage.api.port}"
        path = kubeconfig(tmp_path, {"token": "one"}, {"server": server, "certificate-authority-data": data})
        credentials = await Mistrusting.load("prod", kubeconfig=path)
        account = Account(credentials)
        accepting = asyncio.create_task(stage.api.accept())
        await account.doubt()
        await asyncio.gather(accepting, return_exceptions=True)
        assert account.state is AccountState.UNTRIED
        assert account.fault() == "the API server's certificate is not trusted: unable to get local issuer certificate"
        assert isinstance(credentials, Mistrusting)
        assert credentials.suspected == 1


def test_the_docstring_has_the_table() -> None:
    assert_documented(AccountState)
