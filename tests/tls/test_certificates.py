from __future__ import annotations

import asyncio
import os
import ssl
from datetime import timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from k8sproxy.tls.certificates import CertificateError, FileCertificate, ServerCertificate, server_context
from standins.pki import Authority
from standins.tls import handshake, trusting

CA = Authority()


def test_a_client_without_sni_is_served() -> None:
    server = server_context(*CA.issue("a.example"))
    client, _ = handshake(trusting(CA.pem, check_hostname=False), server)
    assert client.version() == "TLSv1.3"


def test_http_1_1_is_what_is_spoken() -> None:
    server = server_context(*CA.issue("a.example"))
    client = trusting(CA.pem)
    client.set_alpn_protocols(["h2", "http/1.1"])
    assert handshake(client, server, "a.example")[0].selected_alpn_protocol() == "http/1.1"
    assert server.options & ssl.OP_NO_COMPRESSION
    assert server.options & ssl.OP_NO_RENEGOTIATION


def test_no_session_tickets_are_made() -> None:
    client, _ = handshake(trusting(CA.pem), server_context(*CA.issue("a.example")), "a.example")
    assert client.version() == "TLSv1.3"
    assert client.session is None or not client.session.has_ticket


def test_tls_1_2_with_sound_ciphers_is_the_least() -> None:
    server = server_context(*CA.issue("a.example"))
    client = trusting(CA.pem)
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    assert handshake(client, server, "a.example")[0].version() == "TLSv1.2"
    client.set_ciphers("AES128-SHA256:ECDHE-ECDSA-AES128-SHA256")  # no forward secrecy, no AEAD
    with pytest.raises(ssl.SSLError):
        handshake(client, server, "a.example")
    client.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning):
        client.minimum_version = client.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError):
        handshake(client, server, "a.example")


def test_nothing_is_presented_before_there_is_something() -> None:
    certificate = ServerCertificate("x")
    assert not certificate.ready
    with pytest.raises(CertificateError, match="x: there is no certificate yet"):
        certificate.context()


def test_a_new_pair_is_for_new_handshakes() -> None:
    certificate = ServerCertificate("x")
    one, two = CA.issue("a.example"), CA.issue("a.example")
    assert certificate.install(*one)
    first = certificate.context()
    assert not certificate.install(*one)
    assert certificate.context() is first
    assert certificate.install(*two)
    assert certificate.context() is not first
    handshake(trusting(CA.pem), first, "a.example")  # who holds the old one goes on with it


def test_a_bad_pair_changes_nothing() -> None:
    certificate = ServerCertificate("x")
    one = CA.issue("a.example")
    certificate.install(*one)
    before = certificate.context(), certificate.not_after
    for chain, key in ((one[0], CA.issue("a.example")[1]), (b"", b""), (one[0][:-60], one[1])):
        with pytest.raises(CertificateError):
            certificate.install(chain, key)
    assert (certificate.context(), certificate.not_after) == before


def test_an_expired_certificate_is_presented_with_a_warning() -> None:
    certificate = ServerCertificate("x")
    with capture_logs() as logs:
        certificate.install(*CA.issue("a.example", lifetime=timedelta(hours=-1)))
    assert [entry["event"] for entry in logs] == ["certificate_expired", "certificate_installed"]
    assert certificate.ready


class Turns:
    """A sleep that runs the given steps, one a turn, and then ends the loop."""

    def __init__(self, *steps: object) -> None:
        self._steps = list(steps)

    async def __call__(self, seconds: float) -> None:
        assert seconds > 0
        if not self._steps:
            raise asyncio.CancelledError
        step = self._steps.pop(0)
        if callable(step):
            step()


def write(directory: Path, pair: tuple[bytes, bytes]) -> None:
    (directory / "tls.crt").write_bytes(pair[0])
    (directory / "tls.key").write_bytes(pair[1])


def test_files_are_loaded_again_when_they_change(tmp_path: Path) -> None:
    # As kubelet does it: tls.crt -> ..data/tls.crt, ..data -> a directory, swapped by renaming the link.
    pairs = [CA.issue("one.example"), CA.issue("two.example")]
    for number, pair in enumerate(pairs):
        (tmp_path / f"..{number}").mkdir()
        write(tmp_path / f"..{number}", pair)
    (tmp_path / "..data").symlink_to("..0")
    for name in ("tls.crt", "tls.key"):
        (tmp_path / name).symlink_to(f"..data/{name}")
    certificate = FileCertificate(tmp_path / "tls.crt", tmp_path / "tls.key")

    def swap() -> None:
        (tmp_path / "..new").symlink_to("..1")
        os.replace(tmp_path / "..new", tmp_path / "..data")

    async def scenario() -> None:
        assert await certificate.load()
        handshake(trusting(CA.pem), certificate.context(), "one.example")
        with pytest.raises(asyncio.CancelledError):
            await certificate.follow(Turns(None, swap, None))
        handshake(trusting(CA.pem), certificate.context(), "two.example")

    asyncio.run(scenario())


def test_files_that_go_bad_leave_the_old_pair_and_one_line_in_the_log(tmp_path: Path) -> None:
    write(tmp_path, CA.issue("one.example"))
    certificate = FileCertificate(tmp_path / "tls.crt", tmp_path / "tls.key")
    later = CA.issue("two.example")

    async def scenario() -> list[str]:
        await certificate.load()
        before = certificate.context()
        half = Turns(lambda: (tmp_path / "tls.key").write_bytes(later[1]), None, (tmp_path / "tls.key").unlink, None)
        with capture_logs() as logs, pytest.raises(asyncio.CancelledError):
            await certificate.follow(half)
        assert certificate.context() is before
        with pytest.raises(asyncio.CancelledError):
            await certificate.follow(Turns(lambda: write(tmp_path, later)))
        assert certificate.context() is not before
        return [entry["error"] for entry in logs]

    errors = asyncio.run(scenario())
    assert errors == ["the key is not the key of the certificate", f"{tmp_path}/tls.key: No such file or directory"]


def test_files_that_are_not_there() -> None:
    with pytest.raises(CertificateError, match=r"/no/tls.crt: No such file or directory"):
        asyncio.run(FileCertificate(Path("/no/tls.crt"), Path("/no/tls.key")).load())
