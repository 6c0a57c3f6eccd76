"""The anchor in a ConfigMap, at an API server that answers all sorts of things (a real one: system/test_anchor.py)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from k8sproxy.tls.certificates import server_context
from recorder.proof import KeyFault
from recorder.proof.configmap import ConfigMapWitness
from recorder.proof.keys import Anchor
from standins.pki import Authority
from standins.tailscaled import make_certificate
from tests.recorder.proof.sealed import run

ONE, TWO = Anchor(7, "a" * 64), Anchor(9, "b" * 64)


class Api:
    """data: of the ConfigMap, None for none. answers: to be given first, (status, body). asked: (method, token)."""

    def __init__(self) -> None:
        self.data: dict[str, str] | None = {}
        self.version = 1
        self.answers: list[tuple[int, str]] = []
        self.asked: list[tuple[str, str]] = []

    async def handle(self, request: web.Request) -> web.Response:
        assert request.path == "/api/v1/namespaces/ns/configmaps/anchor"
        self.asked.append((request.method, request.headers["Authorization"]))
        if self.answers:
            status, text = self.answers.pop(0)
            return web.Response(status=status, text=text, headers={"Location": "/elsewhere"})
        if self.data is None:
            return web.json_response({"message": 'configmaps "anchor" not found'}, status=404)
        if request.method == "PATCH":
            assert request.content_type == "application/merge-patch+json"
            change = await request.json()
            if change["metadata"]["resourceVersion"] != str(self.version):
                return web.json_response({"message": "conflict"}, status=409)
            self.data |= change["data"]
            self.version += 1
        value: dict[str, Any] = {"metadata": {"resourceVersion": str(self.version)}}
        return web.json_response(value | ({"data": self.data} if self.data else {}))


def account(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "ca.crt").write_bytes(make_certificate("api.test")[1])
    (folder / "namespace").write_text("ns")
    (folder / "token").write_text("secret-token\n")
    return folder


@asynccontextmanager
async def serving(
    folder: Path, pair: tuple[bytes, bytes] | None = None, ca: bytes = b""
) -> AsyncIterator[tuple[Api, ConfigMapWitness]]:
    """pair, ca: a certificate for https, and what the account has for its authority."""
    api = Api()
    app = web.Application()
    app.router.add_route("*", "/{rest:.*}", api.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=server_context(*pair) if pair else None)
    await site.start()
    host, port = runner.addresses[0][:2]
    files = account(folder)
    if pair is not None:
        host = "localhost"
        (files / "ca.crt").write_bytes(ca)
    witness = ConfigMapWitness("anchor", account=files, server=f"{'https' if pair else 'http'}://{host}:{port}")
    try:
        yield api, witness
    finally:
        await witness.aclose()
        await runner.cleanup()


def test_what_it_remembers(tmp_path: Path) -> None:
    async def check() -> None:
        async with serving(tmp_path / "account") as (api, witness):
            assert await witness.recall() == {}
            await witness.remember("manifests", ONE)
            await witness.remember("register main", TWO)
            await witness.remember("register main", TWO)
            assert await witness.recall() == {"manifests": ONE, "register main": TWO}
            assert api.data == {"manifests": f"7 {ONE.sha256}", "register.main": f"9 {TWO.sha256}"}
            # The token is read each time: kubelet renews it.
            (tmp_path / "account/token").write_text("newer")
            await witness.recall()
            assert {token for _, token in api.asked} == {"Bearer secret-token", "Bearer newer"}
            # A number becomes smaller on an operator's word alone.
            await witness.remember("register main", ONE)
            assert (await witness.recall())["register main"] == TWO
            await witness.begin("register main", ONE)
            assert (await witness.recall())["register main"] == ONE

    run(check())


def test_of_two_that_write_at_once_the_second_reads_again(tmp_path: Path) -> None:
    async def check() -> None:
        async with serving(tmp_path / "account") as (api, witness):
            body = json.dumps({"metadata": {"resourceVersion": "0"}})
            api.answers = [(200, body)]
            await witness.remember("acts", ONE)
            assert await witness.recall() == {"acts": ONE}
            api.answers = [(200, body), (409, "{}")] * 5
            with pytest.raises(KeyFault, match="all the time"):
                await witness.remember("acts", TWO)

    run(check())


@pytest.mark.parametrize(
    ("status", "text", "fault"),
    [
        (403, '{"message": "forbidden: User x"}', r"answers 403: 'forbidden: User x'"),
        (401, "{}", "answers 401"),
        (404, "{}", "does not exist; create it"),
        (500, "nonsense", "is not JSON"),
        (301, "{}", "answers 301"),
        (200, "[]", "cannot be understood"),
        (200, "{}", "cannot be understood"),
        (200, '{"metadata": {"resourceVersion": 7}}', "cannot be understood"),
        (200, '{"metadata": {"resourceVersion": "7"}, "data": {"acts": "x"}}', "is not an anchor"),
        (200, '{"metadata": {"resourceVersion": "7"}, "data": {"acts": 7}}', "cannot be understood"),
        (200, '{"metadata": {"resourceVersion": "7"}, "data": []}', "cannot be understood"),
        (200, "[" * 100_000, "is not JSON"),
    ],
)
def test_answers_that_are_refused(tmp_path: Path, status: int, text: str, fault: str) -> None:
    async def check() -> None:
        async with serving(tmp_path / "account") as (api, witness):
            for work in (witness.recall, lambda: witness.remember("acts", ONE)):
                api.answers = [(status, text)]
                with pytest.raises(KeyFault, match=fault):
                    await work()
                assert "secret-token" not in fault

    run(check())


def test_without_a_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    witness = ConfigMapWitness("anchor", account=account(tmp_path / "account"))

    async def check() -> None:
        with pytest.raises(KeyFault, match="this is not a pod"):
            await witness.recall()
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "1")
        with pytest.raises(KeyFault, match="cannot ask"):
            await witness.recall()
        (tmp_path / "account/ca.crt").write_text("nonsense")
        with pytest.raises(KeyFault, match=r"ca\.crt"):
            await witness.recall()
        (tmp_path / "account/token").unlink()
        with pytest.raises(KeyFault, match="token"):
            await witness.recall()
        await witness.aclose()

    run(check())


@pytest.mark.parametrize("alternatives", [("localhost",), ()], ids=["by an alternative name", "by its common name"])
def test_an_api_server_is_known_by_its_alternative_names_alone(tmp_path: Path, alternatives: tuple[str, ...]) -> None:
    """As client-go has it; the token is sent to nobody else."""

    async def scene() -> None:
        authority = Authority()
        pair = authority.issue("localhost", alternatives=alternatives)
        async with serving(tmp_path / "account", pair, authority.pem) as (api, witness):
            if alternatives:
                assert await witness.recall() == {}
            else:
                with pytest.raises(KeyFault, match="ConfigMap anchor"):
                    await witness.recall()
            assert bool(api.asked) is bool(alternatives)
        await asyncio.sleep(0)  # the server sees that nobody is there

    run(scene())
