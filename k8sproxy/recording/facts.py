"""What is known of a session before its first byte: who, where, which command; out of the request alone."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import parse_qs

from k8sproxy.errors import ProtocolError
from k8sproxy.peer import Peer
from k8sproxy.policy.classify import SessionKind
from k8sproxy.policy.grants import Impersonation
from k8sproxy.policy.requestinfo import RequestInfo
from k8sproxy.protocol.asciicast import CastHeader

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
_KINDS = {
    SessionKind.NODE_PROXY_EXEC: "exec",
    SessionKind.NODE_PROXY_ATTACH: "attach",
    SessionKind.PORT_FORWARD: "portforward",
}
# Characters of the command that are kept: a script given by -c is worth keeping, a file pasted into it is not.
MAX_COMMAND = 4096
# Query parameters of one session: exec has one for each word of its command.
_MAX_FIELDS = 16384


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """One session. kind: exec, attach or portforward. node: of the cluster, where the way leads through nodes/proxy.

    connection: the log's id of the client's connection. ports: what the query of a port-forward asks for (WebSocket); a
    SPDY client names its ports later.
    """

    id: str
    kind: str
    peer: Peer
    impersonation: Impersonation | None
    cluster: str
    connection: str
    namespace: str
    pod: str
    container: str
    node: str
    command: str
    tty: bool
    ports: tuple[int, ...]
    user_agent: str

    def cast_header(self, started: float) -> CastHeader:
        """The cast's header. started: unix seconds."""
        peer, identity = self.peer, self.impersonation
        return CastHeader(
            timestamp=int(started),
            src_node=peer.node_name,
            src_node_id=peer.stable_id,
            command=self.command,
            src_node_tags=peer.tags,
            src_node_user_id=0 if peer.is_tagged else peer.user_id,
            src_node_user="" if peer.is_tagged else peer.login_name,
            connection_id=self.id,
            pod_name=self.pod,
            namespace=self.namespace,
            container=self.container,
            session_type=self.kind,
            cluster=self.cluster,
            impersonated_user=identity.user if identity else "",
            impersonated_groups=identity.groups if identity else (),
            user_agent=self.user_agent,
            session_id=self.id,
        )


def session_facts(
    session_id: str,
    info: RequestInfo,
    peer: Peer,
    impersonation: Impersonation | None,
    *,
    cluster: str,
    connection: str,
    user_agent: bytes,
) -> Facts:
    """The facts of a request whose info.session is one of STREAMING. Raises ProtocolError for an endless query."""
    try:
        query = parse_qs(info.query, keep_blank_values=True, max_num_fields=_MAX_FIELDS, errors="replace")
    except ValueError:
        raise ProtocolError(f"the query has more than {_MAX_FIELDS} parameters") from None
    namespace, pod, node = info.namespace, info.name, ""
    container = query.get("container", [""])[0]
    if info.resource == "nodes":
        # nodes/NAME/proxy/exec/NAMESPACE/POD/[UID/]CONTAINER
        node = info.name
        behind = [part for part in info.parts[3:] if part]
        namespace, pod, container = behind[1], behind[2], behind[-1]
    return Facts(
        id=session_id,
        kind=_KINDS.get(info.session, info.session.value),
        peer=peer,
        impersonation=impersonation,
        cluster=cluster,
        connection=connection,
        namespace=namespace,
        pod=pod,
        container=container,
        node=node,
        command=" ".join(query.get("command", ()))[:MAX_COMMAND],
        # As the API server reads it (Convert_Slice_string_To_bool): whatever is not a no.
        tty=query.get("tty", ["0"])[0].lower() not in ("0", "false"),
        ports=tuple(int(port) for value in query.get("ports", ()) for port in value.split(",") if _is_port(port)),
        user_agent=user_agent.decode("utf-8", "replace")[:512],
    )


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 5 and 0 < int(text) < 65536
