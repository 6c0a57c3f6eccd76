"""What the demo shows: a few kubectl commands as different people, and whether each came out as it should."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_COMMAND_TIMEOUT = 30.0  # seconds; kubectl takes under one, and longer than this only where something hangs


@dataclass(frozen=True)
class Step:
    """One command. who: the person's name; args: kubectl's; let_in: whether it should go through; expect: what the
    output then holds, in any case of letters; note: one line for the reader."""

    who: str
    args: tuple[str, ...]
    let_in: bool
    expect: str
    note: str


@dataclass(frozen=True)
class Result:
    """How a command ended. output: both its outputs, as they came."""

    code: int
    output: str


class Paper:
    """Where the demo prints: with colours on a terminal, plain elsewhere (and where NO_COLOR is set)."""

    def __init__(self) -> None:
        self._coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR")

    def line(self, text: str = "", style: str = "") -> None:
        """style: SGR parameters, such as "1" for bold or "32" for green."""
        print(f"\x1b[{style}m{text}\x1b[0m" if style and self._coloured else text, flush=True)


def kubectl() -> str:
    """The kubectl of this Python environment, else the one of the PATH."""
    own = Path(sys.executable).with_name("kubectl")
    return str(own) if own.exists() else "kubectl"


def command_line(kubeconfig: Path, args: Sequence[str]) -> str:
    """A line to copy into a shell, with paths as short as the current directory allows."""
    return shlex.join([_short(Path(kubectl())), "--kubeconfig", _short(kubeconfig), *args])


def _short(path: Path) -> str:
    with contextlib.suppress(ValueError):
        return str(path.relative_to(Path.cwd()))
    return str(path)


async def run(kubeconfig: Path, args: Sequence[str], cache: Path) -> Result:
    """Runs kubectl to its end. cache: for its discovery cache, which it would keep in the home directory."""
    process = await asyncio.create_subprocess_exec(
        kubectl(),
        "--kubeconfig",
        str(kubeconfig),
        *args,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "KUBECACHEDIR": str(cache)},
    )
    try:
        async with asyncio.timeout(_COMMAND_TIMEOUT):
            output, _ = await process.communicate()
    except TimeoutError:
        return Result(-1, f"no answer within {_COMMAND_TIMEOUT:g} s\n")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return Result(process.returncode or 0, output.decode(errors="replace"))


def as_expected(step: Step, result: Result) -> bool:
    """Whether a command came out as its step says."""
    return (result.code == 0) is step.let_in and step.expect.lower() in result.output.lower()


async def show(paper: Paper, steps: Sequence[Step], kubeconfigs: Mapping[str, Path], cache: Path) -> bool:
    """Runs and prints every step; whether all came out as they should."""
    good = True
    for step in steps:
        paper.line()
        paper.line(f"# {step.who} {step.note}", "1")
        paper.line(f"$ {command_line(kubeconfigs[step.who], step.args)}", "36")
        result = await run(kubeconfigs[step.who], step.args, cache)
        for line in result.output.splitlines():
            paper.line(f"  {line}")
        outcome = "let in" if result.code == 0 else f"refused (exit code {result.code})"
        if as_expected(step, result):
            paper.line(f"  -> {outcome}, as it should be", "32")
        else:
            good = False
            wanted = "let in" if step.let_in else "refused"
            paper.line(f'  -> {outcome}, but it should be {wanted} and say "{step.expect}"', "31")
    return good
