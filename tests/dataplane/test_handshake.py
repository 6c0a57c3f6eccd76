"""Connecting to a name with several addresses (RFC 8305), and the name in the API server's certificate."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
from pathlib import Path

import pytest

from k8sproxy.clusters.credentials import ClusterCredentials
from k8sproxy.dataplane import handshake as module
from k8sproxy.dataplane import upstream as upstream_module
from k8sproxy.dataplane.handshake import Address, ConnectError, connect, resolve
from k8sproxy.dataplane.limits import Limits
from k8sproxy.tls.certificates import server_context
from standins.pki import Authority
from standins.tls import handshake
from tests.clusters.test_credentials import kubeconfig
from tests.dataplane.proxied import Stage, get, listening, reply


class Silent:
    """An address that swallows SYNs: its queue of connections is full, and nobody takes any."""

    def __init__(self, host: str = "127.0.0.2", family: int = socket.AF_INET) -> None:
        self._listener = socket.socket(family)
        self._listener.bind((host, 0))
        self._listener.listen(0)
        self.address: Address = (family, self._listener.getsockname())
        self._callers = []
        for _ in range(4):
            caller = socket.socket(family)
            caller.setblocking(False)
            caller.connect_ex(self.address[1])
            self._callers.append(caller)

    def __enter__(self) -> Silent:
        return self

    def __exit__(self, *_: object) -> None:
        for sock in (*self._callers, self._listener):
            sock.close()


def refused(host: str = "127.0.0.3") -> Address:
    """An address that refuses."""
    with socket.socket() as sock:
        sock.bind((host, 0))
        return (socket.AF_INET, sock.getsockname())


def name(sock: socket.socket) -> Address:
    return (sock.family, sock.getsockname())


async def test_an_address_that_is_silent_holds_up_nobody() -> None:
    loop = asyncio.get_running_loop()
    with Silent() as silent, listening() as server:
        sock = await connect(loop, [silent.address, name(server)])
        assert sock.getpeername() == server.getsockname()
        assert not sock.getblocking()
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        sock.close()


async def test_an_address_that_refuses_gives_its_turn_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ATTEMPT_DELAY", 1000.0)
    with listening() as server:
        sock = await connect(asyncio.get_running_loop(), [refused(), refused("127.0.0.4"), name(server)])
        assert sock.getpeername() == server.getsockname()
        sock.close()


async def test_a_silent_address_that_answers_at_last_still_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ATTEMPT_DELAY", 0.0)
    with listening() as server:
        sock = await connect(asyncio.get_running_loop(), [name(server), refused()])
        assert sock.getpeername() == server.getsockname()
        sock.close()


async def test_every_failure_is_named() -> None:
    addresses = [refused(), (socket.AF_INET6, ("::1", refused()[1][1], 0, 0))]
    with pytest.raises(ConnectError) as caught:
        await connect(asyncio.get_running_loop(), addresses)
    words = os.strerror(errno.ECONNREFUSED).lower()
    assert str(caught.value) == "; ".join(f"{module.join(address)}: {words}" for address in addresses)
    assert "[::1]:" in str(caught.value)


async def test_a_single_address_is_named_too() -> None:
    address = refused()
    with pytest.raises(ConnectError, match=rf"^{module.join(address)}: connection refused$"):
        await connect(asyncio.get_running_loop(), [address])


async def test_nothing_is_left_of_attempts_that_were_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ATTEMPT_DELAY", 0.0)
    loop = asyncio.get_running_loop()
    with Silent() as silent, Silent("127.0.0.5") as other, listening() as server:
        before = len(os.listdir("/proc/self/fd"))
        for addresses in (
            [silent.address, other.address],
            [silent.address, other.address, name(server)],
            [name(server), silent.address],
        ):
            for turns in range(12):
                task = asyncio.create_task(connect(loop, addresses))
                for _ in range(turns):
                    await asyncio.sleep(0)
                task.cancel()
                (result,) = await asyncio.gather(task, return_exceptions=True)
                if isinstance(result, socket.socket):
                    result.close()
                for _ in range(4):
                    await asyncio.sleep(0)
                assert [other.get_name() for other in asyncio.all_tasks() if other.get_name() == "connect"] == []
        assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("found", "order"),
    [
        ("4a 4b", "4a 4b"),
        ("6a 6b 4a 4b", "6a 4a 6b 4b"),
        ("4a 6a 6b 6c", "4a 6a 6b 6c"),
        ("6a 6b 6c 4a", "6a 4a 6b 6c"),
        ("4a 4a 6a 4a", "4a 6a"),
    ],
)
async def test_families_take_turns(found: str, order: str) -> None:
    class Loop:
        async def getaddrinfo(self, host: str, port: int, *, type: int) -> list[tuple[object, ...]]:
            assert (host, port, type) == ("api.example", 6443, socket.SOCK_STREAM)
            return [
                (socket.AF_INET if text[0] == "4" else socket.AF_INET6, type, 6, "", (text, port))
                for text in found.split()
            ]

    addresses = await resolve(Loop(), "api.example", 6443)  # type: ignore[arg-type]  # the one method that is used
    assert [address[0] for _, address in addresses] == order.split()


async def test_a_request_arrives_past_a_silent_address(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Stage() as stage:
        with Silent() as silent:
            live: Address = (socket.AF_INET, ("127.0.0.1", stage.api.port))

            async def resolved(loop: object, host: str, port: int) -> list[Address]:
                return [silent.address, live]

            monkeypatch.setattr(upstream_module, "resolve", resolved)
            client, upstream, _ = await stage.exchange(get())
            await upstream.send(reply(b"there"))
            assert (await client.response()).body == b"there"


async def test_when_no_address_answers_all_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Stage(Limits(connect_timeout=0.05)) as stage:
        with Silent() as silent, Silent("127.0.0.5") as other:

            async def resolved(loop: object, host: str, port: int) -> list[Address]:
                return [silent.address, other.address]

            monkeypatch.setattr(upstream_module, "resolve", resolved)
            client = await stage.client()
            await client.send(get())
            response = await client.response()
        assert response.status == 504
        both = f"{module.join(silent.address)}, {module.join(other.address)}"
        assert f"cluster prod: {both} did not answer within 0.05 s" in response.body.decode()


def _context(directory: Path, ca: bytes, server: str = "https://api.example") -> tuple[ssl.SSLContext, str]:
    """The context that a kubeconfig gives, and the name that certificates are checked against."""
    path = directory / "ca.pem"
    path.write_bytes(ca)
    config = kubeconfig(directory, {"token": "t"}, {"server": server, "certificate-authority": "ca.pem"})
    found = asyncio.run(ClusterCredentials.load("prod", kubeconfig=config))
    context = found.tls()
    assert context is not None
    return context, found.server_name


# As crypto/x509 of Go 1.26 answers for the same certificates (x509.Certificate.VerifyHostname).
@pytest.mark.parametrize(
    ("common_name", "alternatives", "host", "taken"),
    [
        ("api.example", (), "api.example", False),
        ("*.example", (), "api.example", False),
        ("10.0.0.1", (), "10.0.0.1", False),
        ("api.example", ("other.example",), "api.example", False),
        ("api.example", ("10.0.0.1",), "api.example", False),
        ("other", ("api.example",), "api.example", True),
        ("other", ("API.example",), "api.EXAMPLE", True),
        ("other", ("*.k8s.example",), "api.k8s.example", True),
        ("other", ("*.k8s.example",), "a.api.k8s.example", False),
        ("other", ("*.k8s.example",), "k8s.example", False),
        ("other", ("a*.example",), "api.example", False),
        ("other", ("10.0.0.1",), "10.0.0.1", True),
        ("other", ("10.0.0.2",), "10.0.0.1", False),
        ("other", ("api.example",), "api.example.", True),
    ],
)  # fmt: skip
def test_whose_certificate_is_taken(
    tmp_path: Path, common_name: str, alternatives: tuple[str, ...], host: str, taken: bool
) -> None:
    authority = Authority()
    pair = authority.issue(common_name, alternatives=alternatives)
    context, checked = _context(tmp_path, authority.pem, f"https://{host}")
    if taken:
        handshake(context, server_context(*pair), checked)
    else:
        with pytest.raises(ssl.SSLCertVerificationError):
            handshake(context, server_context(*pair), checked)


def test_an_intermediate_certificate_may_be_the_authority(tmp_path: Path) -> None:
    intermediate = Authority("intermediate", parent=Authority("root"))
    server = server_context(*intermediate.issue("api.example"))
    handshake(_context(tmp_path, intermediate.pem)[0], server, "api.example")
