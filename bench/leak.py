"""Whether memory stays flat: `python -m bench.leak [--requests 1000000]`.

Small requests over 16 connections, in ten equal parts, with the proxy's memory behind each. What a proxy fills once
(pools, caches, Python's own arenas) is there after the first two parts. From then on a request may leave nothing: an
object of Python has at least 16 bytes, so one kept by each request would show as 16 bytes a request. The compiled
modules count their references in C, which is why they are asked this (`make leak`); CI does not wait for it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from bench.__main__ import load
from bench.certificates import write_certificate
from bench.contenders import start_all
from bench.machine import describe
from bench.processes import Measured, build_peers, free_port, run_benchmark

PARTS = 10
# Of the parts, those in which pools and caches fill.
FILLING = 2
# Bytes. What the kernel and malloc may add between two looks without any request being the cause.
SLACK = 1 << 20
# Bytes a request, well below the smallest object.
LIMIT = 4.0


def growth(memory: list[int], requests: int) -> float:
    """Bytes that each request has left since pools and caches were full. memory: behind each part, of equal size."""
    counted = requests * (len(memory) - FILLING) / len(memory)
    return max(0, memory[-1] - memory[FILLING - 1] - SLACK) / counted


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m bench.leak", description="whether memory stays flat")
    parser.add_argument("--requests", type=int, default=1_000_000)
    options = parser.parse_args()
    print(describe(), flush=True)
    with tempfile.TemporaryDirectory(prefix="k8sproxy-leak-") as name, ExitStack() as stack:
        directory = Path(name)
        write_certificate(directory)
        build_peers(directory, ("stub-upstream", "loadgen"), lambda line: print(line, file=sys.stderr))
        upstream = free_port()
        stub = (str(directory / "stub-upstream"), f"--listen=127.0.0.1:{upstream}")
        files = (f"--cert={directory}/server.crt", f"--key={directory}/server.key")
        stack.enter_context(Measured("stub", (*stub, *files), directory / "stub.log", port=upstream))
        proxy, port = start_all(stack, directory, upstream, only={"k8sproxy"})["k8sproxy"]
        assert proxy is not None
        memory: list[int] = []
        for part in range(1, PARTS + 1):
            load(directory, port, "/small", "--connections=16", f"--count={options.requests // PARTS}")
            memory.append(proxy.memory())
            print(f"{options.requests * part // PARTS:>11,} requests: {memory[-1] / 1024:,.0f} KiB", flush=True)
    left = growth(memory, options.requests)
    print(f"{left:.2f} bytes a request since part {FILLING} (at most {LIMIT:g})")
    sys.exit(left > LIMIT)


if __name__ == "__main__":
    run_benchmark(main)
