"""The demo on stand-ins: a tailnet of loopback addresses, and a cluster of this process or the one of a kubeconfig."""

from __future__ import annotations

import contextlib
import secrets
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from demo import proxy
from demo.apiserver import ApiServer
from demo.ca import Authority
from demo.stage import Stage
from demo.tailnet import ADDRESS, HOST, PEOPLE, Tailnet
from demo.workspace import Workspace, kubeconfig
from tests.fakes.tailscaled import FakeTailscaled

_CLUSTER = "demo"


@contextlib.asynccontextmanager
async def standin(space: Workspace, cluster: Path | None) -> AsyncIterator[Stage]:
    """Everything up and ready. cluster: a kubeconfig of a cluster to use in place of the stand-in."""
    async with contextlib.AsyncExitStack() as stack:
        if cluster is None:
            cluster = await stack.enter_async_context(_stand_in_cluster(space))
        listener = ("127.0.0.1", _free_port())
        tailnet = Tailnet(PEOPLE, listener, secrets.token_urlsafe(16))
        daemon = space.socket("tailscaled.sock")
        admin = space.socket("admin.sock")
        await stack.enter_async_context(FakeTailscaled(daemon, tailnet.whois))
        await stack.enter_async_context(tailnet)
        config = space.write("k8sproxy.yaml", _config(daemon, admin, listener, space.root / "ca", cluster))
        log = space.root / "k8sproxy.log"
        process = await stack.enter_async_context(proxy.serving(config, admin, log))
        ca = (space.root / "ca" / "ca.crt").read_bytes()
        kubeconfigs = {
            person.name: space.write(
                f"{person.name}.kubeconfig",
                kubeconfig(_CLUSTER, f"https://{HOST}", ca, proxy_url=tailnet.proxy_url(person)),
            )
            for person in PEOPLE
        }
        yield Stage(kubeconfigs=kubeconfigs, gone=process.wait, log=log)


@contextlib.asynccontextmanager
async def _stand_in_cluster(space: Workspace) -> AsyncIterator[Path]:
    """The stand-in API server; gives a kubeconfig with the proxy's account there."""
    token = secrets.token_urlsafe(16)
    authority = Authority("k8sproxy demo cluster")
    async with ApiServer(token, space.pods).serve(authority) as port:
        account = kubeconfig(_CLUSTER, f"https://127.0.0.1:{port}", authority.pem, token=token)
        yield space.write("upstream.kubeconfig", account)


def _config(daemon: Path, admin: Path, listener: tuple[str, int], ca: Path, cluster: Path) -> dict[str, Any]:
    tls = {"source": "generated", "directory": str(ca), "names": [HOST, ADDRESS]}
    return {
        "apiVersion": "k8sproxy/v1alpha1",
        "tailnet": {"socket": str(daemon)},
        "listen": [{"address": f"{listener[0]}:{listener[1]}", "tls": tls}],
        "clusters": [{"name": _CLUSTER, "kubeconfig": str(cluster)}],
        "admin": {"address": f"unix:{admin}"},
        "shutdown": {"grace": "1s"},
    }


def _free_port() -> int:
    """A port that nothing listens on. Somebody could take it before the proxy does: it says so then, and ends."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
