"""Rules of the project's own capability: read whole or refused, and the strongest level counts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k8sproxy.access.grants import CAPABILITY, Grants, parse_grants
from k8sproxy.access.ownrules import OwnRule, RecordingLevel, own_capability, own_rules, strongest
from k8sproxy.common.errors import Refusal
from k8sproxy.common.tailnet.peer import Peer, Repeated
from tests.strategies import json_values

OWN = "tailscale.com/cap/k8sproxy"
OPEN, CLOSED, ACKNOWLEDGED = RecordingLevel


def peer(*own: object, kubernetes: tuple[object, ...] = (), domain: str = "tailscale.com") -> Peer:
    capabilities = {own_capability(domain): own, CAPABILITY: kubernetes}
    return Peer("100.64.0.1", "n1", "laptop.t.ts.net.", login_name="ann@example.com", capabilities=capabilities)


def test_rules_are_read_in_any_case_and_may_say_nothing() -> None:
    assert own_rules(peer({"recording": "acknowledged"}, {}, {"Recording": "open"})) == (
        OwnRule(OWN, ACKNOWLEDGED),
        OwnRule(OWN),
        OwnRule(OWN, OPEN),
    )
    assert own_rules(peer()) == ()
    assert own_rules(peer({"recording": "closed"}, domain="example.com")) == ()
    assert own_rules(peer({"recording": "closed"}, domain="example.com"), "example.com")[0].recording is CLOSED


@pytest.mark.parametrize(
    ("own", "kubernetes", "level"),
    [
        ((), (), None),
        (({},), ({"impersonate": {"groups": ["a"]}},), None),
        (({"recording": "open"},), (), OPEN),
        ((), ({"recorder": ["tag:rec"]},), OPEN),
        (({"recording": "open"},), ({"enforceRecorder": True},), CLOSED),
        (({"recording": "closed"},), ({"recorderAddrs": ["1.2.3.4:80"]},), CLOSED),
        (({"recording": "acknowledged"},), ({"enforceRecorder": True},), ACKNOWLEDGED),
        (({"recording": "open"}, {"recording": "acknowledged"}, {"recording": "closed"}), (), ACKNOWLEDGED),
    ],
)
def test_the_strongest_level_of_all_rules_counts(
    own: tuple[object, ...], kubernetes: tuple[object, ...], level: RecordingLevel | None
) -> None:
    grants = parse_grants(peer(*own, kubernetes=kubernetes))
    assert grants.recording is level
    assert grants.enforced is (level in (CLOSED, ACKNOWLEDGED))


@pytest.mark.parametrize(
    ("rule", "fault"),
    [
        ({"recordin": "acknowledged"}, "rule 2 has the unknown field 'recordin'; did you mean recording?"),
        ({"recording": "closed", "until": "2027"}, "rule 2 has the unknown field 'until'"),
        ({"x" * 500: 1}, f"the unknown field '{'x' * 64}..'"),
        ({"a\x1b[2J\u202eé": 1}, r"the unknown field 'a\x1b[2J\u202e\xe9'"),
        ({"recording": "closed", "Recording": "open"}, "has the field 'recording' twice, in different case"),
        ({"recording": "acknowledge"}, 'recording must be "open", "closed" or "acknowledged"'),
        ({"recording": "Closed"}, "recording must be"),
        ({"recording": None}, "recording must be"),
        ({"recording": True}, "recording must be"),
        ({"recording": ["closed"]}, "recording must be"),
        ({"recording": Repeated()}, "recording must be"),
        (Repeated(), "rule 2 names a field twice"),
        (None, "rule 2 must be an object"),
        ("closed", "rule 2 must be an object"),
        ([], "rule 2 must be an object"),
    ],
)
def test_a_rule_with_a_fault_refuses_everything_and_says_what(rule: object, fault: str) -> None:
    with pytest.raises(Refusal) as caught:
        parse_grants(peer({}, rule, kubernetes=({"impersonate": {"groups": ["a"]}},)))
    assert (caught.value.status, caught.value.cause) == (403, "malformed_grant")
    assert caught.value.message.startswith(f"the capability {OWN} is malformed: rule 2")
    assert fault in caught.value.message
    assert caught.value.message.isascii()


def test_levels_from_the_weakest_to_the_strongest() -> None:
    assert [level.enforced for level in RecordingLevel] == [False, True, True]
    assert strongest(()) is None
    assert strongest([ACKNOWLEDGED, OPEN]) is strongest([OPEN, ACKNOWLEDGED, CLOSED]) is ACKNOWLEDGED


@given(json_values | st.fixed_dictionaries({}, optional={"recording": json_values | st.just("closed")}))
def test_any_value_is_a_rule_or_a_refusal(value: object) -> None:
    try:
        grants = parse_grants(peer(value))
    except Refusal as refusal:
        assert refusal.cause == "malformed_grant"
        return
    assert isinstance(value, dict)
    assert grants == Grants(recording=RecordingLevel(value["recording"]) if value else None)
