"""Landings: any split into pieces gives the bytes, their checksum, and each waiter told once and in time."""

from __future__ import annotations

import itertools
import os
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.content import Extent
from agent.errors import StoreFailed, StoreFull
from agent.transfer.landing import ALLOCATED_AT_ONCE, Landing

DATA = bytes(range(256)) * 8


@dataclass(eq=False)
class Noted:
    """A waiter that notes what it was told."""

    needs: int
    told: list[tuple[int, bytes]] = field(default_factory=list)

    def ready(self, data: memoryview, offset: int) -> None:
        self.told.append((offset, bytes(data)))


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    number = os.open(tmp_path / "object", os.O_RDWR | os.O_CREAT)
    yield number
    os.close(number)


def pieces_of(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted({cut % (len(data) + 1) for cut in cuts}), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


@settings(deadline=None)
@given(
    start=st.integers(0, 5000),
    length=st.integers(1, len(DATA)),
    cuts=st.lists(st.integers(0, len(DATA)), max_size=8),
    waits=st.lists(st.tuples(st.integers(0, 9), st.integers(1, len(DATA))), max_size=8),
)
def test_any_split_gives_the_bytes_the_checksum_and_tells_each_waiter_once_and_never_early(
    start: int, length: int, cuts: list[int], waits: list[tuple[int, int]]
) -> None:
    data = DATA[:length]
    with tempfile.TemporaryFile() as file:
        landing = Landing(file.fileno(), Extent(start, length))
        waiting: list[Noted] = []
        for number, piece in enumerate(pieces_of(data, cuts)):
            for when, needs in waits:
                if when == number:
                    waiter = Noted(start + min(needs, length))
                    if landing.wait(waiter):
                        waiting.append(waiter)
                    else:
                        assert waiter.needs <= landing.position
            landing.write(memoryview(piece))
            for waiter in waiting:
                assert len(waiter.told) == (waiter.needs <= landing.position)
        assert landing.position == landing.end == start + length
        assert os.pread(file.fileno(), length, start) == data
        assert landing.digest() == xxhash.xxh3_128(data).digest()
        assert not landing.awaited
        for waiter in waiting:
            ((offset, last),) = waiter.told
            assert offset < waiter.needs <= offset + len(last)
            assert last == data[offset - start : offset - start + len(last)]


def test_a_waiter_whose_bytes_are_there_is_not_called(fd: int) -> None:
    landing = Landing(fd, Extent(0, 8))
    landing.write(memoryview(b"1234"))
    waiter = Noted(4)
    assert not landing.wait(waiter)
    landing.write(memoryview(b"5678"))
    assert waiter.told == []


def test_a_waiter_that_left_is_not_told_and_one_that_was_told_cannot_leave(fd: int) -> None:
    landing = Landing(fd, Extent(0, 8))
    early, late = Noted(4), Noted(8)
    assert landing.wait(early) and landing.wait(late)
    assert landing.leave(late)
    assert not landing.leave(late)
    landing.write(memoryview(b"1234"))
    assert not landing.leave(early)
    landing.write(memoryview(b"5678"))
    assert (len(early.told), late.told) == (1, [])


def test_dismiss_gives_back_those_that_still_wait(fd: int) -> None:
    landing = Landing(fd, Extent(0, 8))
    waiters = [Noted(2), Noted(6), Noted(8)]
    assert all(landing.wait(waiter) for waiter in waiters)
    landing.write(memoryview(b"1234"))
    assert landing.dismiss() == waiters[1:]
    assert landing.dismiss() == []
    assert not landing.awaited
    landing.write(memoryview(b"5678"))
    assert [len(waiter.told) for waiter in waiters] == [1, 0, 0]


def test_bytes_past_the_end_are_refused_and_change_nothing(fd: int) -> None:
    landing = Landing(fd, Extent(10, 4))
    with pytest.raises(ValueError, match="past 14"):
        landing.write(memoryview(b"12345"))
    assert (landing.position, os.fstat(fd).st_size) == (10, 0)


def test_a_waiter_is_told_or_may_leave_never_both_when_two_threads_race(fd: int) -> None:
    landing = Landing(fd, Extent(0, 400))
    waiters = [Noted(needs) for needs in range(1, 401)]
    assert all(landing.wait(waiter) for waiter in waiters)
    left: list[Noted] = []
    start = threading.Barrier(2)

    def leave_all() -> None:
        start.wait(10)
        left.extend(waiter for waiter in reversed(waiters) if landing.leave(waiter))

    leaver = threading.Thread(target=leave_all)
    leaver.start()
    start.wait(10)
    for _ in range(400):
        landing.write(memoryview(b"x"))
    leaver.join(10)
    gone = set(map(id, left))
    assert all(len(waiter.told) == (id(waiter) not in gone) for waiter in waiters)


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    target = tmp_path / "tiny"
    target.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(target)]
    subprocess.run(command, check=True, timeout=10)
    try:
        yield target
    finally:
        subprocess.run(["umount", str(target)], check=True, timeout=10)


def test_a_full_disk_is_store_full_and_the_position_stays_behind_the_last_whole_piece(
    tiny_disk: Path,
) -> None:
    fd = os.open(tiny_disk / "object", os.O_RDWR | os.O_CREAT)
    try:
        landing = Landing(fd, Extent(0, 1 << 20))
        landing.write(memoryview(bytes(32 << 10)))
        waiter = Noted(40 << 10)
        assert landing.wait(waiter)
        with pytest.raises(StoreFull, match="free some space"):
            landing.write(memoryview(bytes(64 << 10)))
        assert landing.position == 32 << 10
        assert landing.dismiss() == [waiter]
    finally:
        os.close(fd)


def test_another_error_of_the_disk_is_store_failed(tmp_path: Path) -> None:
    (tmp_path / "object").touch()
    fd = os.open(tmp_path / "object", os.O_RDONLY)
    try:
        with pytest.raises(StoreFailed, match="cannot write"):
            Landing(fd, Extent(0, 4)).write(memoryview(b"1234"))
    finally:
        os.close(fd)


def test_a_large_chunk_has_its_room_on_the_disk_from_the_first_byte_on(fd: int) -> None:
    length = 2 * ALLOCATED_AT_ONCE
    os.ftruncate(fd, 3 * length)
    landing = Landing(fd, Extent(length, length))
    assert landing.unwritten == length
    landing.write(memoryview(b"x"))
    assert landing.unwritten == 0
    assert os.fstat(fd).st_blocks * 512 >= length
    assert os.fstat(fd).st_size == 3 * length
