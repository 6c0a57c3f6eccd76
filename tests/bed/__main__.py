"""python -m tests.bed: bring the bed up in the foreground, say how to use it, stay till Ctrl-C."""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys
import tempfile
from pathlib import Path

from . import Bed, BedError, kubernetes_grant


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bed", description="A tailnet and a cluster on this machine.")
    parser.add_argument("--directory", type=Path, help="where state and logs go (default: a temporary directory)")
    parser.add_argument("--address", default="127.0.0.1", help="address of the cluster, its node and its pods")
    parser.add_argument("--kernel", action="store_true", help="TUN devices in network namespaces (root only)")
    parser.add_argument("--no-cluster", action="store_true", help="the tailnet alone")
    parser.add_argument("--no-tailnet", action="store_true", help="the cluster alone")
    parser.add_argument("--no-audit", action="store_true", help="no audit log")
    parser.add_argument(
        "--node",
        action="append",
        metavar="NAME[=USER|=tag:TAG,..]",
        help="a node (default: proxy=tag:k8s alice=alice@example.com bob=bob@example.com ci=tag:ci)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout when everything runs")
    return parser.parse_args(argv)


def main() -> int:
    arguments = parse()
    # SIGTERM ends it as Ctrl-C does, through the with statements.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.ExitStack() as stack:
        directory = arguments.directory or stack.enter_context(tempfile.TemporaryDirectory(prefix="bed-"))
        try:
            bed = stack.enter_context(
                Bed(
                    directory,
                    cluster=not arguments.no_cluster,
                    tailnet=not arguments.no_tailnet,
                    address=arguments.address,
                    kernel=arguments.kernel,
                    audit=not arguments.no_audit,
                    progress=lambda line: print(line, file=sys.stderr, flush=True),
                )
            )
            populate(bed, arguments)
            print(json.dumps(bed.describe()) if arguments.json else manual(bed), flush=True)
            signal.pause()
        except KeyboardInterrupt:
            print("bed: stopping", file=sys.stderr)
        except BedError as error:
            print(f"bed: {error}", file=sys.stderr)
            return 1
    return 0


def populate(bed: Bed, arguments: argparse.Namespace) -> None:
    if not arguments.no_cluster:
        bed.pod("web")
    if arguments.no_tailnet:
        return
    nodes = arguments.node or ["proxy=tag:k8s", "alice=alice@example.com", "bob=bob@example.com", "ci=tag:ci"]
    wanted = {}
    for text in nodes:
        name, _, owner = text.partition("=")
        wanted[name] = {"tags": owner.split(",")} if owner.startswith("tag:") else {"user": owner or None}
        print(f"bed: adding node {name}", file=sys.stderr, flush=True)
    bed.add_nodes(**wanted)
    # Something to begin with: alice is an administrator, the tag:ci node may look, bob has no grant.
    bed.set_grants(
        [kubernetes_grant("alice@example.com", ["system:masters"]), kubernetes_grant("tag:ci", ["bed:viewers"])]
    )
    if not arguments.no_cluster:
        bed.cluster.bind_group("bed:viewers", "view")


def manual(bed: Bed) -> str:
    found = bed.describe()
    lines = [f"state and logs        {found['directory']}"]
    if cluster := found.get("cluster"):
        lines += [
            f"API server            {cluster['url']}  (CA {cluster['ca']})",
            f"cluster-admin         export KUBECONFIG={cluster['kubeconfig']}",
            f"the proxy's account   {cluster['proxy_account_kubeconfig']}",
            f"audit log             {cluster['audit_log']}",
        ]
    if tailnet := found.get("tailnet"):
        lines += [f"admin API             curl {tailnet['admin_url']}/nodes; PUT {tailnet['admin_url']}/grants"]
        for name, node in tailnet["nodes"].items():
            owner = ",".join(node["tags"]) or node["user"] or f"{name}@example.com"
            lines += [
                f"node {name:16} {node['tailnet_ip']} {node['dns_name']}  ({owner})",
                f"  LocalAPI            {node['socket']}",
            ]
            if node["socks5"]:
                lines.append(
                    f"  SOCKS5              socks5h://{node['socks5']}   (HTTPS_PROXY of a client on this node)"
                )
            if node["exec_prefix"]:
                lines.append(f"  run on it           {' '.join(node['exec_prefix'])} COMMAND")
    return "\n".join([*lines, "Ctrl-C ends it."])


if __name__ == "__main__":
    sys.exit(main())
