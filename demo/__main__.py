"""`python -m demo`, which `make demo` calls: stand-ins, the real proxy, a kubeconfig a person, and what it looks like.

Stays until Ctrl-C, so that the printed kubectl lines can be tried in another terminal. With --once it ends after the
demonstration instead, with exit code 0 if everybody was let in or refused as they should be, else 1.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import time
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from demo.bed import real_bed
from demo.proxy import NotReady
from demo.scenery import Stage
from demo.show import Paper, Step, command_line, show
from demo.standin import standin
from demo.tailnet import PEOPLE
from demo.workspace import Busy, Workspace, workspace
from tests.bed import BedError

_ROOT = Path(__file__).resolve().parent.parent / ".demo"

# Of a refused discovery, with which most commands begin, kubectl prints "unknown" and not why; of this it does.
TRY = {"stranger": ("get", "--raw", "/version")}

WHO = (
    Step("alice", ("auth", "whoami"), True, "alice@example.com", "has no credentials: the connection says who it is"),
)
IN_ANY_CLUSTER = (
    Step("alice", ("get", "namespaces"), True, "default", "may do everything"),
    Step("carol", ("get", "pods"), False, "forbidden", "is known on the tailnet, but has no grant"),
    Step("stranger", TRY["stranger"], False, "forbidden", "is nobody that the tailnet knows"),
)
IN_OURS = (
    Step("alice", ("get", "pods"), True, "web", "may do everything"),
    Step("alice", ("exec", "web", "--", "sh", "-c", "echo hello from $(hostname)"), True, "hello from", "gets a shell"),
    Step("bob", ("get", "pods"), True, "web", "may look"),
    Step("bob", ("exec", "web", "--", "id"), False, "forbidden", "may not get a shell"),
    Step(
        "ci", ("create", "configmap", "release", "--from-literal=version=1"), True, "created", "(a tagged node) deploys"
    ),
    Step("ci", ("delete", "pod", "web"), False, "forbidden", "may not delete pods"),
    *IN_ANY_CLUSTER[1:],
)

_WARNING = """\
The cluster of {file} is a real one, and this demo lets people into it:
  - the account in that file has to be allowed to impersonate users and groups (a cluster administrator's is);
  - alice is impersonated with the group system:masters: whatever she does there is done;
  - bob and ci are refused until you bind the groups of their grants, for example:
      kubectl create clusterrolebinding demo-viewers --clusterrole=view --group=demo:viewers
Only kubeconfigs in {root}, which is yours alone, lead in, and only while this runs."""

_BED_WARNING = """\
The bed's SOCKS5 ports have no passwords: while this runs, everybody with an account on this machine can be alice, and
the commands in the bed's pods run with your rights."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m demo", description="k8sproxy on one machine, to look at")
    parser.add_argument("--kubeconfig", type=Path, help="use this cluster instead of the stand-in")
    parser.add_argument("--bed", choices=("standin", "real"), default="standin", help="what stands around the proxy")
    parser.add_argument("--once", action="store_true", help="end after the demonstration; exit code 1 if it went wrong")
    args = parser.parse_args(argv)
    if args.kubeconfig is not None and (args.bed == "real" or not args.kubeconfig.is_file()):
        parser.error("--kubeconfig names no file" if args.bed == "standin" else "the real bed has its own cluster")
    paper = Paper()
    try:
        with workspace(_ROOT) as space:
            return asyncio.run(_run(args, paper, space))
    except (Busy, NotReady, BedError) as error:
        paper.line(str(error), "31")
        return 1


async def _run(args: argparse.Namespace, paper: Paper, space: Workspace) -> int:
    """The demo from start to end; a signal ends it, and is a good end once the demonstration is over."""
    shown: list[bool] = []
    _cancel_on_signals()
    try:
        await _demonstrate(args, paper, space, shown)
    except asyncio.CancelledError:
        if not shown:
            return 130
    return 0 if shown == [True] else 1


async def _demonstrate(args: argparse.Namespace, paper: Paper, space: Workspace, shown: list[bool]) -> None:
    began = time.monotonic()
    if args.kubeconfig is not None:
        paper.line(_WARNING.format(file=args.kubeconfig, root=space.root), "33")
    if args.bed == "real":
        paper.line(_BED_WARNING, "33")
    async with _stage(args, paper, space) as stage:
        paper.line(f"Up after {time.monotonic() - began:.1f} s.", "32")
        steps = WHO + (IN_ANY_CLUSTER if args.kubeconfig is not None else IN_OURS)
        shown.append(await show(paper, steps, stage.kubeconfigs, space.root / "cache"))
        paper.line()
        if args.once:
            return
        paper.line("Now you, in another terminal:", "1")
        for person in PEOPLE:
            paper.line(f"# {person.name} ({person.identity}) {person.about}")
            paper.line(command_line(stage.kubeconfigs[person.name], TRY.get(person.name, ("get", "pods"))), "36")
        if args.kubeconfig is None:
            paper.line("# a shell, with the rights of whoever runs this demo")
            paper.line(command_line(stage.kubeconfigs["alice"], ("exec", "-it", "web", "--", "sh")), "36")
        paper.line(f"The proxy's log is {stage.log}. Ctrl-C ends the demo.")
        code = await stage.gone()
        raise NotReady(f"k8sproxy has ended with exit code {code}; its log is {stage.log}")


def _stage(args: argparse.Namespace, paper: Paper, space: Workspace) -> AbstractAsyncContextManager[Stage]:
    if args.bed == "real":
        return real_bed(space, paper.line)
    kubeconfig: Path | None = args.kubeconfig
    return standin(space, kubeconfig.absolute() if kubeconfig else None)


def _cancel_on_signals() -> None:
    """The first SIGINT, SIGTERM or SIGHUP cancels this task, which cleans up; those after it must not stop that."""
    task = asyncio.current_task()
    assert task is not None  # noqa: S101  (called in one)
    asked: list[bool] = []

    def ask() -> None:
        if not asked:
            asked.append(True)
            task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, ask)


if __name__ == "__main__":
    raise SystemExit(main())
