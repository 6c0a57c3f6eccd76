"""The real site on loopback, over a real store and index in a folder, asked by whom the test says.

async with Stage(folder) as stage:
    identifier = await stage.record(cast_header(user="ana@example.com"), events)
    stage.peer = person("ana@example.com", {"own": True})
    answer = await stage.get("/sessions")
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import aiohttp
from aiohttp import web

from k8sproxy.common.errors import Refusal
from k8sproxy.common.tailnet.peer import Peer
from recorder.index import Index
from recorder.model import End, Recording, Source
from recorder.store import Store
from recorder.store.blobs import FolderBlobs
from recorder.store.logs import FolderLog
from recorder.store.store import Store as _Store
from recorder.web import WebConfig, make_app
from recorder.web.kept import Keeps

DOMAIN = "example.com"
CAPABILITY = f"{DOMAIN}/cap/recorder"
PROXY = Source("kube-proxy.tail1234.ts.net", "100.64.0.9", tags=("tag:k8sproxy",))
EVERYTHING = {"view": True, "live": True, "export": True, "audit": True}


def person(login: str, *rules: object) -> Peer:
    """A user's node with these rules."""
    name = login.partition("@")[0]
    return Peer("100.64.0.7", f"n{name}", f"{name}-laptop.tail1234.ts.net.", (), 7, login, name, {CAPABILITY: rules})


def machine(name: str, *rules: object) -> Peer:
    """A tagged node with these rules."""
    return Peer("100.64.0.8", f"n{name}", f"{name}.", ("tag:ci",), 8, "tagged-devices", "", {CAPABILITY: rules})


def cast_header(
    user: str = "ana@example.com",
    command: str = "bash",
    namespace: str = "default",
    pod: str = "web-0",
    cluster: str = "prod",
    **more: Any,
) -> dict[str, Any]:
    """A header as the proxy sends it."""
    node = user.partition("@")[0] + "-laptop.tail1234.ts.net."
    kubernetes = {
        "PodName": pod,
        "Namespace": namespace,
        "Container": "app",
        "SessionType": "exec",
        "Cluster": cluster,
    }
    return {
        "version": 2,
        "width": 80,
        "height": 24,
        "timestamp": 1,
        "command": command,
        "srcNode": node,
        "srcNodeUser": user,
        "kubernetes": kubernetes,
        "userAgent": "kubectl/v1.36.0 (linux/amd64)",
        "sessionID": f"s-{command}-{user}",
        "impersonation": {"user": user, "groups": ["dev"]},
    } | more


def api_event(
    user: str = "ana@example.com", verb: str = "get", namespace: str = "default", **more: Any
) -> dict[str, Any]:
    """An API event as the proxy sends it."""
    path = f"/api/v1/namespaces/{namespace}/pods/web-0"
    return {
        "type": "kubernetes-api-request",
        "id": "e1",
        "timestamp": 1,
        "userAgent": "kubectl/v1.36.0",
        "request": {"method": "GET", "path": path, "body": "", "queryParameters": {}},
        "kubernetes": {
            "IsResourceRequest": True,
            "Path": path,
            "Verb": verb,
            "APIPrefix": "api",
            "APIVersion": "v1",
            "Namespace": namespace,
            "Resource": "pods",
            "Name": "web-0",
            "Cluster": "prod",
        },
        "source": {"node": user.partition("@")[0] + "-laptop.tail1234.ts.net.", "nodeUser": user},
    } | more


def line(event: object) -> bytes:
    """A line of a cast."""
    return json.dumps(event).encode() + b"\n"


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode()

    def json(self) -> Any:
        """The body as JSON values."""
        return json.loads(self.body)


class Stage:
    """See above. peer: who asks; a Refusal is raised instead, None is nobody that the tailnet knows. keeps: the holds
    and acts."""

    def __init__(
        self, folder: Path, *, hosts: tuple[str, ...] = ("recorder.test",), keeps: Keeps | None = None
    ) -> None:
        self.peer: Peer | Refusal = person("root@example.com", EVERYTHING)
        self.store: Store = _Store(FolderBlobs(folder), FolderLog(folder), min_free=0)
        self.index = Index(f"sqlite:{folder / 'index.db'}")
        self.app = make_app(self.store, self.index, self._find, WebConfig(DOMAIN, hosts), keeps=keeps)
        self.port = 0

    async def _find(self, request: web.Request) -> Peer:
        if isinstance(self.peer, Refusal):
            raise Refusal(self.peer.status, self.peer.cause, self.peer.message)
        return self.peer

    async def __aenter__(self) -> Stage:
        await self.index.open()
        self.store.observers.append(self.index)
        await self.store.open()
        self.index.watch(self.store)
        await self.index.catch_up(self.store)
        self._runner = web.AppRunner(self.app, access_log=None, shutdown_timeout=1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.port = self._runner.addresses[0][1]
        self.client = aiohttp.ClientSession(f"http://127.0.0.1:{self.port}", auto_decompress=True)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.client.close()
        await self._runner.cleanup()
        await self.store.aclose()
        await self.index.aclose()

    @property
    def url(self) -> str:
        """The start page."""
        return f"http://127.0.0.1:{self.port}/"

    async def get(self, path: str, *, method: str = "GET", **headers: str) -> Answer:
        """Ask; a header's underscores stand for dashes."""
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.client.request(method, path, headers=fields, allow_redirects=False) as response:
            return Answer(response.status, response.headers, await response.read())

    async def record(
        self,
        header: Mapping[str, Any],
        events: Iterable[object],
        *,
        end: End | None = End.CLEAN,
        source: Source = PROXY,
    ) -> str:
        """Keep a recording; its id. end: None leaves it running."""
        writer = await self.store.begin(line(header), source)
        data = b"".join(event if isinstance(event, bytes) else line(event) for event in events)
        for start in range(0, len(data), 1 << 20):
            if writer.blocked:
                await writer.ready()
            writer.write(data[start : start + (1 << 20)])
        total = len(line(header)) + len(data)
        while writer.acked < total:
            await writer.wait_acked(writer.acked)
        recording: Recording = writer.recording if end is None else await writer.finish(end)
        if end is None:
            self.writer = writer
        await self.index.settled()
        return recording.id

    async def event(self, document: Mapping[str, Any], source: Source = PROXY) -> str:
        """Keep an API event; its id."""
        kept = await self.store.add_event(json.dumps(document).encode(), source)
        await self.index.settled()
        return kept.id
