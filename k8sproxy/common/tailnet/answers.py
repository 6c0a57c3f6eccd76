"""What the LocalAPI's answers say: JSON or PEM in, our own values out, or `Malformed`.

Only the fields in use are read, strictly (a number where a name belongs is no answer, and neither is a name that is
missing); what else an answer holds is skipped. Types: tailcfg.{Node,UserProfile,PeerCapMap}, apitype.WhoIsResponse and
ipnstate.Status of tailscale.com v1.102.5. Pure: no I/O.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from k8sproxy.common.tailnet.peer import Peer, Repeated

_PEM = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----\r?\n.+?-----END \1-----\r?\n?", re.DOTALL)


class Malformed(Exception):
    """An answer that is none; the message says why, without repeating any of it."""


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """What the daemon says of its own node (ipnstate.Status).

    backend_state: "Running", or why not ("NeedsLogin", "Starting", "Stopped", ..). name: full, with the final dot;
    empty while it is not known. addresses: the node's tailnet addresses as text. cert_domains: the names it may have
    certificates for. tun: whether the kernel has those addresses (False: a userspace daemon).
    """

    backend_state: str
    stable_id: str
    name: str
    addresses: tuple[str, ...]
    cert_domains: tuple[str, ...]
    tun: bool


@dataclass(frozen=True, slots=True)
class CertificatePair:
    """A private key and its certificate chain, the leaf first, in PEM. The key stays out of every repr."""

    key_pem: bytes = field(repr=False)
    chain_pem: bytes


class _Answer(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


class _Node(_Answer):  # tailcfg.Node
    stable_id: str = Field(alias="StableID", min_length=1)
    name: str = Field(alias="Name")
    tags: list[str] | None = Field(alias="Tags", default=None)
    addresses: list[str] = Field(alias="Addresses", min_length=1)  # prefixes: "100.64.0.1/32"


class _UserProfile(_Answer):  # tailcfg.UserProfile
    id: int = Field(alias="ID")
    login_name: str = Field(alias="LoginName")
    display_name: str = Field(alias="DisplayName", default="")


class _WhoIs(_Answer):  # apitype.WhoIsResponse
    node: _Node = Field(alias="Node")
    user: _UserProfile = Field(alias="UserProfile")
    capabilities: dict[str, list[Any] | None] | None = Field(alias="CapMap", default=None)


class _Self(_Answer):  # ipnstate.PeerStatus
    stable_id: str = Field(alias="ID", default="")
    name: str = Field(alias="DNSName", default="")


class _Status(_Answer):  # ipnstate.Status
    backend_state: str = Field(alias="BackendState")
    tun: bool = Field(alias="TUN", default=False)
    addresses: list[str] | None = Field(alias="TailscaleIPs", default=None)
    cert_domains: list[str] | None = Field(alias="CertDomains", default=None)
    node: _Self | None = Field(alias="Self", default=None)


_Model = TypeVar("_Model", bound=_Answer)


def read_whois(body: bytes, asked: str) -> Peer:
    """The answer to WhoIs of the address `asked`.

    The peer's address is the one asked for where it is the node's own. Where it is not (the daemon's end of a
    connection that it forwards to loopback), it is the node's first. The same answer gives the same object.
    """
    ip = asked.rpartition(":")[0].strip("[]")
    return _known_whois(body, ip) if len(body) <= _KEPT_ANSWER else _read_whois(body, ip)


def _read_whois(body: bytes, ip: str) -> Peer:
    answer = _read(_WhoIs, body)
    addresses = [address.partition("/")[0] for address in answer.node.addresses]
    return Peer(
        address=ip if ip in addresses else addresses[0],
        stable_id=answer.node.stable_id,
        node_name=answer.node.name,
        tags=tuple(answer.node.tags or ()),
        user_id=answer.user.id,
        login_name=answer.user.login_name,
        display_name=answer.user.display_name,
        capabilities=_capabilities(body) if answer.capabilities else {},
    )


# Every new connection through a userspace daemon asks anew, and gets the same bytes as the one before. Bytes of an
# answer, and answers: 4 MiB at most.
_KEPT_ANSWER = 16 * 1024
_known_whois = lru_cache(256)(_read_whois)


def _capabilities(body: bytes) -> dict[str, tuple[object, ...]]:
    """The CapMap of an answer that has one, read once more: pydantic passes over all but the last of equal members."""
    answer = json.loads(body, object_pairs_hook=_members)
    found = answer["CapMap"] if isinstance(answer, dict) else answer
    if not isinstance(found, dict):
        raise Malformed("CapMap: the same name twice")
    return {name: tuple(values or ()) for name, values in found.items()}


def _members(pairs: list[tuple[str, object]]) -> dict[str, object] | Repeated:
    members = dict(pairs)
    return members if len(members) == len(pairs) else Repeated()


def read_status(body: bytes) -> NodeStatus:
    """The answer to status."""
    status = _read(_Status, body)
    node = status.node or _Self()
    return NodeStatus(
        backend_state=status.backend_state,
        stable_id=node.stable_id,
        name=node.name,
        addresses=tuple(status.addresses or ()),
        cert_domains=tuple(status.cert_domains or ()),
        tun=status.tun,
    )


def read_pair(body: bytes) -> CertificatePair:
    """The answer to cert with type=pair: the key, then the chain."""
    keys: list[bytes] = []
    chain: list[bytes] = []
    for block in _PEM.finditer(body):
        (keys if block[1].endswith(b"PRIVATE KEY") else chain).append(block[0])
    if len(keys) != 1 or not chain:
        raise Malformed("not one key and its certificates in PEM")
    return CertificatePair(key_pem=keys[0], chain_pem=b"".join(chain))


def _read(model: type[_Model], body: bytes) -> _Model:
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise Malformed(f"{where[:100]}: {first['type']}") from None
