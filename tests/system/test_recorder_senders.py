"""Other senders than k8sproxy, into the real recorder on the bed: the first version of the wire spelled by hand,
Tailscale's own API server proxy, and Tailscale SSH."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.bed import Bed, Node, free_port, kubernetes_grant
from tests.bed.processes import Processes
from tests.bed.programs import HERE, Programs
from tests.bed.tailnet import Grant
from tests.system.beds import STANDARD_GRANTS
from tests.system.keeper import CAP_RECORDER, Keeper, new_word, printing, with_recorder
from tests.system.kubectl import STREAMING, Kubectl, write_kubeconfig
from tests.system.proxy import wait_until
from tests.system.recorders import Cast, read_cast
from tests.system.terminal import Terminal

PEERS = HERE.parent.parent / "bench" / "peers"
TAILSCALE_PORT = 80  # where Tailscale's proxy listens; it cannot be told otherwise
HEADER = (
    b'{"version": 2, "width": 80, "height": 24, "srcNode": "laptop.example.ts.net", "srcNodeUser": "ana@example.com"}\n'
)
RECORD = b"POST /record HTTP/1.1\r\nHost: recorder\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n"


@pytest.fixture(scope="module")
def nodes(bed: Bed) -> dict[str, Node]:
    """The bed's, with those of this file."""
    return with_recorder(bed)


@pytest.fixture(scope="module")
def keeper(bed: Bed, nodes: dict[str, Node], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keeper]:
    """The recorder, where alice's grant leads, and at which auditor may look."""
    allow = ("tag:k8sproxy", "tag:k8s", "tag:server")
    with Keeper(tmp_path_factory.mktemp("keeper"), nodes["recorder"], allow=allow) as keeper:
        bed.tailnet.set_recorder_port(keeper.port)
        rule = {"users": ["*"], "view": True, "export": True, "live": True}
        alice = kubernetes_grant(
            "alice@example.com", ["system:masters"], recorder=["tag:recorder"], enforceRecorder=True, enableEvents=True
        )
        bed.set_grants([alice, Grant(["auditor"], ["recorder"], {CAP_RECORDER: [rule]})])
        wait_until(lambda: keeper.welcomes(nodes["auditor"]), "the grant in the recorder")
        yield keeper
    bed.set_grants(STANDARD_GRANTS)


@pytest.fixture
def auditor(nodes: dict[str, Node]) -> Node:
    return nodes["auditor"]


def kept(keeper: Keeper, auditor: Node, word: str, **query: str) -> tuple[dict[str, Any], Cast]:
    """The session with that word on its screen, and its cast."""
    found = keeper.session(auditor, q=word, **query)
    return found, read_cast(keeper.cast(auditor, found["id"]))


# -- the first version, by hand


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def read_head(sock: socket.socket) -> bytes:
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        piece = sock.recv(1)
        assert piece, head
        head += piece
    return head


def lines(word: str, count: int) -> list[bytes]:
    return [json.dumps([number / 10, "o", f"{word} {number}\r\n"]).encode() + b"\n" for number in range(count)]


@pytest.mark.parametrize("ends", [True, False], ids=["clean", "cut"])
def test_the_first_version_by_hand(keeper: Keeper, nodes: dict[str, Node], auditor: Node, ends: bool) -> None:
    word = new_word()
    events = lines(word, 200)
    with keeper.dial(nodes["sender"]) as sock:
        sock.sendall(RECORD)
        assert read_head(sock) == b"HTTP/1.1 100 Continue\r\nAsciicast-Event-Codes: o, e, r, m\r\n\r\n"
        # The header line in two chunks, and events across chunks.
        body = HEADER + b"".join(events)
        for start, end in itertools.pairwise((0, 11, len(HEADER) + 30, 2000, len(body) - 5, len(body))):
            sock.sendall(chunk(body[start:end]))
        if ends:
            sock.sendall(b"0\r\n\r\n")
            assert read_head(sock).startswith(b"HTTP/1.1 200 ")
        else:
            running = keeper.session(auditor, state="running")
            wait_until(lambda: keeper.cast(auditor, running["id"]) == body, "what has been sent")
    found, cast = kept(keeper, auditor, word)
    assert found["state"] == ("clean" if ends else "cut")
    assert keeper.cast(auditor, found["id"]) == body
    assert (found["user"], found["node"]) == ("ana@example.com", "laptop.example.ts.net")
    assert found["source"]["node"] == nodes["sender"].dns_name
    assert len(cast.events) == found["events"] == 200


# -- Tailscale's own proxy


def _peers() -> Path:
    """Where the programs of bench/peers are, or a skip."""
    make = ["make", "--silent", "--no-print-directory", "-C", str(PEERS)]
    if subprocess.run([*make, "--question", "all"], check=False).returncode:
        pytest.skip("Tailscale's proxy is not built (make -C bench/peers)")
    return Path(subprocess.run([*make, "where"], check=True, capture_output=True, text=True).stdout.strip())


@pytest.fixture(scope="module")
def ts_kubectl(bed: Bed, keeper: Keeper, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kubectl]:
    """alice's kubectl through Tailscale's proxy."""
    peers = _peers()
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", TAILSCALE_PORT))
        except OSError as error:
            pytest.skip(f"Tailscale's proxy needs 127.0.0.1:{TAILSCALE_PORT}: {error}")
    directory, front = tmp_path_factory.mktemp("ts-apiproxy"), free_port()
    cert, key = bed.cluster.issue("ts-front", ips=["127.0.0.1"])
    processes = Processes(directory / "logs")
    try:
        argv = [str(peers / "ts-apiproxy"), f"--control-url={bed.tailnet.control_url}", f"--dir={directory / 'state'}"]
        argv += [f"--kubeconfig={bed.proxy_account_kubeconfig}", f"--front=127.0.0.1:{front}", "--verbose"]
        argv += [f"--front-cert={cert}", f"--front-key={key}", f"--front-peer={bed.nodes['alice'].tailnet_ip}"]
        (directory / "state").mkdir()
        process = processes.start("ts-apiproxy", argv, env=bed.tailnet.daemon_env)
        file = write_kubeconfig(directory / "kubeconfig", f"https://127.0.0.1:{front}", ca=bed.ca_path)
        kubectl = Kubectl(file)
        process.wait_until(
            lambda: kubectl.run("get", "--raw", "/api/v1/secrets?limit=1").returncode == 0 or None, "an answer"
        )
        yield kubectl
    finally:
        processes.close()


@pytest.mark.parametrize("protocol", STREAMING)
def test_tailscales_proxy_records_here(
    keeper: Keeper, ts_kubectl: Kubectl, bed: Bed, auditor: Node, web: str, protocol: str
) -> None:
    word = new_word()
    script = f"{printing(word)}; seq 10000; printf 'gr\\303\\274n\\n'; exit 3"
    done = ts_kubectl.speaking(STREAMING[protocol]).run("exec", web, "--", "sh", "-c", script)
    assert done.returncode == 3
    found, cast = kept(keeper, auditor, word, state="clean")
    assert cast.output() == done.stdout
    wanted = {
        "type": "exec", "user": "alice@example.com", "node": bed.nodes["alice"].dns_name, "namespace": "default",
        "pod": web, "damaged": False,
    }  # fmt: skip
    assert {name: found[name] for name in wanted} == wanted
    assert list(found["source"]["tags"]) == ["tag:k8s"]
    assert word.encode() in done.stdout and printing(word) in found["command"]


@pytest.mark.parametrize("protocol", STREAMING)
def test_a_terminal_through_tailscales_proxy(
    keeper: Keeper, ts_kubectl: Kubectl, auditor: Node, web: str, protocol: str
) -> None:
    word = new_word()
    kubectl = ts_kubectl.speaking(STREAMING[protocol])
    with Terminal(kubectl.argv("exec", "-it", web, "--", "sh"), kubectl.environ()) as terminal:
        terminal.expect("# ")  # the terminal is raw by now: what is typed shows once
        terminal.type(f"{printing(word)}; exit 5\n")
        terminal.expect(word)
        assert terminal.wait() == 5
        seen = bytes(terminal.raw)
    _, cast = kept(keeper, auditor, word, state="clean")
    assert seen.startswith(cast.output())


def test_many_sessions_of_tailscales_proxy(
    keeper: Keeper, ts_kubectl: Kubectl, bed: Bed, auditor: Node, web: str
) -> None:
    """kubectl's own client, eight at a time for a second; each of them is one whole recording."""
    word = new_word()
    before = keeper.metrics()
    source = f"--proxy-source={bed.nodes['alice'].tailnet_ip}"
    argv = [
        str(_peers() / "execload"),
        f"--url=http://127.0.0.1:{TAILSCALE_PORT}/api/v1/namespaces/default/pods/{web}/exec",
    ]
    argv += [source, "--mode=sessions", "--concurrency=8", "--duration=1s", "--", "sh", "-c", printing(word)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True)
    result = json.loads(done.stdout)
    assert result["errors"] == 0 and result["sessions"] > 8

    def ended() -> bool:
        name = 'recorder_sessions_ended_total{end="clean"}'
        return keeper.metrics()[name] - before.get(name, 0.0) >= float(result["sessions"])

    wait_until(ended, "the ends of all sessions")
    wait_until(
        lambda: len(keeper.sessions(auditor, q=word, limit="500")) == min(500, result["sessions"]), "all of them"
    )
    sample = keeper.sessions(auditor, q=word, limit="20")
    assert {session["state"] for session in sample} == {"clean"}
    for session in sample:
        assert read_cast(keeper.cast(auditor, session["id"])).output() == f"{word}\n".encode()


def test_events_of_tailscales_proxy(keeper: Keeper, ts_kubectl: Kubectl, bed: Bed, auditor: Node) -> None:
    name = f"told-{new_word()}"
    ts_kubectl.ok("create", "configmap", name)
    ts_kubectl.ok("delete", "configmap", name)

    def told() -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = keeper.get(auditor, "/events", name=name, verb="delete").json()["items"]
        return items

    (event,) = wait_until(told, "the event of the deletion")
    wanted = {"user": "alice@example.com", "resource": "configmaps", "namespace": "default", "method": "DELETE"}
    assert {key: event[key] for key in wanted} == wanted
    assert event["node"] == bed.nodes["alice"].dns_name


# -- Tailscale SSH


@pytest.fixture(scope="module")
def ssh(
    bed: Bed, keeper: Keeper, nodes: dict[str, Node], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[str]]:
    """What comes before a command that alice runs on `server`, a node with Tailscale's SSH server that records."""
    if os.geteuid() != 0:
        pytest.skip("a server of Tailscale SSH logs people in: root only")
    program = shutil.which("ssh")
    if program is None:
        pytest.skip("no ssh is installed")
    policy = tmp_path_factory.mktemp("ssh") / "policy.json"
    action = {
        "accept": True,
        "recorders": [f"{nodes['recorder'].tailnet_ip}:{keeper.port}"],
        "onRecordingFailure": {"RejectSessionWithMessage": "no recorder", "TerminateSessionWithMessage": "no recorder"},
    }
    rule = {"principals": [{"userLogin": "alice@example.com"}], "sshUsers": {"root": "root"}, "action": action}
    policy.write_text(json.dumps({"rules": [rule]}))
    bed.tailnet.daemon_env["TS_DEBUG_SSH_POLICY_FILE"] = str(policy)
    try:
        server = bed.add_node("server", tags=["tag:server"], socks5=False)
    finally:
        del bed.tailnet.daemon_env["TS_DEBUG_SSH_POLICY_FILE"]
    server.cli("set", "--ssh")
    tailscale = Programs(lambda line: None)("tailscale")
    dial = f"{tailscale} --socket={bed.nodes['alice'].socket} nc %h %p"
    options = ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR", f"ProxyCommand={dial}")
    argv = [program, "-F", "none", *(word for option in options for word in ("-o", option)), f"root@{server.dns_name}"]
    yield argv
    server.stop()


@pytest.mark.parametrize("terminal", [True, False], ids=["terminal", "plain"])
def test_tailscale_ssh_records_here(keeper: Keeper, ssh: list[str], bed: Bed, auditor: Node, terminal: bool) -> None:
    word = new_word()
    argv = [*ssh[:1], *(["-tt"] if terminal else []), *ssh[1:], f"{printing(word)}; exit 7"]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False)
    assert done.returncode == 7, done.stderr
    found, cast = kept(keeper, auditor, word, state="clean")
    assert cast.output() == done.stdout
    assert re.fullmatch(rf"{word}\r?\n", done.stdout.decode())
    assert (found["type"], found["user"], found["source"]["tags"]) == ("ssh", "alice@example.com", ["tag:server"])
    assert (cast.header["sshUser"], cast.header["localUser"]) == ("root", "root")
    assert found["node"] == bed.nodes["alice"].dns_name
