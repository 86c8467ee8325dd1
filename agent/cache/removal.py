"""Taking files and parts of files away: each step is such that a crash behind it is safe. Blocking.

The rows go first, and with them every claim that bytes are present; then the bytes. A file without a row is
never used again: it is unlinked and made anew when its object comes back (files.py).
"""

from __future__ import annotations

import ctypes
import errno
import os
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass

from agent.cache import uses
from agent.cache.directory import Directory
from agent.cache.objects import CachedObject
from agent.content import Extent, chunk_extent

KEEP_SIZE, PUNCH_HOLE = 1, 2  # linux/falloc.h
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


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


def punch_unknown(cached: CachedObject) -> int:
    """Give back the disk blocks of chunks that are not present, which a crash has left; how many chunks.

    To be called before anybody fills the object. Raises OSError.
    """
    position, punched = 0, 0
    while position < cached.ref.size:
        try:
            position = os.lseek(cached.fd, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # lseek(2): a hole up to the end
                break
            raise
        chunk = position // cached.chunk_size
        extent = cached.extent(chunk)
        if not cached.present[chunk]:
            punch(cached.fd, (extent,))
            punched += 1
        position = extent.end
    return punched


def punch(fd: int, extents: Iterable[Extent]) -> None:
    """Give the disk blocks of these extents back, and read zeros there from now on. Raises OSError."""
    for extent in extents:
        if _libc.fallocate(fd, KEEP_SIZE | PUNCH_HOLE, extent.offset, extent.length):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
