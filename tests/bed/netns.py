"""Network namespaces for nodes with kernel TUN devices. Needs root and the `ip` command.

    this namespace --veth-- hub --veth-- node 1
                             +----veth-- node 2 ...

The hub forwards, so that nodes find direct paths to each other; this namespace keeps its own settings, and gets one
veth end with an address, where the control server and the cluster listen.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import threading

from .processes import BedError, Processes

# Private use (RFC 1918), unlikely elsewhere; the third byte tells beds on one machine apart.
PREFIX = "10.213"


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise BedError(f"ip {' '.join(words)}: {done.stderr.strip()}")


class Network:
    """A hub and as many node namespaces as asked for. address: this namespace's, as the nodes reach it."""

    def __init__(self, processes: Processes) -> None:
        if os.geteuid() != 0:
            raise BedError("kernel mode needs root: network namespaces, veth and TUN devices")
        self._processes = processes
        self._lock = threading.Lock()
        self._next = 1
        self._id = secrets.token_hex(3)
        self._net = self._free_net()
        self._hub = self._namespace("hub")
        end = f"bed{self._id}"
        _ip("link", "add", end, "type", "veth", "peer", "name", "up0", "netns", self._hub)
        self.address = f"{self._net}.1"
        _ip("addr", "add", f"{self.address}/30", "dev", end)
        _ip("link", "set", end, "up")
        self._in(self._hub, "addr", "add", f"{self._net}.2/30", "dev", "up0")
        self._in(self._hub, "link", "set", "up0", "up")
        _ip("route", "add", f"{self._net}.0/24", "via", f"{self._net}.2")
        forward = ["nsenter", f"--net=/run/netns/{self._hub}", "sysctl", "-qw", "net.ipv4.ip_forward=1"]
        subprocess.run(forward, check=True)

    def add(self, name: str) -> str:
        """A namespace for a node, with a way out through the hub."""
        with self._lock:
            number, self._next = self._next, self._next + 1
        base = 4 * number
        namespace = self._namespace(name)
        hub_end, node_end = f"n{number}", f"up{number}"
        _ip("link", "add", hub_end, "netns", self._hub, "type", "veth", "peer", "name", node_end, "netns", namespace)
        self._in(self._hub, "addr", "add", f"{self._net}.{base + 1}/30", "dev", hub_end)
        self._in(self._hub, "link", "set", hub_end, "up")
        self._in(namespace, "addr", "add", f"{self._net}.{base + 2}/30", "dev", node_end)
        self._in(namespace, "link", "set", node_end, "up")
        self._in(namespace, "route", "add", "default", "via", f"{self._net}.{base + 1}")
        return namespace

    def _namespace(self, name: str) -> str:
        namespace = f"bed{self._id}-{name}"
        _ip("netns", "add", namespace)
        # Its veth ends, and their other ends, go with it.
        self._processes.at_end("ip", "netns", "del", namespace)
        _ip("-n", namespace, "link", "set", "lo", "up")
        return namespace

    def _in(self, namespace: str, *words: str) -> None:
        _ip("-n", namespace, *words)

    def _free_net(self) -> str:
        routes = subprocess.run(["ip", "-4", "route"], stdout=subprocess.PIPE, text=True, check=True).stdout
        for number in range(256):
            net = f"{PREFIX}.{number}"
            if f"{net}." not in routes:
                return net
        raise BedError(f"no network left under {PREFIX}")
