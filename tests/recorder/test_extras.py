"""recorder/extras.py: what a plain installation of the proxy leaves out is told in one line by every command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.recorder.serving import write_config

# As if these were not installed.
_WITHOUT = "import sys; sys.modules.update(dict.fromkeys({names}, None)); from recorder.cli import main; main()"


def recorder_without(names: list[str], *arguments: str) -> tuple[int, str, str]:
    code = _WITHOUT.format(names=names)
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("command", ["check", "serve"])
@pytest.mark.parametrize(
    ("changes", "names", "said"),
    [
        ({}, ["zstandard"], "zstandard is not installed, and the recorder needs it: "),
        ({"store": {"url": "memory://"}}, ["obstore"], "obstore is not installed, and the recorder needs it: "),
        (
            {"index": {"url": "postgresql://u@h/d"}, "web": {"listen": ["127.0.0.1:9"]}},
            ["asyncpg", "jinja2", "obstore"],
            "jinja2, asyncpg are not installed, and the recorder needs them: ",
        ),
    ],
)
def test_one_line(tmp_path: Path, command: str, changes: dict[str, object], names: list[str], said: str) -> None:
    config = tmp_path / "recorder.yaml"
    write_config(config, 1, 2, **changes)
    code, _, errors = recorder_without(names, command, "--config", str(config))
    assert (code, errors) == (1, f"recorder: {said}pip install 'k8sproxy[recorder]'\n")


def test_what_is_not_needed_may_be_missing(tmp_path: Path) -> None:
    config = tmp_path / "recorder.yaml"
    write_config(config, 1, 2)
    assert recorder_without(["obstore", "asyncpg", "jinja2"], "check", "--config", str(config))[0] == 0


def test_other_commands_say_it_too(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    code, _, errors = recorder_without(["zstandard"], "ls", "--store", str(tmp_path / "data"))
    assert (code, errors.count("\n")) == (1, 1) and "pip install 'k8sproxy[recorder]'" in errors


def test_another_module_that_is_missing_is_a_fault_of_ours() -> None:
    code, _, errors = recorder_without(["recorder.config"], "check", "--config", "/dev/null")
    assert code == 1 and "Traceback" in errors
