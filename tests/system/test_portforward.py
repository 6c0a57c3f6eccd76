"""kubectl port-forward, over WebSocket and over SPDY."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.bed import Bed, free_port
from tests.system.kubectl import STREAMING, Kubectl

CONNECTIONS = 20
SIZE = 1024 * 1024  # bytes each way on each connection

# Echoes every connection, each in a thread.
ECHO = """
import socketserver, sys
class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        while data := self.request.recv(65536):
            self.request.sendall(data)
class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True
    request_queue_size = 64
Server(("127.0.0.1", int(sys.argv[1])), Echo).serve_forever()
"""


@pytest.fixture(scope="module")
def echo(bed: Bed) -> Iterator[tuple[str, int]]:
    """A pod that echoes what a TCP connection sends: its name and its port."""
    import sys

    port = free_port()
    bed.pod("echo", command=[sys.executable, "-c", ECHO, str(port)])
    yield "echo", port
    bed.cluster.delete_pod("echo")


@pytest.mark.parametrize("protocol", STREAMING)
def test_20_connections_at_once(alice: Kubectl, echo: tuple[str, int], protocol: str) -> None:
    pod, port = echo
    with alice.speaking(STREAMING[protocol]).start("port-forward", pod, f":{port}") as forward:
        forward.expect("Forwarding from 127.0.0.1:")
        found = re.search(r"Forwarding from 127\.0\.0\.1:(\d+)", forward.out)
        assert found
        local = int(found[1])
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            results = list(pool.map(lambda _: _echoed(local), range(CONNECTIONS)))
        assert all(results), forward.err
        assert forward.popen.poll() is None


def _echoed(port: int) -> bool:
    data = os.urandom(SIZE)
    with socket.create_connection(("127.0.0.1", port), 60) as sock, ThreadPoolExecutor(1) as pool:
        sending = pool.submit(sock.sendall, data)
        got = bytearray()
        while len(got) < len(data):
            more = sock.recv(256 * 1024)
            if not more:
                return False
            got += more
        sending.result()
        return bytes(got) == data
