"""Ends process groups when the one who started them is gone, however it went.

Run as a script by `processes.Processes`. Lines on stdin: "+PID" a group to
look after, "-PID" one that has ended. At the end of stdin, which the kernel
brings about even where the parent was killed, whatever is left is ended.
"""

import contextlib
import os
import signal
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
    for line in sys.stdin:
        pid = int(line[1:])
        if line[0] == "+":
            groups.add(pid)
        else:
            groups.discard(pid)
    if groups:
        end(groups, signal.SIGTERM)
        time.sleep(GRACE)
        end(groups, signal.SIGKILL)


if __name__ == "__main__":
    main()
