"""What every program that listens needs of the system: a listening socket on one address, its name, and open files."""

from __future__ import annotations

import contextlib
import socket

# Connections that the kernel holds for us while we are busy; the kernel's own limit (somaxconn) is 4096 by default.
_BACKLOG = 1024


def join_address(host: str, port: int) -> str:
    """An address as people and other programs read it: "HOST:PORT", or "[IPv6]:PORT"."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def bind(host: str, port: int) -> socket.socket:
    """A listening socket on one address. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((host, port))
        sock.listen(_BACKLOG)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def raise_file_limit() -> int:
    """Raise the soft limit of open files to the hard one: a connection takes two. Returns the limit in force."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            return hard
    return soft
