"""What others wait while one peer floods: python -m bench.floods [--seconds S] [--rounds N] [--connections N]
    [--only NAME ..] [--priority N] [--json FILE] [--markdown FILE]

Two peers behind one k8sproxy, each with a stand-in API server of its own so that they share the proxy and nothing else.
Bob asks for a small object a hundred times a second, on one connection. Alice floods on CONNECTIONS connections with
what is expensive to read: frames, header blocks, terminal sizes, chunks, long queries and large bodies that are told to
a recorder. Each round has a quiet part as well, in which nobody floods: what Bob waits there is the machine's doing.
The flooding program runs at a lower priority (nice), so that it competes with the proxy for its loop and not its core;
with --priority N (root's) the proxy, Bob and his API server have a higher one, on a machine that others use too.

    turn, worst                the most CPU that a turn of the proxy's loop took during the flood, milliseconds. It is
                               the proxy's alone: what others on the machine do is not in it. A request takes three
                               turns on connections that are open, so that it waits for three of these at the most
    added, p50 / p99           of Bob's answers, over the median of the quiet part, milliseconds; with all that the
                               machine has to do for the flood, at both ends, and for others
    MB/s                       of Alice's bytes that the proxy read meanwhile
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from bench.machine import Others, describe
from bench.processes import ROOT, Measured, free_port, python, run_benchmark
from bench.report import Goal, goals_table, number, row, table_head, write_section
from k8sproxy.protocol.spdy import DICTIONARY

CONNECTIONS = 8
# Bytes that a flooding connection sends at once.
_PIECE = 64 * 1024
ALICE, BOB = "100.64.0.7", "100.64.0.8"
_PODS = "/api/v1/namespaces/default/pods"

_STAND_IN = """
import asyncio, sys
from pathlib import Path
from standins.recorder import FakeRecorder
from standins.tailscaled import FakeTailscaled, user_whois
async def main():
    async with FakeRecorder() as recorder:
        def grant(**more):
            return {"tailscale.com/cap/kubernetes": [{"impersonate": {"groups": ["dev"]}, **more}]}
        events = {"recorderAddrs": [recorder.address], "enableEvents": True}
        peers = {
            "100.64.0.7": user_whois("alice@example.com", "alice", "100.64.0.7", grant(**events)),
            "100.64.0.8": user_whois("bob@example.com", "bob", "100.64.0.8", grant()),
        }
        async with FakeTailscaled(Path(sys.argv[1]), peers=peers):
            await asyncio.Event().wait()
asyncio.run(main())
"""

# k8sproxy, with a timer in its loop that notes how much CPU the loop has used since it struck last.
_PROXY = """
import atexit, json, sys, time
from k8sproxy import cli
from k8sproxy.dataplane.listener import Server
taken = []
def strike(loop, before):
    now = time.thread_time()
    if now - before > 0.001:
        taken.append((time.monotonic(), (now - before) * 1000))
    loop.call_later(0.0005, strike, loop, now)
made = Server.__init__
def init(self, *arguments):
    made(self, *arguments)
    strike(self._loop, time.thread_time())
Server.__init__ = init
atexit.register(lambda: open(sys.argv[2], "w").write(json.dumps(taken)))
cli.cli.main(["serve", "--config", sys.argv[1]], standalone_mode=False)
"""

_API_SERVER = """
import asyncio, sys
import bench.floods
asyncio.run(bench.floods.api_server(int(sys.argv[1])))
"""


def spdy(kind: int, payload: bytes) -> bytes:
    """A SPDY control frame."""
    return struct.pack(">HHI", 0x8003, kind, len(payload)) + payload


def masked(opcode: int, payload: bytes = b"", *, fin: bool = True) -> bytes:
    """A client's WebSocket frame, with a mask of zeros."""
    return bytes(((0x80 if fin else 0) | opcode, 0x80 | len(payload))) + bytes(4) + payload


def data(stream: int, payload: bytes) -> bytes:
    """A SPDY DATA frame."""
    return struct.pack(">II", stream, len(payload)) + payload


def blocks(kind: int, fields: int, size: int, first: int = 11) -> bytes:
    """SPDY frames with header blocks that are a few bytes on the wire."""

    deflate = zlib.compressobj(zdict=DICTIONARY)
    names = [b"streamtype", *(b"%d" % index for index in range(1, fields))]
    values = [b"error", *(b"x" * size for _ in range(1, fields))]
    plain = struct.pack(">I", fields) + b"".join(
        struct.pack(">I", len(text)) + text for pair in zip(names, values, strict=True) for text in pair
    )
    out, stream = b"", first
    while len(out) < 4 * _PIECE:
        block = deflate.compress(plain) + deflate.flush(zlib.Z_SYNC_FLUSH)
        out += spdy(kind, struct.pack(">IIBB", stream, 0, 0, 0)[: 10 if kind == 1 else 4] + block)
        stream += 2
    return out


def _streams() -> bytes:

    deflate, out = zlib.compressobj(zdict=DICTIONARY), b""
    for index, kind in enumerate((b"error", b"stdin", b"stdout", b"stderr", b"resize")):
        plain = struct.pack(">II", 1, 10) + b"streamtype" + struct.pack(">I", len(kind)) + kind
        block = deflate.compress(plain) + deflate.flush(zlib.Z_SYNC_FLUSH)
        out += spdy(1, struct.pack(">IIBB", 2 * index + 1, 0, 0, 0) + block)
    return out


def many(piece: bytes) -> bytes:
    """As many as fit."""
    return piece * max(1, _PIECE // len(piece))


def head(method: str, target: str, *lines: str) -> bytes:
    """A request's head."""
    return "\r\n".join((f"{method} {target} HTTP/1.1", "Host: k8s", *lines, "", "")).encode()


def spdy_head(what: str, protocol: str) -> bytes:
    """The head of a session on SPDY."""
    return head(
        "POST",
        f"{_PODS}/a/{what}",
        "Connection: Upgrade",
        "Upgrade: SPDY/3.1",
        f"X-Stream-Protocol-Version: {protocol}",
    )


_EXEC = spdy_head("exec?command=a&stdin=true&stdout=true&tty=true", "v4.channel.k8s.io")
_FORWARD = spdy_head("portforward", "portforward.k8s.io")
_WEBSOCKET = head(
    "GET",
    f"{_PODS}/a/exec?command=a&stdin=true&stdout=true&tty=true",
    *("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"),
    *("Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==", "Sec-WebSocket-Protocol: v5.channel.k8s.io"),
)
_CHUNKED = head("POST", f"{_PODS}/a/proxy/upload", "Transfer-Encoding: chunked")


def _query() -> bytes:
    words = "&".join(f"q{index}=password%3A+x{index}" for index in range(2500))
    return head("GET", f"/api/v1/pods?{words}"[: 63 * 1024])


def _fields() -> bytes:
    return head("GET", f"{_PODS}/a", *(f"X-{index}: {'v' * 480}" for index in range(120)))


def _body(kind: str) -> bytes:
    items = ",".join(f'{{"name":"DB_PASSWORD_{index}","value":"token: {index}"}}' for index in range(1200))
    body = f'{{"kind":"{kind}","spec":{{"env":[{items}]}}}}'.encode()
    assert len(body) < 64 * 1024
    return head("POST", _PODS, f"Content-Length: {len(body)}", "Content-Type: application/json") + body


# name -> (what is sent first, what is sent then, over and over; None: requests, each answered)
FLOODS: dict[str, tuple[bytes, Callable[[], bytes]]] = {
    "stdin, 32 KiB frames": (_EXEC + _streams(), lambda: many(data(3, bytes(32000)))),
    "SPDY pings": (_EXEC + _streams(), lambda: many(spdy(6, b"\0\0\0\7"))),
    "SPDY frames of a byte": (_EXEC + _streams(), lambda: many(data(3, b"x"))),
    "SPDY terminal sizes": (_EXEC + _streams(), lambda: many(data(9, b"{}" * 125))),
    "SPDY SETTINGS": (_EXEC + _streams(), lambda: many(spdy(4, bytes(4)))),
    "SPDY SYN_STREAM": (_FORWARD, lambda: blocks(1, 14, 250)),
    "SPDY HEADERS": (_FORWARD, lambda: blocks(8, 90, 600)),
    "WebSocket pings": (_WEBSOCKET, lambda: many(masked(9))),
    "WebSocket messages of a byte": (_WEBSOCKET, lambda: many(masked(2, b"\0x"))),
    "WebSocket fragments": (_WEBSOCKET + masked(2, b"\0", fin=False), lambda: many(masked(0, fin=False))),
    "WebSocket terminal sizes": (_WEBSOCKET, lambda: many(masked(2, b"\4" + b"{}" * 60))),
    "chunks of a byte": (_CHUNKED, lambda: many(b"1\r\nx\r\n")),
    "chunks with extensions": (_CHUNKED, lambda: many(b"1;\r\nx\r\n")),
    "output of a byte": (_EXEC.replace(b"command=a", b"command=flood") + _streams(), lambda: b""),
    "response chunks of a byte": (head("GET", f"{_PODS}/a/proxy/flood"), lambda: b""),
    "queries of 63 KiB, told": (b"", _query),
    "queries of 2 KiB that Go refuses": (b"", lambda: head("GET", f"{_PODS}?{'%zz&' * 500}")),
    "heads of 60 KiB": (b"", _fields),
    "bodies of 64 KiB, told": (b"", lambda: _body("Pod")),
    "bodies of Secrets, told": (b"", lambda: _body("Secret")),
}


async def api_server(port: int) -> None:
    """A stand-in: answers requests at once, switches protocols and then reads; floods itself where the path says so."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                text = await reader.readuntil(b"\r\n\r\n")
                lowered = text.lower()
                flood = b"flood" in text.partition(b"\r\n")[0]
                if b"upgrade: spdy" in lowered:
                    protocol = b"portforward.k8s.io" if b"portforward" in text[:80] else b"v4.channel.k8s.io"
                    writer.write(
                        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n"
                        b"X-Stream-Protocol-Version: " + protocol + b"\r\n\r\n"
                    )
                elif b"upgrade: websocket" in lowered:
                    writer.write(
                        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                        b"Sec-WebSocket-Protocol: v5.channel.k8s.io\r\n\r\n"
                    )
                elif flood:
                    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                elif b"chunked" not in lowered:
                    size = lowered.partition(b"content-length: ")[2].partition(b"\r")[0]
                    await reader.readexactly(int(size or 0))
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
                    continue
                if flood:
                    await asyncio.sleep(0.2)
                    piece = many(data(5, b"x") if b"spdy" in lowered else b"1\r\nx\r\n")
                    while True:
                        writer.write(piece)
                        await writer.drain()
                while await reader.read(1 << 20):
                    pass
                return
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", port, limit=1 << 20) as server:
        await server.serve_forever()


def proxied(source: str, port: int) -> socket.socket:
    """A connection to the proxy as the peer at that tailnet address."""
    sock = socket.create_connection(("127.0.0.2", port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    addresses = socket.inet_aton(source) + socket.inet_aton("100.64.0.1") + struct.pack(">HH", 40000, 443)
    sock.sendall(b"\r\n\r\n\0\r\nQUIT\n\x21\x11" + struct.pack(">H", len(addresses)) + addresses)
    return sock


async def flood(name: str, port: int, seconds: float, connections: int) -> int:
    """Flood for so long; bytes that the proxy took, or sent."""
    first, make = FLOODS[name]
    piece = make()
    moved = 0

    async def one() -> None:
        nonlocal moved
        sock = proxied(ALICE, port)
        sock.setblocking(False)
        reader, writer = await asyncio.open_connection(sock=sock, limit=1 << 20)
        writer.write(first)
        try:
            if not first:
                while True:
                    writer.write(piece)
                    await reader.readuntil(b"{}")
                    moved += len(piece)
            if not piece:
                while got := await reader.read(1 << 16):
                    moved += len(got)
            dropping = asyncio.ensure_future(_drop(reader))
            while not dropping.done():
                writer.write(piece)
                await writer.drain()
                moved += len(piece)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    tasks = [asyncio.ensure_future(one()) for _ in range(connections)]
    await asyncio.sleep(seconds)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return moved


async def _drop(reader: asyncio.StreamReader) -> None:
    try:
        while await reader.read(1 << 16):
            pass
    except OSError:
        pass


def ask(sock: socket.socket, seconds: float) -> list[float]:
    """How long each of a hundred requests a second took, milliseconds."""
    request = head("GET", f"{_PODS}/a")
    took: list[float] = []
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        begun = time.perf_counter()
        sock.sendall(request)
        answer = b""
        while not answer.endswith(b"{}"):
            answer += sock.recv(4096)
        spent = time.perf_counter() - begun
        took.append(spent * 1000)
        time.sleep(max(0.0, 0.01 - spent))
    return took


def start(stack: ExitStack, directory: Path) -> int:
    """The stand-ins and the proxy; the ports of Alice's listener and, one above, of Bob's."""
    daemon = directory / "tailscaled.sock"
    stack.enter_context(Measured("stand-in tailscaled", python("-c", _STAND_IN, str(daemon)), directory / "whois.log"))
    clusters, listeners, port = [], [], 0
    for name in ("alice", "bob"):
        upstream, port = free_port(), free_port()
        command = python("-c", _API_SERVER, str(upstream))
        stack.enter_context(Measured(f"API server of {name}", command, directory / f"{name}.log", port=upstream))
        kubeconfig = {
            **{"apiVersion": "v1", "kind": "Config", "current-context": "bench"},
            "contexts": [{"name": "bench", "context": {"cluster": "bench", "user": "bench"}}],
            "clusters": [{"name": "bench", "cluster": {"server": f"http://127.0.0.1:{upstream}"}}],
            "users": [{"name": "bench", "user": {"token": "bench-token"}}],
        }
        (directory / f"{name}.json").write_text(json.dumps(kubeconfig))
        clusters.append({"name": name, "kubeconfig": str(directory / f"{name}.json")})
        address = f"127.0.0.2:{port}"
        listeners.append({"address": address, "tls": {"source": "none"}, "proxyProtocol": True, "cluster": name})
    probe = free_port()
    listeners.append({"address": f"127.0.0.1:{probe}", "tls": {"source": "none"}, "cluster": "bob"})
    config = {
        "apiVersion": "k8sproxy/v1alpha1",
        "tailnet": {"socket": str(daemon)},
        "listen": listeners,
        "clusters": clusters,
        "admin": {"address": f"unix:{directory / 'admin.sock'}"},
        "log": {"level": "error"},
        "shutdown": {"grace": "0s"},
    }
    (directory / "k8sproxy.yaml").write_text(json.dumps(config))
    command = python("-c", _PROXY, str(directory / "k8sproxy.yaml"), str(directory / "turns.json"))
    stack.enter_context(Measured("k8sproxy", command, directory / "k8sproxy.log", port=probe))
    alice, bob = (int(str(listen["address"]).rpartition(":")[2]) for listen in listeners[:2])
    return alice << 16 | bob


def measure(name: str, ports: int, seconds: float, connections: int) -> dict[str, float]:
    """One round of one flood."""
    alice, bob = ports >> 16, ports & 0xFFFF
    with proxied(BOB, bob) as sock:
        ask(sock, 0.3)
        quiet = ask(sock, seconds)
        command = python("-m", "bench.floods", "--flood", name, "--port", str(alice), "--seconds", str(seconds + 1.0))
        command += ["--connections", str(connections)]
        with subprocess.Popen(["nice", "-n", "20", *command], stdout=subprocess.PIPE, cwd=ROOT, text=True) as flooding:
            assert flooding.stdout is not None
            flooding.stdout.readline()
            time.sleep(0.3)
            began = time.monotonic()
            took = ask(sock, seconds)
            ended = time.monotonic()
            moved = int(flooding.stdout.readline())
        ask(sock, 0.5)
    median = statistics.median(quiet)
    return {
        "quiet_p99": statistics.quantiles(quiet, n=100)[98] - median,
        "quiet_worst": max(quiet) - median,
        "p50": statistics.median(took) - median,
        "p99": statistics.quantiles(took, n=100)[98] - median,
        "worst": max(took) - median,
        "mb_s": moved / 1e6 / (seconds + 1.0),
        "began": began,
        "ended": ended,
    }


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m bench.floods", description="what others wait during a flood")
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=CONNECTIONS, help="of the flood")
    parser.add_argument("--only", nargs="*", choices=FLOODS, default=list(FLOODS))
    parser.add_argument("--priority", type=int, default=0, help="nice value of proxy, Bob and his API server")
    parser.add_argument("--json", type=Path, help="write every sample to a file")
    parser.add_argument("--markdown", type=Path, help="write the tables to a file, into their section where it has one")
    parser.add_argument("--flood", choices=FLOODS, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.flood:
        print("flooding", flush=True)
        print(asyncio.run(flood(options.flood, options.port, options.seconds, options.connections)), flush=True)
        return
    os.setpriority(os.PRIO_PROCESS, 0, options.priority)  # what is started inherits it
    samples: dict[str, list[dict[str, float]]] = {name: [] for name in options.only}
    title = f"{describe()}; {options.connections} flooding connections, load average {os.getloadavg()[0]:.1f} before"
    others = Others()
    others.share()
    for turn in range(options.rounds):
        for name in options.only:
            # A proxy of its own for each: what one flood leaves in a queue is not the next one's.
            with tempfile.TemporaryDirectory(prefix="k8sproxy-floods-") as directory, ExitStack() as stack:
                sample = measure(name, start(stack, Path(directory)), options.seconds, options.connections)
                stack.close()
                turns = json.loads((Path(directory) / "turns.json").read_text())
                sample["turn"] = max((ms for at, ms in turns if sample["began"] < at < sample["ended"]), default=0.0)
                samples[name].append(sample)
            print(f"bench: round {turn + 1}, {name}: {samples[name][-1]}", file=sys.stderr, flush=True)
    share = others.share()
    lines = [
        f"{title}; {options.rounds} rounds of {options.seconds:g} s, priority {options.priority}; others took "
        f"{share:.0%} of the machine. Of several rounds the median.",
        "",
        *table_head("Alice floods with", "worst turn ms", "added p50 ms", "p99 ms", "quiet p99 ms", "MB/s"),
    ]
    reached = []
    for name, taken in samples.items():
        keys = ("turn", "p50", "p99", "quiet_p99", "mb_s")
        figures = {key: statistics.median(sample[key] for sample in taken) for key in keys}
        lines.append(row(name, *(number(max(0.0, figures[key])) for key in keys)))
        worst = [3 * sample["turn"] for sample in taken]
        reached.append(Goal(f"{name}: three worst turns, ms", max(worst), 20, spread=(min(worst), max(worst))))
    lines += ["", *goals_table(reached)]
    print("\n".join(lines))
    if options.markdown:
        write_section(options.markdown, "bench.floods", lines)
    if options.json:
        options.json.write_text(json.dumps({"machine": title, "samples": samples}, indent=2) + "\n")


if __name__ == "__main__":
    run_benchmark(main)
