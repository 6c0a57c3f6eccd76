"""Where to listen: "tailnet:443", "127.0.0.1:8443", "[::1]:8443", "unix:/run/k8sproxy/admin.sock".

Only addresses, never names: a name that resolves to something else after an edit of /etc/hosts would move a listener
off loopback, where what protects it (facts that hold for loopback alone) no longer holds.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from k8sproxy.common.sockets import join_address
from k8sproxy.common.tailnet.peer import is_tailnet

TAILNET = "tailnet"


@dataclass(frozen=True, slots=True)
class ListenAddress:
    """host: an IP address as text, or "tailnet" for every tailnet address of this node. port: 0 is any free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return join_address(self.host, self.port)

    @property
    def is_tailnet(self) -> bool:
        """Whether it can be reached over the tailnet alone: "tailnet" or an address that a tailnet gives out."""
        return self.host == TAILNET or is_tailnet(ipaddress.ip_address(self.host))

    @property
    def is_loopback(self) -> bool:
        """Whether it can be reached from this machine alone (and, with a userspace daemon, from the tailnet)."""
        return self.host != TAILNET and ipaddress.ip_address(self.host).is_loopback

    @property
    def is_dialled_from_tailnet(self) -> bool:
        """Whether it is one of the two loopback addresses to which a userspace daemon forwards what peers dial
        (netstack.acceptTCP)."""
        return self.host in ("127.0.0.1", "::1")

    def overlaps(self, other: ListenAddress) -> bool:
        """Whether both cannot be listened on at once: the same port on the same address, or one on all of them."""
        if self.port != other.port or self.port == 0:
            return False
        if self.host == other.host:
            return True
        hosts = {self.host, other.host}
        if TAILNET in hosts:
            (rest,) = hosts - {TAILNET}
            address = ipaddress.ip_address(rest)
            return address.is_unspecified or is_tailnet(address)
        one, two = ipaddress.ip_address(self.host), ipaddress.ip_address(other.host)
        return one.version == two.version and (one.is_unspecified or two.is_unspecified)


@dataclass(frozen=True, slots=True)
class AdminAddress:
    """Exactly one of both: tcp (never "tailnet") or the path of a unix socket."""

    tcp: ListenAddress | None = None
    unix: Path | None = None

    def __str__(self) -> str:
        return f"unix:{self.unix}" if self.unix else str(self.tcp)


def parse_listen_address(value: object) -> ListenAddress:
    """Raises ValueError with a message for the reader."""
    wanted = 'must be "tailnet:PORT", "IP:PORT" or "[IPv6]:PORT"'
    host, colon, port = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    if not colon or not (port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= 65535):
        raise ValueError(wanted)
    if host == TAILNET:
        return ListenAddress(TAILNET, int(port))
    if not host:
        raise ValueError(f"{wanted}; every address of the machine is 0.0.0.0 or [::]")
    bracketed = host.startswith("[") and host.endswith("]")
    try:
        address = ipaddress.ip_address(host[1:-1] if bracketed else host)
    except ValueError:
        raise ValueError(f"{wanted}, not a host name") from None
    if bracketed is not (address.version == 6):
        raise ValueError(wanted)
    if address.version == 6 and address.scope_id:
        raise ValueError("must have no zone (%...)")
    return ListenAddress(str(address), int(port))


def parse_admin_address(value: object) -> AdminAddress:
    """Raises ValueError with a message for the reader. A unix path is not made absolute here."""
    if isinstance(value, str) and value.startswith("unix:"):
        path = value.removeprefix("unix:")
        # sun_path holds 108 bytes on Linux, the final NUL included (unix(7)).
        if not path or "\0" in path or len(path.encode()) > 107:
            raise ValueError("must be unix: and a path of 1 to 107 bytes")
        return AdminAddress(unix=Path(path))
    try:
        address = parse_listen_address(value)
    except ValueError:
        raise ValueError('must be "IP:PORT", "[IPv6]:PORT" or "unix:/PATH"') from None
    if address.is_tailnet:
        raise ValueError("must not be an address of the tailnet: use loopback, another network or a unix socket")
    return AdminAddress(tcp=address)
