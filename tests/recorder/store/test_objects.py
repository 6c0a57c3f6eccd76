"""recorder/store/objects.py and answers.py: stores that speak like S3 and answer as some do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from recorder.model import End
from recorder.store import Store, StoreError
from recorder.store.answers import read_answer
from recorder.store.logs import ObjectLog
from recorder.store.objects import ObjectBlobs, open_objects
from tests.recorder.serving import recorder
from tests.recorder.store.storing import HEADER, SOURCE, lines, run, until


def error(code: str) -> str:
    return f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>about s3cret</Message></Error>'


class FakeS3:
    """One bucket. bulk, single, put: (status, text) that is answered instead, None for what S3 does."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.bulk: tuple[int, str] | None = None
        self.single: tuple[int, str] | None = None
        self.put: tuple[int, str] | None = None
        self.conditional: tuple[int, str] | None = None
        self.asked: list[str] = []
        self.port = 0

    async def handle(self, request: web.Request) -> web.Response:
        key = request.path.removeprefix("/bucket").lstrip("/")
        body = await request.read()
        if request.method == "POST" and "delete" in request.query:
            self.asked.append("bulk")
            if self.bulk is not None:
                return web.Response(status=self.bulk[0], text=self.bulk[1])
            keys = [part.partition("</Key>")[0] for part in body.decode().split("<Key>")[1:]]
            for one in keys:
                self.objects.pop(one, None)
            told = "".join(f"<Deleted><Key>{one}</Key></Deleted>" for one in keys)
            return web.Response(text=f"<DeleteResult>{told}</DeleteResult>")
        if request.method == "DELETE":
            self.asked.append("single")
            if self.single is not None:
                return web.Response(status=self.single[0], text=self.single[1])
            assert "X-Amz-Signature" in request.query
            self.objects.pop(key, None)
            return web.Response(status=204)
        if request.method == "PUT":
            if self.put is not None:
                return web.Response(status=self.put[0], text=self.put[1])
            if "If-None-Match" in request.headers and self.conditional is not None:
                return web.Response(status=self.conditional[0], text=self.conditional[1])
            self.objects[key] = body
            return web.Response(headers={"ETag": '"x"'})
        if "list-type" in request.query:
            return web.Response(text=self._listing(request.query.get("prefix", "")), content_type="application/xml")
        if key not in self.objects:
            return web.Response(status=404, text=error("NoSuchKey"))
        headers = {"ETag": '"x"', "Last-Modified": "Wed, 21 Oct 2015 07:28:00 GMT"}
        return web.Response(body=self.objects[key], headers=headers)

    def _listing(self, prefix: str) -> str:
        folders, rows = set(), ""
        for key, data in sorted(self.objects.items()):
            if key.startswith(prefix):
                head, slash, _ = key.removeprefix(prefix).partition("/")
                if slash:
                    folders.add(f"{prefix}{head}/")
                else:
                    rows += f"<Contents><Key>{key}</Key><Size>{len(data)}</Size>"
                    rows += '<LastModified>2015-10-21T07:28:00.000Z</LastModified><ETag>"x"</ETag></Contents>'
        rows += "".join(f"<CommonPrefixes><Prefix>{one}</Prefix></CommonPrefixes>" for one in sorted(folders))
        return f'<?xml version="1.0"?><ListBucketResult><IsTruncated>false</IsTruncated>{rows}</ListBucketResult>'

    @property
    def options(self) -> dict[str, str]:
        return {
            "endpoint": f"http://127.0.0.1:{self.port}",
            "allow_http": "true",
            "region": "x",
            "access_key_id": "a",
            "secret_access_key": "s3cret",
        }

    def blobs(self) -> ObjectBlobs:
        return open_objects("s3://bucket/pre", self.options)


@asynccontextmanager
async def fake_s3() -> AsyncIterator[FakeS3]:
    fake = FakeS3()
    app = web.Application(client_max_size=1 << 26)
    app.router.add_route("*", "/{key:.*}", fake.handle)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    assert runner.addresses
    fake.port = runner.addresses[0][1]
    try:
        yield fake
    finally:
        await runner.cleanup()


PARTIAL = (
    "<DeleteResult><Deleted><Key>pre/a/1</Key></Deleted><Error><Key>pre/a/2</Key><Code>{}</Code></Error></DeleteResult>"
)


@pytest.mark.parametrize(
    "bulk",
    [
        (501, error("NotImplemented")),
        (501, ""),
        (405, error("MethodNotAllowed")),
        (400, error("MalformedXML")),
        (403, error("AccessDenied")),
        (404, ""),
        (500, error("InternalError")),
        (200, ""),
        (200, "what?"),
        (200, PARTIAL.format("InternalError")),
    ],
)
def test_what_can_not_go_at_once_goes_one_by_one(bulk: tuple[int, str]) -> None:
    async def main() -> None:
        async with fake_s3() as fake:
            blobs = fake.blobs()
            for number in range(20):
                await blobs.put(f"a/{number}", b"x")
            fake.bulk = bulk
            await blobs.delete([f"a/{number}" for number in range(25)])  # some of which are not there
            assert fake.objects == {} and fake.asked.count("single") == 25
            fake.asked.clear()
            await blobs.delete(["a/1", "a/2"])
            # What is not supported is not asked for each time.
            again = bulk[0] in (501, 405) or (bulk[0] == 200 and "Error" not in bulk[1])
            assert (fake.asked == ["single"] * 2) is again
            await blobs.aclose()

    run(main())


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ((400, error("InvalidBucketName")), "refused the request (HTTP 400, InvalidBucketName)"),
        ((401, ""), "refuses its credentials or its permissions (HTTP 401)"),
        ((403, error("AccessDenied")), "refuses its credentials or its permissions (HTTP 403, AccessDenied)"),
        ((404, error("NoSuchBucket")), "has no such bucket"),
        ((405, error("MethodNotAllowed")), "does not support this request (HTTP 405, MethodNotAllowed)"),
        ((501, error("NotImplemented")), "does not support this request (HTTP 501, NotImplemented)"),
        ((503, error("SlowDown")), "asks for fewer requests (HTTP 503, SlowDown)"),
        ((500, error("InternalError")), "failed (HTTP 500, InternalError)"),
        ((400, error("s3cret in here")), "refused the request (HTTP 400)"),
    ],
)
def test_what_a_store_answers_is_told_as_it_is(answer: tuple[int, str], why: str) -> None:
    async def main() -> None:
        async with fake_s3() as fake:
            blobs = fake.blobs()
            fake.bulk = fake.single = fake.put = answer
            for attempt in (blobs.delete(["a/1", "a/2"]), blobs.put("a", b"x")):
                with pytest.raises(StoreError) as caught:
                    await attempt
                assert str(caught.value) == f"the recorder's store {why}"
            await blobs.aclose()

    run(main())


def test_nobody_there_cannot_be_reached() -> None:
    async def main() -> None:
        async with fake_s3() as fake:
            blobs = fake.blobs()
        for attempt in (blobs.delete(["a/1", "a/2"]), blobs.put("a", b"x")):
            with pytest.raises(StoreError, match=r"^the recorder's store cannot be reached"):
                await attempt
        await blobs.aclose()

    run(main())


def test_a_store_that_wants_fewer_requests_does_not_get_more() -> None:
    async def main() -> None:
        async with fake_s3() as fake:
            blobs = fake.blobs()
            for bulk in ((503, error("SlowDown")), (200, PARTIAL.format("SlowDown"))):
                fake.bulk = bulk
                with pytest.raises(StoreError, match="asks for fewer requests"):
                    await blobs.delete([f"a/{number}" for number in range(100)])
            assert "single" not in fake.asked
            await blobs.aclose()

    run(main())


def test_one_that_can_not_go_does_not_keep_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with fake_s3() as fake:
            blobs = fake.blobs()
            for number in range(10):
                await blobs.put(f"a/{number}", b"x")
            fake.bulk = (501, "")
            delete = blobs._delete_one

            async def some(path: str) -> None:
                if path == "a/3":
                    raise StoreError("locked")
                await delete(path)

            monkeypatch.setattr(blobs, "_delete_one", some)
            with pytest.raises(StoreError, match="locked"):
                await blobs.delete([f"a/{number}" for number in range(10)])
            assert set(fake.objects) == {"pre/a/3"}
            await blobs.aclose()

    run(main())


@pytest.mark.parametrize("answer", [(501, error("NotImplemented")), (405, "")])
def test_a_store_without_conditional_puts(answer: tuple[int, str]) -> None:
    async def main() -> None:
        async with fake_s3() as fake:
            blobs = fake.blobs()
            fake.conditional = answer
            await blobs.create("a/1", b"x")
            with pytest.raises(FileExistsError):
                await blobs.create("a/1", b"y")
            assert fake.objects == {"pre/a/1": b"x"}
            await blobs.aclose()

    run(main())


def test_a_journal_that_can_not_be_trimmed_is_told_and_gets_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recorder.store.builder.TRIM", 0.0)
    monkeypatch.setattr("recorder.store.journal.SEGMENT", 1000)

    async def main() -> None:
        async with fake_s3() as fake:
            blobs = fake.blobs()
            store = Store(blobs, ObjectLog(blobs), min_free=0)
            await store.open()
            fake.bulk = fake.single = (403, error("AccessDenied"))

            async def record() -> None:
                live = await store.begin(HEADER, SOURCE)
                live.write(lines(20))
                await live.finish(End.CLEAN)

            while store.removal_fault is None:
                await record()
            assert store.removal_fault == (
                "segments of the journal cannot be removed: the recorder's store refuses its credentials or its "
                "permissions (HTTP 403, AccessDenied)"
            )
            assert store.healthy is None and store.errors["removal"]
            fake.bulk = (501, "")
            fake.single = None
            await record()
            await until(lambda: store.removal_fault is None)
            await store.aclose()

    run(main())


def test_readiness_tells_it(tmp_path: Path) -> None:
    """The whole recorder: it keeps what it gets, and says that nothing is removed."""

    async def main() -> None:
        async with fake_s3() as fake:
            fake.bulk = (501, error("NotImplemented"))
            fake.single = (403, error("AccessDenied"))
            section = {"url": "s3://bucket/pre", "options": fake.options}
            async with recorder(tmp_path, store=section) as running:
                running.process.terminate()  # puts what it has into chunks, and would trim its journal
                assert await running.process.wait() == 0
            async with recorder(tmp_path, store=section) as running:
                async with asyncio.timeout(60):
                    text = await running.readiness(503)
                assert "[-]removal segments of the journal cannot be removed" in text and "AccessDenied" in text
                assert "[+]store ok" in text
                assert "recorder_removal_healthy 0.0" in (await running.get("/metrics"))[1]

    run(main())


def test_nothing_of_an_answer_but_status_and_code() -> None:
    text = (
        'Generic S3 error: .. POST http://host/bucket - status code: 400 Bad: <Code>Odd</Code>\n\nDebug source:\n"501"'
    )
    assert read_answer(text).words("x") == "the recorder's store refused the request (HTTP 400, Odd)"
    assert read_answer('status code: 403 F: {"error": {"code": 403, "reason": "forbidden"}}').code == "forbidden"
    assert read_answer("nothing").words("GenericError") == "the recorder's store cannot be reached (GenericError)"
