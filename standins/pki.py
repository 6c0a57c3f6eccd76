"""Certificates for tests: small, quick (P-256), valid now or whenever a test wants."""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


class Authority:
    """A CA that issues what it is asked for. pem: its certificate. parent: who signs that; None: it does itself."""

    def __init__(self, name: str = "test CA", *, parent: Authority | None = None) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(self._name)
            .issuer_name(parent._name if parent else self._name)
            .public_key(self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=30))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(_SIGNS, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
            .add_extension(_issued_by(parent._key if parent else self._key), critical=False)
            .sign(parent._key if parent else self._key, hashes.SHA256())
        )
        self.pem = certificate.public_bytes(serialization.Encoding.PEM)

    def issue(
        self,
        *names: str,
        lifetime: timedelta = timedelta(days=1),
        passphrase: bytes | None = None,
        alternatives: tuple[str, ...] | None = None,
    ) -> tuple[bytes, bytes]:
        """(certificate PEM, key PEM) for names and addresses; the first one is the common name.

        alternatives: the subject alternative names where they are others; with none the extension is left out.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.now(UTC)
        if alternatives is None:
            alternatives = names
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])]))
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(min(now, now + lifetime) - timedelta(days=1))
            .not_valid_after(now + lifetime)
            .add_extension(_issued_by(self._key), critical=False)
        )
        if alternatives:
            builder = builder.add_extension(
                x509.SubjectAlternativeName([_general(name) for name in alternatives]), critical=False
            )
        certificate = builder.sign(self._key, hashes.SHA256())
        protection = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
        return (
            certificate.public_bytes(serialization.Encoding.PEM),
            key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, protection),
        )


def self_signed(*names: str, passphrase: bytes | None = None) -> tuple[bytes, bytes]:
    """(certificate PEM, key PEM), issued by a CA that nobody knows."""
    return Authority().issue(*names, passphrase=passphrase)


# What ssl.create_default_context demands of a CA and of what it issues (RFC 5280, 4.2.1) since Python 3.13.
_SIGNS = x509.KeyUsage(
    digital_signature=True,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)


def _issued_by(key: ec.EllipticCurvePrivateKey) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
