"""On the real API server: python -m bench.cluster [--rounds N] [--seconds S] [--json FILE] [--markdown FILE]

A bed (tests/bed) without an audit log: real control server, tailscaled, etcd and kube-apiserver. GET /version, at 1 and
at 16 connections, of these:

    direct              the API server itself, asked with the proxies' own token and Impersonate headers: the same work
                        for the API server, so that what is left is the proxy's
    direct, cert        the API server itself, asked as a person without a proxy would: with a client certificate
    k8sproxy            `k8sproxy serve` as it is installed: policy, metrics and request log on, WhoIs by a tailscaled
    k8sproxy, TLS       the same process, with TLS on the client leg as kubectl speaks it
    tailscale           Tailscale's own tailscale.com/k8s-operator/api-proxy, which has its node (tsnet) within itself

Both proxies get connections in the same way, which is the only one that Tailscale's package knows without a node's
certificate: plain HTTP on loopback behind a PROXY v2 header that names alice, for whom both impersonate one group with
the same account's token. Its listener is localhost:80: root, or net.ipv4.ip_unprivileged_port_start at most 80, or it
is left out.

Rounds go round all of them, each round beginning with another one. A figure is the median over the rounds, a ratio or
a difference the median of those within a round. Every connection has had one answer when a run begins ("ready": how
long that took, from the first dial to the last first answer); until then neither time nor CPU counts. CPU is the proxy
process's own, user and system; Tailscale's includes its node, so the CPU of both at rest is measured too and a second
column takes it off.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.load import run
from bench.machine import Others, describe
from bench.processes import PEERS, Measured, python, run_benchmark
from bench.report import Goal, goals_table, number, row, table_head, write_section
from tests.bed import Bed, free_port, kubernetes_grant

Sample = dict[str, float]
Samples = dict[str, list[Sample]]

_USER, _GROUP = "alice@example.com", "system:masters"
TAILSCALE_PORT = 80
_CONNECTIONS = (1, 16)
_WARM_UP = "--count=1000"


def say(line: str) -> None:
    """Progress, apart from the results."""
    print(line, file=sys.stderr, flush=True)


def programs() -> Path:
    """The directory of the Go programs of bench/peers, built where they are not."""
    make = ["make", "--silent", "--no-print-directory", "-C", str(PEERS)]
    subprocess.run([*make, "all"], stdout=sys.stderr, check=True)
    return Path(subprocess.run([*make, "where"], capture_output=True, text=True, check=True).stdout.strip())


@dataclass(frozen=True, slots=True)
class Contender:
    """What is measured: how the load generator reaches it, and whose CPU counts (None: nobody's)."""

    loadgen: Path
    url: str
    arguments: tuple[str, ...]
    proxy: Measured | None = None

    def get(self, path: str, *arguments: str, primed: Callable[[float], None] | None = None) -> dict[str, Any]:
        """One run of the load generator; see bench.load.run."""
        return run((str(self.loadgen), f"--url={self.url}{path}", *self.arguments, *arguments), primed)

    def sample(self, connections: int, seconds: float, idle: float) -> Sample:
        """A run: as many requests as fit into the time, on connections that have had an answer already.

        idle: CPU a second of the proxy at rest.
        """
        begun: list[float] = []

        def primed(took: float) -> None:
            begun.extend((self._cpu(), took))

        answer = self.get("/version", f"--connections={connections}", f"--duration={seconds}s", primed=primed)
        spent = self._cpu() - begun[0]
        return {
            "ready_ms": begun[1] * 1e3,
            "p50_ms": answer["p50_ms"],
            "p99_ms": answer["p99_ms"],
            "rps": answer["rps"],
            "cpu_us": spent / answer["requests"] * 1e6,
            "cpu_less_idle_us": (spent - idle * answer["seconds"]) / answer["requests"] * 1e6,
        }

    def _cpu(self) -> float:
        return self.proxy.cpu() if self.proxy else 0.0


def contenders(stack: ExitStack, bed: Bed, peers: Path) -> dict[str, Contender]:
    """Start the proxies; name -> contender."""
    bed.add_nodes(proxy={"tags": ["tag:k8s"]}, alice={"user": _USER})
    bed.set_grants([kubernetes_grant(_USER, [_GROUP])])
    loadgen, ca = peers / "loadgen", f"--ca={bed.ca_path}"
    token = (bed.cluster.directory / "k8sproxy.token").read_text()
    cert, key = bed.cluster.issue("bench-alice", cn=_USER, orgs=[_GROUP])
    headers = (f"Authorization: Bearer {token}", f"Impersonate-User: {_USER}", f"Impersonate-Group: {_GROUP}")
    found = {
        "direct": Contender(loadgen, bed.apiserver_url, (ca, *(f"--header={header}" for header in headers))),
        "direct, cert": Contender(loadgen, bed.apiserver_url, (ca, f"--client-cert={cert}", f"--client-key={key}")),
    }
    source = f"--proxy-source={bed.nodes['alice'].tailnet_ip}"
    plain, secured = free_port(), free_port()
    proxy = _k8sproxy(stack, bed, plain, secured)
    found["k8sproxy"] = Contender(loadgen, f"http://127.0.0.1:{plain}", (source,), proxy)
    found["k8sproxy, TLS"] = Contender(loadgen, f"https://127.0.0.1:{secured}", (source, ca), proxy)
    if why := port_taken():
        say(f"tailscale is left out: 127.0.0.1:{TAILSCALE_PORT}: {why}")
    else:
        tailscale = start_tailscale(stack, bed, peers)
        found["tailscale"] = Contender(loadgen, f"http://127.0.0.1:{TAILSCALE_PORT}", (source,), tailscale)
    for name, contender in found.items():
        say(f"bench: warming up {name}")
        contender.get("/api/v1/secrets", "--connections=1", "--count=1")  # what only the group may see
        contender.get("/version", "--connections=16", _WARM_UP)
    return found


def _k8sproxy(stack: ExitStack, bed: Bed, plain: int, secured: int) -> Measured:
    cert, key = bed.cluster.issue("bench-k8sproxy", ips=["127.0.0.1"])
    tls = {"source": "files", "cert": str(cert), "key": str(key)}
    config = {
        "apiVersion": "k8sproxy/v1alpha1",
        "tailnet": {"socket": str(bed.nodes["proxy"].socket)},
        "listen": [
            {"address": f"127.0.0.1:{plain}", "tls": {"source": "none"}, "proxyProtocol": True},
            {"address": f"127.0.0.1:{secured}", "tls": tls, "proxyProtocol": True},
        ],
        "clusters": [{"name": "bed", "kubeconfig": str(bed.proxy_account_kubeconfig)}],
        "admin": {"address": f"unix:{bed.directory / 'admin.sock'}"},
    }
    file = bed.directory / "k8sproxy.yaml"
    file.write_text(json.dumps(config))
    command = python("-m", "k8sproxy", "serve", "--config", str(file))
    return stack.enter_context(Measured("k8sproxy", command, bed.directory / "logs" / "k8sproxy.log", port=secured))


def start_tailscale(stack: ExitStack, bed: Bed, peers: Path) -> Measured:
    directory = bed.directory / "ts-apiproxy"
    directory.mkdir()
    # env(1) becomes the program: its CPU is the program's.
    command = ["env", *(f"{name}={value}" for name, value in bed.tailnet.daemon_env.items())]
    command += [str(peers / "ts-apiproxy"), f"--control-url={bed.tailnet.control_url}", f"--dir={directory}"]
    command += [f"--kubeconfig={bed.proxy_account_kubeconfig}"]
    log = bed.directory / "logs" / "ts-apiproxy.log"
    return stack.enter_context(Measured("ts-apiproxy", command, log, port=TAILSCALE_PORT))


def port_taken() -> str | None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", TAILSCALE_PORT))
        except OSError as error:
            return str(error)
    return None


def at_rest(found: dict[str, Contender], seconds: float) -> dict[str, float]:
    """CPU a second that each contender's process takes with nothing to do, once its garbage is collected."""
    before = {name: c.proxy.cpu() if c.proxy else 0.0 for name, c in found.items()}
    time.sleep(seconds)
    return {name: ((c.proxy.cpu() if c.proxy else 0.0) - before[name]) / seconds for name, c in found.items()}


def rounds(
    found: dict[str, Contender], count: int, sample: Callable[[str, Contender], Sample], others: Others
) -> tuple[Samples, list[float]]:
    """All samples by contender, and what others took of the machine in each round."""
    samples: Samples = {name: [] for name in found}
    shares: list[float] = []
    names = list(found)
    others.share()
    for number_of in range(count):
        first = number_of % len(names)
        for name in names[first:] + names[:first]:
            samples[name].append(sample(name, found[name]))
        shares.append(others.share())
        say(f"bench: round {number_of + 1} of {count}; others took {shares[-1]:.0%} of the machine")
    return samples, shares


def within(samples: Samples, one: str, other: str, key: str, how: Callable[[float, float], float]) -> list[float]:
    """A ratio or difference of two contenders, round by round."""
    return [how(a[key], b[key]) for a, b in zip(samples[one], samples[other], strict=True)]


def over(a: float, b: float) -> float:
    return a / b


def minus(a: float, b: float) -> float:
    return a - b


def scenario_table(samples: Samples, rest: dict[str, float]) -> Iterable[str]:
    """Markdown: one row a contender."""
    yield from table_head(
        "",
        "ready ms",
        "p50 ms",
        "added p50 ms",
        "p99 ms",
        "req/s",
        "of direct",
        "CPU µs a request",
        "less idle",
        "idle CPU ms/s",
    )
    for name, taken in samples.items():
        middle = {key: statistics.median(sample[key] for sample in taken) for key in taken[0]}
        added = statistics.median(within(samples, name, "direct", "p50_ms", minus))
        share = statistics.median(within(samples, name, "direct", "rps", over))
        proxied = not name.startswith("direct")
        yield row(
            name,
            number(middle["ready_ms"]),
            number(middle["p50_ms"]),
            number(added) if name != "direct" else "",
            number(middle["p99_ms"]),
            number(middle["rps"]),
            number(share) if name != "direct" else "",
            *(
                [number(middle["cpu_us"]), number(middle["cpu_less_idle_us"]), number(rest[name] * 1e3)]
                if proxied
                else [""] * 3
            ),
        )


def goals(results: dict[int, Samples]) -> Iterable[Goal]:
    """What is wanted of k8sproxy here, for the runs that there are."""

    def goal(text: str, values: Sequence[float], limit: float, *, at_most: bool = True) -> Goal:
        return Goal(text, statistics.median(values), limit, at_most, (min(values), max(values)))

    for connections, samples in results.items():
        at = f"{connections} connection{'s' * (connections > 1)}"
        if "tailscale" in samples:
            for key, note in (("cpu_us", ""), ("cpu_less_idle_us", ", each less its idle CPU")):
                ratios = within(samples, "k8sproxy", "tailscale", key, over)
                yield goal(f"CPU a request over Tailscale's, {at}{note}", ratios, 1 / 15)
        for name in (name for name in samples if name.startswith("k8sproxy")):
            if connections == 1:
                yield goal(f"{name}: added p50, ms, {at}", within(samples, name, "direct", "p50_ms", minus), 0.12)
            else:
                yield goal(
                    f"{name}: requests a second over direct, {at}",
                    within(samples, name, "direct", "rps", over),
                    0.75,
                    at_most=False,
                )


def report(results: dict[int, Samples], rest: dict[str, float], shares: list[float], title: str) -> list[str]:
    """All of it as lines of Markdown."""
    lines = [
        f"{title}; others took {statistics.median(shares):.0%} of the machine (at most {max(shares):.0%} in a round)."
    ]
    for connections, samples in results.items():
        lines += ["", f"GET /version, {connections} connection{'s' * (connections > 1)}:", ""]
        lines += scenario_table(samples, rest)
    return [*lines, "", *goals_table(goals(results))]


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m bench.cluster", description="compare on a real API server")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3.0, help="a run's length")
    parser.add_argument("--idle", type=float, default=15.0, help="seconds for which proxies are watched at rest")
    parser.add_argument("--connections", type=int, nargs="*", default=_CONNECTIONS)
    parser.add_argument("--json", type=Path, help="write every sample to a file")
    parser.add_argument("--markdown", type=Path, help="write the tables to a file, into their section where it has one")
    options = parser.parse_args()
    peers = programs()
    results: dict[int, Samples] = {}
    shares: list[float] = []
    with tempfile.TemporaryDirectory(prefix="k8sproxy-bench-") as name, ExitStack() as stack:
        bed = stack.enter_context(Bed(name, audit=False, progress=say))
        found = contenders(stack, bed, peers)
        others = Others()
        say(f"bench: {options.idle:g} s at rest")
        rest = at_rest(found, options.idle)
        title = f"{describe()}; load average {os.getloadavg()[0]:.1f} before"
        title += f", {options.rounds} rounds of {options.seconds:g} s"
        for connections in options.connections:
            say(f"bench: {connections} connection{'s' * (connections > 1)}")
            results[connections], took = rounds(
                found,
                options.rounds,
                lambda name, contender: contender.sample(connections, options.seconds, rest[name]),  # noqa: B023
                others,
            )
            shares += took
    lines = report(results, rest, shares, title)
    print("\n".join(lines))
    if options.markdown:
        write_section(options.markdown, "bench.cluster", lines)
    if options.json:
        content = {"machine": title, "others": shares, "idle_cpu": rest, "samples": results}
        options.json.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    run_benchmark(main)
