"""`k8sproxy kubeconfig`: a kubeconfig with nothing secret in it, since the connection is the identity.

kubectl asks for a name and a password on the terminal where a user has no credentials at all and the server is https,
so the user gets the word "none" for a token; the proxy takes it off every request.

kubectl merges the files of KUBECONFIG entry by entry, and of two entries with one name it takes the first without a
word. So by default each entry is named for all that leads to this server, its host, port and path: files for two
servers never become one, and neither do the user of such a file and one with credentials.
"""

from __future__ import annotations

import base64
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

import click

from k8sproxy.common.cli import Failed

PLACEHOLDER = "none"
_NOTE = "# No secret: the connection is the identity. Without the placeholder token kubectl asks for a user name.\n"


@click.command("kubeconfig", short_help="Print a kubeconfig for the proxy.")
@click.argument("url", metavar="URL")
@click.option("--ca", type=click.Path(path_type=Path), metavar="FILE", help="The CA of the proxy's certificate, PEM.")
@click.option("--fetch-ca", is_flag=True, help="Get the CA from the proxy (tls.source: generated), unverified.")
@click.option("--ca-sha256", metavar="HEX", help="With --fetch-ca: refuse any CA but the one with this fingerprint.")
@click.option("--context-name", metavar="NAME", help="The names of context and cluster (default: HOST:PORT).")
@click.option("--user-name", metavar="NAME", help="The user entry's name (default: HOST:PORT).")
@click.option("--namespace", metavar="NAME", help="The context's namespace.")
@click.option(
    "--proxy-url",
    metavar="URL",
    help="The proxy that kubectl goes through: socks5://HOST:PORT of a userspace tailscaled.",
)
def command(
    url: str,
    ca: Path | None,
    fetch_ca: bool,
    ca_sha256: str | None,
    context_name: str | None,
    user_name: str | None,
    namespace: str | None,
    proxy_url: str | None,
) -> None:
    """Print a kubeconfig for the proxy at URL (https://kube.tailnet.ts.net). There is nothing secret in it.

    With --fetch-ca the CA comes from the proxy itself and its SHA-256 goes to stderr: compare it with the proxy's own
    (openssl x509 -in ca.crt -noout -fingerprint -sha256), or name it with --ca-sha256.
    """
    parts = split_url(url)
    if (ca is not None or fetch_ca) and parts.scheme != "https":
        raise click.BadParameter("a CA is for https:// URLs", param_hint="URL")
    if ca is not None and fetch_ca:
        raise click.UsageError("--ca and --fetch-ca cannot be used together")
    if ca_sha256 is not None and not fetch_ca:
        raise click.UsageError("--ca-sha256 needs --fetch-ca")
    ca_pem = _read_ca(ca) if ca is not None else None
    if fetch_ca:
        from k8sproxy.cli.fetchca import fetch, fingerprint

        ca_pem = fetch(parts, proxy_url, ca_sha256)
        click.echo(f"SHA-256 of the CA at {parts.netloc}: {fingerprint(ca_pem)}", err=True)
    click.echo(render(parts, ca_pem, context_name, user_name, namespace, proxy_url), nl=False)


def render(
    url: SplitResult,
    ca_pem: bytes | None,
    context_name: str | None = None,
    user_name: str | None = None,
    namespace: str | None = None,
    proxy_url: str | None = None,
) -> str:
    """The kubeconfig as YAML."""
    import yaml

    default = default_name(url)
    name, user_name = context_name or default, user_name or default
    cluster = {"server": url.geturl().rstrip("/")}
    if ca_pem is not None:
        cluster["certificate-authority-data"] = base64.b64encode(ca_pem).decode()
    if proxy_url is not None:
        cluster["proxy-url"] = proxy_url
    context = {"cluster": name, "user": user_name}
    if namespace is not None:
        context["namespace"] = namespace
    text = yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": name,
            "clusters": [{"name": name, "cluster": cluster}],
            "contexts": [{"name": name, "context": context}],
            "users": [{"name": user_name, "user": {"token": PLACEHOLDER}}],
        },
        sort_keys=False,
    )
    return f"{_NOTE}{text}"


def default_name(url: SplitResult) -> str:
    """The name of a server's entries: HOST:PORT, and the path of a URL that has one."""
    host = url.hostname or ""
    port = url.port or (443 if url.scheme == "https" else 80)
    return f"{f'[{host}]' if ':' in host else host}:{port}{url.path.rstrip('/')}"


def split_url(text: str) -> SplitResult:
    """An http or https URL of a host; a bare host is https. Raises click.BadParameter."""
    try:
        parts = urlsplit(text if "://" in text else f"https://{text}")
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        valid = False
    if not valid or parts.username is not None or parts.query or parts.fragment or not text.isprintable():
        raise click.BadParameter("must be https://HOST or http://HOST", param_hint="URL")
    return parts


def _read_ca(path: Path) -> bytes:
    import ssl

    try:
        pem = path.read_bytes()
        ssl.create_default_context(cadata=pem.decode("ascii"))
    except (ssl.SSLError, ValueError):  # an SSLError is an OSError too
        raise Failed(f"{path}: not a certificate in PEM") from None
    except OSError as error:
        raise Failed(f"{path}: {error.strerror}") from None
    return pem
