from __future__ import annotations

import os
import ssl
import tempfile
from pathlib import Path

import pytest

from k8sproxy.tls.pem import CertificateError, load_pair
from standins.pki import Authority, self_signed
from standins.tls import handshake, trusting


def context() -> ssl.SSLContext:
    return ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)


def test_a_pair_is_presented_and_never_on_a_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    ca, server = Authority(), context()

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a file")

    monkeypatch.setattr(tempfile, "NamedTemporaryFile", refuse)
    before = len(os.listdir("/proc/self/fd"))
    load_pair(server, *ca.issue("a.example"))
    assert len(os.listdir("/proc/self/fd")) == before
    handshake(trusting(ca.pem), server, "a.example")


def test_elsewhere_a_private_file_is_gone_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ca, server = Authority(), context()
    monkeypatch.delattr(os, "memfd_create")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    load_pair(server, *ca.issue("a.example"))
    assert list(tmp_path.iterdir()) == []
    handshake(trusting(ca.pem), server, "a.example")


def test_what_is_no_pair() -> None:
    chain, key = self_signed("a.example")
    for bad_chain, bad_key, message in (
        (chain, self_signed("a.example")[1], "not the key of the certificate"),
        (b"", key, "not a PEM certificate"),
        (chain, b"", "not a PEM certificate"),
        (b"\0" * 10, b"\xff", "not a PEM certificate"),
        (chain[:-60], key, "not a PEM certificate"),
        (*self_signed("a.example", passphrase=b"secret"), "passphrase"),
    ):
        with pytest.raises(CertificateError, match=message) as error:
            load_pair(context(), bad_chain, bad_key)
        assert "BEGIN" not in str(error.value)


def test_white_space_around_the_parts_is_no_matter() -> None:
    chain, key = self_signed("a.example")
    load_pair(context(), b"\n\n" + chain.rstrip(), key.rstrip())
