"""Holds the tests to the shape of the sources: `python -m tools.mirror`.

k8sproxy/access/grants.py is tested by tests/access/test_grants.py, or by several files that begin with that name
(test_grants_names.py); recorder/model.py by tests/recorder/test_model.py. Whatever is otherwise stands in mirror.toml,
with the reason: modules that are tested through others, and tests of several modules together. An entry that is no
longer needed, or names a file that is gone, is a fault too.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
EXCEPTIONS = Path(__file__).with_name("mirror.toml")
PACKAGES = ("k8sproxy", "recorder")


def modules(root: Path) -> set[str]:
    """The modules that must have tests. Not __init__.py and __main__.py, which hold no more than a door."""
    found = (path for package in PACKAGES for path in (root / package).rglob("*.py"))
    return {str(path.relative_to(root)) for path in found if not path.name.startswith("__")}


def tests(root: Path) -> set[str]:
    """All files of tests."""
    return {str(path.relative_to(root)) for path in (root / "tests").rglob("test_*.py")}


def mirrored(module: str, among: set[str]) -> set[str]:
    """Those tests that stand where the module's tests belong."""
    inside = module.removeprefix("k8sproxy/").removesuffix(".py")
    folder, _, name = f"tests/{inside}".rpartition("/")
    own = f"{folder}/test_{name}"
    return {
        test for test in among if test == f"{own}.py" or (test.startswith(f"{own}_") and "/" not in test[len(own) :])
    }


def faults(modules: set[str], tests: set[str], exceptions: dict[str, Any]) -> Iterator[str]:
    """What is wrong, a line each."""
    elsewhere: dict[str, str] = {}
    for entry in exceptions["elsewhere"]:
        for module in entry["modules"]:
            if module in elsewhere:
                yield f"{module}: is listed twice"
            elsewhere[module] = entry["tests"]
        if not entry["why"]:
            yield f"{entry['tests']}: an exception without a reason"
    together = {test for entry in exceptions["together"] for test in entry["tests"]}
    for test in sorted({*elsewhere.values(), *together} - tests):
        if not any(known.startswith(test) for known in tests if test.endswith("/")):
            yield f"{test}: is listed, and does not exist"
    for module in sorted(elsewhere.keys() - modules):
        yield f"{module}: is listed, and does not exist"
    placed = {*elsewhere.values(), *together}
    for module in sorted(modules):
        own = mirrored(module, tests)
        placed |= own
        if own and module in elsewhere:
            yield f"{module}: is listed as tested elsewhere, and has {min(own)}"
        if not own and module not in elsewhere:
            yield f"{module}: has no tests of its own; tests that reach it through another module stand in mirror.toml"
    for test in sorted(tests - placed):
        if not any(test.startswith(folder) for folder in placed if folder.endswith("/")):
            yield f"{test}: mirrors no module; tests of several modules together stand in mirror.toml"


def main() -> None:
    """Entry point."""
    found = list(faults(modules(ROOT), tests(ROOT), tomllib.loads(EXCEPTIONS.read_text())))
    for fault in found:
        print(fault)
    print(f"{len(modules(ROOT))} modules, {len(tests(ROOT))} files of tests, {len(found)} out of place")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
