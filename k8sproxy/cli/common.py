"""What several commands share: how they find the configuration, how they ask tailscaled, how they show a peer."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from k8sproxy.common import cli
from k8sproxy.common.cli import EXISTING_FILE, Failed

if TYPE_CHECKING:
    from k8sproxy.access.grants import GrantSettings
    from k8sproxy.common.tailnet.peer import Peer
    from k8sproxy.config import Config

config_option = cli.config_option("K8SPROXY_CONFIG")
socket_option = click.option(
    "--socket",
    type=EXISTING_FILE,
    metavar="PATH",
    help="tailscaled's socket (default: the configuration's, or the usual one).",
)
service_option = click.option(
    "--service", metavar="svc:NAME", help="Read the peer's grants on this Tailscale Service (default: on this node)."
)


def read_config(path: Path, *, files: bool = True) -> Config:
    """The configuration in `path`. Raises Misconfigured."""
    from k8sproxy.config import load

    return cli.read_config(partial(load, files=files), path)


def choose_socket(config: Config | None, socket: Path | None) -> Path:
    """The daemon's socket: the one that is asked for, else the configuration's, else the usual one."""
    if socket is not None:
        return socket
    from k8sproxy.config import Tailnet

    return config.tailnet.socket if config is not None else Tailnet().socket


def ask_whois(socket: Path, address: str, service: str | None) -> Peer:
    """Who is at `address` ("IP:PORT"), as tailscaled says. Raises Failed."""
    from k8sproxy.common.errors import Refusal
    from k8sproxy.common.tailnet.localapi import LocalAPI

    async def ask() -> Peer:
        api = LocalAPI(str(socket))
        try:
            return await api.whois(address, service=service)
        finally:
            await api.aclose()

    try:
        return asyncio.run(ask())
    except Refusal as refusal:
        raise Failed(refusal.message) from None


def peer_values(peer: Peer) -> dict[str, object]:
    """A peer as JSON values, in WhoIs's words."""
    return {
        "address": peer.address,
        "node": peer.node_name.removesuffix("."),
        "stableID": peer.stable_id,
        "tags": list(peer.tags),
        "userID": peer.user_id,
        "loginName": peer.login_name,
        "displayName": peer.display_name,
        "capabilities": {name: list(values) for name, values in peer.capabilities.items()},
    }


def peer_lines(peer: Peer) -> list[str]:
    """A peer for people."""
    lines = [f"peer      {printable(peer.display)}", f"address   {printable(peer.address)}"]
    lines.append(f"node      {printable(peer.node_name.removesuffix('.'))} ({printable(peer.stable_id)})")
    if peer.is_tagged:
        lines.append(f"tags      {printable(', '.join(peer.tags))}")
    else:
        lines.append(f"user      {printable(peer.login_name)} ({printable(peer.display_name)})")
    return lines


def grant_settings(config: Config | None) -> GrantSettings:
    """How a configuration has grants read; without one, as by default."""
    from k8sproxy.access.grants import DEFAULT_SETTINGS

    return config.tailnet.grants if config is not None else DEFAULT_SETTINGS


def grant_notes(peer: Peer, settings: GrantSettings) -> list[str]:
    """What in a peer's grants says nothing to the proxy and was probably meant to. Nothing of rules that are refused:
    `explain` says why."""
    from k8sproxy.access.grants import counted_rules, misspelt_capabilities
    from k8sproxy.common.errors import Refusal

    try:
        unknown = [str(field) for rule in counted_rules(peer) for field in rule.unknown]
    except Refusal:
        unknown = []
    return [*unknown, *misspelt_capabilities(peer, settings.capability_domain)]


def printable(text: str) -> str:
    """Text from elsewhere, for a terminal: no control characters."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def parse_address(text: str) -> str:
    """ "IP:PORT", "[IPv6]:PORT" or a bare IP (port 0), in WhoIs's form. Raises click.BadParameter."""
    import ipaddress

    from k8sproxy.common.sockets import join_address

    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not colon or (":" in host and not bracketed):  # a bare address
        host, port, bracketed = text, "0", False
    try:
        address = ipaddress.ip_address(host[1:-1] if bracketed else host)
    except ValueError:
        address = None
    if address is None or not (port.isascii() and port.isdigit() and int(port) <= 65535):
        raise click.BadParameter("must be an IP address, IP:PORT or [IPv6]:PORT")
    return join_address(str(address), int(port))
