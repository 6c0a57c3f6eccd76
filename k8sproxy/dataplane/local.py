"""What the proxy itself answers, beside the API server's own paths: whoami, and the documents of the process.

They are served to every caller that the proxy knows, whatever its grants say.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

from k8sproxy.access.decision import Authority
from k8sproxy.common.errors import Refusal
from k8sproxy.protocol.http1 import RequestHead

LOCAL_PREFIX = "/.well-known/k8sproxy/"


def local_document(
    head: RequestHead,
    path: str,
    authority: Authority,
    documents: Mapping[str, Callable[[], tuple[bytes, bytes]]],
) -> tuple[bytes, bytes]:
    """(content type, body) of a path below LOCAL_PREFIX. Raises Refusal 404 and 405."""
    if head.method not in ("GET", "HEAD"):
        raise Refusal(405, "method_not_allowed", "only GET and HEAD are served here", close=True)
    name = path.removeprefix(LOCAL_PREFIX)
    if name == "whoami":
        return b"application/json", _whoami(authority)
    if name in documents:
        return documents[name]()
    raise Refusal(404, "not_found", "nothing is served at this path")


def _whoami(authority: Authority) -> bytes:
    """Who the peer is to the tailnet, and whom it is impersonated as."""
    peer, identity = authority.caller.peer, authority.impersonation
    return (
        json.dumps(
            {
                "peer": {
                    "node": peer.node_name.removesuffix("."),
                    "address": peer.address,
                    "loginName": peer.login_name if not peer.is_tagged else None,
                    "tags": list(peer.tags),
                },
                "impersonation": {"user": identity.user, "groups": list(identity.groups)} if identity else None,
                "enforceRecorder": authority.grants.enforced,
                "recording": authority.grants.recording.value if authority.grants.recording else None,
            },
            indent=2,
        ).encode()
        + b"\n"
    )
