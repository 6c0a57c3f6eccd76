"""The demo on the real bed (tests/bed): real daemons, a real control server and a real API server.

The same people are nodes of a real tailnet here, each with a tailscaled of their own, whose SOCKS5 server their
kubeconfig names. The stranger is a process of this machine that goes to the proxy's loopback port without a tailnet:
no daemon knows that connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from demo import proxy
from demo.scenery import Stage
from demo.tailnet import PEOPLE
from demo.workspace import Workspace, kubeconfig
from tests import bed as real

_DEPLOYER = "demo-deployer"


@contextlib.asynccontextmanager
async def real_bed(space: Workspace, progress: Callable[[str], None]) -> AsyncIterator[Stage]:
    """Everything up and ready. Builds the bed's programs where they aren't yet: minutes, with Go."""
    await _build(progress)
    directory = space.root / "bed"
    shutil.rmtree(directory, ignore_errors=True)  # of a run before: a bed starts empty
    bed = real.Bed(directory, audit=False, progress=progress)
    try:
        await _in_thread(lambda: _start(bed))
        port = proxy.free_port()
        node = bed.nodes["proxy"]
        account = bed.proxy_account_kubeconfig
        async with proxy.serving(space, port, node.socket, account, node.dns_name, node.tailnet_ip) as running:
            kubeconfigs = {}
            for person in PEOPLE:
                content = kubeconfig("demo", f"https://127.0.0.1:{port}", running.ca)
                if person.known:
                    way = f"socks5://{bed.nodes[person.name].socks5}"
                    content = kubeconfig("demo", f"https://{node.dns_name}:{port}", running.ca, proxy_url=way)
                kubeconfigs[person.name] = space.write(f"{person.name}.kubeconfig", content)
            yield Stage(kubeconfigs=kubeconfigs, gone=running.process.wait, log=running.log)
    finally:
        await _in_thread(bed.stop)


def _start(bed: real.Bed) -> None:
    bed.start()
    people = {person.name: person for person in PEOPLE if person.known}
    nodes: dict[str, dict[str, Any]] = {
        name: {"tags": person.tags} if person.tags else {"user": person.login} for name, person in people.items()
    }
    bed.add_nodes(proxy={"tags": ["tag:k8s"]}, **nodes)
    bed.set_grants(
        [
            real.kubernetes_grant(person.tags[0] if person.tags else person.login, person.groups)
            for person in people.values()
            if person.groups
        ]
    )
    bed.cluster.bind_group("demo:viewers", "view")
    bed.cluster.bind_group("demo:deployers", "view")
    bed.cluster.apply(
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRole",
            "metadata": {"name": _DEPLOYER},
            "rules": [
                {
                    "apiGroups": [""],
                    "resources": ["configmaps"],
                    "verbs": ["create", "update", "patch", "delete"],
                }
            ],
        }
    )
    bed.cluster.bind_group("demo:deployers", _DEPLOYER)
    bed.pod("web")


async def _build(progress: Callable[[str], None]) -> None:
    """The bed builds by itself too, but in a thread, which nothing can cancel."""
    make = await asyncio.create_subprocess_exec(
        "make",
        "--silent",
        "--no-print-directory",
        "-C",
        str(Path(real.__file__).parent),
        "all",
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        if make.stdout is not None:
            async for line in make.stdout:
                progress(line.decode().rstrip())
        if await make.wait():
            raise real.BedError("the bed's programs could not be built: make -C tests/bed all")
    finally:
        if make.returncode is None:
            os.killpg(make.pid, signal.SIGTERM)
            await make.wait()


async def _in_thread(work: Callable[[], None]) -> None:
    """Runs `work` in a thread to its end, even where this is cancelled meanwhile: half a start can't be stopped."""
    future = asyncio.get_running_loop().run_in_executor(None, work)
    try:
        await asyncio.shield(future)
    except asyncio.CancelledError:
        await asyncio.wait([future])
        raise
