"""The anchor in a ConfigMap, through the Kubernetes API: no volume holds it, and RBAC says who may change it.

    data:  {"manifests": "212 0f6c..", "register.main": "10334 91ab..", "acts": "17 .."}

The recorder's own service account asks, with the token that kubelet mounts and renews. It needs `get` and `patch` on
this one ConfigMap and nothing else, so the ConfigMap has to be there (manifests/recorder makes it). A write names the
version that was read (metadata.resourceVersion), so of two that write at once the second reads again.
"""

from __future__ import annotations

import asyncio
import json
import os
import ssl
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import aiohttp

from recorder.proof.keys import Anchor, KeyFault
from recorder.proof.witness import Heads, chain_name, file_name, parse_anchor, write_anchor

# Where kubelet mounts a service account: token, ca.crt, namespace.
ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
# Seconds between two writes while a register grows: etcd keeps each of them for some minutes.
PAUSE = 5.0
# Seconds for a whole request.
TIMEOUT = 10.0
# Bytes of an answer: a ConfigMap has at most a megabyte.
_MAX_ANSWER = 2 << 20
# Times that somebody else may write in between.
_TRIES = 5


class ConfigMapWitness:
    """namespace: "" for the account's own. account: see ACCOUNT. server: the API server's URL, "" in a pod."""

    def __init__(self, name: str, namespace: str = "", *, account: Path = ACCOUNT, server: str = "") -> None:
        self.name = f"ConfigMap {namespace}/{name}" if namespace else f"ConfigMap {name}"
        self.only = ""
        self.pause = PAUSE
        self._map = name
        self._namespace = namespace
        self._account = account
        self._server = server
        self._session: aiohttp.ClientSession | None = None

    async def recall(self) -> Heads:
        """See Witness."""
        heads, _ = await self._read()
        return heads

    async def remember(self, chain: str, head: Anchor) -> None:
        """See Witness."""
        await self._write(chain, head, lambda known: known.number < head.number)

    async def begin(self, chain: str, head: Anchor) -> None:
        """See Witness."""
        await self._write(chain, head, lambda known: known != head)

    async def _write(self, chain: str, head: Anchor, counts: Callable[[Anchor], bool]) -> None:
        """counts: asked about what is kept, whether it is to be written over."""
        for _ in range(_TRIES):
            heads, version = await self._read()
            if (known := heads.get(chain)) is not None and not counts(known):
                return
            change = {"metadata": {"resourceVersion": version}, "data": {file_name(chain): write_anchor(head).strip()}}
            status, value = await self._ask("PATCH", change)
            if status == 200:
                return
            if status != 409:
                raise self._refused(status, value)
        raise KeyFault(f"{self.name}: other programs write it all the time")

    async def examine(self, manifests: Mapping[int, tuple[float, str]]) -> tuple[list[str], str]:
        """See Witness."""
        return [], ""

    async def aclose(self) -> None:
        """See Witness."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _read(self) -> tuple[Heads, str]:
        """What stands in it, and its version."""
        status, value = await self._ask("GET")
        if status != 200:
            raise self._refused(status, value)
        try:
            data, version = value.get("data", {}), value["metadata"]["resourceVersion"]
            if not isinstance(version, str):
                raise TypeError("not a version")
            return {chain_name(str(key)): parse_anchor(text, self.name) for key, text in data.items()}, version
        except (KeyError, TypeError, AttributeError):
            raise KeyFault(f"{self.name}: the API server's answer cannot be understood") from None

    def _refused(self, status: int, value: Any) -> KeyFault:
        if status == 404:
            return KeyFault(f"{self.name}: does not exist; create it (manifests/recorder has it)")
        message = value.get("message") if isinstance(value, dict) else None
        more = f": {message[:200]!a}" if isinstance(message, str) else ""
        return KeyFault(f"{self.name}: the API server answers {status}{more}")

    async def _ask(self, method: str, change: Any = None) -> tuple[int, Any]:
        try:
            token = await asyncio.to_thread(self._file, "token")
            namespace = self._namespace or await asyncio.to_thread(self._file, "namespace")
            url = f"{self._url()}/api/v1/namespaces/{namespace}/configmaps/{self._map}"
            headers = {"Authorization": f"Bearer {token}", "Accept": "application/json"}
            if change is not None:
                headers["Content-Type"] = "application/merge-patch+json"
            if self._session is None:
                self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT))
            async with self._session.request(
                method,
                url,
                data=None if change is None else json.dumps(change),
                headers=headers,
                ssl=await asyncio.to_thread(self._context),
                allow_redirects=False,
            ) as answer:
                body = await answer.content.read(_MAX_ANSWER)
                while not answer.content.at_eof() and len(body) < _MAX_ANSWER:
                    body += await answer.content.read(_MAX_ANSWER - len(body))
                return answer.status, json.loads(body)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            why = "it does not answer in time" if isinstance(error, TimeoutError) else type(error).__name__
            raise KeyFault(f"{self.name}: cannot ask the API server: {why}") from None
        except (ValueError, RecursionError):
            raise KeyFault(f"{self.name}: the API server's answer is not JSON") from None

    def _url(self) -> str:
        if self._server:
            return self._server.rstrip("/")
        host, port = os.environ.get("KUBERNETES_SERVICE_HOST", ""), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
        if not host:
            raise KeyFault(f"{self.name}: this is not a pod, and no server is configured")
        return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"

    def _file(self, name: str) -> str:
        try:
            return (self._account / name).read_text().strip()
        except OSError as error:
            raise KeyFault(f"{self.name}: {self._account / name}: {error.strerror}") from None

    def _context(self) -> ssl.SSLContext:
        # Read each time, as kubelet may renew it; a request is rare.
        try:
            context = ssl.create_default_context(cafile=str(self._account / "ca.crt"))
            # As client-go checks it: no common name in place of an alternative name, and any authority in the file.
            # Python 3.13 and later would also refuse certificates without an authority key identifier.
            context.hostname_checks_common_name = False
            context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
            context.verify_flags &= ~ssl.VERIFY_X509_STRICT
            return context
        except (OSError, ssl.SSLError) as error:
            raise KeyFault(f"{self.name}: {self._account / 'ca.crt'}: {error.strerror or 'no certificate'}") from None
