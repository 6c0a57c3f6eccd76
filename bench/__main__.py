"""Side by side in one run: python -m bench [--rounds N] [--seconds S] [--only NAMES] [--scenario NAMES]
    [--json FILE] [--markdown FILE]

Every contender runs from the start, and the rounds go round them (A B C, A B C, ..), so that what the machine does
besides hits all of them; the first round of each scenario is not counted. A figure is the median over the rounds; a
ratio is the median of the ratios within a round. CPU is the proxy's own, user and system, out of /proc, divided by what
it carried; handshakes are over by then, except in `cold`, which is about them. The load generator and the upstream are
Go programs (bench/peers) and not counted. Needs Go; nginx if it is installed.

`python -m bench.cluster` is the comparison on the real API server, with Tailscale's own proxy.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench.certificates import write_certificate
from bench.contenders import start_all
from bench.load import run
from bench.machine import Others, describe
from bench.processes import Measured, build_peers, free_port, run_benchmark
from bench.report import Goal, goals_table, write_section

Contenders = dict[str, tuple[Measured | None, int]]
Figures = dict[str, dict[str, float]]

_WATCHES = 500
_RESTING: dict[int, int] = {}  # port -> bytes before the first watch


def load(
    directory: Path, port: int, path: str, *arguments: str, primed: Callable[[float], None] | None = None
) -> dict[str, Any]:
    """One run of the load generator; see bench.load.run."""
    url, ca = f"--url=https://localhost:{port}{path}", f"--ca={directory}/server.crt"
    return run((str(directory / "loadgen"), url, ca, *arguments), primed)


def requests(path: str, connections: int, seconds: float) -> Callable[[Path, Measured | None, int], dict[str, float]]:
    """A scenario: as many requests as fit into the time."""

    def scenario(directory: Path, proxy: Measured | None, port: int) -> dict[str, float]:
        before: list[float] = []

        def primed(_: float) -> None:
            before.append(proxy.cpu() if proxy else 0.0)

        arguments = (f"--connections={connections}", f"--duration={seconds}s")
        answer = load(directory, port, path, *arguments, primed=primed)
        spent = (proxy.cpu() if proxy else 0.0) - before[0]
        return {
            "cpu_us": spent / answer["requests"] * 1e6,
            "rps": answer["rps"],
            "p50_ms": answer["p50_ms"],
            "p99_ms": answer["p99_ms"],
        }

    return scenario


def cold(connections: int, seconds: float) -> Callable[[Path, Measured | None, int], dict[str, float]]:
    """A scenario: a connection for each request, as every run of kubectl makes one: dialled, TLS, one answer, closed.

    What is asked about a new connection counts here (WhoIs); handshakes upstream do not, where connections are kept.
    """

    def scenario(directory: Path, proxy: Measured | None, port: int) -> dict[str, float]:
        before = proxy.cpu() if proxy else 0.0
        answer = load(directory, port, "/small", "--cold", f"--connections={connections}", f"--duration={seconds}s")
        spent = (proxy.cpu() if proxy else 0.0) - before
        return {
            "cpu_us": spent / answer["requests"] * 1e6,
            "rps": answer["rps"],
            "p50_ms": answer["p50_ms"],
            "p99_ms": answer["p99_ms"],
        }

    return scenario


def bulk(mebibytes: int) -> Callable[[Path, Measured | None, int], dict[str, float]]:
    """A scenario: one large answer."""

    def scenario(directory: Path, proxy: Measured | None, port: int) -> dict[str, float]:
        before = proxy.cpu() if proxy else 0.0
        answer = load(directory, port, f"/big?bytes={mebibytes << 20}", "--connections=1", "--count=2")
        spent = (proxy.cpu() if proxy else 0.0) - before
        return {"cpu_s_per_gib": spent / (answer["mib"] / 1024), "mib_per_s": answer["mib_per_s"]}

    return scenario


def watches(directory: Path, proxy: Measured | None, port: int) -> dict[str, float]:
    """A scenario: streams that say one line and then nothing.

    They are compared with the memory before the first of them: what a proxy has once had and kept is not free, but
    it would look so from the second round on. For the same reason this scenario comes before those that need more.
    """
    before = _RESTING.setdefault(port, proxy.memory() if proxy else 0)
    command = [
        str(directory / "loadgen"),
        f"--url=https://localhost:{port}/watch",
        f"--ca={directory}/server.crt",
        f"--watches={_WATCHES}",
        "--duration=4s",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        time.sleep(1.0)
        after = proxy.memory() if proxy else 0
        holder.wait()
    return {"kib_per_watch": (after - before) / 1024 / _WATCHES}


def measure(
    contenders: Contenders, scenario: Callable[..., dict[str, float]], directory: Path, rounds: int
) -> tuple[Figures, Figures]:
    """Medians by contender, and median ratios of k8sproxy to each other one, pair by pair."""
    samples: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
    for counted in range(rounds + 1):
        for name, (proxy, port) in contenders.items():
            sample = scenario(directory, proxy, port)
            if (
                counted
            ):  # The first round is for pools to fill: a thousand connections upstream are a thousand handshakes.
                samples[name].append(sample)
    medians = {
        name: {key: statistics.median(sample[key] for sample in taken) for key in taken[0]}
        for name, taken in samples.items()
    }
    ratios: Figures = {}
    ours = samples.get("k8sproxy", [])
    for name, taken in samples.items():
        if name in ("k8sproxy",) or not ours:
            continue
        ratios[name] = {
            key: statistics.median(a[key] / b[key] for a, b in zip(ours, taken, strict=True))
            for key in taken[0]
            if all(b[key] > 0 for b in taken)
        }
    return medians, ratios


def table(medians: Figures, ratios: Figures) -> Iterable[str]:
    """A Markdown table of one scenario."""
    keys = list(next(iter(medians.values())))
    yield "| | " + " | ".join(keys) + " |"
    yield "| --- |" + " ---: |" * len(keys)
    for name, figures in medians.items():
        yield f"| {name} | " + " | ".join(f"{figures[key]:.2f}" for key in keys) + " |"
    for name, figures in ratios.items():
        yield (
            f"| k8sproxy / {name} | "
            + " | ".join(f"{figures[key]:.2f}" if key in figures else "" for key in keys)
            + " |"
        )


def goals(results: dict[str, Any]) -> Iterable[Goal]:
    """What is wanted of k8sproxy here, for the scenarios and contenders that there are."""

    def find(scenario: str, kind: str, name: str, key: str) -> float | None:
        value: float | None = results.get(scenario, {}).get(kind, {}).get(name, {}).get(key)
        return value

    small = find("small", "median", "k8sproxy", "cpu_us")
    thousand = find("thousand", "median", "k8sproxy", "cpu_us")
    wanted = (
        ("small GET, 16 connections: CPU a request over nginx's", find("small", "ratio", "nginx", "cpu_us"), 1.5),
        ("the same over the Go ReverseProxy's", find("small", "ratio", "go", "cpu_us"), 0.5),
        ("small GET, 1 connection: CPU over the Go ReverseProxy's", find("one", "ratio", "go", "cpu_us"), 0.6),
        ("CPU a request at 1,000 connections over that at 16", thousand / small if thousand and small else None, 1.25),
        ("1,000 connections: p99 over the Go ReverseProxy's", find("thousand", "ratio", "go", "p99_ms"), 1.0),
        ("cold kubectl: CPU over the Go ReverseProxy's", find("cold", "ratio", "go", "cpu_us"), 1.1),
        ("the same: p50", find("cold", "ratio", "go", "p50_ms"), 1.1),
        ("256 MiB GET: CPU over the Go ReverseProxy's", find("bulk", "ratio", "go", "cpu_s_per_gib"), 1.05),
        ("idle watch, KiB", find("watches", "median", "k8sproxy", "kib_per_watch"), 45.0),
    )
    for text, value, limit in wanted:
        if value is not None:
            yield Goal(text, value, limit)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="compare proxies side by side")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="a run's length")
    parser.add_argument("--only", default="", help="contenders, comma separated (direct is always there)")
    parser.add_argument("--scenario", default="", help="scenarios, comma separated")
    parser.add_argument("--json", type=Path, help="write all figures to a file")
    parser.add_argument("--markdown", type=Path, help="write the tables to a file, into their section where it has one")
    options = parser.parse_args()
    scenarios: dict[str, Callable[..., dict[str, float]]] = {
        "watches": watches,
        "one": requests("/small", 1, options.seconds),
        "small": requests("/small", 16, options.seconds),
        "20k": requests("/20k", 16, options.seconds),
        "cold": cold(8, options.seconds),
        "thousand": requests("/small", 1000, 2 * options.seconds),
        "bulk": bulk(256),
    }
    titles = {
        "watches": f"{_WATCHES} idle watches",
        "one": "small GET, 1 connection",
        "small": "small GET, 16 connections",
        "20k": "20 KiB GET, 16 connections",
        "cold": "cold kubectl: connect, TLS, small GET, close; 8 at a time",
        "thousand": "small GET, 1,000 connections",
        "bulk": "256 MiB GET",
    }
    wanted = options.scenario.split(",") if options.scenario else list(scenarios)
    results: dict[str, Any] = {}
    lines: list[str] = []
    others, shares = Others(), list[float]()
    failed = False
    with tempfile.TemporaryDirectory(prefix="k8sproxy-bench-") as name, ExitStack() as stack:
        directory = Path(name)
        write_certificate(directory)
        build_peers(
            directory, ("stub-upstream", "go-reverseproxy", "loadgen"), lambda line: print(line, file=sys.stderr)
        )
        upstream = free_port()
        arguments = (
            f"--listen=127.0.0.1:{upstream}",
            f"--cert={directory}/server.crt",
            f"--key={directory}/server.key",
        )
        stack.enter_context(
            Measured("stub", (str(directory / "stub-upstream"), *arguments), directory / "stub.log", port=upstream)
        )
        contenders = start_all(stack, directory, upstream, only=set(filter(None, options.only.split(","))))
        for proxy, port in contenders.values():
            load(directory, port, "/small", "--connections=16", "--count=2000")  # warm, and known to work
            del proxy
        for scenario in wanted:
            block = ["", f"### {titles[scenario]}", ""]
            try:
                medians, ratios = measure(contenders, scenarios[scenario], directory, options.rounds)
            except RuntimeError as error:
                failed = True
                block.append(f"Failed: {error}")
            else:
                results[scenario] = {"median": medians, "ratio": ratios}
                block += table(medians, ratios)
            shares.append(others.share())
            print("\n".join(block), flush=True)
            lines += block
    wanted_of_it = ["", *goals_table(goals(results))]
    print("\n".join(wanted_of_it))
    if options.markdown:
        about = f"{describe()}; {options.rounds} rounds of {options.seconds:g} s"
        about += f"; others took up to {max(shares):.0%} of the machine."
        write_section(options.markdown, "bench", [about, *lines, *wanted_of_it])
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    run_benchmark(main)
