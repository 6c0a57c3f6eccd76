"""The one way to read a configuration file, with a small schema of its own.

tests/config and tests/recorder/test_config.py hold what it makes of the two real ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import BeforeValidator, Field, create_model

from k8sproxy.common.config.faults import ConfigError, Key
from k8sproxy.common.config.loading import MAX_FILE, Sound, load, parse
from k8sproxy.common.config.sections import Section
from k8sproxy.common.config.units import number_between

HERE = Path("/etc/x/config.yaml")
Number = Annotated[int, BeforeValidator(number_between(1, 9))]


class Door(Section):
    name: str
    numbers: tuple[Number, ...] = (7,)


class Lock(Section):
    number: Number = 5
    labels: dict[str, str] = Field(default={})


class House(Section):
    doors: tuple[Door, ...] = Field(min_length=1)
    lock: Lock = Lock()
    key: Lock | None = None


def accept(_: Sound) -> list[tuple[Key, str]]:
    return []


def read(text: str, **environment: str) -> House:
    return parse(text.encode(), HERE, House, accept, environment=environment)


def refused(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(text)
    return [str(fault).removeprefix(f"{HERE}:") for fault in caught.value.faults]


def sound(text: str) -> Sound:
    """What the checks see."""
    seen = []

    def check(sound: Sound) -> Iterator[tuple[Key, str]]:
        seen.append(sound)
        yield (), "is refused"

    with pytest.raises(ConfigError):
        parse(text.encode(), HERE, House, check, environment={})
    return seen[0]


def test_a_sound_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAME", "front")
    path = tmp_path / "house.yaml"
    path.write_text("doors: [{name: '${NAME}'}]\nlock:\n")
    assert load(path, House, accept) == House(doors=(Door(name="front"),))
    assert load(path, House, accept, environment={"NAME": "back"}).doors[0].name == "back"


def test_files_that_are_refused_whole(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="none: can't be read: No such file"):
        load(tmp_path / "none", House, accept)
    for raw, fault in ((b" " * (MAX_FILE + 1), ": has more than"), (b"a: b\nc: \xff", ":2:4: not UTF-8")):
        with pytest.raises(ConfigError, match=fault):
            parse(raw, HERE, House, accept)
    assert refused("") == ["1:1: the file is empty"]
    assert refused("5") == ["1:1: the file must be a mapping of keys"]
    assert refused("a: [") == [
        "1:5: not YAML: while parsing a flow node expected the node content, but found '<stream end>'"
    ]


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ("lock: 5\n", ["1:1: doors: is required", "1:1: lock: must be a mapping of keys"]),
        ("doors: []\n", ["1:1: doors: must not be empty"]),
        ("doors: [5]\n", ["1:9: doors[0]: must be a mapping of keys"]),
        ("doors: {a: b}\n", ["1:1: doors: must be a list"]),
        ("doors: [{}]\n", ["1:9: doors[0].name: is required"]),
        ("doors: [{name: 5, nam: x}]\n",
         ["1:10: doors[0].name: must be text (put it in quotes)",
          "1:19: doors[0].nam: unknown key; did you mean name?"]),
        ("doors: [{name: x}]\nkey: {numbr: 5, q: 1}\n",
         ["2:7: key.numbr: unknown key; did you mean number?", "2:17: key.q: unknown key"]),
        ("doors: [{name: x}]\nlock: {labels: 5}\n", ["2:8: lock.labels: must be a mapping of keys"]),
        ("doors: [{name: x}]\nlock: {labels: {a: 5}}\n", ["2:17: lock.labels.a: must be text (put it in quotes)"]),
        ("doors: [{name: x}]\nlock: {number: '${N}'}\n", ["2:16: lock.number: the environment variable N is not set"]),
        ("doors: [{name: x}]\ndoors: [{name: 5}]\nlock: {number: 0}\n",
         ["2:1: doors: is already in line 1", "3:8: lock.number: must be a whole number from 1 to 9"]),
    ],
)  # fmt: skip
def test_faults(text: str, faults: list[str]) -> None:
    assert refused(text) == faults


def test_checks_see_what_is_sound_by_its_number_in_the_file() -> None:
    text = "doors: [{name: a, numbers: [0, 3, 0, 4]}, {nme: b}, {name: c, numbers: [0]}, 7, {name: d}]\n"
    seen = sound(text + "lock: {number: 0}\nkey: []\n")
    doors = seen.numbered(Door, "doors")
    assert {number: (door.name, door.numbers) for number, door in doors.items()} == {
        **{0: ("a", (3, 4)), 2: ("c", ()), 4: ("d", (7,))},
    }
    assert seen.numbers(("doors", 0, "numbers"), doors[0].numbers) == [(1, 3), (3, 4)]
    assert seen.numbers(("doors", 4, "numbers"), doors[4].numbers) == [(0, 7)]  # a default
    assert seen.section(Lock, "lock") == Lock() and not seen.is_whole("lock") and not seen.is_whole("lock", "number")
    assert seen.section(Lock, "key") is None and not seen.is_whole("key")


def test_checks_see_the_defaults_of_what_is_not_there() -> None:
    seen = sound("doors:\nlock:\n")
    assert seen.numbered(Door, "doors") == {}
    assert seen.section(Lock, "lock") == Lock() and seen.is_whole("lock")
    assert seen.section(Door, "lock") is None  # its defaults alone are not sound
    assert seen.section(Lock, "key", "inner") == Lock()
    assert seen.left() == {"doors": None, "lock": None}


def test_what_the_checks_find_is_a_fault_unless_its_key_has_one() -> None:
    def check(sound: Sound) -> Iterator[tuple[Key, str]]:
        yield ("lock", "number"), "is a consequence"
        yield ("lock", "labels"), "does not fit"

    text = "doors: [{name: x}]\nlock: {labels: {}, number: 0}\n"
    with pytest.raises(ConfigError) as caught:
        parse(text.encode(), HERE, House, check, environment={})
    assert [fault.message for fault in caught.value.faults] == ["does not fit", "must be a whole number from 1 to 9"]


def test_a_fault_that_nothing_can_be_cut_out_for_is_told_once() -> None:
    assert refused("{}") == ["1:1: doors: is required"]


def test_a_fault_below_more_levels_than_any_schema_has_is_told_all_the_same() -> None:
    model: type[Section] = Door
    for _ in range(12):
        model = create_model("Level", __base__=Section, below=(model, ...))
    text = "{below: " * 12 + "{name: 1}" + "}" * 12
    with pytest.raises(ConfigError) as caught:
        parse(text.encode(), HERE, model, accept)
    (fault,) = caught.value.faults
    assert fault.key == "below." * 12 + "name"


def test_choices_and_switches_are_told_in_words() -> None:
    class Window(Section):
        glass: Literal["clear", "frosted"] = "clear"
        open: bool = False

    with pytest.raises(ConfigError) as caught:
        parse(b"glass: blue\nopen: []\n", HERE, Window, accept)
    assert [fault.message for fault in caught.value.faults] == [
        "must be clear or frosted",
        "must be true or false",
    ]
