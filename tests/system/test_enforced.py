"""enforceRecorder: without a recorder no way to a shell is open, and with one nothing goes unrecorded.

Every request here would run a command that leaves a file behind, and prints a line. `test_no_way_to_a_shell` has no
recorder, so there must be no file. `test_nothing_unrecorded` has one: where the file is, the line is in a recording.
`test_the_same_requests_without_enforcement` sends them where nothing is enforced: the file is there then, so the others
refuse what works.
"""

from __future__ import annotations

import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.bed import Bed, kubernetes_grant
from tests.system.kubectl import STREAMING, Kubectl
from tests.system.proxy import Proxy, wait_until
from tests.system.raw import Answer, Connection, in_query
from tests.system.recorders import Sink

WEBSOCKET = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
    "Sec-WebSocket-Protocol": "v4.channel.k8s.io",
}
SPDY = {"Connection": "Upgrade", "Upgrade": "SPDY/3.1", "X-Stream-Protocol-Version": "v4.channel.k8s.io"}
ODD_CASE = {**SPDY, "Connection": "upgrade", "Upgrade": "spdy/3.1"}

_VERSION = "X-Stream-Protocol-Version"


def _without(headers: dict[str, str], name: str) -> dict[str, str]:
    return {key: value for key, value in headers.items() if key != name}


POD = "/api/v1/namespaces/default/pods/web"
NODE = "/api/v1/nodes/bed/proxy"
# method, target ({command} is put in), headers, and whether the API server runs it where nothing is enforced.
REQUESTS = {
    "websocket": ("GET", f"{POD}/exec?stdout=1&{{command}}", WEBSOCKET, True),
    "spdy by POST": ("POST", f"{POD}/exec?stdout=1&{{command}}", SPDY, False),  # waits for the client's streams
    "spdy by GET": ("GET", f"{POD}/exec?stdout=1&{{command}}", SPDY, False),
    "spdy in lower case": ("POST", f"{POD}/exec?stdout=1&{{command}}", ODD_CASE, False),
    "by PUT": ("PUT", f"{POD}/exec?stdout=1&{{command}}", WEBSOCKET, False),
    "trailing slash": ("GET", f"{POD}/exec/?stdout=1&{{command}}", WEBSOCKET, False),
    "escaped": ("GET", f"{POD}/%65xec?stdout=1&{{command}}", WEBSOCKET, False),
    "two slashes": ("GET", f"{POD}//exec?stdout=1&{{command}}", WEBSOCKET, False),
    "dot segment": ("GET", f"{POD}/./exec?stdout=1&{{command}}", WEBSOCKET, False),
    "escaped twice": ("GET", f"{POD}/%2565xec?stdout=1&{{command}}", WEBSOCKET, False),
    "slash escaped": ("GET", f"{POD}%2Fexec?stdout=1&{{command}}", WEBSOCKET, False),
    "capital letters": ("GET", f"{POD}/EXEC?stdout=1&{{command}}", WEBSOCKET, False),
    "a semicolon": ("GET", f"{POD}/exec;v=1?stdout=1&{{command}}", WEBSOCKET, False),
    "by DELETE": ("DELETE", f"{POD}/exec?stdout=1&{{command}}", WEBSOCKET, False),
    "by PATCH": ("PATCH", f"{POD}/exec?stdout=1&{{command}}", SPDY, False),
    "by HEAD": ("HEAD", f"{POD}/exec?stdout=1&{{command}}", WEBSOCKET, False),
    "by OPTIONS": ("OPTIONS", f"{POD}/exec?stdout=1&{{command}}", WEBSOCKET, False),
    "in lower case": ("get", f"{POD}/exec?stdout=1&{{command}}", WEBSOCKET, False),
    "no Upgrade": ("GET", f"{POD}/exec?stdout=1&{{command}}", _without(WEBSOCKET, "Upgrade"), False),
    "no Upgrade, by POST": ("POST", f"{POD}/exec?stdout=1&{{command}}", _without(SPDY, "Upgrade"), False),
    "no Connection": ("GET", f"{POD}/exec?stdout=1&{{command}}", _without(WEBSOCKET, "Connection"), False),
    "Connection: close": ("GET", f"{POD}/exec?stdout=1&{{command}}", {**WEBSOCKET, "Connection": "close"}, False),
    "two upgrades": ("GET", f"{POD}/exec?stdout=1&{{command}}", {**WEBSOCKET, "upgrade": "SPDY/3.1"}, False),
    "a list of upgrades": ("GET", f"{POD}/exec?stdout=1&{{command}}", {**WEBSOCKET, "Upgrade": "x, websocket"}, False),
    "no protocol of SPDY": ("POST", f"{POD}/exec?stdout=1&{{command}}", _without(SPDY, _VERSION), False),
    "unknown protocol of SPDY": ("POST", f"{POD}/exec?stdout=1&{{command}}", {**SPDY, _VERSION: "v9"}, False),
    "attach": ("GET", f"{POD}/attach?stdout=1", WEBSOCKET, False),
    "kubelet's run": ("POST", f"{NODE}/run/default/web/main?cmd={{words}}", {}, True),
    "kubelet's run, escaped": ("POST", f"{NODE}/%72un/default/web/main?cmd={{words}}", {}, True),
    "kubelet's run, two slashes": ("POST", f"{NODE}//run/default/web/main?cmd={{words}}", {}, True),
    "kubelet's run behind a harmless path": ("POST", f"{NODE}/pods/../run/default/web/main?cmd={{words}}", {}, True),
    # The API server drops the query of an upgrade that it passes to a kubelet, and with it the command.
    "kubelet's attach": ("GET", f"{NODE}/attach/default/web/main?output=1", WEBSOCKET, False),
    "kubelet's exec, by POST": ("POST", f"{NODE}/exec/default/web/main?output=1&{{command}}", SPDY, False),
    "kubelet's exec, two slashes": ("GET", f"{NODE}//exec/default/web/main?output=1&{{command}}", WEBSOCKET, False),
    "kubelet's exec": ("GET", f"{NODE}/exec/default/web/main?output=1&{{command}}", WEBSOCKET, False),
}


# What a session here does: leaves something behind, and says so.
RAN = "created directory"


def leave(mark: Path) -> list[str]:
    return ["mkdir", "-v", str(mark)]


def request(bed: Bed, proxy: Proxy, name: str, mark: Path) -> Answer:
    method, target, headers, _ = REQUESTS[name]
    words = leave(mark)
    command = in_query(*words)
    target = target.format(command=command, words=urllib.parse.quote(" ".join(words), safe=""))
    alice = bed.nodes["alice"]
    with Connection.open(proxy.node.dns_name, proxy.port, through=alice, ca=proxy.ca) as connection:
        answer = connection.ask(method, target, headers)
        if answer.status == 101 and headers["Upgrade"] == "websocket" and "attach" not in target:
            while connection.sock.recv(64 * 1024):  # who goes before the end has not seen all of it
                pass
            wait_until(mark.exists, f"{mark} of {name}")
        return answer


@pytest.fixture
def enforced(grants: Callable[..., None], bed: Bed, shared_proxy: Proxy) -> Iterator[None]:
    """alice may do everything that is recorded, and there is no recorder."""
    grants([kubernetes_grant("alice@example.com", ["system:masters"], enforceRecorder=True)])
    alice = bed.nodes["alice"]
    with Connection.open(
        shared_proxy.node.dns_name, shared_proxy.port, through=alice, ca=shared_proxy.ca
    ) as connection:

        def known() -> bool:
            return bool(connection.ask("GET", "/.well-known/k8sproxy/whoami").json()["enforceRecorder"])

        wait_until(known, "enforceRecorder")
    yield


@pytest.fixture
def with_sink(record: Callable[..., None], sink: Sink) -> Sink:
    """alice may do everything that is recorded, and there is a recorder."""
    record(sink.address, enforce=True)
    return sink


@pytest.mark.parametrize("name", REQUESTS)
def test_no_way_to_a_shell(enforced: None, bed: Bed, shared_proxy: Proxy, web: str, tmp_path: Path, name: str) -> None:
    answer = request(bed, shared_proxy, name, tmp_path / "mark")
    assert answer.status in (400, 403, 405)
    if answer.body:  # but for HEAD
        assert answer.message.startswith("k8sproxy: ")
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("name", REQUESTS)
def test_nothing_unrecorded(
    with_sink: Sink, bed: Bed, shared_proxy: Proxy, web: str, tmp_path: Path, name: str
) -> None:
    """Refused, by the proxy or behind it, or recorded."""
    mark = tmp_path / "mark"
    answer = request(bed, shared_proxy, name, mark)
    if answer.status == 101:
        kept = with_sink.ended()
        assert mark.exists() == (RAN.encode() in kept.cast.output())
        assert mark.exists() == (REQUESTS[name][2]["Upgrade"] == "websocket" and name != "attach")
    else:
        assert answer.status >= 400
        assert not mark.exists()


@pytest.mark.parametrize("name", [name for name, request in REQUESTS.items() if request[3]])
def test_the_same_requests_without_enforcement(
    bed: Bed, shared_proxy: Proxy, web: str, tmp_path: Path, name: str
) -> None:
    if "kubelet" in name and bed.cluster.address.startswith("127."):
        pytest.skip("the API server refuses nodes/proxy to loopback, and this machine has no other address")
    answer = request(bed, shared_proxy, name, tmp_path / "mark")
    assert answer.status < 400
    assert (tmp_path / "mark").exists()


@pytest.mark.parametrize("protocol", STREAMING)
def test_kubectl_is_told_why(enforced: None, alice: Kubectl, web: str, tmp_path: Path, protocol: str) -> None:
    alice = alice.speaking(STREAMING[protocol])
    mark = tmp_path / "mark"
    assert "(recording: closed)" in alice.fails("exec", web, "--", "touch", str(mark))
    assert "(recording: closed)" in alice.fails("attach", web)
    assert "(recording: closed)" in alice.fails("cp", str(Path(__file__)), f"{web}:{mark}")
    assert not mark.exists()


def test_a_refused_session_is_counted_as_one(enforced: None, alice: Kubectl, shared_proxy: Proxy, web: str) -> None:
    name = 'k8sproxy_requests_total{code="403",resource="pods/exec",verb="get"}'
    before = shared_proxy.metrics().get(name, 0)
    alice.speaking(STREAMING["websocket"]).fails("exec", web, "--", "true")
    assert shared_proxy.metrics()[name] > before


@pytest.mark.parametrize("protocol", STREAMING)
def test_kubectl_runs_it_where_nothing_is_enforced(alice: Kubectl, web: str, tmp_path: Path, protocol: str) -> None:
    alice.speaking(STREAMING[protocol]).ok("exec", web, "--", "touch", str(tmp_path / "mark"))
    assert (tmp_path / "mark").exists()


def test_everything_else_goes_on(enforced: None, alice: Kubectl, web: str) -> None:
    assert web in alice.ok("get", "pods")
    alice.ok("logs", web)
