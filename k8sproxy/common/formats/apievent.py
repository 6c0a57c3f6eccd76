"""The JSON document that tells a recorder of one API request, as Tailscale's recorders take it.

The members and their Go types are those of tailscale.com/sessionrecording, Event (v1.102): `timestamp` whole unix
seconds, `body` base64, `queryParameters` a map of string lists, `kubernetes` spelled like Kubernetes' RequestInfo.
`request.path` has the query too (Go's URL.String()), redacted like the other. Beside them stand members that Go's
struct has not and its decoder passes over: `request.truncated` and `request.redacted` where true, `impersonation` (whom
upstream saw) and `sessionID` (where the request is a session).

Names and lists are bounded as those of a cast's header are (asciicast, bounds). An object of which a member had to be
cut says so in its own `truncated`: {"userAgent": {"bytes": 70000, "sha256": ".."}}, or in `source`, `impersonation`.

A document is put together from fragments, because most of it repeats: what depends on the peer is encoded once a
connection (`origin_fragment`), what depends on the request's line once for all requests with that line
(`request_fragments`, which the caller may cache). Nothing is redacted here: what comes in goes out.
"""

from __future__ import annotations

import json
from binascii import b2a_base64
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

from k8sproxy.common.formats.asciicast import MAX_GROUPS, MAX_TAGS, MAX_TEXT
from k8sproxy.common.formats.bounds import Truncation, bounded, bounded_list
from k8sproxy.common.tailnet.peer import Peer

EVENT_TYPE = "kubernetes-api-request"

# Lone surrogates pass it; event_document's last step makes question marks of them.
_quoted: Callable[[str], str] = json.encoder.encode_basestring


class RequestWords(Protocol):
    """What Kubernetes' RequestInfo tells of a request; policy.requestinfo.RequestInfo is one."""

    @property
    def method(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def verb(self) -> str: ...
    @property
    def is_resource_request(self) -> bool: ...
    @property
    def api_prefix(self) -> str: ...
    @property
    def api_group(self) -> str: ...
    @property
    def api_version(self) -> str: ...
    @property
    def namespace(self) -> str: ...
    @property
    def resource(self) -> str: ...
    @property
    def subresource(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def parts(self) -> Sequence[str]: ...
    @property
    def field_selector(self) -> str: ...
    @property
    def label_selector(self) -> str: ...


class RequestFragments(NamedTuple):
    """JSON members that depend on the request's line alone. request: without its closing brace."""

    request: str
    kubernetes: str


def request_fragments(info: RequestWords, path: str, query: Mapping[str, Sequence[str]]) -> RequestFragments:
    """path: with the query, as it may be told. query: decoded, as it may be told."""
    parameters = ",".join(f"{_quoted(name)}:{_strings(values)}" for name, values in query.items())
    return RequestFragments(
        f'"request":{{"method":{_quoted(info.method)},"path":{_quoted(path)},"queryParameters":{{{parameters}}}',
        f'"kubernetes":{{"IsResourceRequest":{"true" if info.is_resource_request else "false"}'
        f',"Path":{_quoted(info.path)},"Verb":{_quoted(info.verb)},"APIPrefix":{_quoted(info.api_prefix)}'
        f',"APIGroup":{_quoted(info.api_group)},"APIVersion":{_quoted(info.api_version)}'
        f',"Namespace":{_quoted(info.namespace)},"Resource":{_quoted(info.resource)}'
        f',"Subresource":{_quoted(info.subresource)},"Name":{_quoted(info.name)},"Parts":{_strings(info.parts)}'
        f',"FieldSelector":{_quoted(info.field_selector)},"LabelSelector":{_quoted(info.label_selector)}}}',
    )


def origin_fragment(peer: Peer, node_name: str, node_id: str, user: str = "", groups: Sequence[str] = ()) -> str:
    """The members `source`, `destination` and `impersonation`, which are the same for all requests of a connection.

    node_name, node_id: the proxy's own node, its name with or without the final dot. user: "" where nobody is
    impersonated.
    """
    cuts: dict[str, Truncation] = {}

    def text(name: str, value: str) -> str:
        kept, cut = bounded(value, MAX_TEXT)
        if cut is not None:
            cuts[name] = cut
        return f'"{name}":{_quoted(kept)}'

    def texts(name: str, values: Sequence[str], limit: int) -> str:
        kept, cut = bounded_list(values, limit, MAX_TEXT)
        if cut is not None:
            cuts[name] = cut
        return f'"{name}":{_strings(kept)}'

    source = f"{text('node', peer.node_name.removesuffix('.'))},{text('nodeID', peer.stable_id)}"
    if peer.tags:
        source += f",{texts('nodeTags', peer.tags, MAX_TAGS)}"
    else:
        source += f',"nodeUserID":{peer.user_id},{text("nodeUser", peer.login_name)}'
    source += _truncated(cuts)
    cuts.clear()
    destination = f'"node":{_quoted(node_name.removesuffix("."))},"nodeID":{_quoted(node_id)}'
    fragment = f'"source":{{{source}}},"destination":{{{destination}}}'
    if user:
        impersonation = f"{text('user', user)},{texts('groups', groups, MAX_GROUPS)}"
        fragment += f',"impersonation":{{{impersonation}{_truncated(cuts)}}}'
    return fragment


def event_document(
    event_id: str,
    timestamp: int,
    user_agent: str,
    request: RequestFragments,
    origin: str,
    *,
    body: bytes = b"",
    truncated: bool = False,
    redacted: bool = False,
    session_id: str = "",
    extra: str = "",
    agent_cut: Truncation | None = None,
) -> bytes:
    """The document, without a line feed.

    event_id: the recorder may put its own in its place. timestamp: unix seconds. body: what of it may be told.
    truncated: there was more of it. redacted: something in the body or the query was taken out. extra: one more JSON
    member, `"name":value`. agent_cut: what the user_agent was, where it had to be cut.
    """
    encoded = b2a_base64(body, newline=False).decode("ascii") if body else ""
    marks = (',"truncated":true' if truncated else "") + (',"redacted":true' if redacted else "")
    session = f',"sessionID":{_quoted(session_id)}' if session_id else ""
    if extra:
        extra = f",{extra}"
    if agent_cut is not None:
        extra += _truncated({"userAgent": agent_cut})
    return (
        f'{{"type":"{EVENT_TYPE}","id":{_quoted(event_id)},"timestamp":{timestamp},"userAgent":{_quoted(user_agent)}'
        f',{request.request},"body":"{encoded}"{marks}}},{request.kubernetes},{origin}{session}{extra}}}'
    ).encode("utf-8", "replace")


def _truncated(cuts: Mapping[str, Truncation]) -> str:
    """The member that says what was cut, with a comma in front; nothing where nothing was."""
    if not cuts:
        return ""
    return f',"truncated":{json.dumps({name: cut.values() for name, cut in cuts.items()}, separators=(",", ":"))}'


def _strings(values: Iterable[str]) -> str:
    return f"[{','.join(map(_quoted, values))}]"
