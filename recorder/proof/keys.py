"""The key that days are sealed with (Ed25519, RFC 8032), and the public keys to check seals with.

The private key is a PEM file (PKCS #8, not encrypted) that only the recorder should be able to read, best not on the
disk that the recordings are on; where there is none it is made. A key is called by the first 16 hex digits of the
SHA-256 of its raw public half.

Beside the private key lies its `anchor`: number and hash of the last manifest that was sealed. It is the memory that
somebody who can write to the store has no hold of: a store whose manifests were all made away with, or put back to how
they were last week, no longer agrees with it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
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
_ANCHOR = re.compile(r"(\d{1,9}) ([0-9a-f]{64})\n\Z", re.ASCII)


class KeyFault(Exception):
    """A key that cannot be used. The message names the file and never what stands in it."""


@dataclass(frozen=True, slots=True)
class Anchor:
    """The last manifest that was sealed: its number, and the SHA-256 (hex) of its file."""

    number: int
    sha256: str


def name_of(key: Ed25519PublicKey) -> str:
    """What a key is called."""
    return hashlib.sha256(key.public_bytes(Encoding.Raw, PublicFormat.Raw)).hexdigest()[:16]


class Signer:
    """A private key. id: what it is called. path: its file, where the anchor lies beside; None for one in memory."""

    def __init__(self, key: Ed25519PrivateKey, path: Path | None = None) -> None:
        self._key = key
        self._path = path
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
            raise KeyFault(f"{path}: holds no private key in PEM") from None
        if not isinstance(key, Ed25519PrivateKey):
            raise KeyFault(f"{path}: holds a key of another kind than Ed25519")
        return cls(key, path)

    @classmethod
    def load_or_make(cls, path: Path) -> Signer:
        """The key in a file, which is made (0600) where it is not there, its public half beside it as `.pub`.
        Raises KeyFault."""
        try:
            path.lstat()
        except FileNotFoundError:
            pass
        except OSError as error:
            raise KeyFault(f"{path}: can't be read: {error.strerror}") from None
        else:
            return cls.load(path)
        key = Ed25519PrivateKey.generate()
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        signer = cls(key, path)
        try:
            _write(path, pem, 0o600, fresh=True)
            _write(path.with_name(path.name + ".pub"), signer.public_pem, 0o644)
        except FileExistsError:  # somebody else was quicker
            return cls.load(path)
        except OSError as error:
            raise KeyFault(f"{path}: can't be made: {error.strerror}") from None
        return signer

    # -- the anchor

    @property
    def _anchor_path(self) -> Path | None:
        return None if self._path is None else self._path.with_name(self._path.name + ".anchor")

    def anchor(self) -> Anchor | None:
        """What was sealed last, None where that is not known. Raises KeyFault."""
        return None if self._anchor_path is None else read_anchor(self._anchor_path)

    def remember(self, anchor: Anchor) -> None:
        """Keep it, for good. Raises KeyFault."""
        if self._anchor_path is not None:
            _write_anchor(self._anchor_path, anchor)

    # The same of the chain of acts: holds and removals are signed at any time, and by commands beside the recorder.

    @property
    def _acts_path(self) -> Path | None:
        return None if self._path is None else self._path.with_name(self._path.name + ".acts")

    def acts(self) -> Anchor | None:
        """The last act that was signed, None where that is not known. Raises KeyFault."""
        return None if self._acts_path is None else read_anchor(self._acts_path)

    def remember_act(self, anchor: Anchor) -> None:
        """Keep it, unless a later one is kept already. Raises KeyFault."""
        if self._acts_path is not None:
            kept = self.acts()
            if kept is None or kept.number < anchor.number:
                _write_anchor(self._acts_path, anchor)


def read_anchor(path: Path) -> Anchor | None:
    """An anchor's file, None where there is none. Raises KeyFault."""
    try:
        text = path.read_bytes().decode("ascii", "replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise KeyFault(f"{path}: can't be read: {error.strerror}") from None
    match = _ANCHOR.match(text)
    if match is None:
        raise KeyFault(f"{path}: is no anchor")
    return Anchor(int(match[1]), match[2])


def _write_anchor(path: Path, anchor: Anchor) -> None:
    try:
        _write(path, f"{anchor.number} {anchor.sha256}\n".encode(), 0o644)
    except OSError as error:
        raise KeyFault(f"{path}: can't be written: {error.strerror}") from None


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
        raise KeyFault(f"{name}: holds no public key in PEM") from None
    if not isinstance(key, Ed25519PublicKey):
        raise KeyFault(f"{name}: holds a key of another kind than Ed25519")
    return key


def _read(path: Path, *, secret: bool = False) -> bytes:
    try:
        with open(path, "rb") as file:
            # The group may read: secrets that Kubernetes mounts belong to one (fsGroup).
            if secret and os.fstat(file.fileno()).st_mode & 0o027:
                raise KeyFault(f"{path}: others may read or write this key: chmod 600")
            return file.read(_MAX_FILE)
    except OSError as error:
        raise KeyFault(f"{path}: can't be read: {error.strerror}") from None


def _write(path: Path, data: bytes, mode: int, *, fresh: bool = False) -> None:
    """A whole file or none. fresh: raises FileExistsError where it is there."""
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
