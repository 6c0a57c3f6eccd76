"""Recorded sessions: python -m bench.sessions [--tailnet] [--rounds N] [--only SCENARIO ..] [--content KIND ..]
    [--json FILE] [--markdown FILE]

A bed (tests/bed) without an audit log, and a recorder that keeps nothing (bench/peers/cmd/recsink): on loopback,
which both proxies reach directly, so that what is measured is theirs; or with --tailnet behind a node of its own,
where the encryption of the two daemons takes most of the machine. The client is kubectl's own (client-go's
remotecommand, bench/peers/cmd/execload). Both proxies are reached in the one way that Tailscale's package knows
without a node's certificate: plain HTTP on loopback behind a PROXY v2 header. Whom the header names decides: alice's
grant has a recorder and enforces it, bob's has none. So recorded and unrecorded sessions go through one process.

    output      exec of a command that writes text (or --content), to its end; MB/s, and the proxy's CPU seconds a GB
    sessions    exec of true, eight at a time; sessions a second
    echo        one session of cat; milliseconds until a byte comes back
    idle        sessions that do nothing; the proxy's memory for each
    events      GET of one object, 16 connections, with enableEvents and without; requests a second, p50
    levels      echo and output by level of recording, with the real `recorder serve` on this machine's disk: not
                recorded, closed, acknowledged; milliseconds until a byte comes back, MB/s

CPU is the proxy process's own. Tailscale's has its node within itself; k8sproxy's node is a tailscaled beside it, which
carries the recording with --tailnet (LocalAPI's dial): its CPU is counted too, and given apart.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.cluster import TAILSCALE_PORT, Sample, Samples, port_taken, programs, say, start_tailscale, within
from bench.machine import Others, describe
from bench.processes import Measured, python, run_benchmark
from bench.recorder.served import Served
from bench.report import Goal, goals_table, number, row, table_head, write_section
from tests.bed import Bed, Grant, free_port, kubernetes_grant

SCENARIOS = ("output", "sessions", "echo", "idle", "events", "levels")
STREAMING = ("websocket", "spdy")
_GROUP = "system:masters"
# Seconds after which a run of a load generator has lost something.
_HANGS = 120
_EXEC = "/api/v1/namespaces/default/pods/bench/exec"
# What a command writes. text: printable lines, as of `ls -l` and logs; base64 of random bytes does not compress, and
# needs no escapes but the line feeds. lines: short ones, with colours. zeros: a sparse file. binary: an archive.
_BLOCKS = {
    "text": "base64 -w 120 /dev/urandom | head -c 4000000",
    "lines": "yes \"$(printf 'drwxr-xr-x 2 \\033[32mroot\\033[0m root 4096\\t\\303\\274ber')\" | head -c 4000000",
    "zeros": "head -c 4000000 /dev/zero",
    "binary": "head -c 4000000 /dev/urandom",
}


@dataclass(frozen=True, slots=True)
class Way:
    """A proxy, and for whom."""

    url: str
    arguments: tuple[str, ...]
    proxy: Measured | None
    node: Callable[[], float] = lambda: 0.0  # CPU seconds of the node's daemon beside it


class Bench:
    """The bed with everything on it."""

    def __init__(self, stack: ExitStack, bed: Bed, peers: Path, *, tailnet: bool) -> None:
        self.bed = bed
        self.peers = peers
        port = free_port()
        bed.tailnet.set_recorder_port(port)
        bed.add_nodes(
            proxy={"tags": ["tag:k8s"]},
            recorder={"tags": ["tag:recorder"]},
            alice={"user": "alice@example.com"},
            bob={"user": "bob@example.com"},
            eve={"user": "eve@example.com"},
            carol={"user": "carol@example.com"},
            dave={"user": "dave@example.com"},
        )
        served = Served(stack, _folder(bed.directory / "recorder"), trusts=True)
        on_disk: dict[str, Any] = {"recorderAddrs": [f"127.0.0.1:{served.port}"]}
        recorder: dict[str, Any] = (
            {"recorder": ["tag:recorder"]} if tailnet else {"recorderAddrs": [f"127.0.0.1:{port}"]}
        )
        bed.set_grants(
            [
                kubernetes_grant("alice@example.com", [_GROUP], enforceRecorder=True, **recorder),
                kubernetes_grant("bob@example.com", [_GROUP]),
                kubernetes_grant("eve@example.com", [_GROUP], enableEvents=True, **recorder),
                kubernetes_grant("carol@example.com", [_GROUP], enforceRecorder=True, **on_disk),
                kubernetes_grant("dave@example.com", [_GROUP], **on_disk),
                Grant(["dave@example.com"], ["*"], {"tailscale.com/cap/k8sproxy": [{"recording": "acknowledged"}]}),
            ]
        )
        bed.pod("bench")
        sink = [str(peers / "recsink"), f"--listen=127.0.0.1:{port}"]
        stack.enter_context(Measured("recsink", sink, bed.directory / "logs" / "recsink.log", port=port))
        self.ways: dict[str, Way] = {}
        self.levels: dict[str, Way] = {}
        ours = self._k8sproxy(stack)
        self._add("k8sproxy", f"http://127.0.0.2:{ours[1]}", ours[0], self._daemon_cpu)
        for what, who in (("not recorded", "bob"), ("closed", "carol"), ("acknowledged", "dave")):
            source = f"--proxy-source={bed.nodes[who].tailnet_ip}"
            self.levels[what] = Way(f"http://127.0.0.2:{ours[1]}", (source,), ours[0])
        if why := port_taken():
            say(f"tailscale is left out: 127.0.0.1:{TAILSCALE_PORT}: {why}")
        else:
            theirs = start_tailscale(stack, bed, peers)
            self._add("tailscale", f"http://127.0.0.1:{TAILSCALE_PORT}", theirs)

    def _add(self, name: str, url: str, proxy: Measured, node: Callable[[], float] = lambda: 0.0) -> None:
        for what, who in (("recorded", "alice"), ("unrecorded", "bob"), ("events", "eve")):
            source = f"--proxy-source={self.bed.nodes[who].tailnet_ip}"
            self.ways[f"{name}, {what}"] = Way(url, (source,), proxy, node)

    def _k8sproxy(self, stack: ExitStack) -> tuple[Measured, int]:
        bed, port, probe = self.bed, free_port(), free_port()
        plain: dict[str, Any] = {"tls": {"source": "none"}, "proxyProtocol": True}
        config = {
            "apiVersion": "k8sproxy/v1alpha1",
            "tailnet": {"socket": str(bed.nodes["proxy"].socket)},
            # 127.0.0.2, where a PROXY header costs no question; the other one says that it is up.
            "listen": [{"address": f"{ip}:{at}", **plain} for ip, at in (("127.0.0.2", port), ("127.0.0.1", probe))],
            "clusters": [{"name": "bed", "kubeconfig": str(bed.proxy_account_kubeconfig)}],
            "admin": {"address": f"unix:{bed.directory / 'admin.sock'}"},
        }
        file = bed.directory / "k8sproxy.yaml"
        file.write_text(json.dumps(config))
        command = python("-m", "k8sproxy", "serve", "--config", str(file))
        log = bed.directory / "logs" / "k8sproxy.log"
        return stack.enter_context(Measured("k8sproxy", command, log, port=probe)), port

    def _daemon_cpu(self) -> float:
        fields = Path(f"/proc/{self.bed.nodes['proxy'].process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def run(self, program: str, way: Way, path: str, *arguments: str) -> dict[str, Any]:
        """One run of a load generator; what it prints."""
        command = [str(self.peers / program), f"--url={way.url}{path}", *way.arguments, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_HANGS)
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1]) if done.stdout else {}
        if done.returncode or answer.get("errors"):
            raise RuntimeError(f"{program}: {answer.get('last_error') or done.stderr[-500:]}")
        return answer

    # -- the scenarios: a sample of one way

    def output(self, way: Way, streaming: str, megabytes: int, content: str) -> Sample:
        """One command's output."""
        script = f"{_BLOCKS[content]} > out; for i in $(seq {megabytes // 4}); do cat out; done"
        before, node = _cpu(way), way.node()
        answer = self.run("execload", way, _EXEC, "--mode=output", *_flags(streaming), "--", "sh", "-c", script)
        gigabytes = answer["bytes"] / 1e9
        return {
            "rate": answer["mb_per_s"],
            "cpu_gb": (_cpu(way) - before) / gigabytes,
            "node_gb": (way.node() - node) / gigabytes,
        }

    def sessions(self, way: Way, streaming: str, seconds: float) -> Sample:
        """Short sessions."""
        arguments = ("--mode=sessions", "--concurrency=8", f"--duration={seconds}s", *_flags(streaming))
        before = _cpu(way)
        answer = self.run("execload", way, _EXEC, *arguments, "--", "true")
        return {"rate": answer["sessions_per_s"], "cpu_ms": (_cpu(way) - before) / answer["sessions"] * 1e3}

    def echo(self, way: Way, streaming: str, count: int) -> Sample:
        """Keystrokes."""
        answer = self.run("execload", way, _EXEC, "--mode=echo", f"--count={count}", *_flags(streaming), "--", "cat")
        return {"p50_ms": answer["p50_ms"], "p99_ms": answer["p99_ms"]}

    def level(self, way: Way, streaming: str, count: int, megabytes: int) -> Sample:
        """Keystrokes, and one command's output."""
        return {
            **self.echo(way, streaming, count),
            "rate": self.output(way, streaming, megabytes, "text")["rate"],
        }

    def idle(self, way: Way, streaming: str, count: int) -> Sample:
        """Shells that wait."""
        assert way.proxy is not None
        before = way.proxy.memory()
        command = [str(self.peers / "execload"), f"--url={way.url}{_EXEC}", *way.arguments, "--mode=idle"]
        command += [f"--concurrency={count}", *_flags(streaming), "--", "cat"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
            assert running.stdin and running.stdout
            if running.stdout.readline().strip() != "ready":
                raise RuntimeError("execload: no shells")
            kib = (way.proxy.memory() - before) / count / 1024
            running.stdin.close()
            answer = json.loads(running.stdout.readline())
        if answer["errors"]:
            raise RuntimeError(f"execload: {answer['last_error']}")
        return {"kib": kib}

    def requests(self, way: Way, seconds: float) -> Sample:
        """Small requests."""
        before = _cpu(way)
        path = "/api/v1/namespaces/default/configmaps/kube-root-ca.crt"
        answer = self.run("loadgen", way, path, "--connections=16", f"--duration={seconds}s")
        one = self.run("loadgen", way, path, "--connections=1", "--count=1500")
        spent = (_cpu(way) - before) / (answer["requests"] + one["requests"])
        return {"rate": answer["rps"], "p50_ms": one["p50_ms"], "cpu_us": spent * 1e6}


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def _cpu(way: Way) -> float:
    return way.proxy.cpu() if way.proxy is not None else 0.0


def _flags(streaming: str) -> tuple[str, ...]:
    return ("--spdy",) if streaming == "spdy" else ()


def rounds(names: Sequence[str], count: int, sample: Callable[[str], Sample], others: Others) -> tuple[Samples, float]:
    """All samples by way, each round beginning with another one; and what others took of the machine at most."""
    samples: Samples = {name: [] for name in names}
    most = 0.0
    others.share()
    for turn in range(count):
        first = turn % len(names)
        for name in (*names[first:], *names[:first]):
            samples[name].append(sample(name))
        most = max(most, others.share())
        say(f"bench: round {turn + 1} of {count}; others took at most {most:.0%} of the machine")
    return samples, most


def ratio(a: float, b: float) -> float:
    """How many times."""
    return a / b if b else float("inf")


def difference(a: float, b: float) -> float:
    """How much more."""
    return a - b


def goals(scenario: str, streaming: str, samples: Samples, content: str = "") -> Iterable[Goal]:
    """What is wanted, as far as it was measured."""
    ours, plain, theirs = "k8sproxy, recorded", "k8sproxy, unrecorded", "tailscale, recorded"

    def goal(
        text: str, one: str, other: str, key: str, limit: float, how: Callable[[float, float], float] = ratio,
        *, at_most: bool = False,
    ) -> Iterable[Goal]:  # fmt: skip
        if one in samples and other in samples:
            values = within(samples, one, other, key, how)
            yield Goal(f"{streaming}: {text}", statistics.median(values), limit, at_most, (min(values), max(values)))

    if scenario == "output":
        yield from goal(f"recorded {content}, rate over Tailscale's", ours, theirs, "rate", 1.5)
        yield from goal(f"recorded {content}, CPU over Tailscale's", ours, theirs, "cpu_gb", 0.5, at_most=True)
        yield from goal(f"recorded {content}, rate over unrecorded", ours, plain, "rate", 0.6)
    elif scenario == "sessions":
        yield from goal("recorded sessions a second over unrecorded", ours, plain, "rate", 0.9)
    elif scenario == "echo":
        yield from goal("echo later at p50, ms", ours, plain, "p50_ms", 0.1, difference, at_most=True)
        yield from goal("echo later at p99, ms", ours, plain, "p99_ms", 1.0, difference, at_most=True)
    elif scenario == "idle":
        limit = 150 if streaming == "websocket" else 250
        values = [sample["kib"] for sample in samples[ours]]
        yield Goal(f"{streaming}: an idle recorded shell, KiB", statistics.median(values), limit)
    elif scenario == "levels":
        values = [sample["p50_ms"] for sample in samples["acknowledged"]]
        yield Goal(f"{streaming}: echo of an acknowledged session at p50, ms", statistics.median(values), 5.0)
    elif scenario == "events":
        yield from goal("requests a second with events over without", "k8sproxy, events", plain, "rate", 0.9)
        yield from goal(
            "events later at p50, ms", "k8sproxy, events", plain, "p50_ms", 0.1, difference, at_most=True
        )  # fmt: skip


def table(samples: Samples) -> Iterable[str]:
    """Markdown: a row a way, medians."""
    keys = list(next(iter(samples.values()))[0])
    units = {
        "rate": "a second (MB, sessions, requests)", "cpu_gb": "CPU s/GB", "node_gb": "its daemon's CPU s/GB",
        "cpu_ms": "CPU ms a session", "cpu_us": "CPU µs a request", "kib": "KiB", "p50_ms": "p50 ms",
        "p99_ms": "p99 ms",
    }  # fmt: skip
    yield from table_head("", *(units[key] for key in keys))
    for name, taken in samples.items():
        yield row(name, *(number(statistics.median(sample[key] for sample in taken)) for key in keys))


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m bench.sessions", description="compare recorded sessions")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", choices=SCENARIOS, default=SCENARIOS)
    parser.add_argument("--streaming", nargs="*", choices=STREAMING, default=STREAMING)
    parser.add_argument("--tailnet", action="store_true", help="reach the recorder over the tailnet")
    parser.add_argument("--megabytes", type=int, default=200, help="of --only output")
    parser.add_argument("--content", nargs="*", choices=_BLOCKS, default=("text", "zeros"), help="of --only output")
    parser.add_argument("--shells", type=int, default=500, help="of --only idle")
    parser.add_argument("--seconds", type=float, default=4.0, help="of --only sessions and events")
    parser.add_argument("--json", type=Path, help="write every sample to a file")
    parser.add_argument("--markdown", type=Path, help="write the tables to a file, into their section where it has one")
    options = parser.parse_args()
    peers = programs()
    lines: list[str] = []
    reached: list[Goal] = []
    taken: dict[str, Any] = {}
    most = 0.0
    with tempfile.TemporaryDirectory(prefix="k8sproxy-bench-") as name, ExitStack() as stack:
        bed = stack.enter_context(Bed(name, audit=False, progress=say))
        title = f"{describe()}; load average {os.getloadavg()[0]:.1f} before, {options.rounds} rounds"
        bench = Bench(stack, bed, peers, tailnet=options.tailnet)
        others = Others()
        both = [way for way in bench.ways if not way.endswith("events")]
        for scenario in options.only:
            for streaming, content in _variants(scenario, options):
                title_of = f"{content}, {streaming}" if content else f"{scenario}, {streaming}"
                say(f"bench: {title_of}")
                names, count = both, options.rounds
                if scenario == "levels":
                    names = list(bench.levels)
                elif scenario == "idle":
                    names, count = ["k8sproxy, recorded"], 1
                elif scenario == "events":
                    names = ["k8sproxy, events", "k8sproxy, unrecorded"]
                elif scenario == "echo" and streaming == "spdy":
                    # What is typed into a session that Tailscale's proxy records over SPDY does not always arrive.
                    names = [name for name in both if name != "tailscale, recorded"]
                samples, took = rounds(names, count, _sampler(bench, scenario, streaming, content, options), others)
                most = max(most, took)
                taken[title_of] = samples
                lines += ["", f"{title_of}:", "", *table(samples)]
                reached += goals(scenario, streaming, samples, content)
    lines = [f"{title}; others took at most {most:.0%} of the machine.", *lines, "", *goals_table(reached)]
    print("\n".join(lines))
    if options.markdown:
        write_section(options.markdown, "bench.sessions", lines)
    if options.json:
        options.json.write_text(json.dumps({"machine": title, "samples": taken}, indent=2) + "\n")


def _variants(scenario: str, options: argparse.Namespace) -> Iterable[tuple[str, str]]:
    """How a scenario is played: (by which protocol, what the command writes)."""
    streamings = options.streaming if scenario != "events" else ("http",)
    return [(name, text) for text in (options.content if scenario == "output" else ("",)) for name in streamings]


def _sampler(
    bench: Bench, scenario: str, streaming: str, content: str, options: argparse.Namespace
) -> Callable[[str], Sample]:
    def sample(name: str) -> Sample:
        if scenario == "levels":
            return bench.level(bench.levels[name], streaming, 400, 40)
        way = bench.ways[name]
        if scenario == "output":
            return bench.output(way, streaming, options.megabytes, content)
        if scenario == "sessions":
            return bench.sessions(way, streaming, options.seconds)
        if scenario == "echo":
            return bench.echo(way, streaming, 400)
        if scenario == "idle":
            return bench.idle(way, streaming, options.shells)
        return bench.requests(way, options.seconds)

    return sample


if __name__ == "__main__":
    run_benchmark(main)
