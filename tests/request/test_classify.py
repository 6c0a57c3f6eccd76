"""Ways to a shell: told by path, subresource and upgrade."""

from __future__ import annotations

import itertools

import pytest

from k8sproxy.common.errors import ProtocolError
from k8sproxy.request.classify import SessionKind
from k8sproxy.request.requestinfo import request_info

POD = "/api/v1/namespaces/d/pods/web"
METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "get", "X"]
UPGRADES = ["", "websocket", "WebSocket", "SPDY/3.1", "spdy/3.1", "h2c", "websocket, spdy/3.1"]


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        (f"{POD}/exec", SessionKind.EXEC),
        (f"{POD}/exec?command=sh&stdin=true", SessionKind.EXEC),
        (f"{POD}/exec/behind", SessionKind.EXEC),
        ("/api/v1/pods/web/exec", SessionKind.EXEC),
        ("/api/v1/watch/namespaces/d/pods/web/exec", SessionKind.EXEC),
        ("/api/v2/namespaces/d/pods/web/exec", SessionKind.EXEC),
        (f"{POD}/attach", SessionKind.ATTACH),
        (f"{POD}/portforward", SessionKind.PORT_FORWARD),
        ("/api/v1/nodes/n1/proxy/exec/d/web/c", SessionKind.NODE_PROXY_EXEC),
        ("/api/v1/nodes/n1/proxy/exec/d/web/uid/c?command=sh", SessionKind.NODE_PROXY_EXEC),
        ("/api/v1/nodes/https:n1:10250/proxy/attach/d/web/c/", SessionKind.NODE_PROXY_ATTACH),
        ("/api/v1/nodes/n1/proxy/exec/d/web", SessionKind.NODE_PROXY_COMMAND),
        ("/api/v1/nodes/n1/proxy/exec/d/web/uid/c/more", SessionKind.NODE_PROXY_COMMAND),
        ("/api/v1/nodes/n1/proxy/Exec/d/web/c", SessionKind.NODE_PROXY_COMMAND),
        ("/api/v1/proxy/nodes/n1/exec/d/web/c", SessionKind.NODE_PROXY_COMMAND),
    ],
)
def test_neither_method_nor_upgrade_hides_a_session(path: str, kind: SessionKind) -> None:
    for method, upgrade in itertools.product(METHODS, UPGRADES):
        assert request_info(method, path, upgrade).session is kind


@pytest.mark.parametrize(
    ("path", "upgrade", "kind"),
    [
        ("/version", "", SessionKind.NONE),
        ("/version", "websocket", SessionKind.UNKNOWN_UPGRADE),
        ("/version", "h2c", SessionKind.UNKNOWN_UPGRADE),
        (POD, "", SessionKind.NONE),
        (POD, "websocket", SessionKind.UNKNOWN_UPGRADE),
        (f"{POD}?watch=1", "websocket", SessionKind.UNKNOWN_UPGRADE),  # a get of one object is no watch
        (f"{POD}/status", "", SessionKind.NONE),
        (f"{POD}/status", "websocket", SessionKind.UNKNOWN_UPGRADE),
        (f"{POD}/log?follow=true", "", SessionKind.NONE),
        (f"{POD}/log?follow=true", "websocket", SessionKind.NONE),
        (f"{POD}/log?follow=true", "spdy/3.1", SessionKind.UNKNOWN_UPGRADE),
        (f"{POD}/ephemeralcontainers", "", SessionKind.EPHEMERAL),
        (f"{POD}/ephemeralcontainers", "websocket", SessionKind.UNKNOWN_UPGRADE),
        ("/api/v1/pods?watch=1", "websocket", SessionKind.NONE),
        ("/apis/apps/v1/deployments?watch=1", "websocket", SessionKind.NONE),
        ("/api/v1/watch/namespaces/d/pods/web", "websocket", SessionKind.NONE),
        ("/api/v1/pods?watch=1", "spdy/3.1", SessionKind.UNKNOWN_UPGRADE),
        ("/api/v1/pods?watch=0", "websocket", SessionKind.UNKNOWN_UPGRADE),
        ("/apis/x/v1/watch/namespaces/d/vms/a/console", "websocket", SessionKind.UNKNOWN_UPGRADE),
        # Only the core group's pods are pods; what another group calls so is known by its upgrade alone.
        ("/apis/metrics.k8s.io/v1/namespaces/d/pods/web/exec", "", SessionKind.NONE),
        ("/apis/metrics.k8s.io/v1/namespaces/d/pods/web/exec", "websocket", SessionKind.UNKNOWN_UPGRADE),
        ("/apis/x/v1/nodes/n/proxy/exec", "", SessionKind.NONE),
        ("/apis/x/v1/namespaces/d/pods/web/proxy", "websocket", SessionKind.UNKNOWN_UPGRADE),
        ("/apis/x/v1/clusters/m/proxy/api/v1/nodes/n/proxy/run/d/web/c", "", SessionKind.NODE_PROXY_COMMAND),
        ("/apis/x/v1/clusters/m/proxy/api/v1/nodes/n/proxy/exec/d/web/c", "websocket", SessionKind.NODE_PROXY_COMMAND),
        ("/apis/x/v1/clusters/m/proxy/api/v1/proxy/nodes/n/run/d/web/c", "", SessionKind.NODE_PROXY_COMMAND),
        ("/apis/x/v1/clusters/m/proxy/api/v1/nodes/n", "", SessionKind.NONE),
        ("/apis/x/v1/clusters/m/proxy/api/v1/namespaces/d/pods/web/exec", "websocket", SessionKind.UNKNOWN_UPGRADE),
        ("/api/v1/namespaces/d/services/exec", "", SessionKind.NONE),
        (f"{POD}/proxy", "", SessionKind.NONE),
        (f"{POD}/proxy/exec", "", SessionKind.NONE),
        (f"{POD}/proxy/a//..%2fb", "", SessionKind.NONE),
        # A pod on its node's network has the node's address, and the kubelet's port is there.
        (f"{POD}:10250/proxy/run/d/web/c?cmd=id", "", SessionKind.NODE_PROXY_COMMAND),
        ("/api/v1/namespaces/d/pods/https:web:10250/proxy/run/d/web/c", "", SessionKind.NODE_PROXY_COMMAND),
        ("/api/v1/namespaces/d/pods/https:web:010250/proxy/run/d/web/c", "", SessionKind.NODE_PROXY_COMMAND),
        ("/api/v1/namespaces/d/pods/https:web:+10250/proxy/run/d/web/c", "", SessionKind.NODE_PROXY_COMMAND),
        ("/api/v1/namespaces/d/pods/https%3Aweb%3A10250/proxy/metrics", "", SessionKind.NODE_PROXY_COMMAND),
        ("/api/v1/namespaces/d/services/https:kubelet:10250/proxy/exec/d/web/c", "", SessionKind.NODE_PROXY_COMMAND),
        ("/api/v1/namespaces/d/services/https:kubelet:10250/proxy/metrics/../run", "", SessionKind.NODE_PROXY_COMMAND),
        ("/api/v1/namespaces/d/services/https:kubelet:10250/proxy/metrics/cadvisor", "", SessionKind.NONE),
        ("/api/v1/namespaces/d/services/https:kubelet:10250/proxy/exec/d/w/c", "websocket", SessionKind.PROXY_UPGRADE),
        ("/api/v1/namespaces/d/pods/10250/proxy/run", "", SessionKind.NONE),
        ("/api/v1/namespaces/d/pods/https:web:443/proxy/run/d/web/c", "", SessionKind.NONE),
        (f"{POD}/proxy/", "websocket", SessionKind.PROXY_UPGRADE),
        (f"{POD}/proxy/log?watch=1", "websocket", SessionKind.PROXY_UPGRADE),
        ("/api/v1/namespaces/d/services/https:web:443/proxy/ws", "WEBSOCKET", SessionKind.PROXY_UPGRADE),
        ("/api/v1/namespaces/d/services/web/proxy", "h2c", SessionKind.PROXY_UPGRADE),
        ("/api/v1/proxy/namespaces/d/pods/web", "", SessionKind.NONE),
        ("/api/v1/proxy/namespaces/d/pods/web", "websocket", SessionKind.PROXY_UPGRADE),
        ("/api/v1/proxy/nodes/n1/metrics", "", SessionKind.NODE_PROXY_COMMAND),
        ("/api/v1/nodes/n1/status", "", SessionKind.NONE),
        ("/api/v1/nodes/n1", "", SessionKind.NONE),
    ],
)
def test_kinds(path: str, upgrade: str, kind: SessionKind) -> None:
    assert request_info("GET", path, upgrade).session is kind


@pytest.mark.parametrize("node", ["n1", "n1:10250", "https:n1:10250", "https%3An1%3A10250"])
@pytest.mark.parametrize(
    "behind",
    [
        *(
            "metrics",
            "metrics/cadvisor",
            "metrics/resource",
            "stats/summary",
            "stats",
            "healthz",
            "healthz/",
            "healthz/ping",
        ),
        *("pods", "pods/", "runningpods/", "configz", "statusz", "flagz", "logs", "logs/", "logs/pods/d_web_1/c/0.log"),
        *("logs/?query=kubelet", "containerLogs/d/web/c?follow=true&tailLines=10"),
    ],
)
def test_the_kubelets_reads_are_known(node: str, behind: str) -> None:
    target = f"/api/v1/nodes/{node}/proxy/{behind}"
    plain = "%" not in node
    for method in METHODS:
        kind = request_info(method, target).session
        assert kind is (SessionKind.NODE_PROXY_SAFE if plain else SessionKind.NODE_PROXY_COMMAND)
        for upgrade in UPGRADES[1:]:
            assert request_info(method, target, upgrade).session is SessionKind.NODE_PROXY_COMMAND


def test_a_long_query_does_not_make_a_read_a_command() -> None:
    assert request_info("GET", "/api/v1/nodes/n/proxy/pods?" + "a" * 9000).session is SessionKind.NODE_PROXY_SAFE


_COMMANDS = [
    "run/d/web/c?cmd=id",
    "exec/d/web/c",
    "attach/d/web/c",
    "portForward/d/web",
    "cri/exec/x",
    "checkpoint/d/web/c",
]
_SPELLINGS = [
    *("{}", "/{}", "./{}", "x/../{}", "metrics/../{}", "logs/../{}", "logs/..%2f{}", "logs%2f..%2f{}", "pods//../{}"),
    *("healthz/%2e%2e/{}", "logs/./../{}", "logs/.%2e/{}", "%2f{}", "%2e/{}", "\\{}", "containerLogs/a/b/../../../{}"),
    *("metrics/;/../{}", "logs//..//{}", "stats/summary/../../{}", "logs/%252e%252e/{}", "pods/../pods/../{}"),
]


@pytest.mark.parametrize(
    "command", [*_COMMANDS, "", "debug/flags/v", "debug/pprof/heap", "containers/create", "Metrics"]
)
def test_no_spelling_of_a_kubelet_command_is_taken_for_a_read(command: str) -> None:
    for spelling, escape in itertools.product(_SPELLINGS, (False, True)):
        spelled = f"%{ord(command[0]):02x}{command[1:]}" if escape and command else command
        for node in ("n1", "https:n1:10250"):
            try:
                kind = request_info("GET", f"/api/v1/nodes/{node}/proxy/" + spelling.format(spelled)).session
            except ProtocolError:
                continue
            if kind is SessionKind.NODE_PROXY_SAFE:
                pytest.fail(f"{spelling.format(spelled)} is taken for a read")
            # exec and attach where they are spelt plainly are recorded; everything else can't be.
            if command.split("/")[0] in ("exec", "attach") and spelling == "{}" and not escape:
                assert kind in (SessionKind.NODE_PROXY_EXEC, SessionKind.NODE_PROXY_ATTACH)
            else:
                assert kind is SessionKind.NODE_PROXY_COMMAND


def test_a_node_proxy_without_a_path_is_not_known_to_be_a_read() -> None:
    for target in ("/api/v1/nodes/n/proxy", "/api/v1/nodes/n/proxy/", "/api/v1/nodes/n/proxy?path=exec"):
        assert request_info("GET", target).session is SessionKind.NODE_PROXY_COMMAND
