"""The proxies that are compared, each in front of the same upstream, each with TLS on both legs.

direct      no proxy at all: what the load generator and the upstream alone can do
k8sproxy    `k8sproxy serve` as it is installed: policy, metrics and request log on; WhoIs answered by a stand-in
go          Go's httputil.ReverseProxy, which sets a fixed user and does nothing else
nginx       one process, proxy_buffering off, keep-alive to upstream, sets a fixed user: the limit
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path

from bench.processes import Measured, find, free_port, python

_WHOIS = {"alice@example.com": ["system:masters"]}

_STAND_IN = """
import asyncio, sys
from pathlib import Path
from standins.tailscaled import FakeTailscaled, user_whois
async def main():
    path = Path(sys.argv[1])
    caps = {"tailscale.com/cap/kubernetes": [{"impersonate": {"groups": ["system:masters"]}}]}
    alice = user_whois("alice@example.com", "laptop", "100.64.0.7", caps)
    async with FakeTailscaled(path, peers=lambda ip, port: alice):
        await asyncio.Event().wait()
asyncio.run(main())
"""

_NGINX = """
worker_processes 1;
daemon off;
pid {directory}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 8192; }}
http {{
  access_log {directory}/nginx-access.log;
  client_body_temp_path {directory}/nginx-body;
  proxy_temp_path {directory}/nginx-proxy;
  fastcgi_temp_path {directory}/nginx-fastcgi;
  uwsgi_temp_path {directory}/nginx-uwsgi;
  scgi_temp_path {directory}/nginx-scgi;
  upstream api {{ server 127.0.0.1:{upstream}; keepalive 1024; keepalive_requests 100000000; }}
  server {{
    listen 127.0.0.1:{port} ssl;
    ssl_certificate {directory}/server.crt;
    ssl_certificate_key {directory}/server.key;
    keepalive_requests 100000000;
    location / {{
      proxy_pass https://api;
      proxy_http_version 1.1;
      proxy_buffering off;
      proxy_read_timeout 1h;
      proxy_set_header Connection "";
      proxy_set_header Impersonate-User alice@example.com;
      proxy_set_header Impersonate-Group system:masters;
      proxy_ssl_trusted_certificate {directory}/server.crt;
      proxy_ssl_verify on;
      proxy_ssl_name localhost;
    }}
  }}
}}
"""


def start_all(
    stack: ExitStack, directory: Path, upstream: int, *, only: set[str]
) -> dict[str, tuple[Measured | None, int]]:
    """Start the contenders: name -> (the process, None for direct; its port). Missing programs are left out."""
    found: dict[str, tuple[Measured | None, int]] = {"direct": (None, upstream)}
    for name, start in {"k8sproxy": _k8sproxy, "go": _go, "nginx": _nginx}.items():
        if only and name not in only:
            continue
        if name == "nginx" and find("nginx") is None:
            print("nginx is not installed: left out")
            continue
        port = free_port()
        found[name] = (start(stack, directory, upstream, port), port)
    return found


def _k8sproxy(stack: ExitStack, directory: Path, upstream: int, port: int) -> Measured:
    socket = directory / "tailscaled.sock"
    stack.enter_context(Measured("stand-in tailscaled", python("-c", _STAND_IN, str(socket)), directory / "whois.log"))
    kubeconfig = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "bench",
        "contexts": [{"name": "bench", "context": {"cluster": "bench", "user": "bench"}}],
        "clusters": [
            {
                "name": "bench",
                "cluster": {
                    "server": f"https://localhost:{upstream}",
                    "certificate-authority": str(directory / "server.crt"),
                },
            }
        ],
        "users": [{"name": "bench", "user": {"token": "bench-token"}}],
    }
    (directory / "kubeconfig.json").write_text(json.dumps(kubeconfig))
    config = {
        "apiVersion": "k8sproxy/v1alpha1",
        "tailnet": {"socket": str(socket)},
        "listen": [
            {
                "address": f"127.0.0.1:{port}",
                "tls": {
                    "source": "files",
                    "cert": str(directory / "server.crt"),
                    "key": str(directory / "server.key"),
                },
            }
        ],
        "clusters": [{"name": "bench", "kubeconfig": str(directory / "kubeconfig.json")}],
        "admin": {"address": f"127.0.0.1:{free_port()}"},
    }
    (directory / "k8sproxy.yaml").write_text(json.dumps(config))
    command = python("-m", "k8sproxy", "serve", "--config", str(directory / "k8sproxy.yaml"))
    return stack.enter_context(Measured("k8sproxy", command, directory / "k8sproxy.log", port=port))


def _go(stack: ExitStack, directory: Path, upstream: int, port: int) -> Measured:
    command = [
        str(directory / "go-reverseproxy"),
        f"--listen=127.0.0.1:{port}",
        f"--cert={directory}/server.crt",
        f"--key={directory}/server.key",
        f"--upstream=https://localhost:{upstream}",
        f"--ca={directory}/server.crt",
        "--user=alice@example.com",
        "--groups=system:masters",
    ]
    return stack.enter_context(Measured("go", command, directory / "go.log", port=port))


def _nginx(stack: ExitStack, directory: Path, upstream: int, port: int) -> Measured:
    path = directory / "nginx.conf"
    path.write_text(_NGINX.format(directory=directory, upstream=upstream, port=port))
    command = [str(find("nginx")), "-c", str(path), "-p", str(directory)]
    return stack.enter_context(Measured("nginx", command, directory / "nginx.log", port=port))
