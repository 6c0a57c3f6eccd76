"""What the proxy itself answers: to callers that it knows, and to nobody else."""

from __future__ import annotations

import json

from tests.dataplane.proxied import UNKNOWN, Stage, get, request


async def test_whoami() -> None:
    async with Stage() as stage:
        client = await stage.client()
        await client.send(get("/.well-known/k8sproxy/whoami"))
        response = await client.response()
        assert response.status == 200 and b'"user": "ana@example.com"' in response.body
        assert json.loads(response.body)["recording"] is None
        await client.send(get("/.well-known/k8sproxy/other"))
        assert (await client.response()).refusal()[0] == 404
        await client.send(request("DELETE", "/.well-known/k8sproxy/whoami"))
        assert (await client.response()).refusal()[0] == 405
        assert stage.api.untouched()


async def test_documents_are_looked_up_when_they_are_asked_for() -> None:
    async with Stage() as stage:
        client = await stage.client()
        await client.send(get("/.well-known/k8sproxy/ca.pem"))
        assert (await client.response()).status == 404
        stage.shared.documents = {"ca.pem": lambda: (b"application/x-pem-file", b"the CA")}
        await client.send(get("/.well-known/k8sproxy/ca.pem"))
        response = await client.response()
        assert (response.status, response.body) == (200, b"the CA")
        assert response.fields["content-type"] == "application/x-pem-file"
        await client.send(request("HEAD", "/.well-known/k8sproxy/ca.pem"))
        assert (await client.response("HEAD")).fields["content-length"] == "6"


async def test_nothing_is_served_to_a_caller_that_is_not_known() -> None:
    async with Stage() as stage:
        stage.daemon.answer = UNKNOWN
        client = await stage.client()
        await client.send(get("/.well-known/k8sproxy/whoami"))
        assert (await client.response()).refusal()[0] == 403
