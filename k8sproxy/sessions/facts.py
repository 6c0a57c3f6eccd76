"""What is known of a session before its first byte: who, where, which command; out of the request alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from k8sproxy.access.grants import Impersonation
from k8sproxy.common.formats.asciicast import COMMAND_TAIL, MAX_COMMAND, MAX_TEXT, CastHeader, bytes_as_text
from k8sproxy.common.formats.bounds import Truncation, bounded
from k8sproxy.common.tailnet.peer import Peer
from k8sproxy.request import query as queries
from k8sproxy.request.classify import SessionKind
from k8sproxy.request.requestinfo import RequestInfo

_KINDS = {
    SessionKind.NODE_PROXY_EXEC: "exec",
    SessionKind.NODE_PROXY_ATTACH: "attach",
    SessionKind.PORT_FORWARD: "portforward",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """One session. kind: exec, attach or portforward. node: of the cluster, where the way leads through nodes/proxy.

    connection: the log's id of the client's connection. What the client chose is bounded, as it is in a cast's header
    (asciicast); truncated: what had to be cut for that, by its name there.
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
    user_agent: str
    truncated: Mapping[str, Truncation] = field(default_factory=dict)

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
            truncated=self.truncated,
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
    """The facts of a request whose info.session is one of STREAMING (and whose query, so, has one reading).

    What is not UTF-8 in the command stands in it as output does (asciicast), so that it can be had back.
    """
    query = queries.values(info.query, "surrogateescape")
    kind = _KINDS.get(info.session, info.session.value)
    namespace, pod, node = info.namespace, info.name, ""
    container = queries.first(query, "container")
    tty = queries.switch(query, "tty")
    if info.resource == "nodes":
        # nodes/NAME/proxy/exec/NAMESPACE/POD/[UID/]CONTAINER, which the kubelet reads: its tty is "1" or nothing
        # (k8s.io/cri-streaming, remotecommand.NewOptions).
        node = info.name
        behind = [part for part in info.parts[3:] if part]
        namespace, pod, container = behind[1], behind[2], behind[-1]
        tty = queries.first(query, "tty") == "1"
    # An attach runs nothing: to the API server its query has no command.
    command = " ".join(query.get("command", ())) if kind == "exec" else ""
    truncated: dict[str, Truncation] = {}

    def told(name: str, text: str, limit: int = MAX_TEXT, tail: int = 0) -> str:
        if not text.isascii():
            text = bytes_as_text(text.encode("utf-8", "surrogateescape"))
        kept, cut = bounded(text, limit, tail)
        if cut is not None:
            truncated[name] = cut
        return kept

    return Facts(
        id=session_id,
        kind=kind,
        peer=peer,
        impersonation=impersonation,
        cluster=cluster,
        connection=connection,
        namespace=told("kubernetes.Namespace", namespace),
        pod=told("kubernetes.PodName", pod),
        container=told("kubernetes.Container", container),
        node=bounded(node, MAX_TEXT)[0],
        command=told("command", command, MAX_COMMAND, COMMAND_TAIL),
        tty=tty,
        user_agent=told("userAgent", user_agent.decode("utf-8", "surrogateescape")),
        truncated=truncated,
    )
