"""The LocalAPI over a real unix socket, against a daemon that behaves, misbehaves, or isn't there."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from k8sproxy.common.errors import Refusal
from k8sproxy.common.tailnet import localapi as module
from k8sproxy.common.tailnet.answers import CertificatePair, Malformed
from k8sproxy.common.tailnet.localapi import LocalAPI, map_exceptions
from k8sproxy.common.tailnet.peer import Peer
from standins.tailscaled import FakeTailscaled, groups, tagged_whois, user_whois
from tests.common.tailnet.leakless import run

ANA = user_whois("ana@example.com", "laptop", "100.64.0.7", groups("dev"))

Ask = Callable[[LocalAPI], Awaitable[Any]]


async def ask_whois(api: LocalAPI) -> Peer:
    return await api.whois("100.64.0.7:0")


async def ask_status(api: LocalAPI) -> Any:
    return await api.status()


async def ask_certificate(api: LocalAPI) -> CertificatePair:
    return await api.certificate("k8s.tail1234.ts.net")


async def ask_watch(api: LocalAPI) -> None:
    async with contextlib.aclosing(api.watch()) as notices:
        async for _ in notices:
            return


QUESTIONS = [
    pytest.param("whois", ask_whois, "whois", id="whois"),
    pytest.param("status", ask_status, "localapi", id="status"),
    pytest.param("cert", ask_certificate, "localapi", id="certificate"),
    pytest.param("watch-ipn-bus", ask_watch, "localapi", id="watch"),
]


def with_daemon(path: Path, script: Callable[[FakeTailscaled, LocalAPI], Awaitable[None]]) -> None:
    async def scene() -> None:
        async with FakeTailscaled(path / "sock") as daemon, contextlib.aclosing(LocalAPI(daemon.path)) as api:
            daemon.peers = {"100.64.0.7": ANA}
            await script(daemon, api)

    run(scene())


def test_a_user(tmp_path: Path) -> None:
    async def script(daemon: FakeTailscaled, api: LocalAPI) -> None:
        assert await api.whois("100.64.0.7:40001") == Peer(
            address="100.64.0.7",
            stable_id="nlaptopCNTRL",
            node_name="laptop.tail1234.ts.net.",
            user_id=ANA["UserProfile"]["ID"],
            login_name="ana@example.com",
            display_name="Ana",
            capabilities={"tailscale.com/cap/kubernetes": ({"impersonate": {"groups": ["dev"]}},)},
        )
        assert daemon.queries == [("whois", {"addr": "100.64.0.7:40001", "proto": "tcp"})]

    with_daemon(tmp_path, script)


def test_a_tagged_node_and_a_null_capability(tmp_path: Path) -> None:
    async def script(daemon: FakeTailscaled, api: LocalAPI) -> None:
        daemon.peers = {"fd7a:115c:a1e0::9": tagged_whois("ci", ["tag:ci"], "fd7a:115c:a1e0::9", {"x": None})}
        peer = await api.whois("[fd7a:115c:a1e0::9]:0")
        assert (peer.address, peer.tags, peer.is_tagged) == ("fd7a:115c:a1e0::9", ("tag:ci",), True)
        assert peer.capabilities == {"x": ()}

    with_daemon(tmp_path, script)


def test_no_capabilities(tmp_path: Path) -> None:
    async def script(daemon: FakeTailscaled, api: LocalAPI) -> None:
        daemon.peers = {"100.64.0.7": {**ANA, "CapMap": None}}
        assert (await ask_whois(api)).capabilities == {}

    with_daemon(tmp_path, script)


def test_a_forwarded_connection_has_the_address_of_its_node(tmp_path: Path) -> None:
    async def script(daemon: FakeTailscaled, api: LocalAPI) -> None:
        daemon.peers = {"127.0.0.1:50000": ANA}
        assert (await api.whois("127.0.0.1:50000")).address == "100.64.0.7"

    with_daemon(tmp_path, script)


@pytest.mark.parametrize(
    ("aspect", "query"),
    [({"service": "svc:k8s"}, {"svc_name": "svc:k8s"}), ({"destination": "100.100.9.9"}, {"dst_ip": "100.100.9.9"})],
)
def test_what_the_peer_may_do_to_a_service(tmp_path: Path, aspect: dict[str, str], query: dict[str, str]) -> None:
    async def script(daemon: FakeTailscaled, api: LocalAPI) -> None:
        await api.whois("100.64.0.7:0", **aspect)
        assert daemon.queries == [("whois", {"addr": "100.64.0.7:0", "proto": "tcp", **query})]

    with_daemon(tmp_path, script)


def test_an_address_cannot_smuggle_parameters(tmp_path: Path) -> None:
    async def script(daemon: FakeTailscaled, api: LocalAPI) -> None:
        await refused(api.whois("100.64.0.7:0&svc_name=svc:other"), 503, "whois_malformed")
        assert daemon.queries == [("whois", {"addr": "100.64.0.7:0&svc_name=svc:other", "proto": "tcp"})]

    with_daemon(tmp_path, script)


def test_the_status(tmp_path: Path) -> None:
    async def script(daemon: FakeTailscaled, api: LocalAPI) -> None:
        status = await api.status()
        assert (status.backend_state, status.name, status.tun) == ("Running", "k8s.tail1234.ts.net.", True)
        assert status.addresses == ("100.100.1.2", "fd7a:115c:a1e0::2")
        assert status.cert_domains == ("k8s.tail1234.ts.net",)
        assert daemon.queries == [("status", {"peers": "false"})]

    with_daemon(tmp_path, script)


def test_the_certificate(tmp_path: Path) -> None:
    async def script(daemon: FakeTailscaled, api: LocalAPI) -> None:
        pair = await api.certificate("k8s.tail1234.ts.net", 3600.5)
        key, chain = daemon.certificates["k8s.tail1234.ts.net"]
        assert (pair.key_pem, pair.chain_pem) == (key, chain)
        assert daemon.queries == [("cert", {"type": "pair", "min_validity": "3600s"})]
        assert "PRIVATE" not in repr(pair)

    with_daemon(tmp_path, script)


@pytest.mark.parametrize(
    "domain", ["", "k8s", "../whois", "a.b/../../prefs", "a.b?x=1", "a..b", "a.b\n", "x" * 250 + ".com"]
)
def test_a_certificate_for_no_name_is_not_asked_for(tmp_path: Path, domain: str) -> None:
    async def script(daemon: FakeTailscaled, api: LocalAPI) -> None:
        await refused(api.certificate(domain), 503, "localapi_malformed")
        assert not daemon.asked

    with_daemon(tmp_path, script)


def test_a_certificate_for_another_name_is_the_daemons_to_refuse(tmp_path: Path) -> None:
    async def script(daemon: FakeTailscaled, api: LocalAPI) -> None:
        await refused(api.certificate("other.tail1234.ts.net"), 503, "localapi_unavailable")

    with_daemon(tmp_path, script)


def test_an_unknown_peer(tmp_path: Path) -> None:
    async def script(daemon: FakeTailscaled, api: LocalAPI) -> None:
        refusal = await refused(api.whois("100.64.0.8:0"), 403, "peer_unknown")
        assert "100.64.0.8" in refusal.message

    with_daemon(tmp_path, script)


@pytest.mark.parametrize(("endpoint", "ask", "word"), QUESTIONS)
@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        ("denied", "denied"),
        ("failing", "unavailable"),
        ("busy", "unavailable"),
        ("missing", "malformed"),
        ("nonsense", "malformed"),
        ("close", "unavailable"),
    ],
)
def test_faults_of_every_question(tmp_path: Path, endpoint: str, ask: Ask, word: str, fault: str, cause: str) -> None:
    async def script(daemon: FakeTailscaled, api: LocalAPI) -> None:
        daemon.faults[endpoint] = fault
        refusal = await refused(ask(api), 503, f"{word}_{cause}")
        assert refusal.message.isprintable()
        del daemon.faults[endpoint]
        await ask(api)  # it is asked anew, and answers

    with_daemon(tmp_path, script)


@pytest.mark.parametrize(("endpoint", "ask", "word"), QUESTIONS[:3])
@pytest.mark.parametrize(
    ("fault", "cause"),
    [("garbage", "malformed"), ("empty", "malformed"), ("oversize", "malformed"), ("half", "unavailable")],
)
def test_faulty_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, endpoint: str, ask: Ask, word: str, fault: str, cause: str
) -> None:
    for name in ("MAX_WHOIS", "MAX_STATUS", "MAX_CERTIFICATE"):
        monkeypatch.setattr(module, name, 300_000)

    async def script(daemon: FakeTailscaled, api: LocalAPI) -> None:
        daemon.faults[endpoint] = fault
        await refused(ask(api), 503, f"{word}_{cause}")
        del daemon.faults[endpoint]
        await ask(api)

    with_daemon(tmp_path, script)


@pytest.mark.parametrize(("endpoint", "ask", "word"), QUESTIONS)
def test_a_daemon_that_hangs(tmp_path: Path, endpoint: str, ask: Ask, word: str) -> None:
    async def script(daemon: FakeTailscaled, api: LocalAPI) -> None:
        api.timeout = api.certificate_timeout = 0.05
        daemon.faults[endpoint] = "hang"
        await refused(ask(api), 503, f"{word}_timeout")

    with_daemon(tmp_path, script)


@pytest.mark.parametrize(("endpoint", "ask", "word"), QUESTIONS)
def test_a_question_that_is_cancelled_leaves_nothing(tmp_path: Path, endpoint: str, ask: Ask, word: str) -> None:
    async def script(daemon: FakeTailscaled, api: LocalAPI) -> None:
        daemon.faults[endpoint] = "hang"
        tasks = {asyncio.ensure_future(ask(api)) for _ in range(module._MAX_CONNECTIONS + 3)}
        await daemon.until(lambda: daemon.asked[endpoint] == module._MAX_CONNECTIONS)
        for task in tasks:
            task.cancel()
        done, _ = await asyncio.wait(tasks)
        assert all(task.cancelled() for task in done)
        del daemon.faults[endpoint]
        await ask(api)  # and every connection can be had again

    with_daemon(tmp_path, script)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        pytest.param(lambda path: None, "is tailscaled running", id="no socket"),
        pytest.param(lambda path: path.write_text(""), "no process listens", id="a file that is no socket"),
        pytest.param(lambda path: abandoned(path), "no process listens", id="a socket without a listener"),
        pytest.param(lambda path: path.mkdir(), "no process listens", id="a folder"),
    ],
)
def test_no_daemon(tmp_path: Path, make: Callable[[Path], object], words: str) -> None:
    path = tmp_path / "sock"
    make(path)

    async def scene() -> None:
        async with contextlib.aclosing(LocalAPI(str(path))) as api:
            refusal = await refused(ask_whois(api), 503, "whois_unavailable")
            assert str(path) in refusal.message and words in refusal.message
            await refused(ask_watch(api), 503, "localapi_unavailable")

    run(scene())


def abandoned(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may open any socket")
def test_no_permission(tmp_path: Path) -> None:
    async def script(daemon: FakeTailscaled, api: LocalAPI) -> None:
        os.chmod(daemon.path, 0)
        refusal = await refused(ask_whois(api), 503, "whois_unavailable")
        assert "permission" in refusal.message and daemon.path in refusal.message

    with_daemon(tmp_path, script)


def test_no_permission_as_the_kernel_says_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def denied(*args: object, **kwargs: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    async def script(daemon: FakeTailscaled, api: LocalAPI) -> None:
        monkeypatch.setattr(asyncio.get_running_loop(), "create_unix_connection", denied)
        refusal = await refused(ask_whois(api), 503, "whois_unavailable")
        assert refusal.message.startswith(f"no permission to open tailscaled's socket {daemon.path}")

    with_daemon(tmp_path, script)


def test_a_path_too_long_for_a_socket() -> None:
    async def scene() -> None:
        async with contextlib.aclosing(LocalAPI("/run/" + "x" * 200)) as api:
            await refused(ask_whois(api), 503, "whois_unavailable")

    run(scene())


@pytest.mark.parametrize(
    "error",
    [
        TimeoutError(),
        ValueError("x"),
        RuntimeError("Session is closed"),
        OSError(errno.EIO, "x"),
        ConnectionError("x"),
        Malformed("x"),
    ],
)
def test_every_exception_becomes_a_refusal(error: Exception) -> None:
    with pytest.raises(Refusal) as caught, map_exceptions("whois", "/run/x.sock", 5.0):
        raise error
    assert caught.value.status == 503 and caught.value.__cause__ is None


def test_a_daemon_that_restarts(tmp_path: Path) -> None:
    async def script(daemon: FakeTailscaled, api: LocalAPI) -> None:
        await ask_whois(api)
        await daemon.stop()
        await refused(ask_whois(api), 503, "whois_unavailable")
        await daemon.start()
        await ask_whois(api)

    with_daemon(tmp_path, script)


def test_connections_are_kept(tmp_path: Path) -> None:
    async def scene() -> None:
        connections = 0
        served = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal connections
            connections += 1
            with contextlib.suppress(asyncio.IncompleteReadError):
                while head := await reader.readuntil(b"\r\n\r\n"):
                    assert b"\r\nHost: local-tailscaled.sock\r\n" in head
                    assert b"Accept-Encoding" not in head and b"Cookie" not in head
                    writer.write(b"HTTP/1.1 404 Not Found\r\nSet-Cookie: a=b\r\nContent-Length: 8\r\n\r\nno match")
            writer.close()
            served.set()

        server = await asyncio.start_unix_server(serve, tmp_path / "sock")
        api = LocalAPI(str(tmp_path / "sock"))
        for _ in range(3):
            await refused(ask_whois(api), 403, "peer_unknown")
        assert connections == 1
        await api.aclose()
        await served.wait()
        server.close()
        await server.wait_closed()

    run(scene())


def test_a_redirect_is_not_followed(tmp_path: Path) -> None:
    async def scene() -> None:
        served = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n")
            await reader.read()
            writer.close()
            served.set()

        server = await asyncio.start_unix_server(serve, tmp_path / "sock")
        api = LocalAPI(str(tmp_path / "sock"))
        await refused(ask_whois(api), 503, "whois_malformed")
        await api.aclose()
        await served.wait()
        server.close()
        await server.wait_closed()

    run(scene())


def test_after_the_end_everything_is_refused(tmp_path: Path) -> None:
    async def script(daemon: FakeTailscaled, api: LocalAPI) -> None:
        daemon.faults["whois"] = "hang"
        waiting = asyncio.ensure_future(ask_whois(api))
        await daemon.until(lambda: daemon.asked["whois"] == 1)
        await api.aclose()
        await refused(waiting, 503, "whois_unavailable")
        await refused(ask_whois(api), 503, "whois_unavailable")
        await api.aclose()

    with_daemon(tmp_path, script)


def test_the_bus_tells_once_when_it_stands_and_then_of_anything(tmp_path: Path) -> None:
    async def script(daemon: FakeTailscaled, api: LocalAPI) -> None:
        async with contextlib.aclosing(api.watch()) as notices:
            await anext(notices)
            assert daemon.queries == [("watch-ipn-bus", {"mask": str(1 << 12 | 1 << 13)})]
            await daemon.until(lambda: daemon.streams == 1)
            daemon.notify()
            await anext(notices)
            daemon.push(b'{"Sta')  # a piece of a message, and things that are none
            await anext(notices)
            daemon.push(b"\xff\x00 nonsense")
            await anext(notices)
        await daemon.until(lambda: daemon.streams == 0)

    with_daemon(tmp_path, script)


def test_the_bus_keeps_nothing_of_what_it_is_told(tmp_path: Path) -> None:
    async def script(daemon: FakeTailscaled, api: LocalAPI) -> None:
        async with contextlib.aclosing(api.watch()) as notices:
            await anext(notices)
            await daemon.until(lambda: daemon.streams == 1)
            daemon.push(b'{"NetMap": "' + b"x" * (8 << 20))
            daemon.end_streams()  # once that is sent
            pieces = 0
            with contextlib.suppress(Refusal):
                async for _ in notices:
                    pieces += 1
            assert pieces > 8

    with_daemon(tmp_path, script)


def test_the_bus_of_an_older_daemon(tmp_path: Path) -> None:
    async def script(daemon: FakeTailscaled, api: LocalAPI) -> None:
        daemon.refused_masks = {str(1 << 12 | 1 << 13)}
        await ask_watch(api)
        daemon.refused_masks.add(str(1 << 8))
        await ask_watch(api)
        assert [query["mask"] for _, query in daemon.queries] == ["12288", "256", "12288", "256", "0"]
        daemon.refused_masks.add("0")
        await refused(ask_watch(api), 503, "localapi_malformed")

    with_daemon(tmp_path, script)


async def refused(question: Awaitable[Any], status: int, cause: str) -> Refusal:
    with pytest.raises(Refusal) as caught:
        await question
    assert (caught.value.status, caught.value.cause) == (status, cause)
    return caught.value
