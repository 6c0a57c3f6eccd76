"""The real kubectl, as one person: run to its end, or beside the test."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

# Which of the two streaming protocols kubectl speaks, for exec, attach and cp, and for port-forward.
WEBSOCKET = {"KUBECTL_REMOTE_COMMAND_WEBSOCKETS": "true", "KUBECTL_PORT_FORWARD_WEBSOCKETS": "true"}
SPDY = {"KUBECTL_REMOTE_COMMAND_WEBSOCKETS": "false", "KUBECTL_PORT_FORWARD_WEBSOCKETS": "false"}
STREAMING = {"websocket": WEBSOCKET, "spdy": SPDY}


class Kubectl:
    """kubectl with one kubeconfig.

    binary: another version than the project's own. env: on top of the test's. prefix: words before the command
    (Node.exec_prefix).
    """

    def __init__(
        self,
        kubeconfig: Path,
        *,
        binary: Path | None = None,
        env: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
    ) -> None:
        self.kubeconfig = kubeconfig
        self.binary = binary or Path(sys.executable).with_name("kubectl")
        self.env = dict(env or {})
        self.prefix = tuple(prefix)

    def speaking(self, env: Mapping[str, str]) -> Kubectl:
        """The same with more environment: see STREAMING."""
        return Kubectl(self.kubeconfig, binary=self.binary, env={**self.env, **env}, prefix=self.prefix)

    def argv(self, *arguments: str) -> list[str]:
        return [*self.prefix, str(self.binary), "--kubeconfig", str(self.kubeconfig), *arguments]

    def environ(self) -> dict[str, str]:
        # Its discovery cache belongs beside the kubeconfig, not into the home of whoever runs the tests.
        cache = str(self.kubeconfig.with_suffix(".cache"))
        return {**os.environ, "KUBECACHEDIR": cache, "KUBECTL_KUBERC": "false", **self.env}

    def run(
        self, *arguments: str, input: bytes | None = None, timeout: float = 60
    ) -> subprocess.CompletedProcess[bytes]:
        """Run it to its end, whatever that is. Without input, its stdin is empty."""
        return subprocess.run(
            self.argv(*arguments),
            input=input or b"",
            capture_output=True,
            env=self.environ(),
            timeout=timeout,
            check=False,
        )

    def ok(self, *arguments: str, input: bytes | None = None) -> str:
        """Its output; it must succeed."""
        done = self.run(*arguments, input=input)
        assert done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.returncode}\n{done.stderr.decode()}"
        return done.stdout.decode()

    def json(self, *arguments: str) -> dict[str, object]:
        """The object that `kubectl ... -o json` prints."""
        found: dict[str, object] = json.loads(self.ok(*arguments, "-o", "json"))
        return found

    def fails(self, *arguments: str, code: int = 1) -> str:
        """Its stderr; it must end with that code."""
        done = self.run(*arguments)
        assert done.returncode == code, f"kubectl {' '.join(arguments)}: {done.returncode}\n{done.stdout.decode()}"
        return done.stderr.decode()

    @contextlib.contextmanager
    def start(self, *arguments: str) -> Iterator[Running]:
        """Run it beside the test; ended with the block."""
        popen = subprocess.Popen(
            self.argv(*arguments),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self.environ(),
            bufsize=0,
        )
        running = Running(popen)
        try:
            yield running
        finally:
            popen.kill()
            popen.wait()
            running.close()


class Running:
    """A kubectl that runs, and what it has written so far. A thread a pipe reads, so that nothing blocks it."""

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self.popen = popen
        self._written = threading.Condition()
        self._out = bytearray()
        self._err = bytearray()
        assert popen.stdout and popen.stderr
        pipes = ((popen.stdout, self._out), (popen.stderr, self._err))
        self._threads = [threading.Thread(target=self._read, args=pipe, daemon=True) for pipe in pipes]
        for thread in self._threads:
            thread.start()

    def _read(self, pipe: IO[bytes], into: bytearray) -> None:
        while data := pipe.read(64 * 1024):
            with self._written:
                into += data
                self._written.notify_all()
        with self._written:
            self._written.notify_all()

    @property
    def out(self) -> str:
        return self._out.decode(errors="replace")

    @property
    def err(self) -> str:
        return self._err.decode(errors="replace")

    def expect(self, text: str, timeout: float = 20) -> None:
        """Wait until stdout or stderr holds the text."""
        with self._written:
            found = self._written.wait_for(lambda: text in self.out or text in self.err or self._ended(), timeout)
        assert found and (text in self.out or text in self.err), f"no {text!r} in:\n{self.out}\n{self.err}"

    def _ended(self) -> bool:
        return not any(thread.is_alive() for thread in self._threads)

    def write(self, data: bytes) -> None:
        assert self.popen.stdin
        self.popen.stdin.write(data)

    def wait(self, timeout: float = 20) -> int:
        """Its exit code, once it has ended and everything is read."""
        code = self.popen.wait(timeout)
        for thread in self._threads:
            thread.join(timeout)
        return code

    def close(self) -> None:
        for thread in self._threads:
            thread.join(5)
        for pipe in (self.popen.stdin, self.popen.stdout, self.popen.stderr):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


def write_kubeconfig(path: Path, server: str, *, ca: Path | None = None, socks5: str | None = None) -> Path:
    """A kubeconfig without credentials. (kubectl asks for a name and password unless there is some user entry.)"""
    cluster = {"server": server}
    if ca is not None:
        cluster["certificate-authority"] = str(ca)
    if socks5 is not None:
        cluster["proxy-url"] = f"socks5://{socks5}"
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "tailnet", "cluster": cluster}],
        "users": [{"name": "nobody", "user": {"token": "unused"}}],
        "contexts": [{"name": "tailnet", "context": {"cluster": "tailnet", "user": "nobody"}}],
        "current-context": "tailnet",
    }
    path.write_text(json.dumps(config, indent=2))
    return path
