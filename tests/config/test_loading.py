"""A file's faults, all at once, each at its place."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k8sproxy.common.config.loading import MAX_FILE
from k8sproxy.common.formats.recorderapi import MAX_EVENTS
from k8sproxy.config import Config, ConfigError, Limits, parse
from k8sproxy.config.loading import load

HERE = Path("/etc/k8sproxy/config.yaml")
GOOD = """\
apiVersion: k8sproxy/v1alpha1
listen:
  - {address: "tailnet:443", tls: {source: tailnet}}
clusters:
  - {name: prod, inCluster: true}
"""


def read(text: str, **environment: str) -> Config:
    return parse(text.encode(), HERE, environment=environment, files=False)


def refused(text: str, **environment: str) -> list[str]:
    """Every fault as "line:column key: message"."""
    with pytest.raises(ConfigError) as refusal:
        read(text, **environment)
    assert str(refusal.value) == "\n".join(map(str, refusal.value.faults))
    return [str(fault).removeprefix(f"{HERE}:").replace(": ", " ", 1) for fault in refusal.value.faults]


def test_the_shortest_file() -> None:
    config = read(GOOD)
    assert config.limits == Limits()
    assert config.limits.head_bytes == 65536
    assert config.cluster_of(config.listen[0]).name == "prod"


def test_the_largest_event_is_one_that_a_recorder_takes() -> None:
    """One that none takes would be sent again for ever, and an enforced one hold up all that come behind it."""
    most = read(GOOD + "events: {bodyBytes: 8MiB}\n").events.body_bytes
    assert "bodyBytes" in refused(GOOD + "events: {bodyBytes: 9MiB}\n")[0]
    assert len(base64.b64encode(bytes(most))) + 1024 * 1024 < MAX_EVENTS


def test_a_file_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.encode())  # some editors begin with a byte order mark
    assert load(path) == read(GOOD)


def test_every_fault_is_told_at_once() -> None:
    text = """\
apiVersion: k8sproxy/v1alpha1
listen:
  - {address: "tailnet:443", tls: {source: tailnet, key: x, bogus: 1}, cluser: prod}
  - {address: "0.0.0.0:443", tls: {source: none}, proxyProtocol: true, cluster: prod}
  - {address: 5, tls: {source: foo}}
  - {address: "10.0.0.1:80", tls: {source: files, cert: "${NOPE}/x"}, cluster: nix}
clusters:
  - {name: prod, kubeconfig: x, inCluster: true}
  - {name: prod}
  - {context: x}
limits:
  headBytes: 64KiB
  headBytes: 3
  headTimeout: 5
  connections: "10"
log: {level: loud, format: json, requests: maybe}
tailnet: []
admin: {allow: alice@example.com}
"""
    assert refused(text) == [
        "3:53 listen[0].tls.key: has no meaning with source: tailnet",
        "3:61 listen[0].tls.bogus: unknown key",
        "3:72 listen[0].cluser: unknown key; did you mean cluster?",
        "4:6 listen[1].address: listen[0] has this address already",
        "4:36 listen[1].tls.source: plain HTTP on an address that is neither loopback nor the tailnet's can be read "
        "and changed on the way; set insecure: true if you accept that",
        "4:51 listen[1].proxyProtocol: is allowed only on a loopback address: elsewhere any client could claim to be "
        "any peer",
        '5:6 listen[2].address: must be "tailnet:PORT", "IP:PORT" or "[IPv6]:PORT"',
        "5:24 listen[2].tls.source: must be tailnet, files, generated or none",
        "6:30 listen[3].tls.key: is required with source: files",
        "6:57 listen[3].tls.cert: the environment variable NOPE is not set",
        "6:71 listen[3].cluster: no cluster has this name (the clusters: prod)",
        "8:33 clusters[0].inCluster: cannot be true beside a kubeconfig",
        "9:5 clusters[1].kubeconfig: is required, or inCluster: true",
        "9:6 clusters[1].name: clusters[0] has this name already",
        "10:5 clusters[2].name: is required",
        "13:3 limits.headBytes: is already in line 12",
        '14:3 limits.headTimeout: must be a duration with its unit, such as "500ms", "10s", "5m" or "1h30m"',
        "15:3 limits.connections: must be a whole number from 1 to 1000000",
        "16:7 log.level: must be debug, info, warning or error",
        "16:34 log.requests: must be true or false",
        "17:1 tailnet: must be a mapping of keys",
        "18:9 admin.allow: must be a list",
    ]


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ("", [f"{HERE} the file is empty"]),
        ("- a\n", ["1:1 the file must be a mapping of keys"]),
        ("a: [", ["1:5 not YAML: while parsing a flow node expected the node content, but found '<stream end>'"]),
        (
            "kind: x\n",
            [
                "1:1 apiVersion: is required",
                "1:1 listen: is required",
                "1:1 clusters: is required",
                "1:1 kind: unknown key",
            ],
        ),
        (GOOD.replace("v1alpha1", "v9"), ["1:1 apiVersion: must be k8sproxy/v1alpha1"]),
        ("apiVersion: k8sproxy/v1alpha1\nlisten: []\nclusters:\n",
         ["2:1 listen: must not be empty", "3:1 clusters: is required"]),
        ("apiVersion: k8sproxy/v1alpha1\nlisten: [{tls: x}, 5]\nclusters: {a: b}\n",
         [
             "2:10 listen[0].address: is required",
             "2:11 listen[0].tls: must be a mapping of keys",
             "2:20 listen[1]: must be a mapping of keys",
             "3:1 clusters: must be a list",
         ]),
        (GOOD + "limits: {head_bytes: 64KiB}\n", ["6:10 limits.head_bytes: unknown key; did you mean headBytes?"]),
        (GOOD.replace("inCluster: true", "kubeconfig: k, context: 5"),
         ["5:33 clusters[0].context: must be text (put it in quotes)"]),
    ],
)  # fmt: skip
def test_faults(text: str, faults: list[str]) -> None:
    found = refused(text)
    assert found == [fault.replace(f"{HERE} ", "1:1 ") for fault in faults]


def test_a_fault_is_not_told_again_as_its_consequences() -> None:
    assert refused(GOOD.replace("inCluster: true", "kubeconfig: 5")) == [
        "5:18 clusters[0].kubeconfig: must be the path of a file"
    ]
    assert refused(GOOD + "limits: {headTimeout: '${NO}s'}\n") == [
        "6:23 limits.headTimeout: the environment variable NO is not set"
    ]


def test_a_key_with_nothing_after_it_is_absent() -> None:
    assert read(GOOD + "limits:\nlog: {level: }\n") == read(GOOD)


def test_the_environment_gives_values_and_never_shows_in_a_fault() -> None:
    text = GOOD + "limits:\n  connections: ${N}\nlog:\n  requests: ${R}\ntailnet: {socket: '${S}/t.sock'}\n"
    config = read(text, N="7", R="false", S="/run")
    assert (config.limits.connections, config.log.requests, config.tailnet.socket) == (7, False, Path("/run/t.sock"))
    faults = refused(text, N="hunter2", R="hunter2", S="\0hunter2")
    assert len(faults) == 3
    assert "hunter2" not in "".join(faults)


def test_paths_are_taken_from_the_directory_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    text = GOOD.replace("inCluster: true", "kubeconfig: ~/kube") + "admin: {address: 'unix:run/a.sock'}\n"
    config = read(text.replace("source: tailnet", "source: files, cert: tls.crt, key: /k/tls.key"))
    assert config.listen[0].tls.cert == Path("/etc/k8sproxy/tls.crt")
    assert config.listen[0].tls.key == Path("/k/tls.key")
    assert config.clusters[0].kubeconfig == Path("/home/me/kube")
    assert config.admin.address.unix == Path("/etc/k8sproxy/run/a.sock")
    for bad in ('""', '"a\\0b"', "5", "[]", "~nobody-has-this-name/x"):
        assert "clusters[0].kubeconfig:" in refused(GOOD.replace("inCluster: true", f"kubeconfig: {bad}"))[0]


def test_names() -> None:
    tls = "{source: generated, names: [a.example.COM., '*.b', '::1', 10.0.0.1]}"
    config = read(GOOD.replace("{source: tailnet}", tls).replace("}\nclusters", ", service: 'svc:kube'}\nclusters"))
    assert config.listen[0].tls.names == ("a.example.com", "*.b", "::1", "10.0.0.1")
    for bad in ("a b", "-a", "a.*", "''", "5", "a..b"):
        text = GOOD.replace("{source: tailnet}", f"{{source: generated, names: [{bad}]}}")
        assert refused(text) == ["3:63 listen[0].tls.names[0]: must be a DNS name or an IP address"]
    for service in ("kube", "'svc:'", "'svc:A'", '"svc:a\\n"'):
        text = GOOD.replace("}}\n", f"}}, service: {service}}}\n", 1)
        assert "name of a Tailscale Service" in refused(text)[0]
    for who in ("'tag:'", "'tag:a b'", "'*'", "group:dev", "autogroup:member", "''", "' alice'", '"a\\n"', "5"):
        assert "admin.allow[0]: must be" in refused(GOOD + f"admin: {{allow: [{who}]}}\n")[0]
    for who in ("alice", "alice@example.com", "alice@github", "https://id.example.com/u/1#alice", "Ana María", "a b@c"):
        assert read(GOOD + f"admin: {{allow: ['{who}']}}\n").admin.allow == (who,)
    for name in ("''", "-a", "a/b", "x" * 64):
        assert "clusters[0].name: must be 1 to 63" in refused(GOOD.replace("prod", name))[0]


def test_origins() -> None:
    def with_origins(*origins: str) -> str:
        return GOOD.replace("}}\n", f"}}, allowOrigins: [{', '.join(origins)}]}}\n", 1)

    good = ("'http://127.0.0.1:8001'", "HTTPS://Console.Example:443", "'http://[::1]:80'", "http://a:081")
    config = read(with_origins(*good))
    assert config.listen[0].allow_origins == (
        *("http://127.0.0.1:8001", "https://console.example", "http://[::1]", "http://a:81"),
    )
    assert read(GOOD).listen[0].allow_origins == ()
    for bad in ("'*'", "https://a/", "https://a/b", "a:8001", "file://", "https://u@a", "'https://a b'", "5", "''"):
        assert "listen[0].allowOrigins[0]: must be an origin" in refused(with_origins(bad))[0], bad
    for port in (0, 65536, 99999):
        assert "must have a port from 1 to 65535" in refused(with_origins(f"'http://a:{port}'"))[0]
    assert "every sandboxed frame" in refused(with_origins("'null'"))[0]


def test_what_cannot_be_read(tmp_path: Path) -> None:
    for path, message in ((tmp_path / "no", "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(ConfigError, match=f"can't be read: {message}") as refusal:
            load(path)
        assert str(refusal.value).startswith(f"{path}: ")
    with pytest.raises(ConfigError, match=r":2:2: not UTF-8"):
        parse(b"a: 1\nb\xff", HERE)
    with pytest.raises(ConfigError, match="has more than"):
        parse(b" " * (MAX_FILE + 1), HERE)


@given(st.data())
def test_a_mutated_file_is_a_config_or_a_config_error(data: st.DataObject) -> None:
    raw = bytearray(GOOD.encode() + b"limits: {headBytes: 1MiB, connections: 5}\nadmin: {allow: ['a@b']}\n")
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=2) | st.sampled_from([b"{", b": "]))
    try:
        parse(bytes(raw), HERE, environment={}, files=False)
    except ConfigError as error:
        assert error.faults
