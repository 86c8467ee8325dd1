"""HTTP origins against a real server on loopback."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator

import pytest

from agent.config import OriginConfig
from agent.content import ObjectRef
from agent.errors import (
    AccessDenied,
    BadRequest,
    ObjectMissing,
    OriginError,
    OriginMisbehaved,
    OriginUnavailable,
    Unversioned,
    VersionChanged,
)
from agent.origin.http import HttpOrigin
from agent.origin.http_index import INDEX_TYPE
from tests.harness.receiver import RecordingEngine
from tests.harness.s3 import free_ports
from tests.harness.sink import MemorySink, read_object
from tests.harness.web import Resource, WebServer

DATE = "Tue, 14 Nov 2023 22:13:20 GMT"


@pytest.fixture
def server() -> Iterator[WebServer]:
    with WebServer() as server:
        yield server


@pytest.fixture
async def receiver() -> AsyncIterator[RecordingEngine]:
    receiver = RecordingEngine()
    yield receiver
    await receiver.close()


@pytest.fixture
async def origin(receiver: RecordingEngine) -> AsyncIterator[HttpOrigin]:
    origin = HttpOrigin(OriginConfig(deadline=5.0), receiver)
    yield origin
    await origin.close()


async def test_a_file_is_read_by_its_strong_etag(server: WebServer, origin: HttpOrigin) -> None:
    server.paths["/m/a b.bin"] = Resource.tagged(b"x" * 2_500_000)
    (entry,) = (await origin.resolve(f"{server.url}/m/a%20b.bin?sig=secret")).entries
    assert (entry.path, entry.ref.version) == ("a b.bin", server.paths["/m/a b.bin"].etag)
    assert entry.mtime_ns == 1_700_000_000 * 10**9
    assert await read_object(origin, entry.ref) == b"x" * 2_500_000
    assert server.seen[-1].headers["If-Match"] == entry.ref.version
    assert server.seen[-1].path == "/m/a%20b.bin?sig=secret"
    server.paths["/m/a b.bin"] = Resource.tagged(b"y" * 2_500_000)
    with pytest.raises(VersionChanged) as raised:
        await read_object(origin, entry.ref)
    assert "secret" not in str(raised.value)


async def test_a_presigned_query_is_sent_but_is_in_no_name(server: WebServer, origin: HttpOrigin) -> None:
    server.paths["/m/f"] = Resource.tagged(b"x" * 10)
    dataset = await origin.resolve(f"{server.url}/m/f?id=5&X-Amz-Signature=secret")
    (entry,) = dataset.entries
    assert dataset.uri == entry.ref.uri == f"{server.url}/m/f?id=5&query=redacted"
    assert await read_object(origin, entry.ref) == b"x" * 10
    assert {seen.path for seen in server.seen} == {"/m/f?id=5&X-Amz-Signature=secret"}


async def test_presigned_urls_of_an_index_are_sent_but_are_in_no_name(
    server: WebServer, origin: HttpOrigin
) -> None:
    server.paths["/m/f"] = Resource.tagged(b"x" * 10)
    file = {"path": "f", "size": 10, "etag": server.paths["/m/f"].etag, "url": "f?sig=secret"}
    server.paths["/m/index.json"] = Resource(json.dumps({"version": 1, "files": [file]}).encode())
    (entry,) = (await origin.resolve(f"{server.url}/m/index.json?token=secret2")).entries
    assert entry.ref.uri == f"{server.url}/m/f?query=redacted"
    assert await read_object(origin, entry.ref) == b"x" * 10
    assert [seen.path for seen in server.seen] == ["/m/index.json?token=secret2", "/m/f?sig=secret"]


async def test_a_presigned_query_that_is_not_known_any_more_is_a_clear_refusal(
    server: WebServer, origin: HttpOrigin
) -> None:
    with pytest.raises(AccessDenied, match="publish the whole URL again"):
        await read_object(origin, ObjectRef(f"{server.url}/f?query=redacted", '"1"', 1))
    assert not server.seen


async def test_last_modified_and_length_are_a_version_where_the_etag_is_weak(
    server: WebServer, origin: HttpOrigin
) -> None:
    server.paths["/f"] = Resource(b"x" * 10, etag='W/"1"', last_modified=DATE)
    ref = (await origin.resolve(f"{server.url}/f")).entries[0].ref
    assert ref.version == f"{DATE}; 10"
    assert await read_object(origin, ref) == b"x" * 10
    assert server.seen[-1].headers["If-Unmodified-Since"] == DATE
    server.paths["/f"] = Resource(b"y" * 10, last_modified="Wed, 15 Nov 2023 22:13:20 GMT")
    with pytest.raises(VersionChanged):
        await read_object(origin, ref)
    server.paths["/f"] = Resource(b"y" * 11, last_modified=DATE)
    with pytest.raises(VersionChanged):
        await read_object(origin, ref)


async def test_encoded_bytes_are_taken_as_they_are_where_a_strong_etag_proves_them(
    server: WebServer, origin: HttpOrigin
) -> None:
    server.paths["/f"] = Resource(b"x" * 10, etag='"1"', last_modified=DATE, content_encoding="gzip")
    ref = (await origin.resolve(f"{server.url}/f")).entries[0].ref
    assert await read_object(origin, ref) == b"x" * 10
    server.paths["/f"].etag = 'W/"1"'
    ref = (await origin.resolve(f"{server.url}/f")).entries[0].ref
    with pytest.raises(OriginMisbehaved, match="encodes"):
        await read_object(origin, ref)


async def test_a_file_without_a_version_is_refused_unless_allowed(
    server: WebServer, origin: HttpOrigin, receiver: RecordingEngine
) -> None:
    server.paths["/f"] = Resource(b"x" * 10)
    with pytest.raises(Unversioned, match="allow_unversioned"):
        await origin.resolve(f"{server.url}/f")
    allowed = HttpOrigin(OriginConfig(allow_unversioned=True), receiver)
    ref = (await allowed.resolve(f"{server.url}/f")).entries[0].ref
    assert ref.version.startswith("unversioned")
    assert await read_object(allowed, ref) == b"x" * 10
    await allowed.close()


@pytest.mark.parametrize("status", [403, 405, 501])
async def test_a_server_that_refuses_head_is_asked_for_one_byte(
    server: WebServer, origin: HttpOrigin, status: int
) -> None:
    server.paths["/f"] = Resource.tagged(b"x" * 10)
    server.paths["/f"].head_status = status
    (entry,) = (await origin.resolve(f"{server.url}/f")).entries
    assert entry.ref.size == 10
    assert [request.method for request in server.seen] == ["HEAD", "GET"]


async def test_an_index_is_a_tree(server: WebServer, origin: HttpOrigin) -> None:
    first, second = Resource.tagged(b"1" * 10), Resource(b"22", last_modified=DATE)
    server.paths["/models/sub/a b+c%.bin"] = first
    server.paths["/blobs/2"] = second
    files = [
        {"path": "sub/a b+c%.bin", "size": 10, "etag": first.etag},
        {"path": "second", "size": 2, "last_modified": DATE, "url": "../blobs/2"},
        {"path": "../escape", "size": 0, "etag": "x"},
    ]
    text = json.dumps({"version": 1, "files": files}).encode()
    server.paths["/models/index.json"] = Resource(text)
    server.paths["/models/tree"] = Resource(text, content_type=INDEX_TYPE)
    for path in ("index.json", "tree"):
        dataset = await origin.resolve(f"{server.url}/models/{path}")
        contents = {entry.path: await read_object(origin, entry.ref) for entry in dataset.entries}
        assert contents == {"sub/a b+c%.bin": b"1" * 10, "second": b"22"}
        assert [item.key for item in dataset.unmapped] == ["../escape"]


async def test_redirects_are_followed_and_what_is_behind_them_is_checked(
    server: WebServer, origin: HttpOrigin
) -> None:
    with WebServer() as other:
        server.redirects["/f"] = "/hop"
        server.redirects["/hop"] = f"{other.url}/real?signature=1"
        other.paths["/real"] = Resource.tagged(b"x" * 100)
        (entry,) = (await origin.resolve(f"{server.url}/f")).entries
        assert (entry.path, entry.ref.uri) == ("f", f"{server.url}/f")
        assert await read_object(origin, entry.ref) == b"x" * 100
        assert other.seen[-1].headers["Host"] == f"127.0.0.1:{other.port}"
        other.paths["/real"] = Resource.tagged(b"y" * 100)
        with pytest.raises(VersionChanged):
            await read_object(origin, entry.ref)


async def test_redirects_end_and_lead_nowhere_else(server: WebServer, origin: HttpOrigin) -> None:
    server.redirects["/loop"] = "/loop"
    server.redirects["/out"] = "file:///etc/passwd"
    for path, reason in (("/loop", "more than 5 redirects"), ("/out", "no http or https URL")):
        with pytest.raises(OriginError, match=reason):
            await origin.resolve(server.url + path)
        with pytest.raises(OriginError, match=reason):
            await origin.fetch(ObjectRef(server.url + path, '"v"', 10), MemorySink(0, 10))


async def test_answers_become_errors_that_say_what_is_wrong(server: WebServer, origin: HttpOrigin) -> None:
    with pytest.raises(ObjectMissing, match="nothing at this URL"):
        await origin.resolve(f"{server.url}/nowhere")
    with pytest.raises(ObjectMissing):
        await origin.resolve(f"{server.url}/nowhere/index.json")
    server.paths["/busy"] = Resource(b"", head_status=503)
    with pytest.raises(OriginUnavailable, match="503"):
        await origin.resolve(f"{server.url}/busy")
    with pytest.raises(OriginUnavailable, match="does not answer"):
        await origin.resolve(f"http://127.0.0.1:{free_ports(1)[0]}/f")
    for bad in ("http://", "http://user:pw@host/f", f"{server.url}"):
        with pytest.raises((BadRequest, ObjectMissing)) as raised:
            await origin.resolve(bad)
        assert "pw" not in str(raised.value)


async def test_a_bad_index_is_told_by_its_first_fault(server: WebServer, origin: HttpOrigin) -> None:
    good = {"path": "a", "size": 1, "etag": "x"}
    cases: list[tuple[object, str]] = [
        ("not json", "Invalid JSON|Input should be"),
        ({"version": 2, "files": []}, "version"),
        ({"version": 1, "files": [good | {"size": -1}]}, r"files\.0\.size"),
        ({"version": 1, "files": [good | {"sise": 1}]}, r"files\.0\.sise"),
        ({"version": 1, "files": [good, good]}, "twice"),
        ({"version": 1, "files": [good | {"url": "file:///etc/passwd"}]}, "not http"),
    ]
    for content, reason in cases:
        server.paths["/index.json"] = Resource(json.dumps(content).encode())
        with pytest.raises(OriginMisbehaved, match=reason):
            await origin.resolve(f"{server.url}/index.json")
    server.paths["/index.json"] = Resource(b'{"version": 1, "files": [{"path": "a", "size": 1}]}')
    with pytest.raises(Unversioned):
        await origin.resolve(f"{server.url}/index.json")
