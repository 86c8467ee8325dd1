"""Credentials that came with a publish: which objects are fetched with them, and for how long."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from agent.clock import SystemClock
from agent.config import OriginConfig
from agent.content import ObjectRef
from agent.errors import AccessDenied, BadRequest
from agent.identity import OWN, Credentials, credentials_of
from agent.metrics import Metrics
from agent.origin.catalog import Origins
from agent.transfer.engine import Engine
from tests.harness.s3 import SeaweedS3
from tests.harness.sink import read_object

URI = "s3://grants/d"


@pytest.fixture
async def origins(seaweed: SeaweedS3) -> AsyncIterator[Origins]:
    """The agent itself is anonymous, which this server refuses."""
    engine = Engine(2, SystemClock())
    settings = OriginConfig(endpoint_url=seaweed.endpoint, region=seaweed.region, anonymous=True)
    made = Origins({"s3://": settings}, engine, Metrics())
    yield made
    await made.close()
    await engine.close()


@pytest.fixture
def right(seaweed: SeaweedS3) -> Credentials:
    secrets = {"access_key_id": seaweed.access_key, "secret_access_key": seaweed.secret_key}
    return credentials_of(URI, secrets)


@pytest.fixture
def wrong(seaweed: SeaweedS3) -> Credentials:
    return credentials_of(URI, {"access_key_id": seaweed.access_key, "secret_access_key": "wrong"})


async def ref_of(origins: Origins, seaweed: SeaweedS3, right: Credentials) -> ObjectRef:
    seaweed.put("grants", "d/f", b"bytes")
    (entry,) = (await origins.resolve(URI, right)).entries
    return entry.ref


def requests(origins: Origins) -> float:
    return float(origins._metrics.origin_fetches("s3://").requests._value.get())


async def test_a_listing_needs_the_right_of_who_asks(
    origins: Origins, seaweed: SeaweedS3, right: Credentials, wrong: Credentials
) -> None:
    assert (await ref_of(origins, seaweed, right)).size == 5
    for credentials in (OWN, wrong):
        with pytest.raises(AccessDenied):
            await origins.resolve(URI, credentials)


async def test_objects_are_fetched_with_credentials_as_long_as_they_are_granted(
    origins: Origins, seaweed: SeaweedS3, right: Credentials
) -> None:
    ref = await ref_of(origins, seaweed, right)
    origins.grant("s3://grants/other", right)
    with pytest.raises(AccessDenied):
        await read_object(origins, ref)
    origins.grant(URI, right)
    origins.grant(URI, right)
    await origins.revoke(URI, right)
    assert await read_object(origins, ref) == b"bytes"
    await origins.revoke(URI, right)
    await origins.revoke("s3://grants/other", right)
    with pytest.raises(AccessDenied):
        await read_object(origins, ref)
    assert not any(key.credentials for key in origins._origins)


async def test_what_is_denied_gives_way_to_the_next_and_what_worked_comes_first_then(
    origins: Origins, seaweed: SeaweedS3, right: Credentials, wrong: Credentials
) -> None:
    ref = await ref_of(origins, seaweed, right)
    origins.grant(URI, right)
    origins.grant(URI, wrong)
    before = requests(origins)
    assert await read_object(origins, ref) == b"bytes"
    assert requests(origins) == before + 2
    assert await read_object(origins, ref) == b"bytes"
    assert requests(origins) == before + 3
    for credentials in (right, wrong):
        await origins.revoke(URI, credentials)


async def test_no_file_system_takes_secrets(origins: Origins) -> None:
    with pytest.raises(BadRequest, match="no secrets are taken"):
        await origins.resolve("file:///tmp", Credentials("s3", (("access_key_id", "x"),)))


async def test_an_http_server_gets_its_credentials_and_no_other_server_does(origins: Origins) -> None:
    heard: list[tuple[str, str | None]] = []

    async def answer(request: web.Request) -> web.Response:
        heard.append((request.path, request.headers.get("Authorization")))
        if request.path == "/away":
            raise web.HTTPFound(f"http://localhost:{port}/there")
        return web.Response(body=b"bytes", headers={"ETag": '"1"'})

    app = web.Application()
    app.router.add_get("/{path}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    try:
        credentials = credentials_of("http://x", {"bearer_token": "abc"})
        for path in ("here", "away"):
            await origins.resolve(f"http://127.0.0.1:{port}/{path}", credentials)
    finally:
        await runner.cleanup()
    assert ("/here", "Bearer abc") in heard
    assert ("/there", None) in heard
    assert ("/there", "Bearer abc") not in heard
