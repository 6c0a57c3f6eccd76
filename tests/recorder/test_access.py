from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from k8sproxy.common.errors import Refusal
from k8sproxy.common.tailnet.peer import Peer, Repeated
from recorder.access import MAX_GLOB, MAX_GLOBS, MAX_RULES, Access, Action, matches, rules
from recorder.model import Recording, Source

CAP = "example.com/cap/recorder"


def peer(*values: object, login: str = "ana@example.com", tags: tuple[str, ...] = ()) -> Peer:
    return Peer("100.64.0.7", "n1", "laptop.tail.ts.net.", tags, 1, login, "", {CAP: values})


def granted(*values: object, login: str = "ana@example.com", tags: tuple[str, ...] = ()) -> Access:
    return rules(peer(*values, login=login, tags=tags), "example.com")


def recording(
    user: str = "ana@example.com",
    cluster: str = "prod",
    namespace: str = "shop",
    node: str = "laptop.tail.ts.net.",
    tags: tuple[str, ...] = (),
) -> Recording:
    header: dict[str, object] = {
        "srcNode": node,
        "kubernetes": {"Cluster": cluster, "Namespace": namespace, "PodName": "p"},
    }
    if tags:
        header |= {"srcNodeTags": list(tags), "impersonation": {"user": user}}
    else:
        header["srcNodeUser"] = user
    return Recording("01M81RDKSD1734AD6GGD6M5CTD", header, Source("proxy", "100.64.0.9"), 1.0)


def test_no_rule_is_nothing() -> None:
    for access in (granted(), rules(Peer("100.64.0.7", "n1", "laptop."), "example.com")):
        assert not access.sees and not access.sends
        assert access.scope() == () and not access.may(recording())


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({}, ""),
        ({"send": True}, ""),
        ({"live": True, "export": True}, ""),
        ({"audit": True}, "audit"),
        ({"view": True}, "view"),
        ({"users": ["*"]}, "view"),
        ({"users": []}, ""),
        ({"users": None, "view": True}, "view"),
        ({"own": True}, "view"),
        ({"own": True, "view": False, "live": True, "export": True}, ""),
        ({"namespaces": ["shop"], "live": True}, "view live"),
        ({"namespaces": ["sh*"], "clusters": ["prod"], "export": True}, "view export"),
        ({"namespaces": ["shop"], "clusters": ["stage"]}, ""),
        ({"NameSpaces": ["elsewhere"], "VIEW": True}, ""),
    ],
)
def test_what_a_rule_allows(rule: object, expected: str) -> None:
    access = granted(rule)
    assert " ".join(action.value for action in Action if access.may(recording(), action)) == expected


def test_rules_do_not_lend_to_each_other() -> None:
    access = granted({"namespaces": ["shop"]}, {"namespaces": ["bank"], "export": True, "live": True})
    assert access.may(recording(namespace="shop")) and not access.may(recording(namespace="shop"), Action.EXPORT)
    assert access.may(recording(namespace="bank"), Action.EXPORT)
    assert not access.may(recording(namespace="else"))


def test_own_is_by_login_or_by_tagged_node() -> None:
    access = granted({"own": True})
    assert access.may(recording())
    assert not access.may(recording(user="ben@example.com"))
    assert not access.may(recording(user="ANA@example.com"))
    assert not access.may(recording(tags=("tag:ci",)))  # a name that a tagged node was impersonated as is not a login
    machine = granted({"own": True}, login="tagged-devices", tags=("tag:ci",))
    assert machine.may(recording(user="laptop.tail.ts.net", tags=("tag:ci",)))
    assert not machine.may(recording())  # the same node's name, in the hands of a person
    assert not machine.may(recording(user="tagged-devices"))
    assert not granted({"own": True, "namespaces": ["bank"]}).may(recording())


def test_own_of_nobody_is_refused() -> None:
    with pytest.raises(Refusal, match="no name"):
        granted({"own": True}, login="")


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        "view",
        1,
        Repeated(),
        {"users": "ana"},
        {"users": {"a": 1}},
        {"users": [1]},
        {"users": [None]},
        {"users": [""]},
        {"users": Repeated()},
        {"clusters": ["x" * (MAX_GLOB + 1)]},
        {"namespaces": ["x"] * (MAX_GLOBS + 1)},
        {"own": 1},
        {"view": "true"},
        {"live": []},
        {"export": 0},
        {"audit": "no"},
        {"send": {}},
        {"users": ["a"], "Users": ["b"]},
        {"user": ["a"], "view": True},
        {"users": ["a"], "comment": "for ana"},
    ],
)
def test_one_malformed_rule_refuses_everything(value: object) -> None:
    with pytest.raises(Refusal) as caught:
        granted({"view": True}, value)
    assert (caught.value.status, caught.value.cause) == (403, "malformed_grant")
    assert "rule 2" in caught.value.message and "ana" not in caught.value.message


def test_too_many_rules_are_refused() -> None:
    granted(*[{"view": True}] * MAX_RULES)
    with pytest.raises(Refusal):
        granted(*[{"view": True}] * (MAX_RULES + 1))


ALPHABET = st.text("ab*.[]?\\\n", max_size=12)


@settings(max_examples=300)
@given(ALPHABET, ALPHABET)
def test_globs_have_one_special_character(glob: str, text: str) -> None:
    oracle = re.compile("(?s:" + ".*".join(re.escape(part) for part in glob.split("*")) + r")\Z")
    assert matches(glob, text) == (oracle.match(text) is not None)


def test_a_glob_of_stars_takes_no_time() -> None:
    assert not matches("*a" * 200 + "b", "a" * 5000)


NAMES = st.sampled_from(["a", "b", "ab", ""])
GLOBS = st.none() | st.lists(st.sampled_from(["a", "b", "*", "a*"]), max_size=2)
RULES = st.fixed_dictionaries(
    {},
    optional={
        "users": GLOBS,
        "clusters": GLOBS,
        "namespaces": GLOBS,
        "own": st.booleans(),
        **{name: st.booleans() for name in ("view", "live", "export", "audit", "send")},
    },
)


@settings(max_examples=300)
@given(st.lists(RULES, max_size=3), NAMES, NAMES, NAMES)
def test_access_is_what_the_rules_say_one_by_one(
    values: list[dict[str, object]], user: str, cluster: str, space: str
) -> None:
    access = granted(*values, login="a")
    target = recording(user=user, cluster=cluster, namespace=space)

    def covers(globs: object, name: str) -> bool:
        return globs is None or (
            isinstance(globs, list) and any(g == "*" or g == name or (g == "a*" and name[:1] == "a") for g in globs)
        )

    def here(rule: dict[str, object]) -> bool:
        fits = (("users", user), ("clusters", cluster), ("namespaces", space))
        return all(covers(rule.get(field), name) for field, name in fits) and (not rule.get("own") or user == "a")

    def allows(rule: dict[str, object], action: Action) -> bool:
        named = bool(rule.get("own")) or any(
            rule.get(field) is not None for field in ("users", "clusters", "namespaces")
        )
        if action is Action.AUDIT:
            return bool(rule.get("audit"))
        return bool(rule.get("view", named)) and (action is Action.VIEW or bool(rule.get(action.value)))

    for action in Action:
        assert access.may(target, action) == any(here(rule) and allows(rule, action) for rule in values)
