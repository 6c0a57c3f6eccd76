"""Getting the CA of a proxy from the proxy itself, trust on first use.

The first connection is not verified, as nothing is known yet; all that is taken from it is one certificate. The second
one is, against that certificate: what was fetched is the CA of whoever answers there. Whether that is the right one
only a fingerprint from elsewhere can say.
"""

from __future__ import annotations

import hashlib
import http.client
import socket
import ssl
from urllib.parse import SplitResult, unquote, urlsplit

import click

from k8sproxy.common.cli import Failed

PATH = "/.well-known/k8sproxy/ca.pem"
# Seconds for each step, as kubectl's own handshake has; bytes of one certificate, which has about 600.
TIMEOUT = 10.0
MAX_CA = 64 * 1024


def fetch(url: SplitResult, proxy_url: str | None, expected: str | None) -> bytes:
    """The CA's PEM. expected: its SHA-256 in hex, colons or not. Raises Failed."""
    host, port = url.hostname or "", url.port or 443
    unverified = ssl.create_default_context()
    unverified.check_hostname = False
    unverified.verify_mode = ssl.CERT_NONE
    try:
        pem = _get(_connect(host, port, proxy_url), unverified, host, port)
        fingerprint(pem)
        if expected is not None and _plain(expected) != _plain(fingerprint(pem)):
            raise Failed(f"the CA at {url.netloc} is not the expected one: its SHA-256 is {fingerprint(pem)}")
        verified = ssl.create_default_context(cadata=pem.decode("ascii"))
        verified.hostname_checks_common_name = False  # kubectl would not take it either
        with verified.wrap_socket(_connect(host, port, proxy_url), server_hostname=host):
            return pem
    except ssl.SSLCertVerificationError as error:
        raise Failed(f"the CA at {url.netloc} did not issue the certificate there: {error.verify_message}") from None
    except (http.client.HTTPException, ssl.SSLError, ValueError) as error:
        raise Failed(f"cannot get a CA from {url.netloc}: {error}") from None
    except OSError as error:
        raise Failed(f"{url.netloc}: {error.strerror or error}") from None


def fingerprint(pem: bytes) -> str:
    """SHA-256 of the certificate, as openssl x509 -fingerprint writes it. Raises ValueError."""
    digest = hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem.decode("ascii").strip())).hexdigest().upper()
    return ":".join(digest[at : at + 2] for at in range(0, len(digest), 2))


def _plain(text: str) -> str:
    return text.replace(":", "").strip().lower()


def _get(sock: socket.socket, context: ssl.SSLContext, host: str, port: int) -> bytes:
    with context.wrap_socket(sock, server_hostname=host) as tls:
        connection = http.client.HTTPConnection(host, port)
        connection.sock = tls
        connection.request("GET", PATH, headers={"Connection": "close"})
        with connection.getresponse() as response:
            body = response.read(MAX_CA + 1)
        if response.status == 404:
            raise ValueError("this proxy has no CA of its own (its certificate comes from elsewhere)")
        if response.status != 200:
            raise ValueError(f"it answers {response.status}")
        if len(body) > MAX_CA:
            raise ValueError("its answer is too long for a certificate")
        return body


def _connect(host: str, port: int, proxy_url: str | None) -> socket.socket:
    if proxy_url is None:
        return socket.create_connection((host, port), TIMEOUT)
    try:
        proxy = urlsplit(proxy_url)
        proxy_port = proxy.port or 1080
    except ValueError:
        proxy = urlsplit("")
    if proxy.scheme not in ("socks5", "socks5h") or not proxy.hostname:
        raise click.BadParameter("--fetch-ca supports only socks5:// proxies", param_hint="--proxy-url")
    sock = socket.create_connection((proxy.hostname, proxy_port), TIMEOUT)
    try:
        _socks5(sock, host, port, unquote(proxy.username or ""), unquote(proxy.password or ""))
    except BaseException:
        sock.close()
        raise
    return sock


def _socks5(sock: socket.socket, host: str, port: int, user: str, password: str) -> None:
    """RFC 1928, with RFC 1929's password where there is one; the proxy resolves the name, as kubectl has it."""
    method = 2 if user else 0
    sock.sendall(bytes((5, 1, method)))
    if _exactly(sock, 2) != bytes((5, method)):
        raise OSError("the SOCKS5 proxy requires an authentication method that is not supported")
    if user:
        name, word = user.encode(), password.encode()
        if len(name) > 255 or len(word) > 255:
            raise OSError("the SOCKS5 proxy's user or password is too long")
        sock.sendall(bytes((1, len(name))) + name + bytes((len(word),)) + word)
        if _exactly(sock, 2)[1] != 0:
            raise OSError("the SOCKS5 proxy refuses the user or password")
    target = host.encode("idna")
    sock.sendall(bytes((5, 1, 0, 3, len(target))) + target + port.to_bytes(2, "big"))
    _, reply, _, kind = _exactly(sock, 4)
    if reply != 0:
        raise OSError(f"the SOCKS5 proxy cannot reach {host} (reply {reply})")
    _exactly(sock, {1: 4, 4: 16}.get(kind) or _exactly(sock, 1)[0])
    _exactly(sock, 2)


def _exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = sock.recv(size - len(data))
        if not piece:
            raise OSError("the SOCKS5 proxy closed the connection")
        data += piece
    return data
