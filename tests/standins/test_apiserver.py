"""The stand-in API server, in what the demo rests on: who may do what, tables, watches, and a process behind exec."""

from __future__ import annotations

import asyncio
import json
import os
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from demo.ca import Authority
from standins.apiserver import ApiServer
from standins.protobuf import decode

TOKEN = "of this test"
ADMIN = ("alice@example.com", "system:masters")
VIEWER = ("bob@example.com", "demo:viewers")
NOBODY = ("carol@example.com",)
PODS = "/api/v1/namespaces/default/pods"


class Client:
    """The proxy, as the API server sees it."""

    def __init__(self, session: aiohttp.ClientSession, port: int, tls: object) -> None:
        self._session = session
        self._base = f"https://127.0.0.1:{port}"
        self._tls: Any = tls

    def headers(self, user: tuple[str, ...]) -> list[tuple[str, str]]:
        return [
            ("Authorization", f"Bearer {TOKEN}"),
            *(("Impersonate-User", name) for name in user[:1]),
            *(("Impersonate-Group", group) for group in user[1:]),
        ]

    async def ask(
        self,
        user: tuple[str, ...],
        path: str,
        method: str = "GET",
        headers: tuple[tuple[str, str], ...] = (),
        **more: Any,
    ) -> tuple[int, Any]:
        everything = [*self.headers(user), *headers]
        async with self._session.request(
            method, self._base + path, headers=everything, ssl=self._tls, **more
        ) as answer:
            text = await answer.text()
            return answer.status, json.loads(text) if "json" in answer.content_type else text

    def watch(self, user: tuple[str, ...], path: str) -> Any:
        return self._session.get(self._base + path, headers=self.headers(user), ssl=self._tls)

    def exec(self, user: tuple[str, ...], query: str, protocol: str = "v5.channel.k8s.io") -> Any:
        path = f"{self._base}{PODS}/web/exec?{query}"
        return self._session.ws_connect(
            path, protocols=(protocol,), headers=self.headers(user), ssl=self._tls, max_msg_size=0
        )


def with_server(home: Path, test: Callable[[Client], Awaitable[None]]) -> None:
    async def go() -> None:
        authority = Authority("test")
        tls = ssl.create_default_context(cadata=authority.pem.decode())
        async with (
            asyncio.timeout(30),
            ApiServer(TOKEN, home).serve(authority) as port,
            aiohttp.ClientSession() as session,
        ):
            await test(Client(session, port, tls))

    asyncio.run(go())


async def frames(socket: aiohttp.ClientWebSocketResponse) -> tuple[dict[int, bytes], dict[str, Any]]:
    """Everything that an exec sends until it closes: bytes by channel, and the Status."""
    channels: dict[int, bytes] = {}
    async for message in socket:
        assert message.type is aiohttp.WSMsgType.BINARY
        channels[message.data[0]] = channels.get(message.data[0], b"") + message.data[1:]
    return channels, json.loads(channels.pop(3))


def test_only_the_proxy_and_only_impersonating(tmp_path: Path) -> None:
    async def test(client: Client) -> None:
        assert (await client.ask((), PODS))[0] == 403
        wrong = (("Authorization", "Bearer wrong"),)
        async with client._session.get(client._base + PODS, headers=dict(wrong), ssl=client._tls) as answer:
            assert answer.status == 401

    with_server(tmp_path, test)


@pytest.mark.parametrize(
    ("user", "method", "path", "status"),
    [
        (ADMIN, "GET", PODS, 200),
        (ADMIN, "DELETE", f"{PODS}/web", 200),
        (ADMIN, "GET", f"{PODS}/nobody", 404),
        (ADMIN, "GET", "/api/v1/pods/web", 404),
        (ADMIN, "GET", "/apis/apps/v1", 404),
        (VIEWER, "GET", "/api/v1/nodes/node-1", 200),
        (VIEWER, "GET", f"{PODS}/web/log", 200),
        (VIEWER, "DELETE", f"{PODS}/web", 403),
        (VIEWER, "GET", f"{PODS}/web/exec?command=id", 403),
        (VIEWER, "POST", f"{PODS}/web/exec?command=id", 403),
        (NOBODY, "GET", PODS, 403),
        (NOBODY, "GET", "/version", 200),
        ((*NOBODY, "demo:deployers"), "DELETE", "/api/v1/namespaces/default/configmaps/settings", 200),
        ((*NOBODY, "demo:deployers"), "DELETE", f"{PODS}/web", 403),
    ],
)
def test_who_may_do_what(tmp_path: Path, user: tuple[str, ...], method: str, path: str, status: int) -> None:
    async def test(client: Client) -> None:
        code, answer = await client.ask(user, path, method)
        assert code == status
        if status >= 400:
            assert (answer["kind"], answer["code"]) == ("Status", status)

    with_server(tmp_path, test)


def test_a_refusal_reads_like_the_real_one(tmp_path: Path) -> None:
    async def test(client: Client) -> None:
        _, status = await client.ask(NOBODY, PODS)
        assert status["message"] == (
            'pods is forbidden: User "carol@example.com" cannot list resource "pods" in API group "" '
            'in the namespace "default"'
        )
        _, status = await client.ask(VIEWER, "/api/v1/nodes/node-1", "DELETE")
        assert status["message"] == (
            'nodes "node-1" is forbidden: User "bob@example.com" cannot delete resource "nodes" in API group "" '
            "at the cluster scope"
        )

    with_server(tmp_path, test)


def test_a_table_is_given_to_who_asks_for_one(tmp_path: Path) -> None:
    async def test(client: Client) -> None:
        _, plain = await client.ask(ADMIN, PODS)
        assert plain["kind"] == "PodList"
        accept = (("Accept", "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"),)
        _, answer = await client.ask(ADMIN, PODS, headers=accept)
        assert answer["kind"] == "Table"
        assert [row["cells"][0] for row in answer["rows"]] == ["web", "worker"]

    with_server(tmp_path, test)


@pytest.mark.parametrize("name", ["..", "a/b", "Upper", "", "-a"])
def test_a_name_that_could_be_a_path_is_refused(tmp_path: Path, name: str) -> None:
    async def test(client: Client) -> None:
        assert (await client.ask(ADMIN, PODS, "POST", json={"metadata": {"name": name}}))[0] == 422

    with_server(tmp_path, test)


def test_a_watch_tells_of_changes_since_a_version(tmp_path: Path) -> None:
    async def test(client: Client) -> None:
        maps = "/api/v1/namespaces/default/configmaps"
        _, before = await client.ask(ADMIN, maps)
        version = before["metadata"]["resourceVersion"]
        await client.ask(ADMIN, maps, "POST", json={"metadata": {"name": "one"}, "data": {"a": "1", "b": "2"}})
        async with client.watch(VIEWER, f"{maps}?watch=true&resourceVersion={version}") as stream:
            merge = {"Content-Type": "application/merge-patch+json"}
            patch = json.dumps({"data": {"a": None, "b": "3"}})
            await client.ask(ADMIN, f"{maps}/one", "PATCH", headers=tuple(merge.items()), data=patch)
            await client.ask(ADMIN, f"{PODS}/worker", "DELETE")
            await client.ask(ADMIN, f"{maps}/one", "DELETE")
            events = [json.loads(await stream.content.readline()) for _ in range(3)]
        assert [event["type"] for event in events] == ["ADDED", "MODIFIED", "DELETED"]
        assert [event["object"]["data"] for event in events] == [{"a": "1", "b": "2"}, {"b": "3"}, {"b": "3"}]

    with_server(tmp_path, test)


@pytest.mark.parametrize("protocol", ["v5.channel.k8s.io", "v4.channel.k8s.io"])
def test_exec_runs_a_process_and_says_how_it_ended(tmp_path: Path, protocol: str) -> None:
    async def test(client: Client) -> None:
        query = "command=sh&command=-c&command=echo+out;echo+err+>%262;exit+7&stdout=true&stderr=true"
        async with client.exec(ADMIN, query, protocol) as socket:
            assert socket.protocol == protocol
            outputs, status = await frames(socket)
        assert outputs == {1: b"out\n", 2: b"err\n"}
        assert status["details"]["causes"] == [{"reason": "ExitCode", "message": "7"}]

    with_server(tmp_path, test)


def test_exec_passes_stdin_until_it_is_closed(tmp_path: Path) -> None:
    async def test(client: Client) -> None:
        block = bytes(range(256)) * 1024
        async with client.exec(ADMIN, "command=cat&stdin=true&stdout=true") as socket:
            async with asyncio.TaskGroup() as group:
                reading = group.create_task(frames(socket))
                for _ in range(8):
                    await socket.send_bytes(b"\0" + block)
                await socket.send_bytes(b"\xff\0")
            outputs, status = reading.result()
        assert outputs == {1: block * 8}
        assert status["status"] == "Success"

    with_server(tmp_path, test)


def test_exec_with_a_terminal_resizes_it(tmp_path: Path) -> None:
    async def test(client: Client) -> None:
        async with client.exec(ADMIN, "command=sh&stdin=true&stdout=true&tty=true") as socket:
            await socket.send_bytes(b"\4" + b'{"Width":123,"Height":45}')
            await socket.send_bytes(b"\0stty size; exit 3\n")
            outputs, status = await frames(socket)
        assert b"45 123\r\n" in outputs[1]
        assert status["details"]["causes"][0]["message"] == "3"

    with_server(tmp_path, test)


def test_a_command_that_is_not_there(tmp_path: Path) -> None:
    async def test(client: Client) -> None:
        async with client.exec(ADMIN, "command=no-such-command&stdout=true") as socket:
            _, status = await frames(socket)
        assert status["reason"] == "InternalError"

    with_server(tmp_path, test)


@pytest.mark.parametrize("tty", ["true", "false"])
def test_a_client_that_goes_takes_its_process_along(tmp_path: Path, tty: str) -> None:
    async def test(client: Client) -> None:
        # The fifo tells of the end of everything that has it open for writing: the shell's background child too.
        script = "mkfifo life; exec 3<>life; sleep 1000 %26 echo ready; wait"
        async with client.exec(ADMIN, f"command=sh&command=-c&command={script}&stdout=true&tty={tty}") as socket:
            assert b"ready" in (await socket.receive_bytes())
            life = os.open(tmp_path / "default" / "web" / "life", os.O_RDONLY | os.O_NONBLOCK)
            ended = asyncio.Event()
            asyncio.get_running_loop().add_reader(life, ended.set)  # nobody writes: readable is its end
            assert not ended.is_set()
        await ended.wait()
        asyncio.get_running_loop().remove_reader(life)
        assert os.read(life, 1) == b""
        os.close(life)

    with_server(tmp_path, test)


def test_protobuf_as_kubectl_sends_it() -> None:
    def field(number: int, value: bytes) -> bytes:
        return bytes([number << 3 | 2, len(value)]) + value

    data = field(2, field(1, b"colour") + field(2, b"red")) + field(2, field(1, b"empty") + field(2, b""))
    raw = field(1, field(1, b"settings") + b"\x38\x96\x01") + data  # 7 is a number in ObjectMeta: passed over
    envelope = b"k8s\0" + field(1, field(1, b"v1") + field(2, b"ConfigMap")) + field(2, raw)
    assert decode(envelope) == {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "settings"},
        "data": {"colour": "red", "empty": ""},
    }
    for end in range(len(envelope)):
        try:
            decode(envelope[:end])
        except ValueError:
            continue
