"""A whole tailnet on one machine: a control server with grants that can be changed, and real daemons."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import subprocess
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .http import Reply, request
from .processes import BedError, Process, Processes
from .programs import Programs

CAP_KUBERNETES = "tailscale.com/cap/kubernetes"

# The longest path that a unix socket may have (sun_path in unix(7), less its final NUL).
MAX_SOCKET_PATH = 107

# How often a dial is tried that is refused, and the seconds between.
DIALS = 3
DIAL_PAUSE = 0.3
# Seconds in which all daemons have taken a new packet filter (20 ms are usual). kubectl's own dial that meets it on its
# way is refused, and no daemon tells when it goes by it.
SETTLED = 0.4

# Daemons would otherwise upload their logs, look for a way out through the
# router and for a captive portal.
DAEMON_ENV = {
    "TS_NO_LOGS_NO_SUPPORT": "true",
    "TS_DISABLE_PORTMAPPER": "true",
    "TS_DISABLE_UPNP": "true",
    "TS_PANIC_IF_HIT_MAIN_CONTROL": "true",
}


@dataclass(frozen=True)
class Grant:
    """One grant of a tailnet policy file, without its network half: on the bed every node reaches every node.

    src: "*", a node's name, an address, a login name, "tag:x", "autogroup:member", "autogroup:tagged".
    dst: the same, or "svc:x". app: capability name -> list of JSON values.
    """

    src: Sequence[str]
    dst: Sequence[str]
    app: Mapping[str, Sequence[Any]] = field(default_factory=dict)


def kubernetes_grant(src: str | Sequence[str], groups: Sequence[str] = (), dst: str = "*", **rule: Any) -> Grant:
    """The grant that k8sproxy reads: groups to impersonate, and the rest of the rule (recorder, recorderAddrs,
    enforceRecorder, enableEvents) as keyword arguments."""
    if groups:
        rule["impersonate"] = {"groups": list(groups)}
    return Grant([src] if isinstance(src, str) else src, [dst], {CAP_KUBERNETES: [rule]})


class Node:
    """A tailscaled that is logged in, and what leads to it.

    socket: its LocalAPI. socks5: "host:port" of its SOCKS5 server, through which a client dials the tailnet; None
    without one. exec_prefix: words before a command that has to run on this node (network namespaces), else none.
    """

    def __init__(
        self, tailnet: Tailnet, name: str, *, user: str | None, tags: Sequence[str], socks5: bool, namespace: str | None
    ) -> None:
        self._tailnet = tailnet
        self._want_socks5 = socks5
        self._process: Process | None = None
        self._namespace = namespace
        self.name = name
        self.user = user
        self.tags = tuple(tags)
        self.directory = tailnet.directory / name
        self.socket = tailnet.socket_directory / f"{name}.sock"
        self.socks5: str | None = None
        self.tailnet_ip = ""
        self.tailnet_ip6 = ""
        self.dns_name = ""

    @property
    def exec_prefix(self) -> list[str]:
        return ["nsenter", f"--net=/run/netns/{self._namespace}"] if self._namespace else []

    @property
    def process(self) -> Process:
        if self._process is None:
            raise BedError(f"node {self.name} is stopped")
        return self._process

    def start(self) -> None:
        """Start the daemon; log in where it never has. Returns when it runs."""
        t = self._tailnet
        self.directory.mkdir(parents=True, exist_ok=True)
        argv: list[str | Path] = [*self.exec_prefix, t.programs("tailscaled"), "--port=0"]
        argv += [f"--statedir={self.directory}", f"--socket={self.socket}", "--no-logs-no-support"]
        if self._namespace:
            argv.append("--tun=tailscale0")
        else:
            argv.append("--tun=userspace-networking")
            if self._want_socks5:
                # After a restart clients find it where it was.
                argv.append(f"--socks5-server={self.socks5 or '127.0.0.1:0'}")
        self._process = t.processes.start(f"tailscaled-{self.name}", argv, env=t.daemon_env)
        state = self._process.wait_until(self._try_state, "answer on its LocalAPI")
        restarted = bool(self.dns_name)
        if not restarted and state != "Running":
            up = [f"--login-server={t.control_url}", "--auth-key=any", f"--hostname={self.name}"]
            up += ["--accept-dns=false", "--timeout=60s"]
            if self._namespace:
                up += ["--netfilter-mode=off", "--accept-routes"]
            if self.tags:
                up.append(f"--advertise-tags={','.join(self.tags)}")
            self.cli("up", *up)
        self._process.wait_until(lambda: self._try_state() == "Running" or None, "state Running")
        if self._want_socks5 and not self._namespace and not self.socks5:
            self.socks5 = self._process.wait_until(self._socks5_in_log, "SOCKS5 listener")
        self_node = self.status()["Self"]
        self.tailnet_ip, self.tailnet_ip6 = self_node["TailscaleIPs"][:2]
        self.dns_name = self_node["DNSName"].rstrip(".")
        if restarted:
            self._meet_peers()

    def _meet_peers(self) -> None:
        """Open a new WireGuard session to every running peer.

        Peers hold on to the sessions with the daemon that was before, and would lose some seconds over each.
        """
        for peer in list(self._tailnet.nodes.values()):
            if peer is not self and peer._process:
                self.localapi(f"ping?ip={peer.tailnet_ip}&type=TSMP", "POST")

    def stop(self) -> None:
        """End the daemon; its state stays, so that start() brings the same node back."""
        if self._process:
            self._tailnet.processes.stop(self._process)
            self._process = None
        self.socket.unlink(missing_ok=True)

    def cli(self, *args: str) -> str:
        """Run `tailscale ARGS` against this node; its output."""
        argv = [*self.exec_prefix, str(self._tailnet.programs("tailscale")), f"--socket={self.socket}", *args]
        done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        if done.returncode:
            raise BedError(f"tailscale {' '.join(args)} on {self.name}: {done.stdout}\n{self.process.log_tail()}")
        return done.stdout

    def localapi(self, path: str, method: str = "GET", body: Any = None, timeout: float = 30) -> Reply:
        """path is what follows /localapi/v0/."""
        return request(method, self.socket, f"/localapi/v0/{path}", body=body, timeout=timeout)

    def status(self) -> Any:
        return self.localapi("status").json()

    def whois(self, address: str) -> Any | None:
        """WhoIs of "ip" or "ip:port"; None where there is no match."""
        reply = self.localapi(f"whois?addr={urllib.parse.quote(address)}&proto=tcp")
        if reply.status == 404:
            return None
        if not reply.ok:
            raise BedError(f"whois {address} on {self.name}: {reply.status} {reply.body!r}")
        return reply.json()

    def dial(self, host: str, port: int, timeout: float = 30) -> socket.socket:
        """A TCP connection from this node through its SOCKS5 server (RFC 1928) to a tailnet name or address.

        A dial that meets a changed packet filter on its way is refused, though a moment later it would not be: it is
        tried DIALS times before ConnectionRefusedError says so.
        """
        for _ in range(DIALS - 1):
            with contextlib.suppress(ConnectionRefusedError):
                return self._dial(host, port, timeout)
            time.sleep(DIAL_PAUSE)  # there is no event to wait for: a daemon does not tell when a filter counts
        return self._dial(host, port, timeout)

    def _dial(self, host: str, port: int, timeout: float) -> socket.socket:
        if self.socks5 is None:
            raise BedError(f"node {self.name} has no SOCKS5 server")
        proxy_host, proxy_port = self.socks5.rsplit(":", 1)
        sock = socket.create_connection((proxy_host, int(proxy_port)), timeout)
        try:
            sock.sendall(b"\x05\x01\x00")
            if _read_exactly(sock, 2) != b"\x05\x00":
                raise BedError(f"{self.socks5}: not a SOCKS5 server without authentication")
            name = host.encode()
            sock.sendall(b"\x05\x01\x00\x03" + bytes([len(name)]) + name + port.to_bytes(2, "big"))
            reply = _read_exactly(sock, 4)
            if reply[1] != 0:
                raise ConnectionRefusedError(f"SOCKS5 reply {reply[1]} from {self.name} for {host}:{port}")
            length = {1: 4, 4: 16}.get(reply[3]) or _read_exactly(sock, 1)[0]
            _read_exactly(sock, length + 2)
        except BaseException:
            sock.close()
            raise
        return sock

    def _try_state(self) -> str | None:
        try:
            return str(self.localapi("status?peers=false", timeout=5).json()["BackendState"])
        except (OSError, http.client.HTTPException, ValueError):
            return None

    def _socks5_in_log(self) -> str | None:
        for line in self.process.log.read_text(errors="replace").splitlines():
            _, found, address = line.partition("SOCKS5 listening on ")
            if found:
                return address.strip()
        return None

    def __repr__(self) -> str:
        return f"Node({self.name}, {self.dns_name}, {self.tailnet_ip})"


def _read_exactly(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = sock.recv(count - len(data))
        if not more:
            raise ConnectionResetError("the SOCKS5 server closed the connection")
        data += more
    return data


class Tailnet:
    """The control server and its nodes."""

    def __init__(
        self,
        directory: Path,
        processes: Processes,
        programs: Programs,
        *,
        address: str = "127.0.0.1",
        domain: str = "tail.example.ts.net",
        recorder_port: int = 80,
    ) -> None:
        self.directory = directory
        self.processes = processes
        self.programs = programs
        self.domain = domain
        self.nodes: dict[str, Node] = {}
        self._lock = threading.Lock()
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self.socket_directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        if len(str(directory)) + 32 > MAX_SOCKET_PATH:
            self._temporary = tempfile.TemporaryDirectory(prefix="bed-")
            self.socket_directory = Path(self._temporary.name)
        process = processes.start(
            "control",
            [programs("control"), "--listen", address, "--domain", domain, "--recorder-port", str(recorder_port)],
            stdout=subprocess.PIPE,
            abrupt=True,
        )
        assert process.popen.stdout
        line = process.popen.stdout.readline()
        if not line:
            raise BedError(f"control did not start:\n{process.log_tail()}")
        urls = json.loads(line)
        self.control_url: str = urls["control"]
        self.admin_url: str = urls["admin"]
        # Who signs what GET /localapi/v0/cert/DOMAIN gives.
        self.ca_path = directory / "acme-ca.crt"
        self.ca_path.write_text(urls["acme_ca"])
        self.daemon_env = {
            **DAEMON_ENV,
            "TS_DEBUG_ACME_DIRECTORY_URL": urls["acme"],
            "SSL_CERT_FILE": str(self.ca_path),  # a daemon takes no certificate from its store that it cannot verify
        }

    def add_node(
        self,
        name: str,
        *,
        user: str | None = None,
        tags: Sequence[str] = (),
        socks5: bool = True,
        namespace: str | None = None,
    ) -> Node:
        """Start a daemon and log it in as a user, or with tags; NAME@example.com where neither is given."""
        with self._lock:
            if name in self.nodes:
                raise BedError(f"there is a node {name} already")
            if tags and user:
                raise BedError("a node has tags or a user, not both")
            node = Node(self, name, user=user, tags=tags, socks5=socks5, namespace=namespace)
            self.nodes[name] = node
        if user:
            self._admin("PUT", f"/nodes/{name}", {"user": user})
        node.start()
        return node

    def set_grants(self, grants: Sequence[Grant | Mapping[str, Any]], *, quiet: bool = False) -> None:
        """Replace all grants: an empty list takes every capability away.

        It shows in WhoIs some milliseconds after it was sent; this returns SETTLED later, when every daemon goes by it.
        quiet sends it as a packet filter alone, of which a daemon's bus tells its watchers nothing.
        """
        body = [asdict(g) if isinstance(g, Grant) else dict(g) for g in grants]
        self._admin("PUT", "/grants?quiet=true" if quiet else "/grants", body)
        time.sleep(SETTLED)

    def grants(self) -> Any:
        return self._admin("GET", "/grants")

    def list_nodes(self) -> Any:
        """What the control server knows: name, dns_name, id, stable_id, user, tags, addresses, online."""
        return self._admin("GET", "/nodes")

    def set_node(
        self, name: str, *, user: str | None = None, key_expiry: str | None = None, removed: bool = False
    ) -> None:
        """Change what a node's peers see of it: its user, its key's expiry (RFC 3339), or that it is gone."""
        body = {"user": user, "key_expiry": key_expiry, "removed": removed}
        self._admin("PUT", f"/nodes/{name}", {k: v for k, v in body.items() if v})

    def set_service(self, name: str, address: str, hosts: Sequence[str]) -> None:
        """A Tailscale Service "svc:x" at a tailnet address of its own, such as 100.100.1.1.

        Clients are sent to the first node that hosts selects and that is online; advertising is not looked at. The
        host's serve config (Node.localapi("serve-config", "POST", ..)) says what answers there.
        """
        self._admin("PUT", f"/services/{name}", {"address": address, "hosts": list(hosts)})

    def set_recorder_port(self, port: int) -> None:
        """The port put into recorderAddrs where a grant names recorders by tag."""
        self._admin("PUT", "/recorder-port", port)

    def close(self) -> None:
        if self._temporary:
            with contextlib.suppress(OSError):
                self._temporary.cleanup()

    def _admin(self, method: str, path: str, body: Any = None) -> Any:
        reply = request(method, self.admin_url, path, body=body)
        if not reply.ok:
            raise BedError(f"{method} {path}: {reply.status} {reply.body.decode(errors='replace')}")
        return reply.json()
