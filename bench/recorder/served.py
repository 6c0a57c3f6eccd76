"""What the recorder's benchmarks share: text as terminals show it, the program itself, and what it has kept.

The recorder is the real `recorder serve` with its defaults (a folder, the index in it), but for ports and paths. A
stand-in daemon answers WhoIs for it, so that admission does what it does on a tailnet: who comes from 127.0.0.2 is a
k8sproxy, and who comes from 127.0.0.1 is this machine, whom the admin site answers. Text is a pool of events that is
made once, always the same; the load generator (bench/peers/cmd/castload) and who checks what was kept both make casts
of it by one rule.
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, aclosing
from pathlib import Path
from typing import Any

from bench.processes import Measured, free_port, python
from recorder.model import End, Recording
from recorder.store import Store
from recorder.store.blobs import FolderBlobs

# Events of the pool: more text than a processor's cache has. They share lines, but none has one twice.
POOL = 256
_LINES = 20_000
# Seconds for a recorder to start, and for one to have put everything in its place after a load.
_START = 60.0

_STAND_IN = """
import asyncio, sys
from pathlib import Path
from standins.tailscaled import FakeTailscaled, tagged_whois
async def main():
    sender = tagged_whois("k8sproxy", ["tag:k8sproxy"], "100.64.0.9")
    async with FakeTailscaled(Path(sys.argv[1]), peers={"127.0.0.2": sender}):
        await asyncio.Event().wait()
asyncio.run(main())
"""


class Text:
    """Lines of a shell at work, as a terminal gets them: logs, listings, tables, some of it coloured."""

    def __init__(self, seed: int) -> None:
        self._dice = random.Random(seed)
        letters = "etaoinshrdlucmfwypvbgkjqxz"
        weights = [1 / (rank + 1) for rank in range(len(letters))]
        self._words = ["".join(self._dice.choices(letters, weights, k=self._dice.randint(2, 10))) for _ in range(5000)]
        self._weights = [1 / (rank + 1) for rank in range(len(self._words))]
        self._phrases = [self._some(self._dice.randint(3, 9)) for _ in range(300)]  # what a program has to say

    def _some(self, count: int) -> str:
        return " ".join(self._dice.choices(self._words, self._weights, k=count))

    def line(self, second: float) -> str:
        """One, without its end. second: of the clock that it shows."""
        dice, kind = self._dice, self._dice.random()
        clock = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(1_780_000_000 + second))
        if kind < 0.55:
            level = dice.choice(["INFO ", "INFO ", "INFO ", "DEBUG", "\x1b[33mWARN\x1b[0m ", "\x1b[31mERROR\x1b[0m"])
            module = dice.choice(["http.server", "store.journal", "auth.session", "db.pool", "queue.worker"])
            return (
                f"{clock}.{dice.randrange(1000):03d}Z {level} {module} "
                f"{dice.choice(self._phrases)} id={dice.getrandbits(20):05x} took={dice.randrange(2000)}ms"
            )
        if kind < 0.75:
            return (
                f"10.2.{dice.randrange(4)}.{dice.randrange(256)} - - [{clock}Z] "
                f'"GET /api/v1/{self._some(1)}/{dice.randrange(1000)} HTTP/1.1" '
                f"{dice.choice([200, 200, 200, 304, 404])} {dice.randrange(50000)}"
            )
        if kind < 0.9:
            return (
                f"-rw-r--r-- 1 \x1b[32mroot\x1b[0m root {dice.randrange(10**7):8d} Nov 27 "
                f"{dice.randrange(24):02d}:{dice.randrange(60):02d} {self._some(1)}.{dice.choice(['py', 'go', 'log'])}"
            )
        name = f"{self._some(1)}-{dice.getrandbits(28):07x}-{dice.getrandbits(20):05x}"
        return f"{name}   1/1   Running   0   {dice.randrange(99)}d"

    def lines(self, count: int) -> list[bytes]:
        """So many, each as it stands in the JSON string of an event."""
        texts = (json.dumps(self.line(number * 0.05), ensure_ascii=False) for number in range(count))
        return [text[1:-1].encode() + b"\\r\\n" for text in texts]


def make_pool(path: Path, size: int, count: int = POOL) -> list[bytes]:
    """Write a pool of events of some `size` bytes, and give it."""
    lines, dice = Text(7).lines(_LINES), random.Random(8)
    each = max(1, size * len(lines) // sum(map(len, lines)))
    pool = [b"".join(dice.sample(lines, min(each, len(lines)))) for _ in range(count)]
    path.write_bytes(b"\n".join(pool) + b"\n")
    return pool


def event_line(pool: Sequence[bytes], number: int, count: int) -> bytes:
    """Event `count` of session `number`, as castload sends it."""
    return b'[%d.%02d,"o","%b"]\n' % (count // 100, count % 100, pool[(7 * number + count) % len(pool)])


class Served:
    """`recorder serve` in a folder, under measurement. data: what it keeps, if that is not in the folder. prefix: words
    before its command. viewers: it has a web site, which 127.0.0.1 sees all of. trusts: who comes from 127.0.0.1 may
    send."""

    def __init__(
        self,
        stack: ExitStack,
        directory: Path,
        *,
        data: Path | None = None,
        prefix: Sequence[str] = (),
        viewers: bool = False,
        trusts: bool = False,
    ) -> None:
        self.data = data or directory / "data"
        self.port, self.web_port, self.admin_port = free_port(), free_port(), free_port()
        self.file = directory / "recorder.yaml"
        self._stack = stack
        self._directory = directory
        self._prefix = tuple(prefix)
        self.process: Measured
        socket = directory / "tailscaled.sock"
        config: dict[str, Any] = {
            "apiVersion": "recorder/v1alpha1",
            "tailnet": {"socket": str(socket)},
            "store": {"folder": str(self.data)},
            "ingest": {"listen": [f"127.0.0.1:{self.port}"], "allow": ["tag:k8sproxy"]},
            "admin": {"address": f"127.0.0.1:{self.admin_port}"},
        }
        if trusts:
            config["ingest"]["insecureAllow"] = ["127.0.0.1"]
        if viewers:
            config["web"] = {"listen": [f"127.0.0.1:{self.web_port}"], "insecureAllow": ["127.0.0.1"]}
        self.file.write_text(json.dumps(config))
        self.daemon = stack.enter_context(
            Measured("stand-in tailscaled", python("-c", _STAND_IN, str(socket)), directory / "whois.log")
        )
        wait(socket.exists, "the stand-in daemon")
        self.start()

    def start(self) -> None:
        """Start it (again); returns when it is ready."""
        command = [*self._prefix, str(Path(sys.executable).with_name("recorder")), "serve", "--config", str(self.file)]
        self.process = self._stack.enter_context(Measured("recorder", command, self._directory / "recorder.log"))
        self.process.wait_for(self.port)
        wait(self._ready, "the recorder's readiness")

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.admin_port}/readyz", timeout=10) as answer:
                return bool(answer.status == 200)
        except urllib.error.HTTPError:
            return False

    def metrics(self) -> dict[str, float]:
        """Its metrics without labels, by name."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin_port}/metrics", timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#") and "{" not in line)
        return {name: float(value) for name, value in pairs}

    def settled(self, seconds: float = 120.0) -> None:
        """Wait until every recording that is over is wholly in the store."""
        wait(lambda: self.metrics()["recorder_store_unfinished"] == 0, "all recordings in the store", seconds)

    def indexed(self, seconds: float = 120.0) -> None:
        """Wait until the index has nothing left to write."""
        wait(lambda: self.metrics()["recorder_index_waiting"] == 0, "the index", seconds)

    def verify(self) -> str:
        """`recorder verify`: its summary. Raises RuntimeError where it is not clean."""
        command = [str(Path(sys.executable).with_name("recorder")), "verify"]
        command += ["--store", str(self.data), "--trust-store-keys", "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"recorder verify: {done.stdout[-2000:]}{done.stderr[-2000:]}")
        counts = json.loads(done.stdout)["counts"]
        return ", ".join(f"{count} {name}" for name, count in counts.items() if count)


def wait(condition: Callable[[], bool], what: str, seconds: float = _START) -> None:
    """Until it is so. Raises RuntimeError where it takes too long."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise RuntimeError(f"{what}: not after {seconds:.0f} s")
        time.sleep(0.05)


async def kept(folder: Path) -> AsyncIterator[tuple[Recording, AsyncIterator[bytes]]]:
    """Every recording of a store, with its text as stored. A recorder may run on it."""
    store = Store(FolderBlobs(folder), None)
    await store.open()
    try:
        async with aclosing(store.recordings()) as recordings:
            async for recording in recordings:
                yield recording, store.cast(recording.id)
    finally:
        await store.aclose()


def check(folder: Path, pool: Sequence[bytes], acked: dict[int, int], *, end: End | None = End.CLEAN) -> int:
    """See that each session's recording holds what its sender sent, all that was acked of it, and (end) ended so.
    Returns the bytes. Raises RuntimeError for the first that does not."""

    async def run() -> int:
        missing, total = dict(acked), 0
        async for recording, pieces in kept(folder):
            number = int(recording.header["sessionID"])
            if end is not None and recording.end is not end:
                raise RuntimeError(f"session {number} ended as {recording.end.value}")
            total += await compare(number, pieces, pool, missing.pop(number, 0), recording.size)
            if recording.damaged:
                raise RuntimeError(f"session {number} is marked as damaged")
        lost = {number: size for number, size in missing.items() if size}
        if lost:
            raise RuntimeError(f"{len(lost)} sessions with acked bytes are not there: {sorted(lost)[:10]}")
        return total

    return asyncio.run(run())


async def compare(number: int, pieces: AsyncIterator[bytes], pool: Sequence[bytes], acked: int, size: int) -> int:
    """A cast against what its sender made; the header line is taken as it is. A sender that was cut off may have sent
    a part of its last event, which reading leaves out: `size` has it."""
    if size < acked:
        raise RuntimeError(f"session {number}: {size} bytes are kept of {acked} that were acked")
    got = bytearray()
    async for piece in pieces:
        got += piece
    position, count = got.index(b"\n") + 1, 0
    while position < len(got):
        line = event_line(pool, number, count)
        if got[position : position + len(line)] != line:
            raise RuntimeError(f"session {number}: event {count} is not what was sent")
        position += len(line)
        count += 1
    rest = size - position
    if not 0 <= rest < len(event_line(pool, number, count)):
        raise RuntimeError(f"session {number}: {position} bytes can be read of {size}")
    return size


def journal(path: Path) -> Iterator[dict[str, Any]]:
    """What castload sent and what was acked to it, by session."""
    for line in path.read_text().splitlines():
        yield json.loads(line)
