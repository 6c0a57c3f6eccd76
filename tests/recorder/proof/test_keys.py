"""Key files, anchors and signed documents: what is taken, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from recorder.model import new_id
from recorder.proof.days import is_day
from recorder.proof.documents import (
    Manifest,
    Part,
    Removal,
    Sealed,
    read_manifest,
    read_removal,
    write_manifest,
    write_removal,
)
from recorder.proof.keys import Anchor, KeyFault, PublicKeys, Signer, read_public_key
from recorder.proof.signed import ForgedError

SIGNER = Signer.make()
KEYS = PublicKeys([SIGNER.public_key])


def test_a_key_is_made_once_and_on_a_word(tmp_path: Path) -> None:
    path = tmp_path / "seal.pem"
    with pytest.raises(KeyFault, match="can't be read"):
        Signer.load(path)
    made = Signer.make_file(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert Signer.load(path).id == made.id
    public = read_public_key(tmp_path / "seal.pem.pub")
    assert PublicKeys([public]).good(made.id, made.sign(b"x"), b"x")
    assert {file.name for file in tmp_path.iterdir()} == {"seal.pem", "seal.pem.pub"}
    with pytest.raises(KeyFault, match="is not overwritten"):
        Signer.make_file(path)
    assert Signer.load(path).id == made.id


def test_keys_that_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "seal.pem"
    Signer.make_file(path)
    (tmp_path / "other").hardlink_to(path)
    with pytest.raises(KeyFault, match="hard link"):
        Signer.load(path)
    (tmp_path / "other").unlink()
    path.chmod(0o644)
    with pytest.raises(KeyFault, match="chmod 600"):
        Signer.load(path)
    path.chmod(0o640)
    Signer.load(path)
    path.write_bytes(b"nonsense")
    with pytest.raises(KeyFault, match="not hold a private key"):
        Signer.load(path)
    other = generate_private_key(SECP256R1())
    path.write_bytes(other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(KeyFault, match="another kind"):
        Signer.load(path)
    path.write_bytes(other.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    with pytest.raises(KeyFault, match="another kind"):
        read_public_key(path)
    with pytest.raises(KeyFault, match="cannot be created"):
        Signer.make_file(tmp_path / "none" / "seal.pem")
    with pytest.raises(KeyFault, match="can't be read"):
        read_public_key(tmp_path / "none")


def test_days() -> None:
    assert is_day("2026-02-28") and not any(
        map(is_day, ("2026-02-30", "2026-2-3", "", "x", "2026-02-281", "٢٠٢٦-02-28"))
    )


texts = st.text(max_size=20)
sizes = st.integers(0, 1 << 50)
parts = st.lists(st.builds(Part, texts, sizes, st.just("0" * 64)), max_size=3, unique_by=lambda part: part.name).map(
    tuple
)
sealed = st.builds(Sealed, st.just(new_id()), st.floats(0, 1e10), texts, sizes, texts, texts, parts, texts)
removals = st.builds(Removal, st.sampled_from([new_id(), "events 2026-11-22"]), st.floats(0, 1e10), texts, texts)


@settings(max_examples=50, deadline=None)
@given(
    st.builds(
        Manifest,
        st.integers(1, 1 << 30),
        st.just("2026-11-22"),
        st.just("1" * 64),
        st.floats(0, 1e10),
        st.lists(sealed, max_size=2).map(tuple),
        parts,
        st.lists(removals, max_size=2).map(tuple),
        st.none() | st.builds(Anchor, st.integers(0, 1 << 30), st.just("2" * 64)),
    )
)
def test_manifests_round_trip(manifest: Manifest) -> None:
    data = write_manifest(manifest, SIGNER)
    assert data.count(b"\n") == 2 and read_manifest(data, KEYS) == manifest


MANIFEST = write_manifest(
    Manifest(1, "2026-11-22", "0" * 64, 1.0, removals=(Removal("events 2026-11-21", 1.0, "a", "b"),)), SIGNER
)
REMOVAL = write_removal(Removal("events 2026-11-21", 1.0, "a", "b"), SIGNER)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(MANIFEST) - 1), st.integers(1, 255))
def test_no_byte_can_be_changed_but_those_that_mean_nothing(place: int, flip: int) -> None:
    data = bytearray(MANIFEST)
    data[place] ^= flip
    # The second line's JSON may be written in other ways (white space, escapes): then it says the same.
    try:
        assert read_manifest(bytes(data), KEYS) == read_manifest(MANIFEST, KEYS)
    except ForgedError:
        return
    assert place > MANIFEST.index(b"\n")


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_nonsense_is_forged(data: bytes) -> None:
    for read in (read_manifest, read_removal):
        for text in (data, data + b"\n" + MANIFEST.split(b"\n")[1] + b"\n", MANIFEST[: len(data)]):
            with pytest.raises(ForgedError):
                read(text, KEYS)


def test_signed_nonsense_is_forged_too() -> None:
    from recorder.proof.signed import sign_document

    good = json.loads(MANIFEST.split(b"\n")[0])
    wrong: list[dict[str, object]] = [
        {}, {"number": -1}, {"number": True}, {"day": "2026-13-01"}, {"previous": "x"}, {"recordings": [{}]},
        {"recordings": {"a": 1}}, {"events": []}, {"events": {"a": [1]}}, {"removals": [{}]},
        {"version": 2}, {"type": "x"},
        {"removals": [{"subject": "../x", "at": 1, "by": "", "why": ""}]}, {"sealed": "x"},
        {"sealed": 10**400}, {"sealed": float("nan")}, {"sealed": float("inf")}, {"sealed": -1}, {"sealed": "1"},
        {"acts": None}, {"acts": {"number": -1, "sha256": "0" * 64}}, {"acts": {"number": 1, "sha256": "x"}},
    ]  # fmt: skip
    for change in wrong[1:]:
        with pytest.raises(ForgedError):
            read_manifest(sign_document(good | change, SIGNER), KEYS)
    with pytest.raises(ForgedError):
        read_manifest(REMOVAL, KEYS)
    with pytest.raises(ForgedError):
        read_removal(MANIFEST, KEYS)
    with pytest.raises(ForgedError):
        read_manifest(MANIFEST, PublicKeys([]))
