"""A refusal that is about one user's session says nothing about the recorder: real recorder, real sender."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from k8sproxy.common.formats.recorderapi import MAX_USER, read_user, user_value
from k8sproxy.recording.recorders import NoRecorder, Recorders
from recorder.ingest.site import user_limit
from tests.recorder.ingest.ingesting import Running, ingest
from tests.recorder.store.storing import run, until
from tests.recording.dialled import recorders


def header(user: str) -> bytes:
    return (
        json.dumps({"version": 2, "width": 80, "height": 24, "srcNode": "laptop", "srcNodeUser": user}).encode() + b"\n"
    )


@asynccontextmanager
async def stage(folder: Path, *, version: int = 2) -> AsyncIterator[tuple[Recorders, Running, str]]:
    """One place for each user."""
    folder.mkdir(exist_ok=True)
    async with ingest(folder, users=user_limit(100, 1)) as running, recorders() as made:
        address = f"127.0.0.1:{running.port}"
        if version == 1:
            made._recorder(address).health.version = 1
        yield made, running, address


def state(made: Recorders, address: str) -> str:
    return next(state.state for state in made.describe() if state.address == address)


@pytest.mark.parametrize("version", [1, 2])
def test_a_users_excess_is_refused_before_the_session_is_taken(tmp_path: Path, version: int) -> None:
    async def main() -> None:
        async with stage(tmp_path, version=version) as (made, running, address):
            first = await made.open([address], user="ana@example.com")  # and says nothing
            with pytest.raises(NoRecorder) as caught:
                await made.open([address], user="ana@example.com")
            why = "the recorder takes at most 1 sessions of one user at once (ingest.sessionsPerUser)"
            assert caught.value.declined and why in str(caught.value) and "HTTP 429" in str(caught.value)
            assert state(made, address) == "good" and not made.describe()[0].failures
            assert running.site.sessions.taken == 1, "what was refused has no place"
            ben = await made.open([address], user="ben@example.com")
            ben.write(header("ben@example.com"))
            await ben.finish()
            first.abort()
            await until(lambda: not running.site.users.taken)
            assert not running.site.sessions.taken
            (await made.open([address], user="ana@example.com")).abort()

    run(main())


def test_the_next_recorder_is_asked_and_this_one_stays_the_first(tmp_path: Path) -> None:
    async def main() -> None:
        async with stage(tmp_path / "a") as (made, _, one), stage(tmp_path / "b") as (_, _, other):
            uploads = [await made.open([one, other], user="ana") for _ in range(2)]
            assert [upload.recorder for upload in uploads] == [one, other]
            uploads.append(await made.open([one, other], user="ben"))
            assert uploads[-1].recorder == one
            for upload in uploads:
                upload.abort()

    run(main())


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (header("ana"), "sessions of one user at once"),
        (b"{\n", "the first line"),
        (b"[]\n", "the first line"),
        (b"x" * (70 << 10), "the first line has more than"),
    ],
)
def test_a_header_line_that_is_refused_is_not_the_recorders_failure(tmp_path: Path, line: bytes, words: str) -> None:
    async def main() -> None:
        async with stage(tmp_path) as (made, running, address):
            ana = await made.open([address], user="ana")
            late = await made.open([address])  # says in its header line alone whose it is
            late.write(line)
            await until(lambda: late.failure is not None)
            assert words in str(late.failure)
            assert state(made, address) == "good" and not made.describe()[0].failures
            ana.abort()
            await until(lambda: not running.site.users.taken and not running.site.sessions.taken)

    run(main())


def test_a_store_that_fails_is_the_recorders_failure(tmp_path: Path) -> None:
    async def main() -> None:
        async with stage(tmp_path) as (made, running, address):
            ana = await made.open([address], user="ana")
            for protocol in running.server._h2:
                protocol.cut("the recorder is stopping")
            await until(lambda: ana.failure is not None)
            assert state(made, address) == "bad"

    run(main())


def test_the_header_line_has_the_last_word_on_whose_place_it_is(tmp_path: Path) -> None:
    async def main() -> None:
        async with stage(tmp_path) as (made, running, address):
            users = running.site.users
            upload = await made.open([address], user="ana")
            assert dict(users.by_holder) == {"ana": 1}
            upload.write(header("ben"))
            await until(lambda: dict(users.by_holder) == {"ben": 1})
            await upload.finish()
            await until(lambda: not users.taken)

    run(main())


@pytest.mark.parametrize(
    "name", ["ana@example.com", "ana", "Ünal Ødegård@github", "a b\r\nx: y", "%41", "日本", "n123CNTRL"]
)
def test_a_name_arrives_as_it_is(name: str) -> None:
    value = user_value(name)
    assert value.isascii() and value.isprintable() and " " not in value
    assert read_user(value) == name


@pytest.mark.parametrize("value", [None, "", "%ff", "x" * (MAX_USER + 1)])
def test_a_value_that_makes_no_sense_names_nobody(value: str | None) -> None:
    assert read_user(value) == ""
    assert user_value("x" * (MAX_USER + 1)) == ""
