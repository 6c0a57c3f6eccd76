"""The key that recordings and days are signed with (Ed25519, RFC 8032), and the public keys to check signatures with.

The private key is a PEM file (PKCS #8, not encrypted) that only the recorder should be able to read, and never in the
folder that it seals. It is made on somebody's word (`recorder key make`) or at the first start on an empty store. A key
that is gone is a fault: a new one made in its place would begin a new history, and nobody would have been asked. A key
is called by the first 16 hex digits of the SHA-256 of its raw public half.

Which key may sign what is told by recorder/proof/handover.py; how far the chains had come is remembered by
recorder/proof/witness.py, which depends on no key.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

# Bytes: a PEM of ours has some 120.
_MAX_FILE = 64 << 10


class KeyFault(Exception):
    """A key that cannot be used. The message names the file and never what stands in it."""


@dataclass(frozen=True, slots=True)
class Anchor:
    """The last of a chain of signed files: its number, and the SHA-256 (hex) of its file."""

    number: int
    sha256: str


def name_of(key: Ed25519PublicKey) -> str:
    """What a key is called."""
    return hashlib.sha256(key.public_bytes(Encoding.Raw, PublicFormat.Raw)).hexdigest()[:16]


class Signer:
    """A private key. id: what it is called."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.id = name_of(key.public_key())

    def sign(self, data: bytes) -> bytes:
        """The signature, 64 bytes."""
        return self._key.sign(data)

    @property
    def public_key(self) -> Ed25519PublicKey:
        """The public half."""
        return self._key.public_key()

    @property
    def public_pem(self) -> bytes:
        """The public half as PEM (SubjectPublicKeyInfo), for whoever is to check."""
        return self.public_key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    @classmethod
    def make(cls) -> Signer:
        """A new key, in memory."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def load(cls, path: Path) -> Signer:
        """The key in a file. Raises KeyFault, also where somebody else than its owner may write it or all may read."""
        data = _read(path, secret=True)
        try:
            key = load_pem_private_key(data, None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise KeyFault(f"{path}: does not hold a private key in PEM") from None
        if not isinstance(key, Ed25519PrivateKey):
            raise KeyFault(f"{path}: holds a key of another kind than Ed25519")
        return cls(key)

    @classmethod
    def make_file(cls, path: Path) -> Signer:
        """A new key in a file (0600), its public half beside it as `.pub`. Raises KeyFault, also where the file is
        there: a key is made once, and on somebody's word."""
        signer = cls.make()
        pem = signer._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        try:
            write_file(path, pem, 0o600, fresh=True)
            write_file(path.with_name(path.name + ".pub"), signer.public_pem, 0o644)
        except FileExistsError:
            raise KeyFault(f"{path}: exists already, and is not overwritten") from None
        except OSError as error:
            raise KeyFault(f"{path}: cannot be created: {error.strerror}") from None
        return signer


class PublicKeys:
    """Public keys by what they are called. own: the one that is known to be in force, "" where none is known to be."""

    def __init__(self, keys: Iterable[Ed25519PublicKey], own: str = "") -> None:
        self.own = own
        self._keys: Mapping[str, Ed25519PublicKey] = {name_of(key): key for key in keys}

    def with_own(self, own: str) -> PublicKeys:
        """The same keys, of which that one is in force."""
        return PublicKeys(self._keys.values(), own)

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, name: object) -> bool:
        return name in self._keys

    def good(self, name: str, signature: bytes, data: bytes) -> bool:
        """Whether that key is here and made this signature."""
        key = self._keys.get(name)
        if key is None:
            return False
        try:
            key.verify(signature, data)
        except InvalidSignature:
            return False
        return True


def read_public_key(path: Path) -> Ed25519PublicKey:
    """A public key in PEM; the private one will do as well. Raises KeyFault."""
    data = _read(path)
    if b"PRIVATE KEY" in data:
        return Signer.load(path).public_key
    return parse_public_key(data, str(path))


def parse_public_key(data: bytes, name: str) -> Ed25519PublicKey:
    """A public key in PEM. name: for the message. Raises KeyFault."""
    try:
        key = load_pem_public_key(data)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise KeyFault(f"{name}: does not hold a public key in PEM") from None
    if not isinstance(key, Ed25519PublicKey):
        raise KeyFault(f"{name}: holds a key of another kind than Ed25519")
    return key


def _read(path: Path, *, secret: bool = False) -> bytes:
    try:
        with open(path, "rb") as file:
            # The group may read: secrets that Kubernetes mounts belong to one (fsGroup).
            status = os.fstat(file.fileno())
            if secret and status.st_mode & 0o027:
                raise KeyFault(f"{path}: other users may read or write this key: chmod 600")
            if secret and status.st_nlink > 1:
                raise KeyFault(
                    f"{path}: has a second name (a hard link), which may be in the store: replace it with a copy"
                )
            return file.read(_MAX_FILE)
    except OSError as error:
        raise KeyFault(f"{path}: can't be read: {error.strerror}") from None


def write_file(path: Path, data: bytes, mode: int, *, fresh: bool = False) -> None:
    """A whole file or none, for good. fresh: FileExistsError where it is there. Raises OSError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    try:
        try:
            os.fchmod(descriptor, mode)
            os.write(descriptor, data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if fresh:
            os.link(temporary, path)
        else:
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
