"""fsspec origins: its memory file system, a driver that is not installed, versions of many spellings."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from queue import SimpleQueue
from typing import Any, ClassVar

import fsspec  # type: ignore[import-untyped]
import fsspec.implementations.memory  # type: ignore[import-untyped]
import pytest
from fsspec.registry import known_implementations  # type: ignore[import-untyped]

from agent.config import OriginConfig
from agent.errors import (
    BadRequest,
    ObjectMissing,
    OriginError,
    OriginUnavailable,
    Unversioned,
    VersionChanged,
)
from agent.origin import generic
from agent.origin.generic import GenericOrigin
from agent.origin.generic_version import modified_ns, same_version, version_of
from tests.harness.sink import MemorySink, read_object


@pytest.fixture
def memory() -> Iterator[tuple[fsspec.AbstractFileSystem, str]]:
    files = fsspec.filesystem("memory")
    root = f"/{uuid.uuid4().hex}"
    files.makedirs(root)
    yield files, root
    files.rm(root, recursive=True)


@pytest.fixture
async def origin() -> AsyncIterator[GenericOrigin]:
    origin = GenericOrigin(OriginConfig(deadline=5.0))
    yield origin
    await origin.close()


async def test_a_tree_is_listed_and_read(
    memory: tuple[fsspec.AbstractFileSystem, str], origin: GenericOrigin
) -> None:
    files, root = memory
    contents = {"a b#c": b"1" * 3_000_000, "sub/deep/f": b"2", "zero": b""}
    for name, data in contents.items():
        files.pipe_file(f"{root}/{name}", data)
    files.makedirs(f"{root}/empty")
    dataset = await origin.resolve(f"memory:/{root}/")
    assert {entry.path: await read_object(origin, entry.ref) for entry in dataset.entries} == contents
    assert dataset.directories == ("empty",)
    assert dataset.entries[0].mtime_ns > 0


async def test_a_file_is_a_dataset_under_its_name(
    memory: tuple[fsspec.AbstractFileSystem, str], origin: GenericOrigin
) -> None:
    files, root = memory
    files.pipe_file(f"{root}/f.bin", b"12345")
    (entry,) = (await origin.resolve(f"memory:/{root}/f.bin")).entries
    assert (entry.path, entry.ref.uri, entry.ref.size) == ("f.bin", f"memory:/{root}/f.bin", 5)


async def test_changes_before_and_during_a_chunk_are_noticed(
    memory: tuple[fsspec.AbstractFileSystem, str], origin: GenericOrigin
) -> None:
    files, root = memory
    path = f"{root}/f"
    files.pipe_file(path, b"1" * 3_000_000)
    ref = (await origin.resolve(f"memory:/{path}")).entries[0].ref
    sink = MemorySink(100, 2_500_000)
    await origin.fetch(ref, sink)
    assert sink.largest == 1 << 20

    class Overwriting(MemorySink):
        def write(self, data: memoryview) -> None:
            super().write(data)
            files.pipe_file(path, b"2" * 3_000_000)

    with pytest.raises(VersionChanged):
        await origin.fetch(ref, Overwriting(0, 10))
    with pytest.raises(VersionChanged):
        await read_object(origin, ref)
    files.rm(path)
    with pytest.raises(ObjectMissing):
        await read_object(origin, ref)


class Gated(fsspec.implementations.memory.MemoryFileSystem):  # type: ignore[misc]
    """Lists a tree once `let` is set."""

    protocol = "gated"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    let = threading.Event()
    begun: ClassVar[SimpleQueue[str]] = SimpleQueue()

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.replace("gated://", "memory://")))

    def find(self, path: str, **options: Any) -> Any:
        self.begun.put(path)
        assert self.let.wait(10)
        return super().find(path, **options)


@pytest.fixture
def gated(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Gated]]:
    monkeypatch.setitem(known_implementations, "gated", {"class": "tests.Gated"})
    fsspec.register_implementation("gated", Gated, clobber=True)
    Gated().pipe_file("/host/tree/f", b"123")
    Gated.let.clear()
    yield Gated
    Gated.let.set()


async def test_a_tree_may_take_all_of_the_deadline_and_not_only_that_of_a_question(
    gated: type[Gated], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generic, "QUESTION_DEADLINE", 0.3)
    origin = GenericOrigin(OriginConfig(deadline=20.0))
    listing = asyncio.ensure_future(origin.resolve("gated://host/tree"))
    done, _ = await asyncio.wait([listing], timeout=0.6)
    assert not done
    gated.let.set()
    assert [entry.path for entry in (await listing).entries] == ["f"]
    await origin.close()


async def test_a_listing_that_was_given_up_goes_on_in_its_one_thread_for_whoever_asks_again(
    gated: type[Gated],
) -> None:
    origin = GenericOrigin(OriginConfig(deadline=0.5, max_connections=2))
    while not gated.begun.empty():
        gated.begun.get()
    for _ in range(2):
        with pytest.raises(OriginUnavailable):
            await origin.resolve("gated://host/tree")
    assert gated.begun.qsize() == 1
    gated.let.set()
    (entry,) = (await origin.resolve("gated://host/tree")).entries
    assert await read_object(origin, entry.ref) == b"123"
    await origin.close()


async def test_uris_without_a_driver_are_refused_with_what_to_install(origin: GenericOrigin) -> None:
    with pytest.raises(OriginError, match="gcsfs"):
        await origin.resolve("gs://bucket/x")
    for bad in ("local:///etc", "zip::memory://x", "nonsense://x", "simplecache::memory://x", "memory:x"):
        with pytest.raises(BadRequest):
            await origin.resolve(bad)
    with pytest.raises(BadRequest) as raised:
        await origin.resolve("sftp://user:pw@host/x")
    assert "pw" not in str(raised.value)
    with pytest.raises(ObjectMissing):
        await origin.resolve(f"memory://{uuid.uuid4().hex}")


def test_checksums_come_before_times_and_times_count_with_the_size() -> None:
    moment = datetime(2026, 1, 2, tzinfo=UTC)
    info = {"size": 5, "mtime": 12.5, "generation": 7, "LastModified": moment}
    assert version_of(info, name="x", allow_unversioned=False) == "generation=7"
    del info["generation"]
    version = version_of(info, name="x", allow_unversioned=False)
    assert version == "mtime=12.5;5"
    assert same_version(info, version)
    assert not same_version(info | {"size": 6}, version)
    assert not same_version({"size": 5}, version)
    assert modified_ns(info) == 12_500_000_000
    assert modified_ns({"LastModified": moment}) == int(moment.timestamp()) * 10**9
    assert modified_ns({"updated": "2026-01-02T00:00:00Z"}) == int(moment.timestamp()) * 10**9


def test_no_version_is_an_error_unless_allowed() -> None:
    with pytest.raises(Unversioned, match="allow_unversioned"):
        version_of({"size": 5}, name="x", allow_unversioned=False)
    version = version_of({"size": 5}, name="x", allow_unversioned=True)
    assert same_version({"size": 5}, version) and not same_version({"size": 6}, version)
