"""The files of objects: found, made, opened. Blocking; on the index thread of the store.

A file is opened for writing only until its object is complete. What turns out to be gone, cut short or
damaged begins anew, in a new file where a tree shows the old one.
"""

from __future__ import annotations

import errno
import logging
import os
import sqlite3
import stat
from pathlib import Path

from agent.cache.directory import Directory
from agent.cache.index import ObjectRow
from agent.cache.objects import CachedObject
from agent.cache.premises import set_aside
from agent.cache.uses import ever_complete
from agent.content import ObjectRef, chunk_count
from agent.errors import StoreFailed, StoreFull

log = logging.getLogger(__name__)

READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW


def find_and_open(
    directories: list[Directory], home: Directory | None, ref: ObjectRef, chunk_size: int
) -> tuple[Directory, ObjectRow | None, CachedObject, bool]:
    """The directory that has the object, or `home`; its row, if there was one; then as `open_object`.

    Raises StoreFull where nobody has it and there is no home for it.
    """
    for directory in directories:
        row = directory.index.find(ref.key)
        if row is not None:
            return directory, row, *open_object(directory, ref, row, chunk_size)
    if home is None:
        raise StoreFull(f"{ref.uri}: no directory of the store takes more")
    return home, None, *open_object(home, ref, None, chunk_size)


def open_object(
    directory: Directory, ref: ObjectRef, row: ObjectRow | None, chunk_size: int
) -> tuple[CachedObject, bool]:
    """The object, and whether its file was as the index has it."""
    path = directory.file_of(ref.key)
    try:
        found = _found(directory, path)
        full = row is not None and is_full(row, ref.size)
        shown = row is not None and not full and ever_complete(directory.index, row.id)
        if row is not None and (fault := _fault(found, ref.size, full, shown)):
            # What the index says of the file is not true any more, or it may not be written: begin anew.
            if found is None or found.st_size != ref.size:
                directory.damage["file"].inc()
            log.warning("%s: %s %s: it is fetched anew", ref.uri, path, fault)
            directory.index.forget(ref.key)
            row = None
        if row is None and found is not None:
            path.unlink()  # nobody can tell what is in a file without a row, or who has it open
        fd = os.open(path, READ) if row is not None and full else _open_file(path, ref.size)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreFull(f"{directory.path}: the disk is full; free some space") from error
        raise StoreFailed(f"cannot open {path}: {error.strerror}") from error
    kept = row is not None
    try:
        if row is None:
            row = directory.index.add(ref, chunk_size)
    except (StoreFailed, sqlite3.Error):
        os.close(fd)
        raise
    cached = CachedObject(ref, path, fd, row.id, row.chunk_size)
    for chunk in row.present:
        cached.publish(chunk)
    return cached, kept


def _found(directory: Directory, path: Path) -> os.stat_result | None:
    """The file that is there; what is none (a directory, a link) is moved away. Raises StoreFailed."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    if stat.S_ISREG(status.st_mode):
        return status
    directory.damage["file"].inc()
    set_aside(directory.path, path)
    return None


def _fault(found: os.stat_result | None, size: int, full: bool, shown: bool) -> str:
    """Why the file cannot be used as the row has it; "" where it can. `shown` is one that was complete."""
    if found is None:
        return "is gone"
    if found.st_size != size:
        return f"has {found.st_size} bytes and not {size}"
    return "was complete, and others may read it" if (shown or found.st_nlink > 1) and not full else ""


def is_full(row: ObjectRow, size: int) -> bool:
    """Whether every chunk is recorded, be it suspect."""
    return len(row.present) + len(row.suspect) == chunk_count(size, row.chunk_size)


def _open_file(path: Path, size: int) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        fd = os.open(path, flags, 0o644)
    except FileNotFoundError:  # the first object of its directory
        path.parent.mkdir(mode=0o700, exist_ok=True)
        fd = os.open(path, flags, 0o644)
    except PermissionError:
        path.chmod(0o644)  # once it was in a tree it is read-only
        fd = os.open(path, flags)
    try:
        if os.fstat(fd).st_size != size:
            os.ftruncate(fd, size)
    except OSError:
        os.close(fd)
        raise
    return fd
