"""Decisions: who gets one, what it demands, and that nobody makes one by hand."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given

from k8sproxy.access.caller import tailnet_caller
from k8sproxy.access.decision import Authority, Decision, RecordingDemand, Snapshot, authorize, covers, decide
from k8sproxy.access.grants import CAPABILITY, Grants, GrantSettings, Impersonation
from k8sproxy.access.ownrules import RecordingLevel
from k8sproxy.common.errors import ProtocolError, Refusal
from k8sproxy.common.tailnet.peer import Peer
from k8sproxy.request.classify import SessionKind
from k8sproxy.request.requestinfo import request_info
from tests.strategies import METHODS, UPGRADES, peers, targets

POD = "/api/v1/namespaces/d/pods/web"
NODE = "/api/v1/nodes/n1/proxy"
ADDRESS = "100.64.0.9:80"


def peer(*rules: object, own: tuple[object, ...] = ()) -> Peer:
    return Peer(
        address="100.64.0.1",
        stable_id="n1",
        node_name="laptop.t.ts.net.",
        login_name="ann@example.com",
        capabilities={CAPABILITY: rules, "tailscale.com/cap/k8sproxy": own} if rules or own else {},
    )


RECORDED = peer({"recorderAddrs": [ADDRESS], "impersonate": {"groups": ["dev"]}})
ENFORCED = peer({"recorderAddrs": [ADDRESS], "enforceRecorder": True})
NOBODY_TO_RECORD = peer({"enforceRecorder": True})
ACKNOWLEDGED = peer({"recorderAddrs": [ADDRESS]}, own=({"recording": "acknowledged"},))


def decide_on(who: Peer, path: str, method: str = "GET", upgrade: str = "") -> Decision:
    return decide(authorize(tailnet_caller(who)), request_info(method, path, upgrade), 0.0)


def test_an_ordinary_request_gets_the_decision_that_was_made_beforehand() -> None:
    authority = authorize(tailnet_caller(RECORDED))
    decision = decide(authority, request_info("GET", "/api/v1/pods"), 0.0)
    assert decision is authority.ordinary
    assert decision.caller.peer is RECORDED
    assert decision.impersonation == authority.impersonation == Impersonation("ann@example.com", ("dev",))
    assert (
        decision.grants
        == authority.grants
        == Grants(groups=("dev",), recorders=(ADDRESS,), recording=RecordingLevel.OPEN)
    )
    assert decision.recording is None
    assert decision.events is False
    assert decide(authority, request_info("GET", "/version"), 0.0) is decision


def test_events_are_told_where_a_rule_asks_for_them() -> None:
    authority = authorize(tailnet_caller(peer({}, {"enableEvents": True})))
    for path in ("/api/v1/pods", f"{POD}/exec"):
        assert decide(authority, request_info("GET", path), 0.0).events is True


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        (f"{POD}/exec", SessionKind.EXEC),
        (f"{POD}/attach", SessionKind.ATTACH),
        (f"{NODE}/exec/d/web/c", SessionKind.EXEC),
        (f"{NODE}/attach/d/web/uid/c", SessionKind.ATTACH),
    ],
)
@pytest.mark.parametrize("upgrade", ["", "websocket", "spdy/3.1", "h2c"])
@pytest.mark.parametrize("method", ["GET", "POST", "PUT"])
def test_sessions_demand_what_the_grants_say(path: str, kind: SessionKind, upgrade: str, method: str) -> None:
    demands = [
        (peer(), None),
        (peer({"recorder": [], "recorderAddrs": []}), None),
        (peer({"recorder": ["tag:rec"], "recorderAddrs": []}), RecordingDemand((), RecordingLevel.OPEN, kind)),
        (RECORDED, RecordingDemand((ADDRESS,), RecordingLevel.OPEN, kind)),
        (ENFORCED, RecordingDemand((ADDRESS,), RecordingLevel.CLOSED, kind)),
        (NOBODY_TO_RECORD, RecordingDemand((), RecordingLevel.CLOSED, kind)),
        (ACKNOWLEDGED, RecordingDemand((ADDRESS,), RecordingLevel.ACKNOWLEDGED, kind)),
        (peer(own=({"recording": "open"},)), RecordingDemand((), RecordingLevel.OPEN, kind)),
        (
            peer({"recorderAddrs": [ADDRESS]}, {"enforceRecorder": True, "recorderAddrs": ["[fd7a::9]:80"]}),
            RecordingDemand((ADDRESS, "[fd7a::9]:80"), RecordingLevel.CLOSED, kind),
        ),
    ]
    for who, demand in demands:
        assert decide_on(who, path, method, upgrade).recording == demand


@pytest.mark.parametrize(
    ("path", "upgrade", "why"),
    [
        (f"{NODE}/run/d/web/c?cmd=id", "", "kubelet"),
        (f"{NODE}/x/../exec/d/web/c", "spdy/3.1", "kubelet"),
        (f"{NODE}/portForward/d/web", "spdy/3.1", "kubelet"),
        (f"{NODE}/logs/../run/d/web/c", "", "kubelet"),
        (f"{NODE}/metrics", "websocket", "kubelet"),
        (f"{POD}/proxy/shell", "websocket", "stream to an application"),
        ("/api/v1/namespaces/d/services/web:80/proxy/shell", "websocket", "stream to an application"),
        ("/apis/kubevirt.io/v1/namespaces/d/vms/a/console", "websocket", "k8sproxy does not know"),
        ("/version", "h2c", "k8sproxy does not know"),
    ],
)
def test_what_cannot_be_recorded_is_refused_where_recording_is_enforced(path: str, upgrade: str, why: str) -> None:
    for who in (ENFORCED, NOBODY_TO_RECORD, ACKNOWLEDGED):
        for method in ("GET", "POST"):
            with pytest.raises(Refusal) as caught:
                decide_on(who, path, method, upgrade)
            assert (caught.value.status, caught.value.cause) == (403, "unrecordable_session")
            assert why in caught.value.message
            assert "use kubectl exec" in caught.value.message
    for who in (peer(), RECORDED):
        authority = authorize(tailnet_caller(who))
        assert decide(authority, request_info("GET", path, upgrade), 0.0) is authority.ordinary


@pytest.mark.parametrize(
    ("path", "upgrade"),
    [
        (f"{POD}/ephemeralcontainers", ""),
        (f"{POD}/portforward", "websocket"),
        (f"{POD}/portforward", "spdy/3.1"),
        (f"{POD}/proxy/index.html", ""),
        (f"{POD}/log?follow=true", "websocket"),
        ("/api/v1/pods?watch=1", "websocket"),
        (f"{NODE}/metrics", ""),
        ("/api/v1/pods", ""),
    ],
)
def test_what_is_no_session_goes_on_where_recording_is_enforced(path: str, upgrade: str) -> None:
    authority = authorize(tailnet_caller(ENFORCED))
    assert decide(authority, request_info("GET", path, upgrade), 0.0) is authority.ordinary


def test_in_passthrough_mode_grants_still_demand_recording() -> None:
    nameless = dataclasses.replace(ENFORCED, login_name="")
    authority = authorize(tailnet_caller(nameless), Snapshot(impersonate=False))
    assert authority.impersonation is None
    assert decide(authority, request_info("GET", "/api/v1/pods"), 0.0).impersonation is None
    session = decide(authority, request_info("GET", f"{POD}/exec"), 0.0)
    assert session.impersonation is None
    assert session.recording == RecordingDemand((ADDRESS,), RecordingLevel.CLOSED, SessionKind.EXEC)
    with pytest.raises(Refusal):
        authorize(tailnet_caller(nameless))
    for malformed in (peer("malformed"), peer(own=({"recordin": "closed"},))):
        with pytest.raises(Refusal):
            authorize(tailnet_caller(malformed), Snapshot(impersonate=False))


def test_rules_of_our_own_are_read_below_the_domain_that_is_configured() -> None:
    who = dataclasses.replace(RECORDED, capabilities={"example.com/cap/k8sproxy": ({"recording": "closed"},)})
    exec_of_a_pod = request_info("GET", f"{POD}/exec")
    assert decide(authorize(tailnet_caller(who)), exec_of_a_pod, 0.0).recording is None
    demand = decide(
        authorize(tailnet_caller(who), Snapshot(GrantSettings("example.com"))), exec_of_a_pod, 0.0
    ).recording
    assert demand == RecordingDemand((), RecordingLevel.CLOSED, SessionKind.EXEC)


def test_only_decide_makes_a_decision() -> None:
    authority = authorize(tailnet_caller(peer()))
    made = authority.ordinary
    # mypy refuses each of these as well: it counts an ignore without a fault as a fault.
    with pytest.raises(TypeError):
        Decision()  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        Decision(None, made.caller, made.grants, made.impersonation, None)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        Authority()  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        Authority(None, made.caller, authority.snapshot, made.grants, made.impersonation)  # type: ignore[arg-type]
    for value in (made, authority):
        with pytest.raises(TypeError):
            dataclasses.replace(value)  # type: ignore[type-var]
        assert not hasattr(value, "__dict__")
        assert "ann@example.com" in repr(value)


@given(peers(), METHODS, targets(), UPGRADES)
def test_under_enforcement_whatever_is_decided_is_recorded_or_known_to_be_no_session(
    who: Peer, method: str, target: str, upgrade: str
) -> None:
    try:
        authority = authorize(tailnet_caller(who))
        info = request_info(method, target, upgrade)
        decision = decide(authority, info, 0.0)
    except (Refusal, ProtocolError):
        return
    if decision.recording is not None:
        kinds = {SessionKind.NODE_PROXY_EXEC: SessionKind.EXEC, SessionKind.NODE_PROXY_ATTACH: SessionKind.ATTACH}
        assert decision.recording.session is kinds.get(info.session, info.session)
    elif authority.grants.enforced:
        assert info.session in {
            SessionKind.NONE,
            SessionKind.EPHEMERAL,
            SessionKind.PORT_FORWARD,
            SessionKind.NODE_PROXY_SAFE,
        }


def test_a_proof_that_has_ended_decides_nothing() -> None:
    caller = dataclasses.replace(tailnet_caller(RECORDED), until=1000.0)
    info = request_info("GET", "/api/v1/pods")
    assert decide(authorize(caller), info, 999.9).caller is caller
    with pytest.raises(Refusal, match="is not valid any more") as refused:
        decide(authorize(caller), info, 1000.0)
    assert (refused.value.status, refused.value.cause) == (401, "proof_expired")


@pytest.mark.parametrize("before", [None, *RecordingLevel])
@pytest.mark.parametrize("now", [None, *RecordingLevel])
def test_a_session_goes_on_where_its_recording_is_what_is_demanded(
    before: RecordingLevel | None, now: RecordingLevel | None
) -> None:
    """A grant that asks for less ended the sessions that had more."""

    def decided(level: RecordingLevel | None) -> Decision:
        rules = {"tailscale.com/cap/k8sproxy": ({"recording": level.value} if level else {},)}
        who = Peer("100.64.0.7", "n", "l.", login_name="ana@x", capabilities=rules)
        asked = request_info("GET", "/api/v1/namespaces/a/pods/web/exec", "websocket")
        return decide(authorize(tailnet_caller(who)), asked, 0.0)

    levels = [None, *RecordingLevel]
    assert covers(decided(now), decided(before)) is (levels.index(before) >= levels.index(now))


def test_only_what_passes_through_covers_what_passes_through() -> None:
    info = request_info("GET", "/api/v1/pods")
    passed, acted = (
        decide(authorize(tailnet_caller(RECORDED), Snapshot(impersonate=impersonate)), info, 0.0)
        for impersonate in (False, True)
    )
    assert covers(passed, passed) and covers(acted, acted)
    assert not covers(passed, acted) and not covers(acted, passed)
