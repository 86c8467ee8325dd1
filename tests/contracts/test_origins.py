"""What every origin promises, checked on all of them over the same tree (agent/source.py, `Origin`)."""

from __future__ import annotations

import contextlib
import random
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from agent.content import ObjectRef
from agent.errors import ObjectMissing, OriginUnavailable, VersionChanged
from agent.metrics import Metrics
from agent.origin.catalog import Origins
from tests.contracts.places import SERVED, Place, opened, served
from tests.harness.receiver import RecordingEngine
from tests.harness.s3 import SeaweedS3
from tests.harness.sink import MemorySink, read_object

SIZES = {"empty": 0, "one": 1, "chunk": 1 << 20, "more": (3 << 20) + 17}
NAMES = [
    "config.json",
    "a b+c%41~.txt",
    "caf\u00e9",
    "cafe\u0301",
    "q?x=1&y#z",
    "deep/er/est/f",
    "dots..in...name",
]


def tree() -> dict[str, bytes]:
    """The tree that all places get: sizes around the chunk's, and names that are hard to quote."""
    chance = random.Random(7)
    files = {name: chance.randbytes(size) for name, size in SIZES.items()}
    return files | {f"names/{name}": name.encode() * 3 for name in NAMES}


@pytest.fixture
def s3_environment(seaweed: SeaweedS3, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in seaweed.environment().items():
        monkeypatch.setenv(name, value)


@pytest.fixture(params=[*SERVED, "file"])
def place(
    request: pytest.FixtureRequest, seaweed: SeaweedS3, tmp_path: Path, s3_environment: None
) -> Iterator[Place]:
    (tmp_path / "tree").mkdir()
    with opened(request.param, seaweed, tmp_path / "tree") as place:
        yield place


@contextlib.asynccontextmanager
async def reached(place: Place) -> AsyncIterator[Origins]:
    """The origins of an agent that knows this place."""
    receiver = RecordingEngine()
    origins = Origins(place.settings, receiver, Metrics())
    yield origins
    await origins.close()
    await receiver.close()


@pytest.fixture
async def origins(place: Place) -> AsyncIterator[Origins]:
    async with reached(place) as origins:
        yield origins


async def resolved(origins: Origins, place: Place, path: str) -> ObjectRef:
    dataset = await origins.resolve(place.uri)
    return next(entry.ref for entry in dataset.entries if entry.path == path)


async def test_the_listing_is_the_tree_and_every_byte_is_right(origins: Origins, place: Place) -> None:
    files = tree()
    for path, data in files.items():
        place.put(path, data)
    dataset = await origins.resolve(place.uri)
    assert {entry.path: entry.ref.size for entry in dataset.entries} == {
        path: len(data) for path, data in files.items()
    }
    assert not dataset.unmapped
    for entry in dataset.entries:
        assert await read_object(origins, entry.ref) == files[entry.path], entry.path


async def test_the_revision_stays_until_something_changes(origins: Origins, place: Place) -> None:
    place.put("f", b"1")
    place.put("g", b"1")
    first = (await origins.resolve(place.uri)).revision
    assert (await origins.resolve(place.uri)).revision == first
    place.put("f", b"22")
    second = (await origins.resolve(place.uri)).revision
    place.remove("g")
    third = (await origins.resolve(place.uri)).revision
    assert len({first, second, third}) == 3


async def test_a_fetch_goes_on_where_the_sink_is_in_pieces_of_a_mib_at_most(
    origins: Origins, place: Place
) -> None:
    data = tree()["more"]
    place.put("more", data)
    ref = await resolved(origins, place, "more")
    sink = MemorySink(1000, len(data) - 5)
    sink.write(memoryview(data[1000:50_000]))
    await origins.fetch(ref, sink)
    assert bytes(sink.data) == data[1000 : len(data) - 5]
    assert sink.largest <= 1 << 20


async def test_nothing_is_asked_for_a_sink_that_is_full(origins: Origins, place: Place) -> None:
    place.put("f", b"12345")
    await origins.fetch(await resolved(origins, place, "f"), MemorySink(5, 5))


async def test_a_file_by_its_own_uri_is_a_dataset_of_one(origins: Origins, place: Place) -> None:
    place.put("sub/one.bin", b"12345")
    (entry,) = (await origins.resolve(place.one("sub/one.bin"))).entries
    assert entry.path == "one.bin"
    assert await read_object(origins, entry.ref) == b"12345"


async def test_other_bytes_of_the_same_length_are_a_changed_version(origins: Origins, place: Place) -> None:
    place.put("f", b"1" * 100)
    ref = await resolved(origins, place, "f")
    place.put("f", b"2" * 100)
    sink = MemorySink(0, 100)
    with pytest.raises(VersionChanged):
        await origins.fetch(ref, sink)
    assert not sink.data
    assert await read_object(origins, await resolved(origins, place, "f")) == b"2" * 100


async def test_what_is_gone_is_missing(origins: Origins, place: Place) -> None:
    place.put("f", b"1" * 100)
    place.put("stays", b"1")
    ref = await resolved(origins, place, "f")
    place.remove("f")
    with pytest.raises(ObjectMissing):
        await read_object(origins, ref)
    with pytest.raises(ObjectMissing, match="nowhere"):
        await origins.resolve(place.one("nowhere"))


@pytest.mark.parametrize("kind", SERVED)  # for file://, test_file.py has a file system that hangs
async def test_a_server_that_does_not_answer_is_unavailable(
    kind: str, seaweed: SeaweedS3, s3_environment: None
) -> None:
    with served(kind, seaweed) as place:
        async with reached(place) as origins:
            with pytest.raises(OriginUnavailable):
                await origins.resolve(place.unreachable)
            uri = place.unreachable.removesuffix("/index.json")
            with pytest.raises(OriginUnavailable):
                await origins.fetch(ObjectRef(f"{uri}/f", '"version"', 10), MemorySink(0, 10))
