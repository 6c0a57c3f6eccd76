"""Time stamps, by a real time stamp authority: `openssl ts` behind a small HTTP server."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from aiohttp import web
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recorder.proof import KeyFault, der
from recorder.proof.days import day_of, next_day
from recorder.proof.documents import Manifest, write_manifest
from recorder.proof.handover import MANIFESTS
from recorder.proof.keys import Anchor
from recorder.proof.signed import digest
from recorder.proof.timestamps import (
    StampError,
    TimeStampWitness,
    _check_chain,
    _check_usage,
    question,
    read_answer,
    read_certificates,
)
from recorder.proof.witness import Witnesses
from recorder.store.blobs import FolderBlobs
from tests.recorder.proof.sealed import DAY, Stage, run

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")

CONFIG = """
[tsa]
default_tsa = tsa_one
[tsa_one]
serial = serial
signer_digest = sha256
default_policy = 1.2.3.4
digests = sha256, sha512
accuracy = secs:1
ess_cert_id_alg = sha256
[v3_tsa]
basicConstraints = critical,CA:false
extendedKeyUsage = critical,timeStamping
[v3_wide]
extendedKeyUsage = critical,timeStamping,serverAuth
[v3_lax]
extendedKeyUsage = timeStamping
[v3_none]
basicConstraints = CA:false
[v3_ca]
basicConstraints = critical,CA:true
[req]
distinguished_name = dn
[dn]
"""


class Authority:
    """A CA, and signers it has issued: `rsa`, `ec`, and `wide`, `lax`, `none` that are not only for time stamps."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "ts.cnf").write_text(CONFIG)
        (folder / "serial").write_text("01\n")
        self.openssl(
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "ca.key", "-out", "ca.pem", "-days", "3650",
            "-subj", "/CN=ca", "-config", "ts.cnf", "-extensions", "v3_ca",
        )  # fmt: skip
        for name, kind, more in (
            ("rsa", ["rsa:2048"], "v3_tsa"), ("ec", ["ec", "-pkeyopt", "ec_paramgen_curve:P-256"], "v3_tsa"),
            ("wide", ["rsa:2048"], "v3_wide"), ("lax", ["rsa:2048"], "v3_lax"), ("none", ["rsa:2048"], "v3_none"),
        ):  # fmt: skip
            self.openssl(
                "req", "-newkey", *kind, "-nodes", "-keyout", f"{name}.key", "-out", f"{name}.csr",
                "-subj", f"/CN={name}", "-config", "ts.cnf",
            )  # fmt: skip
            self.openssl(
                "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
                "-out", f"{name}.pem", "-days", "3650", "-extfile", "ts.cnf", "-extensions", more,
            )  # fmt: skip

    def openssl(self, *arguments: str, input: bytes = b"") -> bytes:
        done = subprocess.run(["openssl", *arguments], cwd=self.folder, input=input, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def reply(self, query: bytes, signer: str = "rsa") -> bytes:
        (self.folder / "query").write_bytes(query)
        return self.openssl(
            "ts", "-reply", "-config", "ts.cnf", "-section", "tsa_one", "-queryfile", "query",
            "-signer", f"{signer}.pem", "-inkey", f"{signer}.key",
        )  # fmt: skip


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tsa"))


@asynccontextmanager
async def serving(authority: Authority) -> AsyncIterator[tuple[str, list[bytes]]]:
    """Its URL, and answers to be given first."""
    answers: list[bytes] = []

    async def handle(request: web.Request) -> web.Response:
        assert request.content_type == "application/timestamp-query"
        query = await request.read()
        body = answers.pop(0) if answers else await asyncio.to_thread(authority.reply, query)
        return web.Response(status=200 if body else 500, body=body, content_type="application/timestamp-reply")

    app = web.Application()
    app.router.add_post("/tsr", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/tsr", answers
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("signer", ["rsa", "ec"])
@pytest.mark.parametrize("trusted", ["ca.pem", "{}.pem"])
def test_what_a_real_authority_stamps_is_believed(authority: Authority, signer: str, trusted: str) -> None:
    certificates = read_certificates(authority.folder / trusted.format(signer))
    stamp = read_answer(authority.reply(question("ab" * 32, 77), signer), certificates)
    assert (stamp.imprint, stamp.nonce) == ("ab" * 32, 77) and stamp.at > 1.7e9


def test_what_is_not_believed(authority: Authority) -> None:
    ca = read_certificates(authority.folder / "ca.pem")
    good = authority.reply(question("ab" * 32, 77))
    for signer in ("wide", "lax", "none"):
        try:
            answer = authority.reply(question("ab" * 32, 77), signer)
        except AssertionError:
            continue  # openssl refuses to sign with it
        with pytest.raises(StampError):
            read_answer(answer, ca)
    with pytest.raises(StampError, match="none of those that are configured"):
        read_answer(good, read_certificates(authority.folder / "ec.pem"))
    # A certificate for time stamps that is configured vouches for itself alone, and not for one that it has issued.
    authority.openssl(
        "x509", "-req", "-in", "ec.csr", "-CA", "rsa.pem", "-CAkey", "rsa.key", "-CAcreateserial", "-out", "below.pem",
        "-extfile", "ts.cnf", "-extensions", "v3_tsa",
    )  # fmt: skip
    (authority.folder / "below.key").write_bytes((authority.folder / "ec.key").read_bytes())
    with pytest.raises(StampError, match="none of those that are configured"):
        read_answer(authority.reply(question("ab" * 32, 77), "below"), read_certificates(authority.folder / "rsa.pem"))
    refused = der.write(der.SEQUENCE, [der.write(der.SEQUENCE, [der.write_whole(2)])])
    with pytest.raises(StampError, match="refuses to stamp"):
        read_answer(refused, ca)
    with pytest.raises(KeyFault, match="not hold certificates"):
        read_certificates(authority.folder / "serial")
    with pytest.raises(KeyFault, match="can't be read"):
        read_certificates(authority.folder / "nothing")


def test_certificates_that_openssl_does_not_sign_with(authority: Authority) -> None:
    """Another program would."""
    ca = read_certificates(authority.folder / "ca.pem")
    for name, fault in (
        ("wide", "not only for time stamps"),
        ("lax", "not only for time stamps"),
        ("none", "not for"),
    ):
        (certificate,) = read_certificates(authority.folder / f"{name}.pem")
        with pytest.raises(StampError, match=fault):
            _check_usage(certificate)
    (certificate,) = read_certificates(authority.folder / "rsa.pem")
    _check_usage(certificate)
    _check_chain(certificate, ca, ca, certificate.not_valid_before_utc + timedelta(1))
    for at in (certificate.not_valid_after_utc + timedelta(1), certificate.not_valid_before_utc - timedelta(1)):
        with pytest.raises(StampError, match="was not valid then"):
            _check_chain(certificate, ca, ca, at)


@pytest.mark.filterwarnings("ignore:Parsed a serial number")  # of a certificate, which was changed
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_changed_answer_is_never_another_stamp(authority: Authority, data: st.DataObject) -> None:
    ca = read_certificates(authority.folder / "ca.pem")
    good = bytearray(_GOOD.setdefault("good", authority.reply(question("ab" * 32, 77))))
    before = read_answer(bytes(good), ca)
    place = data.draw(st.integers(0, len(good) - 1))
    operation = data.draw(st.sampled_from(("flip", "cut", "drop", "double")))
    if operation == "flip":
        good[place] ^= data.draw(st.integers(1, 255))
    elif operation == "cut":
        del good[place:]
    elif operation == "drop":
        del good[place]
    else:
        good.insert(place, good[place])
    with contextlib.suppress(StampError):
        assert read_answer(bytes(good), ca) == before  # what is not signed may differ: the issuer's name, the status


_GOOD: dict[str, bytes] = {}


@pytest.mark.filterwarnings("ignore:Parsed a serial number")  # of a certificate, which was changed
def test_whatever_bytes_come_are_a_stamp_or_refused(authority: Authority) -> None:
    """Each byte of an answer changed in three ways, and the answer cut off behind each."""
    ca = read_certificates(authority.folder / "ca.pem")
    good = authority.reply(question("ab" * 32, 77))
    before = read_answer(good, ca)
    for place in range(len(good)):
        for other in (good[place] ^ 1, good[place] ^ 0x40, good[place] ^ 0xFF):
            with contextlib.suppress(StampError):
                assert read_answer(good[:place] + bytes([other]) + good[place + 1 :], ca) == before
        with pytest.raises(StampError):
            read_answer(good[:place], ca)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_nonsense(data: bytes) -> None:
    with pytest.raises(StampError):
        read_answer(data, [])


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 1 << 200), st.binary(max_size=300), st.lists(st.integers(0, 1 << 60), min_size=1, max_size=8))
def test_der_round_trips(number: int, octets: bytes, arcs: list[int]) -> None:
    dotted = ".".join(map(str, (1, 3, *arcs)))
    parts = [der.write_whole(number), der.write(der.OCTETS, octets), der.write_oid(dotted)]
    whole, text, name = der.read(der.write(der.SEQUENCE, parts)).need(der.SEQUENCE).items()
    assert whole.whole() == number and text.body == octets and name.oid() == dotted


@pytest.mark.parametrize(
    "data",
    [b"", b"\x02", b"\x02\x81\x01\x00", b"\x02\x80", b"\x02\x85\1\1\1\1\1", b"\x02\x01\x00\x00", b"\x1f\x81\x00"],
)
def test_der_that_is_refused(data: bytes) -> None:
    with pytest.raises(der.DerError):
        der.read(data)
    for wrong in (b"\x02\x02\x00\x01", b"\x02\x00"):
        with pytest.raises(der.DerError):
            der.read(wrong).whole()
    endless = der.write(der.OID, b"\xff" * 60_000 + b"\x01")  # whose number would take seconds
    for wrong in (b"\x06\x00", b"\x06\x02\x2a\x80", b"\x06\x03\x2a\x80\x01", endless):
        with pytest.raises(der.DerError):
            der.read(wrong).oid()
    with pytest.raises(der.DerError, match="too large"):
        der.read(endless).oid()


def test_each_day_is_stamped_and_openssl_says_so_too(authority: Authority, tmp_path: Path) -> None:
    stage = Stage(tmp_path / "store")
    ca = read_certificates(authority.folder / "ca.pem")

    async def check() -> None:
        async with serving(authority) as (url, answers):
            blobs = FolderBlobs(stage.root)
            witness = TimeStampWitness(blobs, url, ca)
            assert await witness.recall() == {} and await witness.examine({}) == ([], "")
            await stage.fill(1)
            # The stamps are of now, so the days are too.
            stage.clock -= DAY
            await stage.seal()
            (path,) = stage.manifests()
            head = Anchor(1, digest(path.read_bytes()))
            await Witnesses([witness]).remember(MANIFESTS, head)
            await witness.remember("acts", head)
            assert await witness.recall() == {MANIFESTS: head}
            (stamp,) = (stage.root / "proof/stamps").iterdir()
            check = ["ts", "-verify", "-data", str(path), "-in", str(stamp), "-CAfile", "ca.pem"]
            assert b"Verification: OK" in authority.openssl(*check)
            report = await stage.verify(witnesses=[stage.witness, witness])
            assert report.well and report.anchors[1] == (
                f"compared with time stamps of {url}: manifests 1, stamped from manifest 1 on, which was on "
                f"{day_of(time.time())}"
            )
            # Without its stamps a store is not compared with anything, and that is told.
            (stage.root / "proof/stamps").rename(tmp_path / "stamps")
            report = await stage.verify(witnesses=[stage.witness, witness])
            assert report.faults == [f"the anchor is empty, and the store has signed chains: time stamps of {url}"]
            (tmp_path / "stamps").rename(stage.root / "proof/stamps")
            # Answers to another question, and none.
            old = stamp.read_bytes()
            for answer, fault in (
                (old, "other data than was asked"),
                (authority.reply(question("cd" * 32, 1)), "other data than was asked"),
                (authority.reply(question("ee" * 32, 1)), "other data than was asked"),  # an older one of the same
                (b"nonsense", "not a time stamp"),
                (b"", "answers 500"),
                (b"x" * 200_000, "not a time stamp"),
            ):
                answers.append(answer)
                with pytest.raises(KeyFault, match=fault):
                    await witness.remember(MANIFESTS, Anchor(2, "ee" * 32))
            assert len(list((stage.root / "proof/stamps").iterdir())) == 1
            stamp.write_bytes(old[:-1])
            with pytest.raises(KeyFault, match="is not trusted"):
                await witness.recall()
            assert not (await stage.verify(witnesses=[witness])).well
            await blobs.aclose()
        nobody = TimeStampWitness(blobs, url, ca)
        with pytest.raises(KeyFault, match="cannot ask"):
            await nobody.remember(MANIFESTS, head)

    run(check())


def test_whoever_has_the_key_cannot_write_a_history_with_stamps_of_then(authority: Authority, tmp_path: Path) -> None:
    """All manifests anew, with other contents, signed by the real key; stamps can be had of today alone."""
    stage = Stage(tmp_path / "store")
    ca = read_certificates(authority.folder / "ca.pem")

    async def check() -> None:
        async with serving(authority) as (url, _):
            blobs = FolderBlobs(stage.root)
            witness = TimeStampWitness(blobs, url, ca)
            day, previous, now = "2026-01-01", "0" * 64, stage.clock - 2 * DAY
            for number in range(1, 4):
                sealed = now - (60 - number) * DAY
                data = write_manifest(Manifest(number, day, previous, sealed, registers={}), stage.signer)
                (stage.root / "proof/days").mkdir(parents=True, exist_ok=True)
                (stage.root / f"proof/days/{day}.json").write_bytes(data)
                await witness.remember(MANIFESTS, Anchor(number, previous := digest(data)))
                day = next_day(day)
            report = await stage.verify(witnesses=[witness])
            assert not report.well
            assert [fault for fault in report.faults if "the first time stamp that vouches for it" in fault]
            # And a stamp of another manifest does not do.
            stamps = sorted((stage.root / "proof/stamps").iterdir())
            stamps[0].write_bytes(stamps[1].read_bytes())
            report = await stage.verify(witnesses=[witness])
            assert "the time stamp of manifest 1 belongs to another manifest" in report.faults
            await blobs.aclose()

    run(check())
