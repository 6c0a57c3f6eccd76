"""What is compiled, and where it may not lie."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tools import compiled

ROOT = Path(__file__).parent.parent.parent


def test_every_pattern_of_the_hot_set_names_a_module() -> None:
    found = compiled.hot_set()
    assert [pattern for pattern, names in found.items() if not names] == []
    assert "k8sproxy.protocol.http1" in found["k8sproxy/protocol/*.py"]
    assert "k8sproxy.protocol.__init__" not in found["k8sproxy/protocol/*.py"]


def test_a_checkout_is_never_compiled_in_place() -> None:
    done = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--inplace"],
        cwd=ROOT,
        env={**os.environ, "K8SPROXY_COMPILE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "never compiled in place" in done.stderr


def test_a_compiled_module_in_the_checkout_stops_a_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in compiled.PACKAGES:
        (tmp_path / package).mkdir()
    (tmp_path / "recorder" / "screen.so").touch()
    monkeypatch.setattr(compiled, "ROOT", tmp_path)
    with pytest.raises(SystemExit, match=r"recorder/screen\.so"):
        compiled.build(compiled=False)


def test_what_is_missing_to_compile_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler -O2")
    assert compiled.missing() == "the C compiler no-such-compiler is not installed"


def test_sources_decide_whether_the_wheel_is_built_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in compiled.SOURCES:
        (tmp_path / name).mkdir() if name in compiled.PACKAGES else (tmp_path / name).write_text(name)
    monkeypatch.setattr(compiled, "ROOT", tmp_path)
    before = compiled.fingerprint()
    assert compiled.fingerprint() == before
    (tmp_path / "recorder" / "model.py").write_text("1")
    assert compiled.fingerprint() != before
