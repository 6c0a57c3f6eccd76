"""Real parts to test against: a tailnet and a Kubernetes control plane on loopback. See README.md.

with Bed(directory) as bed:
    proxy = bed.add_node("proxy", tags=["tag:k8s"])
    alice = bed.add_node("alice", user="alice@example.com")
    bed.set_grants([kubernetes_grant("alice@example.com", groups=["system:masters"])])
    bed.pod("web")
"""

from .bed import Bed
from .cluster import Cluster
from .processes import BedError, free_port
from .tailnet import CAP_KUBERNETES, Grant, Node, Tailnet, kubernetes_grant

__all__ = [
    "CAP_KUBERNETES",
    "Bed",
    "BedError",
    "Cluster",
    "Grant",
    "Node",
    "Tailnet",
    "free_port",
    "kubernetes_grant",
]
