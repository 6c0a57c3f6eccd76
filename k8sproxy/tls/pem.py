"""What both legs' TLS contexts have in common, and how a certificate that is held in memory gets into one.

OpenSSL's interface in Python takes a certificate chain and its key from files alone. A key that came from a LocalAPI
answer, a kubeconfig or a plugin has no business on a disk, so it is handed over through an anonymous file in memory
(memfd_create(2), Linux). Elsewhere a temporary file does, readable by this user alone and gone at once.
"""

from __future__ import annotations

import os
import ssl
import tempfile
from typing import NoReturn

# Forward secret and authenticated, for TLS 1.2 alone; all of TLS 1.3's suites are. Go offers each of them.
_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"


class CertificateError(Exception):
    """A certificate, or its key, that cannot be used. The message holds neither."""


def restrict(context: ssl.SSLContext) -> None:
    """TLS 1.2 or later, sound ciphers, HTTP/1.1 alone, no compression, no renegotiation."""
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_CIPHERS)
    context.set_alpn_protocols(["http/1.1"])
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION


def load_pair(context: ssl.SSLContext, chain_pem: bytes, key_pem: bytes) -> None:
    """Make `context` present this certificate. Raises CertificateError."""
    # Key first: load_cert_chain reads the whole file twice, for certificates and for a key.
    content = key_pem.rstrip() + b"\n" + chain_pem.strip() + b"\n"
    try:
        if hasattr(os, "memfd_create"):
            descriptor = os.memfd_create("pem", os.MFD_CLOEXEC)
            try:
                _write(descriptor, content)
                context.load_cert_chain(f"/proc/self/fd/{descriptor}", password=_no_passphrase)
            finally:
                os.close(descriptor)
        else:
            with tempfile.NamedTemporaryFile() as file:
                _write(file.fileno(), content)
                context.load_cert_chain(file.name, password=_no_passphrase)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise CertificateError("the key is not the key of the certificate") from None
        raise CertificateError(
            f"not a PEM certificate with its key ({error.reason or 'OpenSSL gives no reason'})"
        ) from None
    except OSError as error:
        raise CertificateError(f"the certificate cannot be handed to OpenSSL: {error.strerror}") from None


def _write(descriptor: int, content: bytes) -> None:
    while content:
        content = content[os.write(descriptor, content) :]


def _no_passphrase() -> NoReturn:
    # Without this OpenSSL would ask on the terminal, and wait.
    raise CertificateError("the key has a passphrase, which nobody can type at a start")
