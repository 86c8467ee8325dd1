"""Taking files and parts of files away: each step is such that a crash behind it is safe. Blocking.

The rows go first, and with them every claim that bytes are present; then the bytes. A file without a row is
never used again: it is unlinked and made anew when its object comes back (files.py).
"""

from __future__ import annotations

import itertools
import os
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from agent.cache import uses
from agent.cache.directory import Directory
from agent.cache.objects import CachedObject
from agent.content import Extent, chunk_extent
from agent.transfer.landing import KEEP_SIZE, fallocate

PUNCH_HOLE = 2  # linux/falloc.h
SECTOR = 512  # bytes of an `st_blocks`, stat(2)


@dataclass(frozen=True, slots=True)
class Removed:
    """What went: bytes and chunks; `fd` keeps the file until it is closed, which may take long (-1: none)."""

    bytes: int
    chunks: int
    fd: int


def remove(directory: Directory, key: str) -> Removed:
    """Forget an object and unlink its file (on the index thread). Raises StoreFailed, OSError."""

    def count(db: sqlite3.Connection) -> tuple[int, int]:
        query = (
            "SELECT present, (SELECT COUNT(*) FROM chunks WHERE object = objects.id) "
            "FROM objects WHERE key = ?"
        )
        found = db.execute(query, (key,)).fetchone()
        return found or (0, 0)

    size, chunks = directory.index.transact(count)
    directory.index.forget(key)
    path = directory.file_of(key)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return Removed(size, chunks, -1)
    try:
        path.unlink()
    except BaseException:
        os.close(fd)
        raise
    return Removed(size, chunks, fd)


def trim(directory: Directory, key: str, chunks: Iterable[int]) -> Removed:
    """Forget chunks of an object that was never complete, and punch them (on the index thread).

    Raises StoreFailed, OSError.
    """

    def ask(db: sqlite3.Connection) -> tuple[int, int, int, int] | None:
        query = "SELECT id, size, chunk_size, ever_complete FROM objects WHERE key = ?"
        found: tuple[int, int, int, int] | None = db.execute(query, (key,)).fetchone()
        return found

    found = directory.index.transact(ask)
    if found is None or found[3]:
        return Removed(0, 0, -1)
    row, size, chunk_size, _ = found
    recorded = set(uses.chunks(directory.index, row))
    extents = {chunk: chunk_extent(chunk, size, chunk_size) for chunk in recorded.intersection(chunks)}
    directory.index.settle(row, (), [(chunk, extent.length) for chunk, extent in extents.items()])
    fd = os.open(directory.file_of(key), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        punch(fd, extents.values())
    finally:
        os.close(fd)
    return Removed(sum(extent.length for extent in extents.values()), len(extents), -1)


def punch_unknown(cached: CachedObject) -> None:
    """Give back the disk blocks of chunks that are not present, which a crash has left, written or not.

    To be called before anybody fills the object. Raises OSError.
    """
    held = os.fstat(cached.fd).st_blocks * SECTOR
    known = sum(cached.extent(chunk).length for chunk, there in enumerate(cached.present) if there)
    if held > known:  # the file system's own records count as well: then it is done in vain
        punch(cached.fd, _absent(cached))


def _absent(cached: CachedObject) -> Iterator[Extent]:
    """What is not present, in runs."""
    for there, run in itertools.groupby(range(len(cached.present)), lambda chunk: cached.present[chunk]):
        if not there:
            chunks = list(run)
            start = cached.extent(chunks[0]).offset
            yield Extent(start, cached.extent(chunks[-1]).end - start)


def punch(fd: int, extents: Iterable[Extent]) -> None:
    """Give the disk blocks of these extents back, and read zeros there from now on. Raises OSError."""
    for extent in extents:
        fallocate(fd, KEEP_SIZE | PUNCH_HOLE, extent)
