"""Holds the pure rooms to their floor: every branch is reached by the room's own tests.

    python -m tools.floors            every room
    python -m tools.floors access     those that are named
    python -m tools.floors --ignored  runs nothing; prints what tells pytest to leave these tests out

A room's own tests are those at its mirrored path (tests/access for k8sproxy/access): what only the data plane's tests
reach is tested by nobody who changes the room. Hypothesis runs from a fixed seed here, so that a branch is reached
always or never; elsewhere it searches at random.

Rooms run side by side, one for each core. .ci/run leaves their tests out of `make test`, because they have run here.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parent.parent
# The longest first.
ROOMS = ("protocol", "request", "access", "common/formats", "common/config")


def measure(room: str, data: Path) -> tuple[bool, str]:
    """Whether the room is covered whole, and what to print."""
    file = f"--data-file={data / room.replace('/', '.')}"
    tests = [f"tests/{room}", "-p", "no:cacheprovider", "--hypothesis-seed=0"]
    run = [sys.executable, "-m", "coverage", "run", file, "--branch", f"--source=k8sproxy/{room}", "-m", "pytest"]
    done = subprocess.run([*run, *tests], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        return False, f"{room}: its tests fail\n{done.stdout}{done.stderr}"
    report = [sys.executable, "-m", "coverage", "report", file, "--fail-under=100", "--precision=2", "-m"]
    told = subprocess.run([*report, "--skip-covered"], cwd=ROOT, capture_output=True, text=True, check=False)
    if told.returncode:
        return False, f"k8sproxy/{room} is not covered whole by tests/{room}:\n{told.stdout}{told.stderr}"
    return True, f"k8sproxy/{room}: every branch, by {done.stdout.strip().splitlines()[-1]}"


def main() -> None:
    """Entry point."""
    if sys.argv[1:] == ["--ignored"]:
        print(*(f"--ignore=tests/{room}" for room in ROOMS))
        return
    rooms = [room for room in ROOMS if not sys.argv[1:] or room in sys.argv[1:]]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count()) as pool:
        results = []
        for result in pool.map(lambda room: measure(room, Path(folder)), rooms):
            print(result[1], flush=True)
            results.append(result[0])
    sys.exit(not all(results) or not rooms)


if __name__ == "__main__":
    main()
