"""Ends process groups when the one who started them is gone, however it went.

Run as a script by `processes.Processes`. Lines on stdin: "+PID" a group to
look after, "-PID" one that has ended, "!COMMAND" (JSON words) a command to run
at the end. At the end of stdin, which the kernel brings about even where the
parent was killed, whatever is left is ended, and the commands are run.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

GRACE = 2.0  # seconds between SIGTERM and SIGKILL: enough for kubelet-lite to end its containers


def end(groups: set[int], number: int) -> None:
    for group in groups:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, number)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    groups: set[int] = set()
    commands: list[list[str]] = []
    for line in sys.stdin:
        kind, rest = line[0], line[1:]
        if kind == "+":
            groups.add(int(rest))
        elif kind == "-":
            groups.discard(int(rest))
        else:
            commands.append(json.loads(rest))
    if groups:
        end(groups, signal.SIGTERM)
        time.sleep(GRACE)
        end(groups, signal.SIGKILL)
    for command in commands:
        subprocess.run(command, stderr=subprocess.DEVNULL, check=False)  # it may have been done already


if __name__ == "__main__":
    main()
