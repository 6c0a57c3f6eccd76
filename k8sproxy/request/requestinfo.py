"""What a request is about, in the API server's own words.

The rules are those of the API server's RequestInfoFactory (k8s.io/apiserver, pkg/endpoints/request/requestinfo.go at
v1.36), for the prefixes `api` (whose paths name no group) and `apis`: logs, metrics and events that use these words
agree with RBAC and with the audit log of the cluster. Beside them stands `session`, which tells the ways to a shell
(classify).

One thing is left out: where a list's other options don't parse (`limit=x`), the API server forgets the name in its
fieldSelector. It then refuses the request, and nothing here depends on that name.

Paths that have more than one reading are refused (target), and so is a slash at the end of a resource's path, which
the API server takes off: `pods/web/exec/` is exec to it. Paths that name no resource may end in one (`/apis/`,
`/version/`), and what is behind a proxy subresource does as it likes. So is a session whose query has a second reading
(query): the command stands in it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache

from k8sproxy.common.errors import ProtocolError
from k8sproxy.request import query as queries
from k8sproxy.request.classify import STREAMING, SessionKind, classify
from k8sproxy.request.foreign import is_foreign_path
from k8sproxy.request.target import split_target

# Entries, and characters of a target and of a method or upgrade: an entry is about 2 KiB, or 4 KiB at the longest
# target, so the cache stays under 16 MiB whatever clients send. Paths that repeat (polls, discovery, leases) are short;
# exec's long queries don't repeat.
CACHE_ENTRIES = 4096
CACHED_TARGET = 512
CACHED_TOKEN = 32

_VERBS = {"GET": "get", "HEAD": "get", "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
_PROXIED = frozenset(("pods", "services", "nodes"))
_WITH_SELECTORS = frozenset(("list", "watch", "deletecollection"))
_TERM = re.compile(r"(?:[^\\,]|\\.|\\\Z)+", re.DOTALL)
_OPERATOR = re.compile(r"(.*?)(!=|==|=)(.*)", re.DOTALL)
_VALUE = re.compile(r"(?:[^\\,=]|\\[\\,=])*", re.DOTALL)
_VALUE_ESCAPE = re.compile(r"\\(.)")


@dataclass(frozen=True, slots=True)
class RequestInfo:
    """Kubernetes' RequestInfo of one request (same names, in Python's case), its query and what it may lead to.

    method: as the client sent it. path: decoded. verb: get, list, watch, create, update, patch, delete,
    deletecollection, proxy, or "" for a resource; the method in lower case otherwise. parts: the path's segments,
    decoded, from the resource on. query: as the client sent it, without the `?`. upgrade: the Upgrade header's value in
    lower case ("" where there is none). foreign: what answers is not the API server itself (policy.foreign). root: the
    path as it was sent, up to a proxy subresource and with it, "" for others.
    """

    method: str
    path: str
    query: str
    upgrade: str
    verb: str
    session: SessionKind = SessionKind.NONE
    is_resource_request: bool = False
    api_prefix: str = ""
    api_group: str = ""
    api_version: str = ""
    namespace: str = ""
    resource: str = ""
    subresource: str = ""
    name: str = ""
    parts: tuple[str, ...] = ()
    field_selector: str = ""
    label_selector: str = ""
    # Not Kubernetes': derived from the rest.
    foreign: bool = field(default=False, compare=False)
    root: str = field(default="", compare=False)


def request_info(method: str, target: str, upgrade: str = "") -> RequestInfo:
    """The RequestInfo of a request line and its Upgrade header's value.

    target: origin-form, one character a byte. Raises ProtocolError where the target is not canonical (400) or is too
    long (414), and for a path of which the API server can't tell the resource either. About 3 us, 0.3 us where the same
    was asked before.
    """
    if upgrade:
        upgrade = upgrade.strip(" \t").lower()
    if len(target) <= CACHED_TARGET and len(method) <= CACHED_TOKEN and len(upgrade) <= CACHED_TOKEN:
        return _cached(method, target, upgrade)
    return _request_info(method, target, upgrade)


def _request_info(method: str, target: str, upgrade: str) -> RequestInfo:
    path, query, plain = split_target(target)
    parts = tuple(path.strip("/").split("/"))
    prefix = parts[0]
    # /api/VERSION/RESOURCE, /apis/GROUP/VERSION/RESOURCE: what is shorter is discovery.
    start = 2 if prefix == "api" else 3
    if len(parts) <= start or prefix not in ("api", "apis"):
        session = SessionKind.UNKNOWN_UPGRADE if upgrade else SessionKind.NONE
        # The API server keeps the prefix of a path of three parts, /apis/apps/v1.
        known = prefix if prefix == "apis" and len(parts) == 3 else ""
        foreign = is_foreign_path(path, (), resource=False, verb="", subresource="")
        return RequestInfo(method, path, query, upgrade, method.lower(), session, api_prefix=known, foreign=foreign)

    core = prefix == "api"
    verb = parts[start]
    by_path = verb == "watch" or verb == "proxy"
    rest = parts[start:]
    if by_path:
        rest = rest[1:]
        if not rest:
            raise ProtocolError("the path names a verb but no resource")
    else:
        verb = _VERBS.get(method, "")

    namespace = ""
    if rest[0] == "namespaces" and len(rest) > 1:
        namespace = rest[1]
        if len(rest) > 2 and rest[2] != "status" and rest[2] != "finalize":
            rest = rest[2:]

    resource = rest[0]
    name = rest[1] if len(rest) > 1 else ""
    subresource = rest[2] if len(rest) > 2 and verb != "proxy" else ""

    # Resources and subresources of the core group are words; "exec " and "exec;a=b" are names of nothing there, and a
    # reader on the way that trims or cuts them would see exec.
    if core and not ((words := resource + subresource).isascii() and words.isalnum()):
        raise ProtocolError("the path has a resource or subresource with a name that is not valid")
    if path[-1] == "/" and not (core and subresource == "proxy" and resource in _PROXIED):
        raise ProtocolError("the path of a resource ends in a slash")

    field_selector = label_selector = ""
    if not name:
        options = queries.values(query)
        if verb == "get":
            verb = "watch" if queries.switch(options, "watch") else "list"
            name = _exact_name(queries.first(options, "fieldSelector"))
        elif verb == "delete":
            verb = "deletecollection"
        if not by_path and verb in _WITH_SELECTORS:
            field_selector = queries.first(options, "fieldSelector")
            label_selector = queries.first(options, "labelSelector")

    foreign, root = False, ""
    if len(rest) > 2 or verb == "proxy":
        foreign = is_foreign_path(path, rest, resource=True, verb=verb, subresource=subresource)
        if foreign and subresource == "proxy":
            # Up to here the target is canonical: as many segments as parts.
            root = "/".join(target.partition("?")[0].split("/")[: len(parts) - len(rest) + 4])
    session = SessionKind.NONE
    if subresource or upgrade or verb == "proxy":
        session = classify(
            core=core,
            verb=verb,
            resource=resource,
            name=name,
            subresource=subresource,
            behind=rest[3:],
            plain=plain,
            upgrade=upgrade,
        )
        if session in STREAMING and (why := queries.second_reading(query)) is not None:
            raise ProtocolError(f"the query of this session can be read in two ways: it {why}")
    return RequestInfo(
        method,
        path,
        query,
        upgrade,
        verb,
        session,
        True,
        prefix,
        "" if core else parts[1],
        parts[start - 1],
        namespace,
        resource,
        subresource,
        name,
        rest,
        field_selector,
        label_selector,
        foreign,
        root,
    )


_cached = lru_cache(CACHE_ENTRIES)(_request_info)


def _exact_name(selector: str) -> str:
    """The name that a field selector asks for (fields.Selector.RequiresExactMatch of metadata.name), "" where none."""
    if "metadata.name" not in selector:
        return ""
    name = ""
    # Terms are sorted by the API server before they are read, so the first of several names is the smallest.
    for term in sorted(_TERM.findall(selector), key=str.encode, reverse=True):
        split = _OPERATOR.fullmatch(term)
        if split is None or _VALUE.fullmatch(split[3]) is None:
            return ""
        if split[1] == "metadata.name" and split[2] != "!=":
            name = _VALUE_ESCAPE.sub(r"\1", split[3])
    # apimachinery api/validation/path, IsPathSegmentName
    return "" if name in (".", "..") or "/" in name or "%" in name else name
