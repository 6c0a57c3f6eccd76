"""k8sproxy and the recorder together, on the bed: both real, with the real kubectl in front and tailscaled between.

    alice --kubectl--> k8sproxy on `sender` (tag:k8sproxy) --wire--> recorder on `recorder` (tag:recorder) <-- auditor

Grants name the recorder by its tag. What was kept is looked at through the recorder's API, by `auditor` over the
tailnet, and found by a word on its screen.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import itertools
import json
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.bed import Bed, Node, kubernetes_grant
from tests.bed.tailnet import Grant
from tests.recorder.index import postgres
from tests.recorder.store import s3
from tests.system.keeper import CAP_RECORDER, Keeper, new_word, printing, with_recorder
from tests.system.kubectl import STREAMING, Kubectl
from tests.system.proxy import Proxy, reported, wait_until
from tests.system.raw import BINARY, Connection, Spdy, WebSocket, in_query
from tests.system.recorders import play, read_cast
from tests.system.terminal import Terminal

EVERYTHING = {"users": ["*"], "view": True, "live": True, "export": True, "audit": True}
SOON = 2.0  # seconds from a recorder's end to an enforced session's, as the issue has it
_serial = itertools.count(1)


# -- who is there


@pytest.fixture(scope="module")
def nodes(bed: Bed) -> dict[str, Node]:
    """The bed's, with those of this file."""
    return with_recorder(bed)


@pytest.fixture(scope="module")
def proxy(bed: Bed, nodes: dict[str, Node], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """On a node whose tag the recorder takes sessions from."""
    proxy = Proxy(tmp_path_factory.mktemp("sender"), nodes["sender"], bed.proxy_account_kubeconfig)
    with reported(proxy), proxy:
        yield proxy


@pytest.fixture(scope="module")
def shared_keeper(nodes: dict[str, Node], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keeper]:
    with Keeper(tmp_path_factory.mktemp("keeper"), nodes["recorder"]) as keeper:
        yield keeper


@pytest.fixture
def keeper(bed: Bed, shared_keeper: Keeper) -> Keeper:
    """The recorder that most tests share, where grants lead."""
    bed.tailnet.set_recorder_port(shared_keeper.port)
    return shared_keeper


@pytest.fixture
def own_keeper(bed: Bed, nodes: dict[str, Node], tmp_path: Path) -> Iterator[Keeper]:
    """A recorder that the test may end, where grants lead."""
    with Keeper(tmp_path / "keeper", nodes["recorder"]) as keeper:
        bed.tailnet.set_recorder_port(keeper.port)
        yield keeper


Policy = Callable[..., None]


@pytest.fixture
def policy(proxy: Proxy, nodes: dict[str, Node], grants: Callable[..., None]) -> Policy:
    """policy(keeper, to=proxy, look=EVERYTHING, enforce=True, level="", groups=(), **rule): alice is cluster-admin with
    the recorder (level: of this project's own capability), and auditor may look. Returns when `to` and the recorder go
    by it."""

    def change(
        keeper: Keeper,
        *,
        to: Proxy = proxy,
        look: dict[str, Any] = EVERYTHING,
        enforce: bool = True,
        level: str = "",
        groups: Sequence[str] = (),
        **rule: Any,
    ) -> None:
        group = f"recorded-{next(_serial)}"
        alice = kubernetes_grant(
            "alice@example.com",
            ["system:masters", group, *groups],
            recorder=["tag:recorder"],
            enforceRecorder=enforce,
            **rule,
        )
        own = [Grant(["alice@example.com"], ["*"], {"tailscale.com/cap/k8sproxy": [{"recording": level}]})]
        grants([alice, *(own if level else []), Grant(["auditor"], ["recorder"], {CAP_RECORDER: [look]})])

        def known() -> bool:
            try:
                with Connection.open(to.node.dns_name, to.port, through=nodes["alice"], ca=to.ca) as connection:
                    answer = connection.ask("GET", "/.well-known/k8sproxy/whoami")
            except OSError:  # a dial that meets the new packet filter on its way
                return False
            return group in (json.loads(answer.body)["impersonation"] or {}).get("groups", ())

        wait_until(known, "the grant in the proxy")
        wait_until(lambda: keeper.welcomes(nodes["auditor"]), "the grant in the recorder")

    return change


@pytest.fixture(params=STREAMING)
def streaming(request: pytest.FixtureRequest, proxy: Proxy, kubectl: Callable[..., Kubectl]) -> Kubectl:
    """alice's kubectl through `proxy`, once for each protocol."""
    return kubectl("alice", proxy).speaking(STREAMING[request.param])


@pytest.fixture
def auditor(nodes: dict[str, Node]) -> Node:
    return nodes["auditor"]


# -- kept, found and given back


def test_a_header_with_more_to_say_than_it_may_hold(
    policy: Policy, keeper: Keeper, kubectl: Callable[..., Kubectl], proxy: Proxy, auditor: Node, web: str
) -> None:
    """230 groups, with nobody meaning harm, and a long script: it is recorded, and the recorder says what was cut."""
    groups = [f"team-{number:0300}" for number in range(230)]
    policy(keeper, groups=groups)
    word = new_word()
    script = f"{printing(word)} #" + "\x01" * 15_000
    done = kubectl("alice", proxy).run("exec", web, "-c", "main", "--", "sh", "-c", script, "the end")
    assert (done.returncode, done.stdout) == (0, word.encode() + b"\n")
    found = keeper.session(auditor, q=word, state="clean")
    assert found["command"].startswith("sh -c printf") and found["command"].endswith(" the end")
    assert found["truncated"].keys() == {"command", "impersonation.groups"}
    assert found["truncated"]["command"] == {
        "bytes": len(f"sh -c {script} the end"),
        "sha256": hashlib.sha256(f"sh -c {script} the end".encode()).hexdigest(),
    }
    assert set(groups) > set(found["groups"][2:]) != set()


def test_what_was_seen_is_found_by_a_word_of_it(
    policy: Policy, keeper: Keeper, streaming: Kubectl, proxy: Proxy, auditor: Node, nodes: dict[str, Node], web: str
) -> None:
    policy(keeper)
    word = new_word()
    done = streaming.run("exec", web, "-c", "main", "--", "sh", "-c", f"{printing(word)}; echo grün >&2; exit 3")
    assert (done.returncode, done.stdout) == (3, word.encode() + b"\n")
    found = keeper.session(auditor, q=word, state="clean")
    assert [part["text"] for hit in found["hits"] for part in hit["snippet"] if part["match"]] == [word]
    cast = read_cast(keeper.cast(auditor, found["id"]))
    assert (cast.output("o"), cast.output("e")) == (done.stdout, "grün\n".encode())
    # The log is written in batches.
    (started,) = wait_until(
        lambda: [line for line in proxy.events("session_started") if line["session"] == found["sessionId"]],
        "line of the session",
    )
    assert started["recorder"] in (f"{nodes['recorder'].tailnet_ip}:{keeper.port}",)
    wanted = {
        "type": "exec", "user": "alice@example.com", "node": nodes["alice"].dns_name, "tags": [], "cluster": "bed",
        "namespace": "default", "pod": web, "container": "main", "damaged": False, "events": len(cast.events),
    }  # fmt: skip
    assert {name: found[name] for name in wanted} == wanted
    source = found["source"]
    assert (source["node"], source["address"]) == (nodes["sender"].dns_name, nodes["sender"].tailnet_ip)
    assert list(source["tags"]) == ["tag:k8sproxy"]


def test_what_a_terminal_does_not_show_is_marked_and_found(
    policy: Policy, keeper: Keeper, streaming: Kubectl, auditor: Node, web: str
) -> None:
    policy(keeper)
    shown, word = new_word(), new_word()
    hidden = rf"printf '\033_'; {printing(word)}; printf '\033\\'; printf '\033[8mconcealed\033[0m\n'"
    assert streaming.run("exec", web, "--", "sh", "-c", f"{printing(shown)}; {hidden}").returncode == 0
    found = keeper.session(auditor, q=shown, state="clean")
    assert (found["unseen"], found["searchable"], found["damaged"]) == (True, True, False)
    (hit,) = [hit for hit in keeper.session(auditor, q=word)["hits"] if hit["unseen"]]
    assert hit["unseen"] == "APC"
    listed = json.loads(keeper.get(auditor, f"/sessions/{found['id']}/unseen").body)
    assert [(piece["kind"], piece["text"]) for piece in listed["items"]] == [("APC", word), ("concealed", "concealed")]


def test_a_terminal(
    policy: Policy, keeper: Keeper, streaming: Kubectl, auditor: Node, web: str, tmp_path: Path
) -> None:
    policy(keeper)
    word = new_word()
    script = tmp_path / "paint"
    script.write_text(
        rf"""until [ "$(stty size)" = '24 80' ]; do sleep 0.02; done
printf '\033[2J\033[H\033[1;31mred\033[0m \346\274'; sleep 0.05; printf '\242 \377 '
{printing(word)}
until [ "$(stty size)" = '30 100' ]; do sleep 0.02; done
printf '\033[28;90Hbottom\n'; exit 4
"""
    )
    argv = streaming.argv("exec", "-it", web, "--", "sh", str(script))
    with Terminal(argv, streaming.environ(), rows=24, columns=80) as terminal:
        terminal.expect(word)
        terminal.resize(30, 100)
        assert terminal.wait() == 4
        seen = bytes(terminal.raw)
    found = keeper.session(auditor, q=word, state="clean")
    cast = read_cast(keeper.cast(auditor, found["id"]))
    output = cast.output()
    assert b"\xe6\xbc\xa2 \xff heron" in output and seen.startswith(output)
    assert seen[len(output) :].strip() == b"command terminated with exit code 4"
    assert cast.sizes == [(80, 24), (100, 30)]
    assert "bottom" in play(cast).display[27]


def test_a_session_is_watched_while_it_runs(
    policy: Policy, keeper: Keeper, streaming: Kubectl, auditor: Node, web: str
) -> None:
    policy(keeper)
    word, later = new_word(), new_word()
    with streaming.start("exec", "-i", web, "--", "sh", "-c", f"{printing(word)}; cat") as running:
        running.expect(word)
        found = keeper.session(auditor, state="running")
        with keeper.watching(auditor, found["id"]) as live:
            lines = iter(live.readline, b"")
            assert json.loads(next(lines))["sessionID"] == found["sessionId"]
            shown = ""
            for line in lines:
                shown += json.loads(line)[2]
                if word in shown:
                    break
            running.write(f"{later}\n".encode())
            for line in lines:
                shown += json.loads(line)[2]
                if later in shown:
                    break
            assert running.popen.stdin
            running.popen.stdin.close()
            assert "".join(json.loads(line)[2] for line in lines) == ""  # until it is over
        assert running.wait() == 0
    assert shown == running.out == f"{word}\n{later}\n"
    assert keeper.session(auditor, q=later, state="clean")["id"] == found["id"]


@pytest.mark.parametrize("enforce", [True, False], ids=["enforced", "open"])
def test_requests_are_told(
    policy: Policy,
    keeper: Keeper,
    kubectl: Callable[..., Kubectl],
    proxy: Proxy,
    auditor: Node,
    nodes: dict[str, Node],
    enforce: bool,
) -> None:
    policy(keeper, enableEvents=True, enforce=enforce)
    name = f"told-{new_word()}"
    alice = kubectl("alice", proxy)
    alice.ok("create", "configmap", name, "--from-literal=colour=blue")
    alice.ok("delete", "configmap", name)

    def told(**query: str) -> list[dict[str, Any]]:
        reply = keeper.get(auditor, "/events", resource="configmaps", **query)
        assert reply.ok, reply
        items: list[dict[str, Any]] = reply.json()["items"]
        return items

    (event,) = wait_until(lambda: told(name=name, verb="delete"), "the event of the deletion")
    wanted = {"user": "alice@example.com", "namespace": "default", "method": "DELETE", "cluster": "bed"}
    assert {key: event[key] for key in wanted} == wanted
    assert event["sender"] == nodes["sender"].dns_name
    newest = told(verb="create")[0]
    document = keeper.get(auditor, f"/events/{newest['id']}").json()["document"]
    assert name.encode() in base64.b64decode(document["request"]["body"])


# -- who may send, and who may look


def test_a_sender_without_the_tag_is_refused(
    policy: Policy, keeper: Keeper, shared_proxy: Proxy, kubectl: Callable[..., Kubectl], nodes: dict[str, Node],
    auditor: Node, web: str, tmp_path: Path,
) -> None:  # fmt: skip
    policy(keeper, to=shared_proxy)
    touched, word = tmp_path / "touched", new_word()
    done = kubectl("alice", shared_proxy).run("exec", web, "--", "sh", "-c", f"touch {touched}; {printing(word)}")
    assert done.returncode == 1 and not touched.exists()
    assert b"403" in done.stderr and b"recorder" in done.stderr, done.stderr
    refused = wait_until(lambda: keeper.events("refused"), "the refusal in the log")  # which is written in batches
    assert {line["cause"] for line in refused} == {"not_a_sender"}
    with keeper.dial(nodes["mallory"]) as sock:
        sock.sendall(b"POST /record HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n")
        assert sock.recv(4096).startswith(b"HTTP/1.1 403 ")
    assert keeper.sessions(auditor, q=word) == []


def test_who_may_look(
    policy: Policy, keeper: Keeper, streaming: Kubectl, auditor: Node, nodes: dict[str, Node], web: str
) -> None:
    policy(keeper)
    word = new_word()
    streaming.ok("exec", web, "--", "sh", "-c", printing(word))
    found = keeper.session(auditor, q=word, state="clean")
    paths = ("/sessions", f"/sessions/{found['id']}", f"/sessions/{found['id']}/cast", "/events", "/facets", "/looks")
    for path in paths:
        assert keeper.get(auditor, path).status == 200
        for stranger in ("mallory", "alice", "sender"):
            reply = keeper.get(nodes[stranger], path)
            assert reply.status == 403 and reply.json()["cause"] == "no_grant"
            assert found["id"].encode() not in reply.body and b"alice" not in reply.body
    looks = keeper.get(auditor, "/looks", session=found["id"]).json()["items"]
    assert {look["user"] for look in looks} == {"auditor@example.com"}
    # The same person with a grant for somewhere else: as if it were not there.
    policy(keeper, look=EVERYTHING | {"namespaces": ["elsewhere"]})
    wait_until(lambda: not keeper.sessions(auditor), "the smaller grant in the recorder")
    for path in paths[1:3]:
        assert keeper.get(auditor, path).status == 404


# -- a recorder that ends


@pytest.fixture
def go(tmp_path: Path) -> Iterator[Path]:
    """The file that commands here wait for; whatever was left behind in the pod ends with the test."""
    path = tmp_path / "go"
    yield path
    path.touch()


def counting(go: Path) -> tuple[str, ...]:
    """A command that prints numbers, some a second, until it may go."""
    return ("sh", "-c", f"n=0; until [ -e {go} ]; do n=$((n+1)); echo line $n; sleep 0.02; done; echo gone")


@pytest.mark.parametrize(
    ("protocol", "level"),
    [
        *((protocol, level) for protocol in ("websocket", "spdy") for level in ("closed", "acknowledged")),
        ("spdy", "open"),
    ],
)
def test_a_recorder_killed_in_the_middle(
    policy: Policy, own_keeper: Keeper, kubectl: Callable[..., Kubectl], proxy: Proxy, auditor: Node, web: str,
    go: Path, protocol: str, level: str,
) -> None:  # fmt: skip
    keeper, streaming = own_keeper, kubectl("alice", proxy).speaking(STREAMING[protocol])
    enforce = level != "open"
    policy(keeper, enforce=level == "closed", level=level if level == "acknowledged" else "")
    with streaming.start("exec", web, "--", *counting(go)) as running:
        running.expect("line 20\n")
        found = keeper.session(auditor, state="running")
        # What anybody is shown of it is safe: bytes are acked before they can be read.
        before = wait_until(lambda: _if_in(b"line 20", keeper.cast(auditor, found["id"])), "the lines that are safe")
        keeper.kill()
        if enforce:
            assert running.wait(SOON + 3) == 1
            assert "recorder" in running.err and not running.out.endswith("gone\n")
        else:
            lines = running.out.count("\n")
            wait_until(lambda: running.out.count("\n") > lines + 20, "a session that goes on")
            go.touch()
            assert running.wait() == 0 and running.out.endswith("gone\n")
    keeper.start()
    again = keeper.session(auditor)
    assert (again["id"], again["state"], again["damaged"]) == (found["id"], "cut", False)
    after = keeper.cast(auditor, found["id"])
    assert after.startswith(before)
    shown, kept = running.out.encode(), read_cast(after).output()
    assert kept.startswith(shown) if level == "acknowledged" else shown.startswith(kept)
    # And it takes sessions as before.
    if enforce:
        word = new_word()
        wait_until(
            lambda: streaming.run("exec", web, "--", "sh", "-c", printing(word)).returncode == 0, "a recorded session"
        )
        assert keeper.session(auditor, q=word, state="clean")


@pytest.mark.parametrize("level", ["open", "closed", "acknowledged"])
@pytest.mark.parametrize("protocol", ["v4.channel.k8s.io", "v5.channel.k8s.io", "SPDY/3.1"])
def test_a_client_that_sends_what_can_not_be_read(
    policy: Policy, keeper: Keeper, proxy: Proxy, nodes: dict[str, Node], auditor: Node, web: str, go: Path,
    protocol: str, level: str,
) -> None:  # fmt: skip
    """A terminal whose size was never said, output for a while, a size that Go passes over, then one malformed frame:
    what was shown is in the recording, which says why it ends."""
    policy(keeper, enforce=level == "closed", level=level if level == "acknowledged" else "")
    word = new_word()
    command = in_query(
        "sh", "-c", f"{printing(word)}; n=0; until [ -e {go} ]; do n=$((n+1)); echo line $n; sleep 0.02; done"
    )
    target = f"/api/v1/namespaces/default/pods/{web}/exec?{command}&stdin=true&stdout=true&tty=true&container=main"
    shown = b""
    with Connection.open(proxy.node.dns_name, proxy.port, through=nodes["alice"], ca=proxy.ca) as connection:
        if protocol == "SPDY/3.1":
            session = Spdy(connection, target)
            error, _, out, resize = (session.open(kind) for kind in ("error", "stdin", "stdout", "resize"))
            connection.sock.sendall(_spdy_data(resize, b"{ width: 100, height: 30}"))
            frames = session.frames()
            while b"line 20\r\n" not in shown:
                stream, payload = next(frames)
                shown += payload if stream == out else b""
            connection.sock.sendall(b"\x80\x03\x00\x03\x00\x00\x00\x05short")
        else:
            socket = WebSocket(connection, target, protocol)
            socket.send(BINARY, b"\x04{ width: 100, height: 30}")
            out, error = 1, 3
            frames = ((payload[0], payload[1:]) for opcode, payload in socket.frames() if opcode == BINARY)
            while b"line 20\r\n" not in shown:
                stream, payload = next(frames)
                shown += payload if stream == out else b""
            connection.sock.sendall(b"\xff" * 20)
        told = b""
        if level == "open":
            go.touch()  # over SPDY the kubelet reads no more, and writes on
        with contextlib.suppress(EOFError, ConnectionResetError):
            for stream, payload in frames:
                shown += payload if stream == out else b""
                told += payload if stream == error else b""
    assert (b"what the client sends can't be read" in told) is (level != "open")
    found = keeper.session(auditor, q=word, state="clean")
    cast = read_cast(keeper.cast(auditor, found["id"]))
    assert cast.output().startswith(shown) and (cast.header["width"], cast.header["height"]) == (80, 24)
    assert not cast.sizes[1:] and any(
        "the client sends can't be read" in text for _, code, text in cast.events if code == "m"
    )
    said = wait_until(
        lambda: [line for line in proxy.events("session_unreadable") if line["session"] == found["sessionId"]],
        "the warning in the log",
    )
    assert [line["side"] for line in said] == ["client"]


def _spdy_data(stream: int, payload: bytes) -> bytes:
    return stream.to_bytes(4, "big") + len(payload).to_bytes(4, "big") + payload


def _if_in(part: bytes, whole: bytes) -> bytes | None:
    return whole if part in whole else None


def test_a_recorder_that_is_stopped_says_so(
    policy: Policy, own_keeper: Keeper, kubectl: Callable[..., Kubectl], proxy: Proxy, auditor: Node, web: str, go: Path
) -> None:
    keeper, streaming = own_keeper, kubectl("alice", proxy).speaking(STREAMING["websocket"])
    policy(keeper)
    with streaming.start("exec", web, "--", *counting(go)) as running:
        running.expect("line 5\n")
        found = keeper.session(auditor, state="running")
        keeper.process.signal_group(signal.SIGTERM)
        assert running.wait() == 1
        assert "the recorder is stopping" in running.err
    assert keeper.process.popen.wait(20) == 0
    keeper.start()
    assert (keeper.session(auditor)["id"], keeper.session(auditor)["state"]) == (found["id"], "cut")
    assert running.out.encode().startswith(read_cast(keeper.cast(auditor, found["id"])).output())


# -- other parts below it


@pytest.fixture(scope="module")
def server() -> Iterator[postgres.Server]:
    with postgres.running() as started:
        yield started


def test_the_index_in_postgresql(
    policy: Policy, server: postgres.Server, bed: Bed, nodes: dict[str, Node], kubectl: Callable[..., Kubectl],
    proxy: Proxy, auditor: Node, web: str, tmp_path: Path,
) -> None:  # fmt: skip
    alice = kubectl("alice", proxy)
    with Keeper(tmp_path / "keeper", nodes["recorder"], index={"url": server.database()}) as keeper:
        bed.tailnet.set_recorder_port(keeper.port)
        policy(keeper, enableEvents=True)
        word, name = new_word(), f"told-{new_word()}"
        done = alice.run("exec", web, "--", "sh", "-c", printing(word))
        alice.ok("create", "configmap", name)
        alice.ok("delete", "configmap", name)
        found = keeper.session(auditor, q=word, state="clean")
        assert read_cast(keeper.cast(auditor, found["id"])).output() == done.stdout == f"{word}\n".encode()
        events = wait_until(
            lambda: keeper.get(auditor, "/events", name=name, verb="delete").json()["items"], "the event"
        )
        assert [event["user"] for event in events] == ["alice@example.com"]
        keeper.kill()
        keeper.start()
        assert keeper.session(auditor, q=word)["id"] == found["id"]
    assert not (tmp_path / "keeper" / "data" / "index.db").exists()


def test_the_store_on_an_s3_server_that_goes_away(
    policy: Policy, bed: Bed, nodes: dict[str, Node], kubectl: Callable[..., Kubectl], proxy: Proxy, auditor: Node,
    web: str, go: Path, tmp_path: Path,
) -> None:  # fmt: skip
    """And comes back: who was being recorded is told why it ended, and what was acked by then is there for good."""
    alice = kubectl("alice", proxy)
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(s3.running(tmp_path / "s3"))
        store = {"url": server.url("bed"), "options": server.options}
        index = {"url": f"sqlite:{tmp_path / 'index.db'}"}
        keeper = stack.enter_context(Keeper(tmp_path / "keeper", nodes["recorder"], store=store, index=index))
        bed.tailnet.set_recorder_port(keeper.port)
        policy(keeper)
        with alice.start("exec", web, "--", *counting(go)) as running:
            running.expect("line 10\n")
            found = keeper.session(auditor, state="running")
            before = wait_until(
                lambda: _if_in(b"line 10", keeper.cast(auditor, found["id"])), "the lines that are safe"
            )
            server.stop()
            assert running.wait(30) == 1
            assert "the recorder's store cannot be reached" in running.err
        assert keeper.readiness()[0] == 503
        denied = alice.fails("exec", web, "--", "touch", str(tmp_path / "touched"))
        assert "HTTP 503" in denied and not (tmp_path / "touched").exists()
        server.start()
        wait_until(lambda: keeper.readiness()[0] == 200, "readiness again")
        word = new_word()
        wait_until(lambda: alice.run("exec", web, "--", "sh", "-c", printing(word)).returncode == 0, "a new session")
        keeper.kill()
        keeper.start()
        assert keeper.session(auditor, q=word, state="clean")
        after = keeper.cast(auditor, keeper.session(auditor, state="cut")["id"])
        assert after.startswith(before) and running.out.encode().startswith(read_cast(after).output())
