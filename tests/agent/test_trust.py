"""One trust for all that is asked over TLS: what an origin lists it reads too."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from agent.config import OriginConfig
from agent.errors import OriginUnavailable
from agent.metrics import Metrics
from agent.origin.catalog import Origins
from tests.harness.receiver import RecordingEngine
from tests.harness.s3 import SeaweedS3
from tests.harness.sink import read_object
from tests.harness.tls import Authority, authority, in_front_of
from tests.harness.web import Resource, WebServer

DATA = b"x" * 3000


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture
def server() -> Iterator[WebServer]:
    with WebServer() as server:
        server.paths["/m/f"] = Resource.tagged(DATA)
        yield server


@pytest.fixture(params=["s3", "https"])
async def secured(
    request: pytest.FixtureRequest,
    ca: Authority,
    server: WebServer,
    seaweed: SeaweedS3,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> AsyncIterator[tuple[Origins, str]]:
    """Origins, and the URI of a file whose server has a certificate of the private authority."""
    for name in ("AWS_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    for name, value in seaweed.environment().items():
        monkeypatch.setenv(name, value)
    seaweed.put("trusted", "f", DATA)
    is_s3 = request.param == "s3"
    port = int(seaweed.endpoint.rpartition(":")[2]) if is_s3 else server.port
    engine = RecordingEngine()
    async with in_front_of(port, ca.context) as front:
        url = f"https://127.0.0.1:{front}"
        settings = OriginConfig(endpoint_url=url, region=seaweed.region, deadline=5.0)
        origins = Origins({"s3://": settings}, engine, Metrics())
        yield origins, "s3://trusted/f" if is_s3 else f"{url}/m/f"
        await origins.close()
        await engine.close()


@pytest.mark.parametrize("name", ["AWS_CA_BUNDLE", "SSL_CERT_FILE"])
async def test_a_private_authority_is_trusted_by_listing_and_reading_alike(
    secured: tuple[Origins, str], ca: Authority, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    origins, uri = secured
    monkeypatch.setenv(name, str(ca.certificate))
    (entry,) = (await origins.resolve(uri)).entries
    assert await read_object(origins, entry.ref) == DATA


async def test_without_it_the_listing_and_the_read_name_the_certificate_and_the_remedy(
    secured: tuple[Origins, str], ca: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    origins, uri = secured
    said = "certificate is not trusted .*; set AWS_CA_BUNDLE or SSL_CERT_FILE$"
    with pytest.raises(OriginUnavailable, match=said):
        await origins.resolve(uri)
    monkeypatch.setenv("SSL_CERT_FILE", str(ca.certificate))
    await origins.close()  # what it had asked has its certificates from before
    (entry,) = (await origins.resolve(uri)).entries
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(OriginUnavailable, match=said):
        await read_object(origins, entry.ref)


async def test_a_bundle_that_cannot_be_used_is_named(
    secured: tuple[Origins, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    origins, uri = secured
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "missing.pem"))
    with pytest.raises(OriginUnavailable, match=r"AWS_CA_BUNDLE: .*missing.pem cannot be used"):
        await origins.resolve(uri)
