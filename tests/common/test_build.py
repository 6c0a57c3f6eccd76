"""What a program says of its own build."""

from __future__ import annotations

import platform

from k8sproxy.common import build
from tests.conftest import wrongly_built


def test_the_build_is_told_from_what_runs() -> None:
    assert build.is_compiled() is not build.__file__.endswith(".py")
    assert build.describe_build() == ("compiled" if build.is_compiled() else "pure Python")
    compiled = "true" if build.is_compiled() else "false"
    assert build.build_labels("1.2.3") == ("1.2.3", compiled, platform.python_version())


def test_a_run_against_the_other_build_is_refused() -> None:
    assert wrongly_built(compiled=build.is_compiled()) == []
    wrong = wrongly_built(compiled=not build.is_compiled())
    assert any(line.startswith("k8sproxy.protocol.http1 is imported from ") for line in wrong)
