"""What the demo takes for "as it should be": it is its exit code, so it is not fooled by a failure of another kind."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from demo.show import Paper, Result, Step, as_expected, command_line, show

LET_IN = Step("alice", ("version",), True, "Client", "asks")
REFUSED = Step("carol", ("get", "pods"), False, "forbidden", "asks")


@pytest.mark.parametrize(
    ("step", "result", "good"),
    [
        (LET_IN, Result(0, "client version"), True),
        (LET_IN, Result(0, ""), False),
        (LET_IN, Result(1, "client"), False),
        (REFUSED, Result(1, "Error from server (Forbidden): no"), True),
        (REFUSED, Result(0, "forbidden"), False),
        (REFUSED, Result(1, "connection refused"), False),
        (REFUSED, Result(-1, "no answer"), False),
    ],
)
def test_as_expected(step: Step, result: Result, good: bool) -> None:
    assert as_expected(step, result) is good


def test_show_says_whether_all_was_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "kubeconfig"
    config.write_text("{apiVersion: v1, kind: Config}")
    here = Step("alice", ("config", "view"), True, "kind: Config", "looks")
    wrong = Step("alice", ("config", "view"), False, "kind: Config", "looks")

    async def both() -> tuple[bool, bool]:
        files = {"alice": config}
        return await show(Paper(), (here, here), files, tmp_path), await show(Paper(), (here, wrong), files, tmp_path)

    assert asyncio.run(both()) == (True, False)
    printed = capsys.readouterr().out
    assert "# alice looks" in printed
    assert "\x1b" not in printed
    assert "but it should be refused" in printed


def test_lines_can_be_pasted(tmp_path: Path) -> None:
    line = command_line(tmp_path / "a b", ("exec", "web", "--", "sh", "-c", "echo $(hostname)"))
    assert line.endswith(f"--kubeconfig '{tmp_path}/a b' exec web -- sh -c 'echo $(hostname)'")
