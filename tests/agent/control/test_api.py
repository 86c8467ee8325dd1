from __future__ import annotations

import inspect
import json
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from pydantic import SecretStr

from agent import errors
from agent.control.api import MAX_BODY, STATUSES, to_status
from agent.control.client import AdminClient, AdminError
from agent.control.views import MountRequest
from tests.harness.controlled import DATASET, PATHS, InMemoryAgent


@pytest.fixture
async def raw(admin_socket: Path) -> AsyncIterator[aiohttp.ClientSession]:
    connector = aiohttp.UnixConnector(str(admin_socket))
    timeout = aiohttp.ClientTimeout(total=10)
    async with aiohttp.ClientSession("http://agent", connector=connector, timeout=timeout) as session:
        yield session


async def test_status_datasets_and_counters_come_as_they_were_said(client: AdminClient) -> None:
    status = await client.status()
    assert (status.name, status.uptime_seconds, status.ready) == ("n", 1.5, True)
    assert await client.datasets() == [DATASET]
    assert await client.counters() == {"headrace_mounts": 1.0}


async def test_mounts_come_and_go(client: AdminClient) -> None:
    made = await client.mount(MountRequest(uri="s3://models/x"))
    assert await client.mounts() == [made]
    await client.unmount(made.mount)
    assert await client.mounts() == []


async def test_objects_come_in_pages_whatever_their_paths_hold(client: AdminClient) -> None:
    seen: list[str] = []
    while page := await client.objects(DATASET.revision, after=seen[-1] if seen else "", limit=2):
        seen += [view.path for view in page]
    assert tuple(seen) == PATHS


async def test_a_name_in_a_path_cannot_reach_another_resource(client: AdminClient) -> None:
    for name in ("a/b", "..", "../status", "m-0?x=1", "ü", "%2e"):
        with pytest.raises(AdminError) as caught:
            await client.unmount(name)
        assert caught.value.status in (404, 405)


def test_every_error_of_the_agent_has_a_status_of_its_own() -> None:
    declared = {
        value
        for _, value in inspect.getmembers(errors, inspect.isclass)
        if issubclass(value, errors.HeadraceError)
    }
    assert declared == set(STATUSES)
    assert all(400 <= status <= 599 for status in STATUSES.values())


def test_an_error_from_elsewhere_counts_as_its_nearest_ancestor() -> None:
    class Refined(errors.OriginMisbehaved):
        pass

    assert to_status(Refined("x")) == 502


@pytest.mark.parametrize(
    ("failure", "status"),
    [
        (errors.BadRequest("no"), 400),
        (errors.AccessDenied("no"), 403),
        (errors.ObjectMissing("no"), 404),
        (errors.VersionChanged("no"), 409),
        (errors.OriginMisbehaved("no"), 502),
        (errors.OriginUnavailable("no"), 503),
        (errors.PatienceExhausted("no"), 503),
        (errors.HolderError("no"), 503),
        (errors.StoreFull("no"), 507),
        (errors.StoreFailed("no"), 500),
        (errors.ConfigError("store", "no"), 500),
    ],
)
async def test_an_error_reaches_the_caller_with_status_code_and_message(
    agent: InMemoryAgent, client: AdminClient, failure: errors.HeadraceError, status: int
) -> None:
    agent.failure = failure
    with pytest.raises(AdminError) as caught:
        await client.mount(MountRequest(uri="s3://x"))
    error = caught.value
    assert (error.status, error.code, error.message) == (status, type(failure).__name__, str(failure))


async def test_an_error_is_told_in_one_line_without_secrets(
    agent: InMemoryAgent, client: AdminClient
) -> None:
    agent.failure = errors.OriginUnavailable(
        "GET http://u:hunter2@h/k?X-Amz-Signature=hunter2\nfailed \udcff"
    )
    with pytest.raises(AdminError) as caught:
        await client.status()
    assert "hunter2" not in caught.value.message
    assert caught.value.message.endswith(" failed \udcff")


async def test_a_fault_of_the_agent_itself_is_a_500_that_points_to_the_log(
    agent: InMemoryAgent, client: AdminClient, caplog: pytest.LogCaptureFixture
) -> None:
    agent.failure = ValueError("hunter2")
    with pytest.raises(AdminError) as caught:
        await client.status()
    assert caught.value.status == 500
    assert "log" in caught.value.message
    assert "hunter2" not in caught.value.message
    assert any(record.exc_info for record in caplog.records)


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (b"", "body"),
        (b"{", "body"),
        (b"\xff\xfe", "body"),
        (b"[]", "body"),
        (b'"s3://x"', "body"),
        (b"null", "body"),
        (b"[" * 60_000, "body"),
        (b"{}", "uri"),
        (b'{"uri": 1}', "uri"),
        (b'{"uri": null}', "uri"),
        (b'{"uri": ""}', "uri"),
        (b'{"uri": ["s3://x"]}', "uri"),
        (json.dumps({"uri": "s3://" + "x" * 5000}).encode(), "uri"),
        (b'{"uri": "s3://x", "force": true}', "force"),
        (json.dumps({"uri": "s3://x", "pad": "x" * MAX_BODY}).encode(), "body"),
    ],
)
async def test_a_bad_body_is_refused_and_the_field_named(
    raw: aiohttp.ClientSession, agent: InMemoryAgent, body: bytes, named: str
) -> None:
    async with raw.post("/v1/mounts", data=body) as answer:
        said = await answer.json()
    assert answer.status == 400
    assert said["error"] == "BadRequest"
    assert said["message"].startswith(f"{named}: ")
    assert "\n" not in said["message"]
    assert not agent.known


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("limit=-1", "limit"),
        ("limit=x", "limit"),
        ("limit=", "limit"),
        ("limit=%D9%A3", "limit"),
        ("limit=" + "9" * 5000, "limit"),
        ("offset=3", "offset"),
        ("after", "query"),
        ("&".join(f"after={number}" for number in range(20)), "query"),
    ],
)
async def test_a_bad_query_is_refused_and_the_parameter_named(
    raw: aiohttp.ClientSession, query: str, named: str
) -> None:
    async with raw.get(f"/v1/datasets/{DATASET.revision}/objects?{query}") as answer:
        said = await answer.json()
    assert (answer.status, said["error"]) == (400, "BadRequest")
    assert said["message"].startswith(f"{named}: ")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/v1/nothing", 404),
        ("DELETE", "/v1/status", 405),
        ("PUT", "/v1/mounts", 405),
    ],
)
async def test_what_is_not_there_is_told_as_json_too(
    raw: aiohttp.ClientSession, method: str, path: str, status: int
) -> None:
    async with raw.request(method, path) as answer:
        said = await answer.json()
    assert answer.status == status
    assert said == {"error": said["error"], "message": f"{method} {path}"}


async def test_a_dataset_that_is_not_known_is_a_404(client: AdminClient) -> None:
    with pytest.raises(AdminError) as caught:
        await client.objects("nothing")
    assert (caught.value.status, caught.value.code) == (404, "ObjectMissing")


async def test_a_mount_request_carries_all_that_a_volume_may_ask_for(
    client: AdminClient, agent: InMemoryAgent
) -> None:
    request = MountRequest(
        uri="s3://models/x",
        revision="ab" * 16,
        sub_path="a/b",
        include=("*.b", "*.a"),
        exclude=("tmp/",),
        prefetch="none",
        on_origin_down="last",
        secrets={"access_key_id": SecretStr("hush")},
    )
    await client.mount(request)
    assert agent.requests == [request]
    assert "hush" not in repr(agent.requests)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"uri": "s3://x", "secrets": {"hush-1": 7}}, "secrets"),
        ({"uri": "s3://x", "secrets": ["hush-1"]}, "secrets"),
        ({"uri": "s3://x", "secrets": {str(n): "hush-1" for n in range(9)}}, "secrets"),
        ({"uri": "s3://x", "sub_path": "../hush-1"}, "sub_path"),
        ({"uri": "s3://x", "include": "hush-1"}, "include"),
        ({"uri": "s3://x", "prefetch": "hush-1"}, "prefetch"),
        ({"uri": "s3://x", "revision": "hush-1"}, "revision"),
        ({"uri": "s3://x", "on_origin_down": None}, "on_origin_down"),
        ({"uri": "s3://x", "subPath": "hush-1"}, "subPath"),
    ],
)
async def test_a_mount_request_that_is_wrong_names_its_field_and_repeats_no_value(
    raw: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture, body: dict[str, object], field: str
) -> None:
    caplog.set_level("DEBUG")
    async with raw.post("/v1/mounts", json=body) as answer:
        assert answer.status == 400
        message = (await answer.json())["message"]
    assert message.startswith(f"{field}: ")
    assert "hush-1" not in message + caplog.text


async def test_pins_are_made_listed_and_ended(client: AdminClient) -> None:
    pin = await client.pin(DATASET.revision, 2_000_000_000.5, "the campaign\nof may")
    assert (pin.uri, pin.revision, pin.until) == (DATASET.uri, DATASET.revision, 2_000_000_000.5)
    assert (pin.reason, pin.objects) == ("the campaign\nof may", 5)
    assert await client.pins() == [pin]
    await client.unpin(pin.id)
    assert await client.pins() == []


async def test_the_end_of_a_pin_that_is_not_there_is_refused(client: AdminClient) -> None:
    for name, status in (("none", 400), ("a/b", 400), ("..", 404)):
        with pytest.raises(AdminError) as caught:
            await client.unpin(name)
        assert caught.value.status == status, name


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({}, "revision"),
        ({"revision": "x", "until": 1}, "revision"),
        ({"revision": "AB" * 16, "until": 1}, "revision"),
        ({"revision": "ab" * 16}, "until"),
        ({"revision": "ab" * 16, "until": "tomorrow"}, "until"),
        ({"revision": "ab" * 16, "until": True}, "until"),
        ({"revision": "ab" * 16, "until": 1, "reason": "x" * 1001}, "reason"),
        ({"revision": "ab" * 16, "until": 1, "for": "ever"}, "for"),
    ],
)
async def test_a_bad_pin_is_refused_and_the_field_named(
    raw: aiohttp.ClientSession, agent: InMemoryAgent, body: dict[str, object], named: str
) -> None:
    async with raw.post("/v1/pins", json=body) as answer:
        said = await answer.json()
    assert (answer.status, said["error"]) == (400, "BadRequest")
    assert said["message"].startswith(f"{named}: ")
    assert not agent.pinned


@pytest.mark.parametrize("until", ["NaN", "Infinity", "-Infinity", "1e999"])
async def test_a_pin_without_an_end_is_refused(
    raw: aiohttp.ClientSession, agent: InMemoryAgent, until: str
) -> None:
    body = f'{{"revision": "{DATASET.revision}", "until": {until}}}'
    async with raw.post("/v1/pins", data=body.encode()) as answer:
        assert answer.status == 400
    assert not agent.pinned


async def test_a_dataset_is_warmed_on_request_and_listed(
    client: AdminClient, raw: aiohttp.ClientSession, agent: InMemoryAgent
) -> None:
    warming = await client.warm("s3://models/x")
    assert (warming.uri, warming.state, warming.bytes_present) == ("s3://models/x", "running", 20)
    assert await client.warmings() == [warming]
    assert ((ended := await client.warmed(warming.id)).state, ended.bytes_present) == ("done", 50)
    with pytest.raises(AdminError, match="no warming"):
        await client.warmed("another")
    async with raw.post("/v1/warmings", json={"uri": ""}) as answer:
        assert answer.status == 400
    assert len(agent.begun) == 1
