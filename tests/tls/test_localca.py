from __future__ import annotations

import asyncio
import os
import ssl
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from k8sproxy.tls import localca
from k8sproxy.tls.localca import (
    CA_LIFETIME,
    CA_RENEWAL,
    LEAF_LIFETIME,
    LEAF_RENEWAL,
    GeneratedCertificate,
    open_local_ca,
)
from k8sproxy.tls.pem import CertificateError
from standins.tls import handshake, trusting

NOW = datetime(2026, 6, 1, tzinfo=UTC)


def test_it_is_kept_and_kept_private(tmp_path: Path) -> None:
    directory = tmp_path / "a" / "ca"
    pem = open_local_ca(directory, NOW).pem
    assert {path.name: path.stat().st_mode & 0o777 for path in directory.iterdir()} == {
        "ca.crt": 0o600,
        "ca.key": 0o600,
        "lock": 0o600,
    }
    assert directory.stat().st_mode & 0o777 == 0o700
    directory.chmod(0o755)
    assert open_local_ca(directory, NOW + timedelta(days=1)).pem == pem
    assert directory.stat().st_mode & 0o777 == 0o700


def test_all_that_start_at_once_find_one(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        pems = set(pool.map(lambda _: open_local_ca(tmp_path, NOW).pem, range(24)))
    assert len(pems) == 1


def test_a_start_that_was_cut_off_is_begun_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = os.replace

    def fail(source: str, target: Path) -> None:
        if target.name == "ca.crt":
            raise OSError(28, "No space left on device", str(target))
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(CertificateError, match=r"ca.crt: No space left on device"):
        open_local_ca(tmp_path, NOW)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ca.key", "lock"]
    monkeypatch.undo()
    open_local_ca(tmp_path, NOW).issue(["a.example"], NOW)


@pytest.mark.parametrize("name", ["ca.key", "ca.crt"])
def test_a_damaged_one_is_not_made_anew(tmp_path: Path, name: str) -> None:
    open_local_ca(tmp_path, NOW)
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(CertificateError, match="is damaged"):
        open_local_ca(tmp_path, NOW)
    assert (tmp_path / name).read_bytes() == b"x"


def test_a_key_of_another_one_is_noticed(tmp_path: Path) -> None:
    open_local_ca(tmp_path / "one", NOW)
    open_local_ca(tmp_path / "two", NOW)
    os.replace(tmp_path / "two" / "ca.key", tmp_path / "one" / "ca.key")
    with pytest.raises(CertificateError, match=r"ca.key is not the key of ca.crt"):
        open_local_ca(tmp_path / "one", NOW)


def test_a_directory_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CertificateError, match=r"file/ca: Not a directory"):
        open_local_ca(tmp_path / "file" / "ca", NOW)


def test_near_its_end_it_is_renewed_for_those_who_hold_the_old_one(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    old = open_local_ca(tmp_path, now - CA_LIFETIME + CA_RENEWAL - timedelta(days=1))
    new = open_local_ca(tmp_path, now)
    assert new.pem != old.pem
    assert new.certificate.not_valid_after_utc > now + CA_LIFETIME - timedelta(days=1)
    assert open_local_ca(tmp_path, now).pem == new.pem
    server = localca.GeneratedCertificate(tmp_path, ["a.example"])
    asyncio.run(server.renew())
    for pem in (old.pem, new.pem):
        handshake(trusting(pem), server.context(), "a.example")


def test_names_and_addresses_are_in_the_certificate(tmp_path: Path) -> None:
    names = ["a.example", "127.0.0.1", "fd7a:115c:a1e0::1", "node.tail.ts.net."]
    certificate = GeneratedCertificate(tmp_path, names)
    asyncio.run(certificate.renew())
    for name in ("a.example", "127.0.0.1", "fd7a:115c:a1e0::1", "node.tail.ts.net"):
        client = trusting(certificate.ca_pem)
        client.verify_flags |= ssl.VERIFY_X509_STRICT
        handshake(client, certificate.context(), name)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(trusting(certificate.ca_pem), certificate.context(), "b.example")


@pytest.mark.parametrize(("names", "message"), [([], "there is no name"), (["bücher.example"], "not ASCII")])
def test_names_that_cannot_be(tmp_path: Path, names: list[str], message: str) -> None:
    with pytest.raises(CertificateError, match=message):
        asyncio.run(GeneratedCertificate(tmp_path, names).renew())


def test_the_ca_signs_leaves_alone(tmp_path: Path) -> None:
    ca = open_local_ca(tmp_path, NOW)
    constraints = ca.certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert (constraints.value.ca, constraints.value.path_length) == (True, 0)
    leaf = x509.load_pem_x509_certificate(ca.issue(["a.example"], NOW)[0])
    assert leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    leaf.verify_directly_issued_by(ca.certificate)


def test_it_is_renewed_before_it_ends_and_for_new_names(tmp_path: Path) -> None:
    now = datetime.now(UTC) - LEAF_LIFETIME + LEAF_RENEWAL - timedelta(hours=1)  # the last one is valid today
    certificate = GeneratedCertificate(tmp_path, ["a.example"], now=lambda: now)

    async def scenario() -> None:
        nonlocal now
        assert await certificate.renew()
        ca_pem = certificate.ca_pem
        assert not await certificate.renew()
        now += LEAF_LIFETIME - LEAF_RENEWAL - timedelta(hours=1)
        assert not await certificate.renew()
        now += timedelta(hours=2)
        before = certificate.context()
        assert await certificate.renew()
        assert certificate.context() is not before
        certificate.set_names(["b.example"])
        assert await certificate.renew()
        handshake(trusting(certificate.ca_pem), certificate.context(), "b.example")
        assert certificate.ca_pem == ca_pem

    asyncio.run(scenario())


def test_it_follows_the_clock(tmp_path: Path) -> None:
    certificate = GeneratedCertificate(tmp_path, ["a.example"])
    turns = 2

    async def sleep(_: float) -> None:
        nonlocal turns
        turns -= 1
        if turns < 0:
            raise asyncio.CancelledError

    async def scenario() -> None:
        with pytest.raises(asyncio.CancelledError):
            await certificate.follow(sleep)

    asyncio.run(scenario())
    assert certificate.ready
