"""Which requests are ways to a shell, told by path, subresource and upgrade; never by method or header case.

    pods/NAME/exec, pods/NAME/attach                    sessions that can be recorded
    pods/NAME/ephemeralcontainers                       puts a container in place; one reaches it by attach or exec
    pods/NAME/portforward                               a tunnel; nothing on it is a terminal
    nodes/NAME/proxy/{exec,attach}/NS/POD[/UID]/CTR     the same streams at the kubelet; recorded just so
    nodes/NAME/proxy/{run,cri,..}                       the kubelet's other ways to run a command
    pods|services/NAME:10250/proxy/{run,cri,..}         the kubelet again, where a pod stands on its node's network
    pods|services/NAME/proxy with an upgrade            a byte stream to an application, which may be a shell
    /apis/GROUP/../proxy/..nodes/NAME/proxy/..          the same on another cluster, behind an aggregated API's proxy
    any other upgrade                                   unknown, for example the console of an aggregated API

The kubelet's list is one of what is known to be harmless, and is matched against plain spellings alone: the API server
folds `//` and `..` behind nodes/NAME/proxy (JoinPreservingTrailingSlash) before it asks the kubelet, so a spelling
that has to be folded counts as a command. The query can't move the path: for a proxy subresource the API server
overwrites its `path` parameter (endpoints/handlers/get.go, getRequestOptions).
"""

from __future__ import annotations

import enum
import re

# pkg/kubelet/server/server.go at v1.36: what only reads. Not here, so a command: run, exec, attach, portForward, cri,
# checkpoint (writes an archive of the container), debug/flags (sets), debug/pprof (reads memory, costs CPU).
_KUBELET_READS = re.compile(
    r"(?:pods|runningpods|configz|statusz|flagz|healthz(?:/.+)?|metrics(?:/.+)?|stats(?:/summary)?"
    r"|logs(?:/.+)?|containerLogs/[^/]+/[^/]+/[^/]+)"
)


# The same file (InstallDebuggingHandlers): /exec/{podNamespace}/{podID}/[{uid}/]{containerName}, and attach.
_KUBELET_STREAM = re.compile(r"(exec|attach)(?:/[^/]+){3,4}")


# The kubelet's own port (--port). Under another number, or a service's name for it, nobody can tell that it is one.
_KUBELET_PORT = "10250"


class SessionKind(enum.Enum):
    """What kind of way to a shell a request is; the values are labels of metrics and logs."""

    NONE = "none"
    EXEC = "exec"
    ATTACH = "attach"
    EPHEMERAL = "ephemeral"
    PORT_FORWARD = "port_forward"
    NODE_PROXY_SAFE = "node_proxy_safe"
    NODE_PROXY_EXEC = "node_proxy_exec"
    NODE_PROXY_ATTACH = "node_proxy_attach"
    NODE_PROXY_COMMAND = "node_proxy_command"
    PROXY_UPGRADE = "proxy_upgrade"
    UNKNOWN_UPGRADE = "unknown_upgrade"


# The requests that are sessions: those that are recorded where a grant says so, and forwarded ports.
STREAMING = frozenset(
    {
        SessionKind.EXEC,
        SessionKind.ATTACH,
        SessionKind.PORT_FORWARD,
        SessionKind.NODE_PROXY_EXEC,
        SessionKind.NODE_PROXY_ATTACH,
    }
)
_POD_SESSIONS = {
    "exec": SessionKind.EXEC,
    "attach": SessionKind.ATTACH,
    "portforward": SessionKind.PORT_FORWARD,
}


def classify(
    *,
    core: bool,
    verb: str,
    resource: str,
    name: str,
    subresource: str,
    behind: tuple[str, ...],
    plain: bool,
    upgrade: str,
) -> SessionKind:
    """The kind of one request.

    core: the path is one of the core group (/api). behind: the path's parts behind the subresource, decoded. plain:
    the path was spelt in the one way that every reader reads the same (target.split_target). upgrade: the Upgrade
    header's value in lower case, "" where there is none.
    """
    if core:
        if resource == "pods":
            if subresource in _POD_SESSIONS:
                return _POD_SESSIONS[subresource]
            if subresource == "ephemeralcontainers" and not upgrade:
                return SessionKind.EPHEMERAL
            if subresource == "log" and upgrade == "websocket":
                return SessionKind.NONE
        # /api/v1/proxy/nodes/NAME went from the API server in 1.10; it counts in case an old one is upstream.
        if resource == "nodes" and (subresource == "proxy" or verb == "proxy"):
            if not plain or subresource != "proxy":
                return SessionKind.NODE_PROXY_COMMAND
            path = "/".join(behind)
            if stream := _KUBELET_STREAM.fullmatch(path):
                return SessionKind.NODE_PROXY_EXEC if stream[1] == "exec" else SessionKind.NODE_PROXY_ATTACH
            safe = not upgrade and _KUBELET_READS.fullmatch(path)
            return SessionKind.NODE_PROXY_SAFE if safe else SessionKind.NODE_PROXY_COMMAND
        if upgrade and (subresource == "proxy" or verb == "proxy"):
            return SessionKind.PROXY_UPGRADE
        if subresource == "proxy" and _is_kubelet(name) and not (plain and _KUBELET_READS.fullmatch("/".join(behind))):
            return SessionKind.NODE_PROXY_COMMAND
    elif subresource == "proxy" and "nodes" in behind and "proxy" in behind:
        # Karmada's clusters/NAME/proxy and its like. Behind an exec there, there is an upgrade; behind a run, none.
        return SessionKind.NODE_PROXY_COMMAND
    if not upgrade or (upgrade == "websocket" and verb == "watch" and not subresource):
        return SessionKind.NONE
    return SessionKind.UNKNOWN_UPGRADE


def _is_kubelet(name: str) -> bool:
    """Whether a proxied pod's or service's name (scheme:name:port) has the kubelet's port, as Go reads numbers."""
    _, colon, port = name.rpartition(":")
    return colon != "" and port.lstrip("+0") == _KUBELET_PORT
