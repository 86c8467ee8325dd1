"""The catalog chooses origin and settings by the URI alone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent.config import OriginConfig
from agent.content import ObjectRef
from agent.errors import BadRequest
from agent.metrics import Metrics
from agent.origin.catalog import Origins
from tests.harness.receiver import RecordingEngine
from tests.harness.sink import read_object


@pytest.fixture
async def origins() -> AsyncIterator[Origins]:
    receiver = RecordingEngine()
    settings = {
        "s3://": OriginConfig(max_connections=1),
        "s3://models/": OriginConfig(max_connections=2),
        "s3://models/big": OriginConfig(max_connections=3),
        "https://": OriginConfig(max_connections=4),
    }
    origins = Origins(settings, receiver, Metrics())
    yield origins
    await origins.close()
    await receiver.close()


@pytest.mark.parametrize(
    ("uri", "name", "connections"),
    [
        ("s3://other/x", "s3://", 1),
        ("s3://models/x", "s3://models/", 2),
        ("s3://models/bigger", "s3://models/big", 3),
        ("https://host/x", "https://", 4),
        ("http://host/x", "http://", 16),
        ("file:///x", "file://", 16),
        ("memory://x", "memory://", 16),
    ],
)
async def test_the_longest_matching_prefix_gives_the_settings(
    origins: Origins, uri: str, name: str, connections: int
) -> None:
    budget = origins.budget(ObjectRef(uri, "v", 1))
    assert (budget.name, budget.connections) == (name, connections)


async def test_files_are_resolved_and_fetched_by_their_uri(origins: Origins, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"data")
    (entry,) = (await origins.resolve(f"file://{tmp_path}")).entries
    assert await read_object(origins, entry.ref) == b"data"


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "models",
        "/path",
        "s3:/x",
        "://x",
        "s3://",
        "nonsense://x",
        "s3://a\0b",
        "a b://c",
        "s3://a/\ud800",
        "s3://a/\udcff",
        "file:///\ud800",
        "http://a..b/x",
    ],
)
async def test_what_is_no_uri_of_an_origin_is_refused(origins: Origins, uri: str) -> None:
    with pytest.raises(BadRequest):
        await origins.resolve(uri)
