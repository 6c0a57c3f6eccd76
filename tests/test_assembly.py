"""What one configuration describes, made real: listeners on the tailnet's addresses, in the log and in readiness."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from k8sproxy.assembly import Assembly, Tailnet
from k8sproxy.common.errors import StartError
from k8sproxy.config import parse
from k8sproxy.dataplane.listener import Listener, Server, Terms, Trust
from k8sproxy.dataplane.routes import Permit, PermitState, Route, Routes
from tests.dataplane.proxied import Raw, Stage, get, reply
from tests.recorder.serving import free_port

CONFIG = """
apiVersion: k8sproxy/v1alpha1
listen: [{address: "%s", tls: {source: %s}}]
clusters: [{name: prod, kubeconfig: kubeconfig}]
"""
V4, V6 = "100.64.0.1", "fd7a:115c:a1e0::1"


class _Socket:
    """A listener that a Server has opened."""

    def __init__(self, terms: Terms, address: tuple[str, int]) -> None:
        self.terms, self.address = terms, address

    def close(self) -> None:
        pass


class _Server:
    """Opens what it is told to, but for the addresses in `errors`."""

    def __init__(self) -> None:
        self.errors: dict[str, int] = {}
        self.buffer = None

    def listen(self, host: str, port: int, terms: Terms) -> Listener:
        if host in self.errors:
            raise OSError(self.errors[host], os.strerror(self.errors[host]))
        return cast(Listener, _Socket(terms, (host, port)))


def assembled(
    server: _Server, address: str, source: str = "none", kubeconfig: Path = Path("k")
) -> tuple[Assembly, Tailnet]:
    text = CONFIG % (address, source)
    config = parse(text.replace("kubeconfig: kubeconfig", f"kubeconfig: {kubeconfig}").encode(), Path("x"), files=False)
    tailnet = Tailnet(config)
    assembly = Assembly(config, cast(Server, server), tailnet)
    assembly._terms[0] = cast(Terms, None)
    return assembly, tailnet


def run(scene: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(scene())


def test_every_address_is_logged_as_it_is_written() -> None:
    async def scene() -> None:
        assembly, _ = assembled(_Server(), "tailnet:443")
        with capture_logs() as lines:
            assert assembly._match_addresses(0, assembly.config.listen[0], (V4, V6))
            assert assembly._match_addresses(0, assembly.config.listen[0], ())
        assert [(line["event"], line["address"]) for line in lines] == [
            ("listening", f"{V4}:443"),
            ("listening", f"[{V6}]:443"),
            ("listener_closed", f"{V4}:443"),
            ("listener_closed", f"[{V6}]:443"),
        ]

    run(scene)


async def _ready(assembly: Assembly) -> dict[str, str | None]:
    return {name: fault for name, fault in (await assembly.checks()).items() if name != "tailnet"}


def test_readiness_says_that_the_daemon_has_no_device_before_it_speaks_of_certificates() -> None:
    async def scene() -> None:
        server = _Server()
        assembly, tailnet = assembled(server, "tailnet:443", "tailnet")
        await assembly._add_certificate(0, assembly.config.listen[0])
        try:
            assert "certificate" in str(await _ready(assembly))
            server.errors = dict.fromkeys((V4, V6), errno.EADDRNOTAVAIL)
            with capture_logs() as lines:
                assert not assembly._match_addresses(0, assembly.config.listen[0], (V4, V6))
            words = f"{V4} is not an address of this machine; does tailscaled run in userspace mode? then listen on "
            assert await _ready(assembly) == {"listener tailnet:443": f"{words}127.0.0.1"}
            assert [line["address"] for line in lines if line["event"] == "listen_failed"] == [
                f"{V4}:443",
                f"[{V6}]:443",
            ]
            # One address of two is a fault as well, and none is none.
            server.errors = {V6: errno.EADDRINUSE}
            assert not assembly._match_addresses(0, assembly.config.listen[0], (V4, V6))
            assert await _ready(assembly) == {
                "listener tailnet:443": f"cannot listen on [{V6}]:443: Address already in use"
            }
            server.errors = {}
            assert assembly._match_addresses(0, assembly.config.listen[0], (V4, V6))
            assert "certificate" in str(await _ready(assembly))
        finally:
            await assembly.close()
            await tailnet.close()

    run(scene)


@pytest.mark.parametrize(
    ("address", "error", "words"),
    [
        (f"{V4}:443", errno.EADDRNOTAVAIL, f"{V4} is not an address of this machine; does tailscaled run in userspace"),
        (
            f"[{V6}]:443",
            errno.EADDRNOTAVAIL,
            f"{V6} is not an address of this machine; does tailscaled run in userspace",
        ),
        ("127.0.0.9:443", errno.EADDRNOTAVAIL, "127.0.0.9 is not an address of this machine"),
        ("[::1]:443", errno.EACCES, "cannot listen on [::1]:443: Permission denied"),
    ],
)
def test_a_start_says_the_same(address: str, error: int, words: str) -> None:
    async def scene() -> None:
        server = _Server()
        assembly, tailnet = assembled(server, address)
        server.errors[assembly.config.listen[0].address.host] = error
        with pytest.raises(StartError) as caught:
            assembly.take_over(None)
        assert str(caught.value).startswith(words)
        assert ("userspace" in words) == ("userspace" in str(caught.value))
        await tailnet.close()

    run(scene)


class _Addresses:
    """The node's tailnet addresses, as a test says."""

    generation = 0

    def __init__(self, *current: str) -> None:
        self.current = current

    async def wait_changed(self, generation: int) -> int:
        await asyncio.Event().wait()
        return generation


def _assembly(stage: Stage, addresses: _Addresses, text: str) -> Assembly:
    config = parse(text.encode(), Path("x"), files=False)
    tailnet = SimpleNamespace(addresses=addresses, follow=lambda **_: None)
    return Assembly(config, stage.server, cast(Tailnet, tailnet))


def _reloaded(
    stage: Stage, addresses: _Addresses, port: int, terms: Terms, old: Assembly | None, host: str = "tailnet"
) -> Assembly:
    """A configuration with one listener, which the process uses now."""
    assembly = _assembly(stage, addresses, CONFIG % (f"{host}:{port}", "none"))
    assembly._terms[0] = terms
    assembly.take_over(old)
    return assembly


@pytest.mark.parametrize("left", [("127.0.0.1",), ()], ids=["one address", "no address"])
@pytest.mark.parametrize("noticed", [True, False])
@pytest.mark.parametrize("service", [None, "svc:other"])
def test_a_reload_reaches_the_connections_of_a_listener_whose_address_is_gone(
    left: tuple[str, ...], noticed: bool, service: str | None
) -> None:
    """tailscaled is restarted, say, while the file changes: no socket is listened on that could be taken over."""

    async def scene() -> None:
        async with Stage() as stage:
            addresses = _Addresses("127.0.0.1", "127.0.0.2")
            terms = Terms(Trust.DIRECT, None, Permit(Routes(stage.route)))
            first = _reloaded(stage, addresses, port := free_port(), terms, None)
            reader, writer = await asyncio.open_connection("127.0.0.2", port)
            await stage.until(lambda: len(stage.connections) == 1)
            (connection,) = stage.connections
            # One of two, or both: the other listener must not be taken for gone with it.
            addresses.current = left
            if noticed:
                assert first._match_addresses(0, first.config.listen[0], left)
            terms = Terms(Trust.DIRECT, None, Permit(Routes(Route(stage.upstream))), service)
            second = _reloaded(stage, addresses, port, terms, first)
            await first.close()
            if service is None:
                assert connection.standing.permit.routes is terms.permit.routes
                assert connection.standing.permit is terms.permit and terms.permit.state is PermitState.OPEN
            else:
                assert connection.standing.permit.state is PermitState.REVOKED
                assert terms.permit.state is PermitState.OPEN
                assert await reader.read() == b""
            writer.close()
            await second.close()

    run(scene)


@pytest.mark.parametrize("before", ["tailnet", "127.0.0.1"])
def test_a_reload_may_name_the_same_address_in_another_way(before: str) -> None:
    """The socket is taken over: opening another one would find its own address in use."""
    after = "127.0.0.1" if before == "tailnet" else "tailnet"

    async def scene() -> None:
        async with Stage() as stage:
            addresses, port = _Addresses("127.0.0.1"), free_port()

            def terms() -> Terms:
                return Terms(Trust.DIRECT, None, Permit(Routes(stage.route)))

            first = _reloaded(stage, addresses, port, old_terms := terms(), None, before)
            (listener,) = first._listeners.values()
            old = await stage.connect(listener.address)
            await answered(stage, old)
            second = _reloaded(stage, addresses, port, new_terms := terms(), first, after)
            await first.close()
            assert second._listeners == {(after, port, "127.0.0.1"): listener}
            # To the configuration it is another listener: the connections of the one that is gone end.
            assert (old_terms.permit.state, new_terms.permit.state) == (PermitState.RETIRED, PermitState.OPEN)
            await answered(stage, old)
            assert await old.rest() == b""
            new = await stage.connect(listener.address)
            await answered(stage, new)
            await answered(stage, new)
            new.close()
            await second.close()

    run(scene)


async def answered(stage: Stage, client: Raw) -> None:
    await client.send(get())
    upstream = await stage.api.accept()
    await upstream.head()
    await upstream.send(reply(b"ok", "200 OK", "Connection: close"))
    assert (await client.response()).status == 200


def test_an_address_that_is_configured_twice_is_in_use() -> None:
    async def scene() -> None:
        async with Stage() as stage:
            addresses, port = _Addresses("127.0.0.1"), free_port()
            first = _reloaded(stage, addresses, port, Terms(Trust.DIRECT, None, Permit(Routes(stage.route))), None)
            both = (CONFIG % (f"tailnet:{port}", "none")).replace(
                "]\n", f", {{address: '127.0.0.1:{port}', tls: {{source: none}}}}]\n", 1
            )
            second = _assembly(stage, addresses, both)
            second._terms |= dict.fromkeys((0, 1), first._terms[0])
            with pytest.raises(StartError, match="Address already in use"):
                second.take_over(first)
            await second.close()
            assert len(first._listeners) == 1
            await answered(stage, client := await stage.connect(("127.0.0.1", port)))
            client.close()
            await first.close()

    run(scene)
