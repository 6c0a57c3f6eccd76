"""A certificate authority of the proxy's own (tls.source: generated), for tailnets that have no certificates.

The CA lives in a directory (0700) as ca.crt and ca.key (0600) and outlives restarts, since clients hold its
certificate in their kubeconfigs. Leaf certificates live in memory only: each process makes its own, with a new key, for
the names that the listener has, and makes the next one long before it ends.

Several processes may start on one directory at once: whoever gets the lock makes the CA, the others find it. Files
appear by rename, the key before the certificate, so that a certificate that is there always has its key. A CA that
nears its end is renewed with the same key and name, so that kubeconfigs with the old certificate go on working until
that one ends.

The CA may sign leaves only (path length 0) and is not constrained to names, since the names of listeners change.
"""

from __future__ import annotations

import asyncio
import fcntl
import ipaddress
import os
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NoReturn

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from k8sproxy.tls.certificates import CHECK_INTERVAL, ServerCertificate, Sleep
from k8sproxy.tls.pem import CertificateError

# A CA is in people's kubeconfigs: as long as anyone keeps one. Renewed when a fifth is left, two years of overlap.
CA_LIFETIME = timedelta(days=3650)
CA_RENEWAL = timedelta(days=730)
# A leaf is renewed by itself, so it is short; a month is left to notice that the renewal doesn't work.
LEAF_LIFETIME = timedelta(days=90)
LEAF_RENEWAL = timedelta(days=30)
# Clocks of clients go wrong by minutes.
_BACKDATE = timedelta(hours=1)

_CERTIFICATE, _KEY, _LOCK = "ca.crt", "ca.key", "lock"

Now = Callable[[], datetime]


def utc_now() -> datetime:
    """The time, with its zone."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class LocalCA:
    """The CA: pem is its certificate, for clients."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def pem(self) -> bytes:
        """The certificate, for a kubeconfig."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def issue(self, names: Iterable[str], now: datetime) -> tuple[bytes, bytes]:
        """(chain PEM, key PEM) for DNS names and IP addresses. The CA is in the chain, for whoever looks."""
        alternatives = [_general_name(name) for name in dict.fromkeys(names)]
        if not alternatives:
            raise CertificateError("there is no name to make a certificate for")
        key = ec.generate_private_key(ec.SECP256R1())
        issuer = self.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "k8sproxy")]))
            .issuer_name(self.certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _BACKDATE)
            .not_valid_after(min(now + LEAF_LIFETIME, self.certificate.not_valid_after_utc))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(leaf=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        return certificate.public_bytes(serialization.Encoding.PEM) + self.pem, _key_pem(key)


def open_local_ca(directory: Path, now: datetime) -> LocalCA:
    """The CA in `directory`, made (or renewed) where that is needed. Blocks on files. Raises CertificateError."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if directory.stat().st_mode & 0o077:
            directory.chmod(0o700)
        with open(directory / _LOCK, "a", opener=_private) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            return _open_locked(directory, now)
    except OSError as error:
        raise CertificateError(f"{error.filename or directory}: {error.strerror}") from None


def _open_locked(directory: Path, now: datetime) -> LocalCA:
    key_path, certificate_path = directory / _KEY, directory / _CERTIFICATE
    if not certificate_path.exists():
        # A key without a certificate is what a start that was cut off has left: begin again.
        key = ec.generate_private_key(ec.SECP256R1())
        _write(key_path, _key_pem(key))
        return _certify(certificate_path, key, now)
    try:
        loaded = serialization.load_pem_private_key(key_path.read_bytes(), password=None)
        certificate = x509.load_pem_x509_certificate(certificate_path.read_bytes())
    except (ValueError, TypeError):
        # Not made anew: the CA that clients trust would be gone without anyone having said so.
        raise CertificateError(f"{directory}: {_KEY} or {_CERTIFICATE} is damaged; restore or remove both") from None
    if not isinstance(loaded, ec.EllipticCurvePrivateKey) or loaded.public_key() != certificate.public_key():
        raise CertificateError(f"{directory}: {_KEY} is not the key of {_CERTIFICATE}; restore or remove both")
    if certificate.not_valid_after_utc - now < CA_RENEWAL:
        return _certify(certificate_path, loaded, now)
    return LocalCA(certificate, loaded)


def _certify(path: Path, key: ec.EllipticCurvePrivateKey, now: datetime) -> LocalCA:
    """A CA certificate for `key`, written to `path`."""
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    # Go and OpenSSL find issuers by name, and a kubeconfig may hold several: each key has its name.
    common_name = f"k8sproxy {identifier.digest.hex()[:16]}"
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATE)
        .not_valid_after(now + CA_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(leaf=False), critical=True)
        .add_extension(identifier, critical=False)
        .sign(key, hashes.SHA256())
    )
    ca = LocalCA(certificate, key)
    _write(path, ca.pem)
    return ca


class GeneratedCertificate(ServerCertificate):
    """A listener's certificate by the CA in `directory`. ca_pem: the CA's certificate once start() is through."""

    def __init__(self, directory: Path, names: Iterable[str], *, now: Now = utc_now) -> None:
        super().__init__(f"certificate of the CA in {directory}")
        self.ca_pem = b""
        self._directory = directory
        self._names = tuple(dict.fromkeys(names))
        self._issued_for: tuple[str, ...] = ()
        self._now = now

    def set_names(self, names: Iterable[str]) -> None:
        """Other names from now on (the node was renamed): the next renew() makes a certificate for them."""
        self._names = tuple(dict.fromkeys(names))

    async def renew(self) -> bool:
        """Make a certificate where there is none for these names or it nears its end. Raises CertificateError."""
        now = self._now()
        if self._issued_for == self._names and self.not_after is not None and self.not_after - now > LEAF_RENEWAL:
            return False
        names = self._names
        ca_pem, (chain, key) = await asyncio.to_thread(self._issue, names, now)
        self.install(chain, key)
        self.ca_pem, self._issued_for = ca_pem, names
        return True

    async def follow(self, sleep: Sleep = asyncio.sleep) -> NoReturn:
        """Renew in time. What fails is logged and tried again, while the old certificate goes on."""
        while True:
            await sleep(CHECK_INTERVAL)
            await self.try_now(self.renew)

    def _issue(self, names: tuple[str, ...], now: datetime) -> tuple[bytes, tuple[bytes, bytes]]:
        ca = open_local_ca(self._directory, now)
        return ca.pem, ca.issue(names, now)


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    try:
        return x509.DNSName(name.rstrip("."))
    except ValueError:
        raise CertificateError("a name for the certificate is not ASCII") from None


def _usage(*, leaf: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=leaf,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=not leaf,
        crl_sign=not leaf,
        encipher_only=False,
        decipher_only=False,
    )


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def _write(path: Path, content: bytes) -> None:
    """The whole file or nothing, readable by this user alone."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # 0600
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
