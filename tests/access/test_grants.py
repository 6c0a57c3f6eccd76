"""Grants: what Tailscale's proxy would read is read, and what it would refuse is refused, loudly."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given

from k8sproxy.access.caller import tailnet_caller
from k8sproxy.access.grants import (
    CAPABILITY,
    LEGACY_CAPABILITY,
    MAX_GROUPS,
    MAX_NAME,
    MAX_RECORDERS,
    Grants,
    GrantSettings,
    Impersonation,
    Rule,
    counted_rules,
    impersonation,
    misspelt_capabilities,
    parse_grants,
)
from k8sproxy.access.ownrules import RecordingLevel
from k8sproxy.common.errors import Refusal
from k8sproxy.common.tailnet.peer import Peer, Repeated
from tests.strategies import peers

USER = Peer(address="100.64.0.1", stable_id="n1", node_name="laptop.t.ts.net.", user_id=1, login_name="ann@example.com")
TAGGED = Peer(address="100.64.0.2", stable_id="n2", node_name="ci.t.ts.net.", tags=("tag:ci", "tag:k8s"))


def with_rules(*rules: object, name: str = CAPABILITY, peer: Peer = USER) -> Peer:
    return dataclasses.replace(peer, capabilities={**peer.capabilities, name: rules})


def groups(*names: object) -> dict[str, object]:
    return {"impersonate": {"groups": list(names)}}


def refusal_of(peer: Peer) -> Refusal:
    with pytest.raises(Refusal) as caught:
        parse_grants(peer)
    assert (caught.value.status, caught.value.cause) == (403, "malformed_grant")
    return caught.value


def test_no_capability_is_no_grant() -> None:
    assert parse_grants(USER) == Grants()
    assert parse_grants(with_rules("nonsense", name="example.com/cap/other")) == Grants()
    assert parse_grants(with_rules()) == Grants()


def test_all_rules_count() -> None:
    peer = with_rules(
        groups("b", "a"),
        {"recorder": ["tag:rec"], "recorderAddrs": ["100.64.0.9:80", "[fd7a::9]:80"], "enforceRecorder": True},
        {},
        {**groups("c", "a"), "recorderAddrs": ["100.64.0.8:80", "100.64.0.9:80"], "enableEvents": True, "else": 1},
    )
    assert parse_grants(peer) == Grants(
        groups=("b", "a", "c"),
        recorders=("100.64.0.9:80", "[fd7a::9]:80", "100.64.0.8:80"),
        recording=RecordingLevel.CLOSED,
        enable_events=True,
    )
    rules = counted_rules(peer)
    assert rules[1] == Rule(CAPABILITY, (), ("tag:rec",), ("100.64.0.9:80", "[fd7a::9]:80"), True, False)
    assert [rule.groups for rule in rules] == [("b", "a"), (), (), ("c", "a")]


def test_the_legacy_name_gives_groups_and_only_where_the_new_one_is_absent() -> None:
    legacy = with_rules(
        {**groups("old"), "recorderAddrs": ["100.64.0.9:80"], "enforceRecorder": True, "enableEvents": True},
        name=LEGACY_CAPABILITY,
    )
    assert parse_grants(legacy) == Grants(groups=("old",))
    assert counted_rules(legacy) == (Rule(LEGACY_CAPABILITY, ("old",)),)
    assert parse_grants(with_rules(groups("new"), peer=legacy)) == Grants(groups=("new",))
    assert parse_grants(with_rules({}, peer=legacy)) == Grants()
    assert parse_grants(with_rules(peer=legacy)) == Grants()
    broken = with_rules("broken", name=LEGACY_CAPABILITY)
    assert parse_grants(with_rules(groups("new"), peer=broken)) == Grants(groups=("new",))
    assert LEGACY_CAPABILITY in refusal_of(broken).message
    assert "enforceRecorder" in refusal_of(with_rules({"enforceRecorder": 1}, name=LEGACY_CAPABILITY)).message


@pytest.mark.parametrize(
    "rule",
    [
        None,
        {"impersonate": None},
        {"impersonate": {}},
        {"impersonate": {"groups": None}},
        {"recorder": None, "recorderAddrs": None, "enforceRecorder": None, "enableEvents": None},
        {"recorder": [], "recorders": 7, "impersonat": "x", "enableSessionRecordings": "?"},
        {"x": 1, "X": 2},
    ],
)
def test_null_is_the_zero_value_and_unknown_fields_are_ignored(rule: object) -> None:
    assert parse_grants(with_rules(rule)) == Grants()


@pytest.mark.parametrize(
    ("rule", "notes"),
    [
        ({"enforceRecoder": True}, ["unknown field 'enforceRecoder'; did you mean enforceRecorder?"]),
        ({"enforce_recorder": True}, ["unknown field 'enforce_recorder'; did you mean enforceRecorder?"]),
        ({"enforceRecorder ": True}, ["unknown field 'enforceRecorder '; did you mean enforceRecorder?"]),
        ({"enforcerRecorder": None}, ["unknown field 'enforcerRecorder'; did you mean enforceRecorder?"]),
        ({"impersonat": 1, "enableEvent": 1}, ["unknown field 'impersonat'; did you mean impersonate?",
                                               "unknown field 'enableEvent'; did you mean enableEvents?"]),
        ({"impersonate": {"group": ["a"]}}, ["unknown field 'impersonate.group'; did you mean groups?"]),
        ({"groups": ["a"]}, ["unknown field 'groups'; did you mean groups, within impersonate?"]),
        (
            {"impersonate": {"enforceRecorder": True}},
            ["unknown field 'impersonate.enforceRecorder'; did you mean enforceRecorder, beside impersonate?"],
        ),
        ({"x\x1b": 1}, [r"unknown field 'x\x1b'"]),
        ({"q" * 100: Repeated()}, [f"unknown field '{'q' * 64}..'"]),
        ({"EnforceRecorder": True, "IMPERSONATE": {"GROUPS": ["a"]}, "recorderaddrs": []}, []),
        (None, []),
    ],
)  # fmt: skip
def test_unknown_fields_are_noted_with_what_was_probably_meant(rule: object, notes: list[str]) -> None:
    """Before, {"enforceRecoder": true} enforced nothing, and nothing said so."""
    peer = with_rules({}, rule)
    unknown = parse_grants(peer).unknown
    assert [field.short for field in unknown] == notes
    assert counted_rules(peer)[1].unknown == unknown
    assert all(str(field).startswith(f"the capability {CAPABILITY}: rule 2 has the unknown") for field in unknown)
    strict = GrantSettings(refuse_unknown=True)
    if not notes:
        parse_grants(peer, strict)
        return
    with pytest.raises(Refusal) as caught:
        parse_grants(peer, strict)
    assert (caught.value.status, caught.value.cause) == (403, "malformed_grant")
    assert notes[0] in caught.value.message


def test_what_the_old_name_does_not_give_is_noted() -> None:
    rule = {**groups("old"), "enforceRecorder": True, "recorderAddrs": None, "enableEvent": False}
    unknown = parse_grants(with_rules(rule, name=LEGACY_CAPABILITY)).unknown
    assert [field.short for field in unknown] == [
        "unknown field 'enableEvent'; did you mean enableEvents?",
        f"unknown field 'enforceRecorder'; only {CAPABILITY} has this field",
    ]


def test_capabilities_that_look_misspelt() -> None:
    names = {
        "tailscale.com/cap/kubernets": CAPABILITY,
        "example.com/cap/k8sproxy": "tailscale.com/cap/k8sproxy",
        "tailscale.com/cap/k8s-proxy": "tailscale.com/cap/k8sproxy",
    }
    others = ("tailscale.com/cap/recorder", "https://tailscale.com/cap/is-admin", "kubernetes", "tailscale.com/cap/ssh")
    known = (CAPABILITY, "tailscale.com/cap/k8sproxy")
    peer = dataclasses.replace(USER, capabilities=dict.fromkeys((*names, *others, *known), ({},)))
    assert misspelt_capabilities(peer) == tuple(
        f"k8sproxy does not read the capability {name}; did you mean {meant}?" for name, meant in names.items()
    )
    old = with_rules({"enforceRecorder": True}, name=LEGACY_CAPABILITY)
    assert misspelt_capabilities(old) == ()  # its unknown fields are told
    assert (
        f"{LEGACY_CAPABILITY} is ignored: the peer has {CAPABILITY} too"
        in misspelt_capabilities(with_rules({}, peer=old))[0]
    )
    assert "example.com" not in "".join(misspelt_capabilities(peer, "example.com")).replace("mean example.com", "")


@pytest.mark.parametrize("name", ["enforceRecorder", "EnforceRecorder", "ENFORCERECORDER", "enforcerecorder"])
def test_field_names_match_in_any_case_as_in_go(name: str) -> None:
    assert parse_grants(with_rules({name: True})).enforced
    assert parse_grants(with_rules({"Impersonate": {"GROUPS": ["a"]}, "RECORDERADDRS": ["1.2.3.4:5"]})) == Grants(
        groups=("a",), recorders=("1.2.3.4:5",), recording=RecordingLevel.OPEN
    )


def test_field_names_match_by_case_folding_beyond_ascii_too() -> None:
    assert parse_grants(
        with_rules({"enable\N{LATIN CAPITAL LETTER E}vent\N{LATIN SMALL LETTER LONG S}": True})
    ).enable_events


@pytest.mark.parametrize(
    ("rule", "fault"),
    [
        ("text", "rule 2 must be an object, not a string"),
        ([], "rule 2 must be an object, not a list"),
        (7, "rule 2 must be an object, not a number"),
        (True, "rule 2 must be an object, not a boolean"),
        ({"impersonate": []}, "rule 2: impersonate must be an object, not a list"),
        ({"impersonate": {"groups": "a"}}, "rule 2: impersonate.groups must be a list of strings, not a string"),
        ({"impersonate": {"groups": {"a": 1}}}, "rule 2: impersonate.groups must be a list of strings, not an object"),
        (groups("a", 1), "rule 2: impersonate.groups (value 2) must be a string, not a number"),
        (groups(b"a"), "rule 2: impersonate.groups (value 1) must be a string, not bytes"),
        (groups(None), "rule 2: impersonate.groups (value 1) is empty"),
        (groups(""), "rule 2: impersonate.groups (value 1) is empty"),
        (groups("a\r\nb"), "contains a control character"),
        (groups("a\x00"), "contains a control character"),
        (groups("a\x7f"), "contains a control character"),
        (groups("a\x85b"), "contains a control character"),
        (groups(" a"), "begins or ends with white space"),
        (groups("a "), "begins or ends with white space"),
        (groups("a\xa0"), "begins or ends with white space"),
        (groups("a\ud800"), "is not Unicode text"),
        (groups("g" * (MAX_NAME + 1)), f"is {MAX_NAME + 1} bytes long; at most {MAX_NAME} are allowed"),
        (groups("é" * (MAX_NAME // 2 + 1)), f"is {MAX_NAME + 2} bytes long"),
        ({"recorder": "tag:x"}, "rule 2: recorder must be a list of strings, not a string"),
        ({"recorder": [1.5]}, "rule 2: recorder (value 1) must be a string, not a number"),
        ({"recorderAddrs": "100.64.0.9:80"}, "rule 2: recorderAddrs must be a list of strings, not a string"),
        ({"recorderAddrs": [None]}, "rule 2: recorderAddrs (value 1) must be an address as IP:PORT"),
        ({"enforceRecorder": "true"}, "rule 2: enforceRecorder must be true or false, not a string"),
        ({"enforceRecorder": 1}, "rule 2: enforceRecorder must be true or false, not a number"),
        ({"enforceRecorder": []}, "rule 2: enforceRecorder must be true or false, not a list"),
        ({"enableEvents": 0}, "rule 2: enableEvents must be true or false, not a number"),
        ({"enforceRecorder": True, "EnforceRecorder": False}, "has the field 'enforcerecorder' twice"),
        ({"impersonate": {"groups": ["a"], "Groups": []}}, "rule 2: impersonate has the field 'groups' twice"),
    ],
)
def test_a_rule_with_a_fault_refuses_everything_and_says_what(rule: object, fault: str) -> None:
    refusal = refusal_of(with_rules(groups("a"), rule, groups("b")))
    assert refusal.message.startswith(f"the capability {CAPABILITY} is malformed: rule 2")
    assert fault in refusal.message


@pytest.mark.parametrize(
    ("address", "canonical"),
    [
        ("100.64.0.9:80", "100.64.0.9:80"),
        ("[fd7a:115c:a1e0::9]:80", "[fd7a:115c:a1e0::9]:80"),
        ("[FD7A:0::9]:00443", "[fd7a::9]:443"),
        ("1.2.3.4:65535", "1.2.3.4:65535"),
    ],
)
def test_recorder_addresses(address: str, canonical: str) -> None:
    peer = with_rules({"recorderAddrs": [address]}, {"recorderAddrs": [canonical]})
    assert parse_grants(peer).recorders == (canonical,)


@pytest.mark.parametrize(
    "address",
    [
        *(
            "",
            "100.64.0.9",
            "100.64.0.9:",
            ":80",
            "recorder:80",
            "fd7a::9:80",
            "[100.64.0.9]:80",
            "[fd7a::9]",
            "[::1%lo]:80",
        ),
        *("1.2.3:80", "1.2.3.04:80", "1.2.3.256:80", "1.2.3.4:0", "1.2.3.4:65536", "1.2.3.4:http", "1.2.3.4:+80"),
        *("1.2.3.4:80 ", " 1.2.3.4:80", "1.2.3.4:80\n", "http://1.2.3.4:80", "[]:80", "[:::]:80", "1.2.3.4:８０", 80),
    ],
)
def test_what_is_no_address_is_a_fault(address: object) -> None:
    assert "recorderAddrs (value 1)" in refusal_of(with_rules({"recorderAddrs": [address]})).message


def test_absurd_numbers_are_refused() -> None:
    many = [f"g{number}" for number in range(MAX_GROUPS)]
    assert parse_grants(with_rules(groups(*many), groups("g0", "g1"))).groups == tuple(many)
    assert f"grants {MAX_GROUPS + 1} groups" in refusal_of(with_rules(groups(*many), groups("one more"))).message


def test_of_hundreds_of_recorders_the_first_ones_count() -> None:
    """A large tailnet's policy is no fault, and whoever may go on without a recorder does so."""
    addresses = [f"100.64.{number // 200}.{number % 200}:80" for number in range(500)]
    grants = parse_grants(
        with_rules({"recorderAddrs": addresses[:60]}, {"recorderAddrs": addresses, "enforceRecorder": True})
    )
    assert grants.recorders == tuple(addresses[:MAX_RECORDERS]) and grants.enforced


def test_a_user_is_impersonated_by_login_name_with_the_rules_groups() -> None:
    ann = tailnet_caller(USER)
    assert impersonation(ann, Grants()) == Impersonation("ann@example.com")
    assert impersonation(ann, Grants(groups=("b", "a"))) == Impersonation("ann@example.com", ("b", "a"))


def test_a_tagged_node_is_impersonated_by_name_with_the_rules_groups_or_its_tags() -> None:
    assert impersonation(tailnet_caller(TAGGED), Grants()) == Impersonation("ci.t.ts.net", ("tag:ci", "tag:k8s"))
    assert impersonation(tailnet_caller(TAGGED), Grants(groups=("dev",))) == Impersonation("ci.t.ts.net", ("dev",))
    doubled = dataclasses.replace(TAGGED, node_name="ci", login_name="tagged-devices", tags=("tag:a", "tag:b", "tag:a"))
    assert impersonation(tailnet_caller(doubled), Grants()) == Impersonation("ci", ("tag:a", "tag:b"))


@pytest.mark.parametrize(
    ("peer", "cause", "message"),
    [
        (dataclasses.replace(USER, login_name=""), "unusable_name", "the login name of this peer"),
        (dataclasses.replace(USER, login_name="ann\n"), "unusable_name", "control character"),
        (dataclasses.replace(USER, login_name="a" * 513), "unusable_name", "513 bytes"),
        (dataclasses.replace(USER, login_name="system:admin"), "reserved_name", "'system:'"),
        (dataclasses.replace(USER, login_name="system:"), "reserved_name", "'system:'"),
        (dataclasses.replace(USER, login_name="tagged-devices"), "reserved_name", "'tagged-devices'"),
        (dataclasses.replace(TAGGED, node_name="."), "unusable_name", "the node name of this peer"),
        (dataclasses.replace(TAGGED, node_name=" ci."), "unusable_name", "white space"),
        (dataclasses.replace(TAGGED, node_name="system:node:ci."), "reserved_name", "'system:'"),
        (dataclasses.replace(TAGGED, tags=("tag:a", "")), "unusable_name", "the tag of this peer"),
        (dataclasses.replace(TAGGED, tags=("tag:a", "system:masters")), "unusable_name", "'tag:'"),
        (dataclasses.replace(TAGGED, tags=tuple(f"tag:{n}" for n in range(257))), "unusable_name", "257 tags"),
    ],
)
def test_names_that_nobody_may_have_are_refused(peer: Peer, cause: str, message: str) -> None:
    with pytest.raises(Refusal) as caught:
        impersonation(tailnet_caller(peer), Grants())
    assert (caught.value.status, caught.value.cause) == (403, cause)
    assert message in caught.value.message


@pytest.mark.parametrize(
    ("rule", "fault"),
    [
        (Repeated(), "rule 1 names a field twice"),
        ({"impersonate": Repeated()}, "rule 1: impersonate names a field twice"),
    ],
)
def test_a_field_twice_in_one_spelling_is_refused(rule: object, fault: str) -> None:
    refusal = refusal_of(with_rules(rule))
    assert (refusal.status, refusal.cause) == (403, "malformed_grant")
    assert fault in refusal.message


def test_a_field_twice_where_nobody_looks_is_ignored() -> None:
    assert parse_grants(with_rules({"impersonate": {"groups": ["dev"]}, "other": Repeated()})).groups == ("dev",)


@given(peers())
def test_any_peer_gives_clean_values_or_a_refusal(peer: Peer) -> None:
    try:
        grants = parse_grants(peer)
        who = impersonation(tailnet_caller(peer), grants)
    except Refusal as refusal:
        assert (refusal.status, refusal.cause) in {
            (403, cause) for cause in ("malformed_grant", "unusable_name", "reserved_name")
        }
        return
    for value in (who.user, *who.groups):
        raw = value.encode()
        assert raw
        assert raw == raw.strip()
        assert min(raw) >= 0x20
    assert len(set(who.groups)) == len(who.groups)


def test_nothing_can_be_changed() -> None:
    for value, field in ((Grants(), "groups"), (Impersonation("a"), "user"), (Rule(CAPABILITY), "groups")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, field, "b")
        assert not hasattr(value, "__dict__")
