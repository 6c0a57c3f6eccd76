"""The shape that tests have to have."""

from __future__ import annotations

from typing import Any

import pytest

from tools.mirror import faults, mirrored

ENTRY = {"modules": ["k8sproxy/cli/check.py"], "tests": "tests/cli/test_cli.py", "why": "run as its user does"}
EXCEPTIONS: dict[str, Any] = {
    "elsewhere": [ENTRY],
    "together": [{"tests": ["tests/test_docs.py", "tests/system/"], "why": "of all"}],
}
MODULES = {"k8sproxy/cli/check.py", "k8sproxy/access/grants.py", "recorder/model.py"}
TESTS = {
    *("tests/cli/test_cli.py", "tests/access/test_grants_names.py", "tests/recorder/test_model.py"),
    *("tests/test_docs.py", "tests/system/test_life.py"),
}


def test_a_module_is_tested_at_its_own_place() -> None:
    found = {"tests/access/test_grants.py", "tests/access/test_grants_names.py", "tests/access/test_grantss.py"}
    assert mirrored("k8sproxy/access/grants.py", found) == found - {"tests/access/test_grantss.py"}
    assert mirrored("recorder/access/grants.py", found) == set()
    assert mirrored("recorder/model.py", {"tests/recorder/test_model.py"}) == {"tests/recorder/test_model.py"}


def test_nothing_is_out_of_place() -> None:
    assert list(faults(MODULES, TESTS, EXCEPTIONS)) == []


@pytest.mark.parametrize(
    ("modules", "tests", "fault"),
    [
        ({"k8sproxy/app.py"}, set(), "k8sproxy/app.py: has no tests of its own"),
        (set(), {"tests/test_app.py"}, "tests/test_app.py: mirrors no module"),
        (set(), {"tests/cli/test_check.py"}, "k8sproxy/cli/check.py: is listed as tested elsewhere, and has tests/cli"),
    ],
)
def test_what_is_out_of_place(modules: set[str], tests: set[str], fault: str) -> None:
    (found,) = faults(MODULES | modules, TESTS | tests, EXCEPTIONS)
    assert found.startswith(fault)


def test_exceptions_that_are_out_of_date() -> None:
    assert list(faults(MODULES - {"k8sproxy/cli/check.py"}, TESTS, EXCEPTIONS)) == [
        "k8sproxy/cli/check.py: is listed, and does not exist"
    ]
    assert list(faults(MODULES, TESTS - {"tests/test_docs.py"}, EXCEPTIONS)) == [
        "tests/test_docs.py: is listed, and does not exist"
    ]
    twice = {**EXCEPTIONS, "elsewhere": [ENTRY, {**ENTRY, "why": ""}]}
    assert list(faults(MODULES, TESTS, twice)) == [
        "k8sproxy/cli/check.py: is listed twice",
        "tests/cli/test_cli.py: an exception without a reason",
    ]
