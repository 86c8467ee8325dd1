"""Which bytes of an open object may be read: those present, and those that have arrived."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.cache.objects import CachedObject
from agent.content import Extent, ObjectRef
from agent.transfer.landing import Landing


@pytest.fixture
def cached(tmp_path: Path) -> Iterator[CachedObject]:
    path = tmp_path / "object"
    made = CachedObject(
        ObjectRef("s3://b/o", "v", 2500), path, os.open(path, os.O_RDWR | os.O_CREAT), row=1, chunk_size=1000
    )
    yield made
    made.close()


def test_only_present_chunks_may_be_read(cached: CachedObject) -> None:
    assert not cached.begin_read(Extent(0, 1))
    cached.publish(1)
    assert cached.begin_read(Extent(1000, 1000))
    assert cached.first_gap(Extent(1500, 501)) == 2
    assert cached.first_gap(Extent(999, 5)) == 0


def test_bytes_that_have_arrived_may_be_read_and_those_behind_them_not(cached: CachedObject) -> None:
    cached.publish(1)
    landing = cached.landings[2] = Landing(cached.fd, cached.extent(2))
    landing.write(memoryview(bytes(300)))
    assert cached.begin_read(Extent(1900, 400))
    assert not cached.begin_read(Extent(1900, 401))
    landing.write(memoryview(bytes(200)))
    assert cached.begin_read(Extent(1900, 9999)), (
        "a read over the end of the object needs no more than it has"
    )


def test_an_extent_without_bytes_is_always_there(cached: CachedObject) -> None:
    assert cached.begin_read(Extent(0, 0))
    assert cached.begin_read(Extent(2500, 100))


def test_it_is_complete_once_every_chunk_is_published_however_often(cached: CachedObject) -> None:
    for chunk in (0, 0, 2, 1):
        assert not cached.complete
        cached.publish(chunk)
    assert cached.complete and cached.missing == 0


def test_the_read_only_descriptor_cannot_write(cached: CachedObject) -> None:
    fd = cached.open_read_only()
    try:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.write(fd, b"x")
    finally:
        os.close(fd)


def test_the_file_that_is_open_is_opened_again_though_its_name_is_gone(cached: CachedObject) -> None:
    os.pwrite(cached.fd, b"bytes", 0)
    cached.path.unlink()
    again = cached.open_read_only()
    assert os.pread(again, 5, 0) == b"bytes"
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.pwrite(again, b"x", 0)
    os.close(again)
