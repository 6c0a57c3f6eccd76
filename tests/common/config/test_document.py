from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from k8sproxy.common.config.document import MAX_DEPTH, MAX_TEXT, MAX_VALUES, Broken, Document


def data(text: str, **environment: str) -> object:
    document = Document(text, environment)
    assert document.faults == []
    return document.data


def faults(text: str, **environment: str) -> list[tuple[tuple[int, int], str]]:
    return [(fault.place, fault.message) for fault in Document(text, environment).faults]


def test_values() -> None:
    text = "a: 1\nb: [true, null, 1.5, ~, 'x', \"y\"]\nc: {d: 2024-01-01, e: =, f: ''}\ng:\n"
    assert data(text) == {
        "a": 1,
        "b": [True, None, 1.5, None, "x", "y"],
        "c": {"d": "2024-01-01", "e": "=", "f": ""},
        "g": None,
    }
    assert data("") is None
    assert data("# nothing\n") is None


def test_places_are_those_of_the_keys() -> None:
    document = Document("a: 1\nb:\n  - c: 2\n  - {d: 3}\n", {})
    assert document.place(("a",)) == (1, 1)
    assert document.place(("b", 0)) == (3, 5)
    assert document.place(("b", 1, "d")) == (4, 6)
    assert document.place(("b", 1, "missing", "more")) == (4, 5)
    assert document.place(("missing",)) == (1, 1)


def test_the_environment_is_put_in() -> None:
    text = 'a: ${A}\nb: "${A}"\nc: x${A}y${B}\nd: $$${A}$$\ne: $A ${\nf: ${E}\ng: "${E}"\nh: ${T}\n'
    assert data(text, A="1", B="z", E="", T="true") == {
        "a": 1, "b": "1", "c": "x1yz", "d": "$1$", "e": "$A ${", "f": "", "g": "", "h": True,
    }  # fmt: skip


def test_what_the_environment_holds_is_a_value_and_no_yaml() -> None:
    assert data("a: ${A}", A="{b: [c]}\nd: e") == {"a": "{b: [c]}\nd: e"}
    assert data("a: ${A}", A="${B}", B="no") == {"a": "${B}"}


def test_keys_are_left_alone() -> None:
    assert data("${A}: 1") == {"${A}": 1}


def test_faults_of_the_environment() -> None:
    assert faults("a: ${NO}\nb: ['x${NO}', '${NO-x}', '${}']") == [
        ((1, 4), "the environment variable NO is not set"),
        ((2, 5), "the environment variable NO is not set"),
        ((2, 15), "${...} must hold the name of an environment variable (a dollar sign is written $$)"),
        ((2, 26), "${...} must hold the name of an environment variable (a dollar sign is written $$)"),
    ]


def test_a_key_occurs_once() -> None:
    document = Document("a: 1\nb: {c: 1, c: 2}\na: 3\n", {})
    assert [(fault.place, fault.key) for fault in document.faults] == [((2, 11), ("b", "c")), ((3, 1), ("a",))]
    assert document.data == {"a": 1, "b": {"c": 1}}


def test_what_yaml_can_but_a_configuration_may_not() -> None:
    assert faults("a: !!python/object:os.system x\nb: !x {}\nc: !y []\nd: !!binary aGk=\n") == [
        ((line, 4), "YAML tags are not supported") for line in (1, 2, 3, 4)
    ]
    assert faults("a: &a {b: 1}\nc:\n  <<: *a\n") == [((3, 3), "merge keys are not supported")]
    assert faults("? [a]\n: 1\n") == [((1, 3), "a key must be text")]
    assert faults("a: !!int x\n") == [((1, 4), "not a YAML int")]


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        ("a: [1\nb: 2", (2, 2), "not YAML: while parsing a flow sequence"),
        ("a:\n\tb: 1", (2, 1), "tab"),
        ("a: 1\n---\nb: 1", (2, 1), "not YAML: expected a single document"),
        ("a: *b", (1, 4), "not YAML: found undefined alias"),
        ("a: b\n c: d: e", (2, 3), "not YAML"),
        ("a: 1\nb: \x01", (2, 4), "a character"),
    ],
)
def test_what_is_no_yaml(text: str, place: tuple[int, int], message: str) -> None:
    with pytest.raises(Broken, match=message) as broken:
        Document(text, {})
    assert broken.value.place == place


def test_aliases_unfold_within_bounds() -> None:
    assert data("a: &a [1, 2]\nb: [*a, *a]") == {"a": [1, 2], "b": [[1, 2], [1, 2]]}
    laughs = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10))
    with pytest.raises(Broken, match=f"more than {MAX_VALUES} values"):
        Document(laughs, {})
    with pytest.raises(Broken, match="levels deep"):
        Document("a: &a [*a]", {})


def test_depth_and_length_are_bounded() -> None:
    assert data("[" * MAX_DEPTH + "]" * MAX_DEPTH) is not None
    for deep in (MAX_DEPTH + 1, MAX_DEPTH + 2, MAX_DEPTH + 5, 5000):
        with pytest.raises(Broken, match="levels deep"):
            Document("[" * deep + "]" * deep, {})
    with pytest.raises(Broken, match=f"more than {MAX_TEXT} characters"):
        Document("a: ${A}", {"A": "x" * (MAX_TEXT + 1)})


@given(st.text(alphabet="ab01:-[]{},*&!#|>'\"$ \n\t<?%@"))
def test_any_text_is_a_document_or_broken(text: str) -> None:
    try:
        document = Document(text, {})
    except Broken as broken:
        assert broken.place >= (1, 1)
        return
    if not document.faults and not set("$=01<") & set(text):  # where a configuration means what YAML means
        assert document.data == yaml.safe_load(text)
