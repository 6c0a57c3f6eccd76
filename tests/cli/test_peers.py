"""whois and explain, against a stand-in daemon."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from k8sproxy.cli import cli
from k8sproxy.cli.common import parse_address
from standins.tailscaled import KUBERNETES, FakeTailscaled, groups, tagged_whois, user_whois
from tests.cli.servers import tailscaled

EXEC = "/api/v1/namespaces/a/pods/web/exec?command=sh"
RECORDED = {"recorder": ["tag:rec"], "recorderAddrs": ["100.64.0.9:80"]}


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeTailscaled]:
    peers = {
        "100.64.0.1": user_whois("ana@example.com", "laptop", "100.64.0.1", groups("dev", "ops")),
        "100.64.0.2": tagged_whois("ci", ["tag:ci"], "100.64.0.2", groups(**RECORDED)),
        "100.64.0.3": user_whois("bob@example.com", "pc", "100.64.0.3"),
        "100.64.0.4": user_whois("eve@example.com", "pc", "100.64.0.4", {KUBERNETES: [{"impersonate": 5}]}),
        "100.64.0.5": user_whois("dan@example.com", "pc", "100.64.0.5", groups("dev", enforceRecorder=True)),
        "100.64.0.6": user_whois("e\rve\x9b@example.com", "pc", "100.64.0.6"),
        "100.64.0.8": user_whois("ben@example.com", "pc", "100.64.0.8", groups("dev", enforceRecoder=True)),
        "100.64.0.7": user_whois(
            "mia@example.com", "pc", "100.64.0.7",
            groups(**RECORDED) | {"tailscale.com/cap/k8sproxy": [{"recording": "acknowledged"}]},
        ),
        "fd7a:115c:a1e0::1": user_whois("six@example.com", "pc", "fd7a:115c:a1e0::1"),
    }  # fmt: skip
    with tailscaled(tmp_path / "ts.sock", peers) as daemon:
        yield daemon


def run(daemon: FakeTailscaled, *args: str) -> Result:
    return CliRunner().invoke(cli, [*args, "--socket", daemon.path])


def explained(daemon: FakeTailscaled, *args: str) -> tuple[int, dict[str, Any]]:
    result = run(daemon, "explain", "--json", *args)
    return result.exit_code, json.loads(result.stdout)


def test_whois(daemon: FakeTailscaled) -> None:
    result = run(daemon, "whois", "100.64.0.1:1234")
    assert result.exit_code == 0
    assert "ana@example.com" in result.stdout
    assert (
        'capability tailscale.com/cap/kubernetes\n          {"impersonate": {"groups": ["dev", "ops"]}}'
        in result.stdout
    )
    values = json.loads(run(daemon, "whois", "100.64.0.2", "--json").stdout)
    assert (values["loginName"], values["tags"], values["node"]) == ("tagged-devices", ["tag:ci"], "ci.tail1234.ts.net")
    assert run(daemon, "whois", "[fd7a:115c:a1e0::1]:5").exit_code == 0
    assert daemon.queries[-1][1]["addr"] == "[fd7a:115c:a1e0::1]:5"


def test_whois_of_nobody(daemon: FakeTailscaled, tmp_path: Path) -> None:
    result = run(daemon, "whois", "100.64.9.9:1")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "k8sproxy: tailscaled knows no peer at 100.64.9.9:1\n"
    result = CliRunner().invoke(cli, ["whois", "100.64.0.1:1", "--socket", str(tmp_path / "no")])
    assert result.exit_code == 1
    assert result.stderr.startswith(f"k8sproxy: there is no socket {tmp_path}/no")
    assert result.stderr.count("\n") == 1


def test_what_the_tailnet_says_cannot_play_with_the_terminal(daemon: FakeTailscaled) -> None:
    for args in (["whois", "100.64.0.6"], ["explain", "--peer", "100.64.0.6"], ["whois", "--json", "100.64.0.6"]):
        assert not {"\r", "\x9b"} & set(run(daemon, *args).stdout)  # click itself takes off what begins with ESC


def test_explain_a_peer(daemon: FakeTailscaled) -> None:
    code, found = explained(daemon, "--peer", "100.64.0.1")
    assert code == 0
    assert found["impersonation"] == {"user": "ana@example.com", "groups": ["dev", "ops"]}
    assert [rule["groups"] for rule in found["rules"]] == [["dev", "ops"]]
    assert found["request"] is found["recording"] is found["refusal"] is None
    code, found = explained(daemon, "--peer", "100.64.0.2")
    assert found["impersonation"] == {"user": "ci.tail1234.ts.net", "groups": ["tag:ci"]}
    code, found = explained(daemon, "--peer", "100.64.0.3")
    assert (code, found["rules"], found["impersonation"]["groups"]) == (0, [], [])


def test_explain_a_request(daemon: FakeTailscaled) -> None:
    code, found = explained(daemon, "--peer", "100.64.0.1", "--path", "/apis/apps/v1/namespaces/a/deployments")
    assert code == 0
    assert {name: found["request"][name] for name in ("method", "verb", "apiGroup", "resource", "namespace")} == {
        "method": "GET", "verb": "list", "apiGroup": "apps", "resource": "deployments", "namespace": "a",
    }  # fmt: skip
    assert found["recording"] is None
    _, found = explained(daemon, "--peer", "100.64.0.1", "--verb", "CREATE", "--path", "/api/v1/namespaces")
    assert (found["request"]["method"], found["request"]["verb"]) == ("POST", "create")


def test_explain_what_is_recorded(daemon: FakeTailscaled) -> None:
    code, found = explained(daemon, "--peer", "100.64.0.2", "--path", EXEC, "--upgrade", "websocket")
    assert code == 0
    assert found["recording"] == {"recorderAddrs": ["100.64.0.9:80"], "failureMode": "open", "session": "exec"}
    text = run(daemon, "explain", "--peer", "100.64.0.2", "--path", EXEC).stdout
    assert "recorded  yes, by the first that takes it of 100.64.0.9:80; without one the session goes on unrec" in text
    code, found = explained(daemon, "--peer", "100.64.0.5", "--path", EXEC)
    assert code == 1
    assert found["recording"] == {"recorderAddrs": [], "failureMode": "closed", "session": "exec"}
    assert found["refusal"]["cause"] == "recorder_unavailable"
    text = run(daemon, "explain", "--peer", "100.64.0.5", "--path", EXEC).stdout
    assert "no recorder accepted it: no recorder has an address\n" in text


def test_explain_who_is_told_of_requests(daemon: FakeTailscaled) -> None:
    daemon.peers["100.64.0.1"] = user_whois("a@b.c", "pc", "100.64.0.1", groups("dev", enableEvents=True))  # type: ignore[index]  # a dict here
    code, found = explained(daemon, "--peer", "100.64.0.1")
    assert (code, found["events"], found["eventRecorderAddrs"]) == (0, True, [])
    assert (
        "events    sent to no recorder: none has an address\n" in run(daemon, "explain", "--peer", "100.64.0.1").stdout
    )
    recorded = groups("dev", enableEvents=True, **RECORDED)
    daemon.peers["100.64.0.1"] = user_whois("a@b.c", "pc", "100.64.0.1", recorded)  # type: ignore[index]  # a dict here
    assert "events    sent to 100.64.0.9:80\n" in run(daemon, "explain", "--peer", "100.64.0.1").stdout
    assert "events " not in run(daemon, "explain", "--peer", "100.64.0.2").stdout


def test_a_misspelt_field_is_named(daemon: FakeTailscaled, tmp_path: Path) -> None:
    note = "the capability tailscale.com/cap/kubernetes: rule 1 has the unknown field 'enforceRecoder'; did you mean"
    for args in (["whois", "100.64.0.8"], ["explain", "--peer", "100.64.0.8", "--path", EXEC]):
        result = run(daemon, *args)
        assert result.exit_code == 0
        assert f"note      {note} enforceRecorder?\n" in result.stdout
    code, found = explained(daemon, "--peer", "100.64.0.8")
    assert (code, found["notes"]) == (0, [f"{note} enforceRecorder?"])
    assert found["rules"][0]["unknownFields"] == ["unknown field 'enforceRecoder'; did you mean enforceRecorder?"]
    assert json.loads(run(daemon, "whois", "--json", "100.64.0.8").stdout)["notes"] == found["notes"]
    assert explained(daemon, "--peer", "100.64.0.1")[1]["notes"] == []
    assert explained(daemon, "--peer", "100.64.0.4")[1]["notes"] == []
    path = tmp_path / "config.yaml"
    path.write_text(
        "apiVersion: k8sproxy/v1alpha1\n"
        f"tailnet: {{socket: {daemon.path}, unknownGrantFields: refuse}}\n"
        "listen: [{address: '127.0.0.1:1', tls: {source: none}}]\n"
        "clusters: [{name: a, inCluster: true}]\n"
    )
    code, found = explained(daemon, "--peer", "100.64.0.8", "--config", str(path))
    assert (code, found["refusal"]["cause"]) == (1, "malformed_grant")


def test_explain_a_rule_of_our_own(daemon: FakeTailscaled, tmp_path: Path) -> None:
    code, found = explained(daemon, "--peer", "100.64.0.7", "--path", EXEC)
    assert (code, found["recording"]["failureMode"]) == (0, "acknowledged")
    assert found["rules"][-1] == {"capability": "tailscale.com/cap/k8sproxy", "recording": "acknowledged"}
    text = run(daemon, "explain", "--peer", "100.64.0.7", "--path", EXEC).stdout
    assert "recording acknowledged [tailscale.com/cap/k8sproxy]\n" in text
    assert "the session is refused, and no output is shown before the recorder has confirmed it\n" in text
    path = tmp_path / "config.yaml"
    path.write_text(
        "apiVersion: k8sproxy/v1alpha1\n"
        f"tailnet: {{socket: {daemon.path}, capabilityDomain: example.com}}\n"
        "listen: [{address: '127.0.0.1:1', tls: {source: none}}]\n"
        "clusters: [{name: a, inCluster: true}]\n"
    )
    code, found = explained(daemon, "--peer", "100.64.0.7", "--path", EXEC, "--config", str(path))
    assert (code, found["recording"]["failureMode"]) == (0, "open")


@pytest.mark.parametrize(
    ("args", "cause", "status"),
    [
        (["--peer", "100.64.0.4"], "malformed_grant", 403),
        (["--peer", "100.64.0.1", "--path", "/api//v1"], "bad_request", 400),
        (["--peer", "100.64.0.1", "--path", f"{EXEC}&command=a;command=b"], "bad_request", 400),
        (["--peer", "100.64.0.5", "--path", "/api/v1/nodes/n/proxy/run/a/b/c"], "unrecordable_session", 403),
    ],
)
def test_explain_what_is_refused(daemon: FakeTailscaled, args: list[str], cause: str, status: int) -> None:
    code, found = explained(daemon, *args)
    assert (code, found["refusal"]["cause"], found["refusal"]["status"]) == (1, cause, status)
    result = run(daemon, "explain", *args)
    assert result.exit_code == 1
    assert f"refused   {status}: " in result.stdout
    assert "let in" not in result.stdout


def test_explain_as_a_listener_has_it(daemon: FakeTailscaled, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(
        "apiVersion: k8sproxy/v1alpha1\n"
        f"tailnet: {{socket: {daemon.path}}}\n"
        "listen:\n"
        "  - {address: '127.0.0.1:1', tls: {source: none}, cluster: a, service: 'svc:kube'}\n"
        "  - {address: '127.0.0.1:2', tls: {source: none}, cluster: b}\n"
        "clusters: [{name: a, inCluster: true}, {name: b, inCluster: true, mode: passthrough}]\n"
    )

    def ask(*args: str) -> Result:
        return CliRunner().invoke(cli, ["explain", "--peer", "100.64.0.1", "--config", str(path), *args])

    assert "as        ana@example.com" in ask().stdout
    assert daemon.queries[-1][1]["svc_name"] == "svc:kube"
    assert "as        the client's own credentials (passthrough)" in ask("--listen", "127.0.0.1:2").stdout
    assert "svc_name" not in daemon.queries[-1][1]
    assert json.loads(ask("--listen", "127.0.0.1:2", "--json").stdout)["impersonation"] is None
    result = ask("--listen", "127.0.0.1:3")
    assert result.exit_code == 2
    assert "the listeners: 127.0.0.1:1, 127.0.0.1:2" in result.stderr
    assert run(daemon, "explain", "--peer", "100.64.0.1", "--listen", "127.0.0.1:1").exit_code == 2


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("1.2.3.4:5", "1.2.3.4:5"),
        ("[::1]:5", "[::1]:5"),
        ("1.2.3.4", "1.2.3.4:0"),
        ("fd7a::1", "[fd7a::1]:0"),
        ("FD7A:0::1", "[fd7a::1]:0"),
    ],
)
def test_addresses(text: str, address: str) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize("text", ["", "x", "1.2.3.4:", "1.2.3.4:65536", "1.2.3.4:x", "[1.2.3.4", "::1]:5", "a.b:1"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(click.BadParameter, match="must be"):
        parse_address(text)


@pytest.mark.parametrize("offer", ["TLS/1.2", "h2c", "connect-udp"])
def test_an_offer_that_the_proxy_passes_over_is_passed_over(daemon: FakeTailscaled, offer: str) -> None:
    asked = ("--peer", "100.64.0.2", "--upgrade", offer, "--path")
    code, found = explained(daemon, *asked, "/api/v1/namespaces/a/pods")
    assert code == 0 and found["request"]["session"] == "none" and found["refusal"] is None
    code, found = explained(daemon, *asked, EXEC)
    assert code == 1 and found["refusal"]["status"] == 400 and "needs Upgrade: websocket" in found["refusal"]["message"]


@pytest.mark.parametrize("offer", ["websocket, TLS/1.2", "SPDY/3.0", "a\r\nb"])
def test_what_the_proxy_refuses_as_an_upgrade_is_refused(daemon: FakeTailscaled, offer: str) -> None:
    code, found = explained(daemon, "--peer", "100.64.0.2", "--upgrade", offer, "--path", "/version")
    assert code == 1 and found["refusal"]["status"] == 400
