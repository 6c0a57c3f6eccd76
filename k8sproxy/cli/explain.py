"""`k8sproxy explain`: what the proxy makes of a peer, and of a request of theirs, step by step.

It asks the same daemon and runs the same policy as the data plane, and contacts no API server: whether the person who
is impersonated may do it is RBAC's question there.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from k8sproxy.access.grants import GrantSettings
    from k8sproxy.common.tailnet.peer import Peer
    from k8sproxy.config import Config, Listen

# Kubernetes' verbs for requests with a body or a change; get, list, watch and unknown ones are GET.
_METHODS = {
    "get": "GET", "list": "GET", "watch": "GET", "create": "POST", "update": "PUT", "patch": "PATCH",
    "delete": "DELETE", "deletecollection": "DELETE", "post": "POST", "put": "PUT", "head": "HEAD",
    "options": "OPTIONS",
}  # fmt: skip


@click.command("explain", short_help="Explain who a peer is and whether a request is let in.")
@click.option("--peer", "address", required=True, metavar="IP[:PORT]", help="The client's tailnet address.")
@click.option("--path", "target", metavar="PATH", help="A request's path, with its query: /api/v1/namespaces/a/pods.")
@click.option(
    "--verb", metavar="VERB", default="get", show_default=True,
    type=click.Choice(sorted(_METHODS), case_sensitive=False),
    help="The request's verb, in Kubernetes' words or HTTP's.",
)  # fmt: skip
@click.option("--upgrade", default="", metavar="PROTOCOL", help="The request's Upgrade header: websocket, SPDY/3.1.")
@click.option(
    "--listen", "listen_address", metavar="ADDRESS", help="Which listener of the configuration (default: the first)."
)
@config_option
@socket_option
@service_option
@json_option
def command(
    address: str,
    target: str | None,
    verb: str,
    upgrade: str,
    listen_address: str | None,
    config_path: Path | None,
    socket: Path | None,
    service: str | None,
    as_json: bool,
) -> None:
    """Say who a peer is, which rules count, whom they are impersonated as, and what becomes of a request.

    Exit code 1 if the proxy would refuse. The API server is not asked.
    """
    address = parse_address(address)
    config = read_config(config_path, files=False) if config_path is not None else None
    listen = _listener(config, listen_address)
    passthrough = config is not None and listen is not None and config.cluster_of(listen).mode == "passthrough"
    if service is None and listen is not None:
        service = listen.service
    peer = ask_whois(choose_socket(config, socket), address, service)
    request = (_METHODS[verb.lower()], target, upgrade) if target is not None else None
    explanation = explain(peer, request, passthrough=passthrough, settings=grant_settings(config))
    if as_json:
        print_json(explanation)
    else:
        click.echo("\n".join(_lines(peer, explanation)))
    sys.exit(1 if explanation["refusal"] is not None else 0)


def _listener(config: Config | None, address: str | None) -> Listen | None:
    if config is None:
        if address is not None:
            raise click.BadParameter("needs --config", param_hint="--listen")
        return None
    if address is None:
        return config.listen[0]
    for listen in config.listen:
        if str(listen.address) == address:
            return listen
    known = ", ".join(str(listen.address) for listen in config.listen)
    raise click.BadParameter(f"no listener has this address (the listeners: {known})", param_hint="--listen")


def explain(
    peer: Peer,
    request: tuple[str, str, str] | None,
    *,
    passthrough: bool = False,
    settings: GrantSettings | None = None,
) -> dict[str, Any]:
    """The policy's steps, as JSON values. request: method, target, upgrade. settings: the default ones where None.

    Keys: peer, notes (what looks misspelt and refuses nothing), rules, impersonation (null in passthrough mode),
    request, recording, events, eventRecorderAddrs, refusal. What comes after the step that refuses is null.
    """
    from time import time

    from k8sproxy.access.caller import tailnet_caller
    from k8sproxy.access.decision import Snapshot, authorize, decide
    from k8sproxy.access.grants import DEFAULT_SETTINGS, counted_rules
    from k8sproxy.access.ownrules import own_rules
    from k8sproxy.access.rewrite import check_offer
    from k8sproxy.common.errors import ProtocolError, Refusal
    from k8sproxy.protocol.http1 import parse_fields
    from k8sproxy.request.classify import STREAMING
    from k8sproxy.request.requestinfo import request_info
    from k8sproxy.sessions.words import unavailable

    found: dict[str, Any] = {"peer": peer_values(peer)}
    found |= dict.fromkeys(
        ("rules", "impersonation", "request", "recording", "events", "eventRecorderAddrs", "refusal")
    )
    found["mode"] = "passthrough" if passthrough else "impersonate"
    settings = settings or DEFAULT_SETTINGS
    found["notes"] = grant_notes(peer, settings)
    try:
        found["rules"] = [
            {
                "capability": rule.capability,
                "groups": list(rule.groups),
                "recorder": list(rule.recorder_tags),
                "recorderAddrs": list(rule.recorders),
                "enforceRecorder": rule.enforce_recorder,
                "enableEvents": rule.enable_events,
                "unknownFields": [field.short for field in rule.unknown],
            }
            for rule in counted_rules(peer)
        ] + [
            {"capability": rule.capability, "recording": rule.recording.value if rule.recording else None}
            for rule in own_rules(peer, settings.capability_domain)
        ]
        authority = authorize(tailnet_caller(peer), Snapshot(settings, impersonate=not passthrough))
        identity = authority.impersonation
        if identity is not None:
            found["impersonation"] = {"user": identity.user, "groups": list(identity.groups)}
        found["events"] = authority.grants.enable_events
        found["eventRecorderAddrs"] = list(authority.grants.recorders) if authority.grants.enable_events else []
        if request is None:
            return found
        method, path, upgrade = request
        offer = b"Connection: Upgrade\r\nUpgrade: " + upgrade.encode() + b"\r\n" if upgrade else b""
        fields = parse_fields(b"Host: k8sproxy\r\n" + offer + b"\r\n", max_count=3)
        info = request_info(method, path, fields.upgrade)
        found["request"] = {
            "method": info.method,
            "path": info.path,
            "verb": info.verb,
            "apiGroup": info.api_group,
            "apiVersion": info.api_version,
            "namespace": info.namespace,
            "resource": info.resource,
            "subresource": info.subresource,
            "name": info.name,
            "session": info.session.value,
        }
        decision = decide(authority, info, time())
        if info.session in STREAMING:
            check_offer(fields)
        demand = decision.recording
        if demand is not None:
            found["recording"] = {
                "recorderAddrs": list(demand.recorders),
                "failureMode": demand.level.value,
                "session": demand.session.value,
            }
            if demand.level.enforced and not demand.recorders:
                raise unavailable(demand.level, ())
    except Refusal as refusal:
        found["refusal"] = {"status": refusal.status, "cause": refusal.cause, "message": refusal.message}
    except ProtocolError as error:
        found["refusal"] = {"status": error.status, "cause": "bad_request", "message": error.message}
    return found


def _lines(peer: Peer, found: dict[str, Any]) -> list[str]:
    lines = peer_lines(peer)
    lines.append("rules     " + ("none" if found["rules"] == [] else "" if found["rules"] else "not readable"))
    for number, rule in enumerate(found["rules"] or (), 1):
        lines.append(f"  {number}. {printable(_rule(rule))}")
    lines += [f"note      {printable(note)}" for note in found["notes"]]
    if found["mode"] == "passthrough":
        lines.append("as        the client's own credentials (passthrough)")
    elif found["impersonation"] is not None:
        lines.append(f"as        {printable(found['impersonation']['user'])}")
        lines.append(f"groups    {printable(', '.join(found['impersonation']['groups'])) or 'none'}")
    if found["events"]:
        told = ", ".join(found["eventRecorderAddrs"])
        lines.append(f"events    sent to {told}" if told else "events    sent to no recorder: none has an address")
    request = found["request"]
    if request is not None:
        what = request["resource"] or "a path that names no resource"
        what += f"/{request['subresource']}" if request["subresource"] else ""
        where = f" in {request['namespace']}" if request["namespace"] else ""
        lines.append(f"request   {printable(request['method'])} {printable(request['path'])}")
        lines.append(f"          {printable(request['verb'])} {printable(what + where)}")
        if found["refusal"] is None:
            lines.append(f"recorded  {_recorded(found['recording'])}")
    if found["refusal"] is not None:
        lines.append(f"refused   {found['refusal']['status']}: {printable(found['refusal']['message'])}")
    else:
        lines.append("let in    yes; the API server's RBAC decides what they may do there")
    return lines


def _rule(rule: dict[str, Any]) -> str:
    if "groups" not in rule:
        return f"recording {rule['recording'] or '(not set)'} [{rule['capability']}]"
    parts = [f"groups {', '.join(rule['groups']) or '(none)'}"]
    if rule["recorder"] or rule["recorderAddrs"]:
        parts.append(f"recorder {', '.join(rule['recorder'])} at {', '.join(rule['recorderAddrs']) or 'no address'}")
    parts += [name for name in ("enforceRecorder", "enableEvents") if rule[name]]
    return f"{'; '.join(parts)} [{rule['capability']}]"


def _recorded(recording: dict[str, Any] | None) -> str:
    if recording is None:
        return "no"
    where = ", ".join(recording["recorderAddrs"])
    if not where:
        return "no: the grant asks for it, and no recorder has an address; the session goes on"
    without = "goes on unrecorded" if recording["failureMode"] == "open" else "is refused"
    if recording["failureMode"] == "acknowledged":
        without += ", and no output is shown before the recorder has confirmed it"
    return f"yes, by the first that takes it of {where}; without one the session {without}"
