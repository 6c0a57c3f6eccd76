"""The demo on stand-ins: a tailnet of loopback addresses, and a cluster of this process or the one of a kubeconfig."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

from demo import proxy
from demo.ca import Authority
from demo.scenery import Stage
from demo.tailnet import ADDRESS, HOST, PEOPLE, Tailnet
from demo.workspace import Workspace, kubeconfig
from standins.apiserver import ApiServer
from standins.tailscaled import FakeTailscaled


@contextlib.asynccontextmanager
async def standin(space: Workspace, cluster: Path | None) -> AsyncIterator[Stage]:
    """Everything up and ready. cluster: a kubeconfig of a cluster to use in place of the stand-in."""
    async with contextlib.AsyncExitStack() as stack:
        if cluster is None:
            cluster = await stack.enter_async_context(_stand_in_cluster(space))
        port = proxy.free_port()
        tailnet = Tailnet(PEOPLE, ("127.0.0.1", port), secrets.token_urlsafe(16))
        daemon = FakeTailscaled(space.socket("tailscaled.sock"), tailnet.whois)
        await stack.enter_async_context(daemon)
        await stack.enter_async_context(tailnet)
        running = await stack.enter_async_context(proxy.serving(space, port, Path(daemon.path), cluster, HOST, ADDRESS))
        kubeconfigs = {}
        for person in PEOPLE:
            content = kubeconfig("demo", f"https://{HOST}", running.ca, proxy_url=tailnet.proxy_url(person))
            kubeconfigs[person.name] = space.write(f"{person.name}.kubeconfig", content)
        yield Stage(kubeconfigs=kubeconfigs, gone=running.process.wait, log=running.log)


@contextlib.asynccontextmanager
async def _stand_in_cluster(space: Workspace) -> AsyncIterator[Path]:
    """The stand-in API server; gives a kubeconfig with the proxy's account there."""
    token = secrets.token_urlsafe(16)
    authority = Authority("k8sproxy demo cluster")
    async with ApiServer(token, space.pods).serve(authority) as port:
        account = kubeconfig("demo", f"https://127.0.0.1:{port}", authority.pem, token=token)
        yield space.write("upstream.kubeconfig", account)
