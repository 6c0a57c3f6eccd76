"""Time stamps (RFC 3161) of the manifests of days: that somebody else has seen each of them, and when.

    POST URL, application/timestamp-query    the SHA-256 of a manifest's file, and a nonce
    proof/stamps/NUMBER.tsr                  the whole answer (DER), for `openssl ts -verify`

A stamp says that a manifest was there at that time. Whoever has stolen the key in force can write all manifests anew,
but gets stamps of today alone. It does not say that nothing followed: the stamps are in the store, and a store that was
taken back has earlier ones. So this comes besides a folder or a ConfigMap and never in their place.

A token is believed if it is a CMS SignedData (RFC 5652) of a TSTInfo with our imprint; its one signature is over signed
attributes that name the content's digest and the signer's certificate (RFC 5035); that certificate is for time stamps
alone (a critical extended key usage), was valid then, and is one of those that are configured or leads to one.
"""

from __future__ import annotations

import asyncio
import datetime
import hashlib
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from recorder.proof import der
from recorder.proof.days import day_of
from recorder.proof.handover import MANIFESTS
from recorder.proof.keys import Anchor, KeyFault
from recorder.proof.witness import Heads
from recorder.store.blobs import Blobs
from recorder.store.errors import StoreError

STAMPS = "proof/stamps"
# Seconds for a whole request.
TIMEOUT = 30.0
# Seconds after a manifest's own moment within which something must have been stamped that follows from it.
PATIENCE = 7 * 86400.0
# Bytes of an answer: one with three certificates has some five thousand.
_MAX_ANSWER = 64 << 10
# Certificates between the signer's and one that is configured.
_MOST_ISSUERS = 5

_NAME = re.compile(r"(\d{10})\.tsr\Z", re.ASCII)
_SIGNED_DATA, _TST_INFO = "1.2.840.113549.1.7.2", "1.2.840.113549.1.9.16.1.4"
_CONTENT_TYPE, _MESSAGE_DIGEST = "1.2.840.113549.1.9.3", "1.2.840.113549.1.9.4"
_SIGNING_CERTIFICATE, _SIGNING_CERTIFICATE_V2 = "1.2.840.113549.1.9.16.2.12", "1.2.840.113549.1.9.16.2.47"
_SHA256 = "2.16.840.1.101.3.4.2.1"
_DER = Encoding.DER
# What reading bytes that anybody may have written can raise: an element or attribute that is missing (LookupError), a
# form that is wrong (der.DerError is a ValueError), and what x509 has of its own for certificates.
_NONSENSE = (
    LookupError,
    ValueError,
    TypeError,
    ArithmeticError,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
_HASHES: Mapping[str, type[hashes.HashAlgorithm]] = {
    _SHA256: hashes.SHA256,
    "2.16.840.1.101.3.4.2.2": hashes.SHA384,
    "2.16.840.1.101.3.4.2.3": hashes.SHA512,
}


class StampError(Exception):
    """An answer that is not believed. The message says why."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """at: unix seconds. imprint: SHA-256 (hex) of what was stamped. nonce: of the question, None without one."""

    at: float
    imprint: str
    nonce: int | None


def question(sha256: str, nonce: int) -> bytes:
    """A TimeStampReq."""
    algorithm = der.write(der.SEQUENCE, [der.write_oid(_SHA256), der.write(der.NULL, b"")])
    imprint = der.write(der.SEQUENCE, [algorithm, der.write(der.OCTETS, bytes.fromhex(sha256))])
    certificates = der.write(der.BOOLEAN, b"\xff")
    return der.write(der.SEQUENCE, [der.write_whole(1), imprint, der.write_whole(nonce), certificates])


def read_answer(data: bytes, trusted: Sequence[x509.Certificate]) -> Stamp:
    """What a TimeStampResp stamps, after every check but that of what was asked. Raises StampError."""
    try:
        status, *token = der.read(data).need(der.SEQUENCE).items()
        granted = status.need(der.SEQUENCE).items()[0].whole()
        if granted not in (0, 1) or len(token) != 1:
            raise StampError(f"the service refuses to stamp (status {granted})")
        return _read_token(token[0], trusted)
    except (InvalidSignature, UnsupportedAlgorithm):
        raise StampError("its signature is wrong") from None
    except _NONSENSE as error:
        raise StampError(f"it is not a time stamp ({type(error).__name__})") from None


def _read_token(token: der.Value, trusted: Sequence[x509.Certificate]) -> Stamp:
    kind, wrapped = token.need(der.SEQUENCE).items()
    if kind.oid() != _SIGNED_DATA:
        raise StampError("it is not signed")
    _, _, content, *rest = wrapped.need(0xA0).items()[0].need(der.SEQUENCE).items()
    content_kind, octets = content.need(der.SEQUENCE).items()
    if content_kind.oid() != _TST_INFO:
        raise StampError("it does not stamp anything")
    info = octets.need(0xA0).items()[0].need(der.OCTETS).body
    carried = [
        x509.load_der_x509_certificate(one.raw)
        for value in rest
        if value.tag == 0xA0
        for one in value.items()
        if one.tag == der.SEQUENCE
    ]
    (signer,) = rest[-1].need(der.SET).items()
    stamp = _read_info(info)
    _check_signer(signer, info, [*trusted, *carried], trusted, stamp.at)
    return stamp


def _read_info(info: bytes) -> Stamp:
    version, _, imprint, _, moment, *rest = der.read(info).need(der.SEQUENCE).items()
    algorithm, digest = imprint.need(der.SEQUENCE).items()
    if version.whole() != 1 or algorithm.need(der.SEQUENCE).items()[0].oid() != _SHA256:
        raise StampError("it has another version or hash than was asked for")
    text = moment.need(der.GENERALIZED_TIME).body.decode("ascii")
    form = "%Y%m%d%H%M%S.%fZ" if "." in text else "%Y%m%d%H%M%SZ"
    at = datetime.datetime.strptime(text, form).replace(tzinfo=datetime.UTC).timestamp()
    nonces = [value.whole() for value in rest if value.tag == der.INTEGER]
    return Stamp(at, digest.need(der.OCTETS).body.hex(), nonces[0] if nonces else None)


def _check_signer(
    signer: der.Value,
    info: bytes,
    known: Sequence[x509.Certificate],
    trusted: Sequence[x509.Certificate],
    at: float,
) -> None:
    _, _, digest_algorithm, attributes, _, signature, *_ = signer.need(der.SEQUENCE).items()
    algorithm = _HASHES[digest_algorithm.need(der.SEQUENCE).items()[0].oid()]()
    found: dict[str, der.Value] = {}
    for attribute in attributes.need(0xA0).items():
        name, values = attribute.need(der.SEQUENCE).items()
        if name.oid() in found:
            raise StampError("it has a field twice")
        (found[name.oid()],) = values.need(der.SET).items()
    if found[_CONTENT_TYPE].oid() != _TST_INFO or found[_MESSAGE_DIGEST].need(der.OCTETS).body != _digest(
        algorithm, info
    ):
        raise StampError("its signature is for other data")
    certificate = next((one for one in known if _is_named(one, found)), None)
    if certificate is None:
        raise StampError("the certificate that signed it is missing")
    # What is signed has the tag of a SET in place of the one that it has here (RFC 5652, 5.4).
    signed = der.write(der.SET, attributes.body)
    key = certificate.public_key()
    if isinstance(key, rsa.RSAPublicKey):
        key.verify(signature.need(der.OCTETS).body, signed, padding.PKCS1v15(), algorithm)
    elif isinstance(key, ec.EllipticCurvePublicKey):
        key.verify(signature.need(der.OCTETS).body, signed, ec.ECDSA(algorithm))
    else:
        raise StampError("it is signed with a key of another kind than RSA and ECDSA")
    _check_usage(certificate)
    _check_chain(certificate, known, trusted, datetime.datetime.fromtimestamp(at, datetime.UTC))


def _digest(algorithm: hashes.HashAlgorithm, data: bytes) -> bytes:
    return hashlib.new(algorithm.name, data).digest()


def _is_named(certificate: x509.Certificate, attributes: Mapping[str, der.Value]) -> bool:
    """Whether the signed attributes name it, by its hash."""
    raw = certificate.public_bytes(_DER)
    if (value := attributes.get(_SIGNING_CERTIFICATE_V2)) is not None:
        first = value.need(der.SEQUENCE).items()[0].need(der.SEQUENCE).items()[0].need(der.SEQUENCE).items()
        name = first[0].items()[0].oid() if first[0].tag == der.SEQUENCE else _SHA256
        digest = first[1] if first[0].tag == der.SEQUENCE else first[0]
        return digest.need(der.OCTETS).body == _digest(_HASHES[name](), raw)
    value = attributes[_SIGNING_CERTIFICATE]
    first = value.need(der.SEQUENCE).items()[0].need(der.SEQUENCE).items()[0].need(der.SEQUENCE).items()
    return first[0].need(der.OCTETS).body == hashlib.sha1(raw, usedforsecurity=False).digest()


def _check_usage(certificate: x509.Certificate) -> None:
    try:
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage)
    except x509.ExtensionNotFound:
        raise StampError("its certificate is not for time stamps") from None
    if not usage.critical or list(usage.value) != [ExtendedKeyUsageOID.TIME_STAMPING]:
        raise StampError("its certificate is not only for time stamps")


def _check_chain(
    certificate: x509.Certificate,
    known: Sequence[x509.Certificate],
    trusted: Sequence[x509.Certificate],
    at: datetime.datetime,
) -> None:
    for _ in range(_MOST_ISSUERS):
        if not certificate.not_valid_before_utc <= at <= certificate.not_valid_after_utc:
            raise StampError("its certificate was not valid then")
        if certificate in trusted:
            return
        issuer = next((one for one in (*trusted, *known) if _has_issued(one, certificate)), None)
        if issuer is None:
            break
        certificate = issuer
    raise StampError("its certificate leads to none of those that are configured")


def _has_issued(issuer: x509.Certificate, certificate: x509.Certificate) -> bool:
    try:
        constraints = issuer.extensions.get_extension_for_class(x509.BasicConstraints).value
        certificate.verify_directly_issued_by(issuer)
    except (x509.ExtensionNotFound, InvalidSignature, UnsupportedAlgorithm, *_NONSENSE):
        return False
    return constraints.ca


def read_certificates(path: Path) -> list[x509.Certificate]:
    """Certificates in PEM. Raises KeyFault."""
    try:
        return x509.load_pem_x509_certificates(path.read_bytes())
    except OSError as error:
        raise KeyFault(f"{path}: can't be read: {error.strerror}") from None
    except ValueError:
        raise KeyFault(f"{path}: does not hold certificates in PEM") from None


class TimeStampWitness:
    """raw: the blobs as stored. url: of the service. trusted: its certificates, or those of who has issued them."""

    def __init__(self, raw: Blobs, url: str, trusted: Sequence[x509.Certificate]) -> None:
        self.name = f"time stamps of {url}"
        self.only = MANIFESTS
        self.pause = 0.0
        self._raw = raw
        self._url = url
        self._trusted = tuple(trusted)

    async def recall(self) -> Heads:
        """See Witness: the last manifest that was stamped."""
        heads: Heads = {}
        for number, stamp in (await self._stamps(last=True)).items():
            heads[MANIFESTS] = Anchor(number, stamp.imprint)
        return heads

    async def remember(self, chain: str, head: Anchor) -> None:
        """See Witness: of manifests alone."""
        if chain != MANIFESTS or head.number == 0:
            return
        nonce = secrets.randbits(64)
        data = await self._ask(question(head.sha256, nonce))
        try:
            stamp = read_answer(data, self._trusted)
        except StampError as error:
            raise KeyFault(f"{self.name}: {error}") from None
        if stamp.imprint != head.sha256 or stamp.nonce != nonce:
            raise KeyFault(f"{self.name}: it stamped other data than was asked")
        try:
            await self._raw.put(f"{STAMPS}/{head.number:010}.tsr", data)
        except StoreError as error:
            raise KeyFault(f"{self.name}: {error}") from None

    async def begin(self, chain: str, head: Anchor) -> None:
        """See Witness. What was stamped stays stamped."""
        await self.remember(chain, head)

    async def _ask(self, body: bytes) -> bytes:
        headers = {"Content-Type": "application/timestamp-query", "Accept": "application/timestamp-reply"}
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT)) as session,
                session.post(self._url, data=body, headers=headers, allow_redirects=False) as answer,
            ):
                if answer.status != 200:
                    raise KeyFault(f"{self.name}: it answers {answer.status}")
                data = b""
                while (piece := await answer.content.read(_MAX_ANSWER)) and len(data) <= _MAX_ANSWER:
                    data += piece
                return data
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            why = "it does not answer in time" if isinstance(error, TimeoutError) else type(error).__name__
            raise KeyFault(f"{self.name}: cannot ask it: {why}") from None

    async def _stamps(self, *, last: bool = False) -> dict[int, Stamp]:
        """Those that are there, by number; or the last one. Raises KeyFault for one that is not believed."""
        found: dict[int, Stamp] = {}
        try:
            names = [name async for name, _ in self._raw.names(STAMPS)]
            for name in names[-1:] if last else names:
                match = _NAME.match(name)
                if match is None:
                    raise KeyFault(f"{self.name}: {STAMPS}/{name!a} is not one of the recorder's files")
                data = await self._raw.get(f"{STAMPS}/{name}")
                found[int(match[1])] = await asyncio.to_thread(read_answer, data, self._trusted)
        except StampError as error:
            raise KeyFault(f"{self.name}: {STAMPS}/{name} is not trusted: {error}") from None
        except (StoreError, KeyError) as error:
            raise KeyFault(f"{self.name}: {error}") from None
        return found

    async def examine(self, manifests: Mapping[int, tuple[float, str]]) -> tuple[list[str], str]:
        """See Witness: each stamp must be that of its manifest, and from the first stamped one on each manifest must
        have been stamped, or a later one, soon after it says that it was sealed."""
        try:
            stamps = await self._stamps()
        except KeyFault as error:
            return [str(error)], ""
        faults = [
            f"the time stamp of manifest {number} belongs to another manifest"
            for number, stamp in stamps.items()
            if number in manifests and manifests[number][1] != stamp.imprint
        ]
        if not stamps:
            return faults, ""
        later: list[float] = []
        for number in sorted(manifests, reverse=True):
            if number < min(stamps):
                break
            if number in stamps:
                later.append(stamps[number].at)
            sealed = manifests[number][0]
            if later and min(later) - sealed > PATIENCE:
                faults.append(
                    f"manifest {number} says that it was sealed on {day_of(sealed)}, and the first time stamp that "
                    f"vouches for it is of {day_of(min(later))}"
                )
        return faults, f", stamped from manifest {min(stamps)} on, which was on {day_of(stamps[min(stamps)].at)}"

    async def aclose(self) -> None:
        """See Witness."""
