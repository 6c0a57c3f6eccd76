"""`k8sproxy whois`: what tailscaled says of a connection's other end."""

from __future__ import annotations

import json
from pathlib import Path

import click

from k8sproxy.cli.common import (
    ask_whois,
    choose_socket,
    config_option,
    grant_notes,
    grant_settings,
    parse_address,
    peer_lines,
    peer_values,
    printable,
    read_config,
    service_option,
    socket_option,
)
from k8sproxy.common.cli import json_option, print_json


@click.command("whois", short_help="Print who is at an address of the tailnet.")
@click.argument("address", metavar="IP:PORT")
@config_option
@socket_option
@service_option
@json_option
def command(address: str, config_path: Path | None, socket: Path | None, service: str | None, as_json: bool) -> None:
    """Say who is at IP:PORT and what the tailnet lets them do here. Exit code 1 if nobody is known there."""
    address = parse_address(address)
    config = read_config(config_path, files=False) if config_path is not None else None
    peer = ask_whois(choose_socket(config, socket), address, service)
    notes = grant_notes(peer, grant_settings(config))
    if as_json:
        print_json(peer_values(peer) | {"notes": notes})
        return
    lines = peer_lines(peer)
    for name, values in peer.capabilities.items():
        lines.append(f"capability {printable(name)}")
        lines += [f"          {json.dumps(value)}" for value in values]
    lines += [f"note      {printable(note)}" for note in notes]
    click.echo("\n".join(lines))
