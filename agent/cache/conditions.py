"""What condition each directory of the store is in: marked by what goes wrong, taken back by a probe.

A directory that is full or failed takes no more fills; what is present in it is read as long as that works. A
probe writes to the disk and to the index as a fill does. Loop only, but for what is said to be a thread's.
"""

from __future__ import annotations

import errno
import logging
import os
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Protocol

from agent.cache.directory import Directory, State
from agent.errors import StoreError, StoreFailed, StoreFull
from agent.metrics import Metrics

log = logging.getLogger(__name__)

# What a disk says that fails, is read-only, or is not there: a mount point without its disk is closed to us.
GONE = frozenset(
    {
        errno.EIO,
        errno.EROFS,
        errno.ENOENT,
        errno.ENXIO,
        errno.ENODEV,
        errno.ESTALE,
        errno.ENOTCONN,
        errno.ETIMEDOUT,
        errno.EUCLEAN,
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EACCES,
    }
)
# sqlite.org/rescode.html: what SQLite says where the disk fails, is read-only or is gone.
DEAD = frozenset(
    {sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_FULL}
)
PROBE = 64 * 1024  # bytes; less could still find its place on a disk that takes no chunk


class Blocking(Protocol):
    """Runs a call on the index thread, behind those that were asked for before."""

    def __call__(self, call: Callable[[], None], /) -> Awaitable[None]: ...


class Conditions:
    """The states of a store's directories; what `Directory.state` is set by."""

    def __init__(self, directories: Sequence[Directory], blocking: Blocking, metrics: Metrics) -> None:
        self._directories = directories
        self._blocking = blocking
        self._metrics = metrics
        self.absent: dict[Path, str] = {}  # those that could not be opened at the start, and why
        for directory in directories:
            self._set(directory, State.OK, "")

    def mark(self, directory: Directory, error: StoreError) -> None:
        """A write to the directory or its index has failed."""
        state = State.FULL if isinstance(error, StoreFull) else State.FAILED
        if directory.state is not state:
            log.error(
                "%s is %s and takes no more fills until it is well again: %s",
                directory.path,
                state.value,
                error,
            )
        self._set(directory, state, str(error))

    def miss(self, path: Path, error: Exception) -> None:
        """A directory could not be opened, and the agent goes on without it until its next start."""
        log.error("%s is left out until the agent starts again: %s", path, error)
        self.absent[path] = str(error)
        self._show(path, State.FAILED)

    async def probe(self, suspects: Sequence[Directory] | None = None) -> None:
        """Try each of the suspects, or else each directory that is not well, and mark what comes of it."""
        tried = [one for one in self._directories if one.state is not State.OK]
        for directory in tried if suspects is None else suspects:
            try:
                await self._blocking(lambda one=directory: _probe(one))  # type: ignore[misc]
            except StoreError as error:
                self.mark(directory, error)
                continue
            if directory.state is not State.OK and self._has_room(directory):
                self._set(directory, State.OK, "")
                log.warning("%s is well again", directory.path)

    def _has_room(self, directory: Directory) -> bool:
        try:
            return directory.room > 0
        except OSError as error:
            self.mark(directory, store_error(error, f"cannot ask for the room in {directory.path}"))
            return False

    def faults(self) -> list[str]:
        """A line about each directory that is not well."""
        return [
            f"the store directory {one.path} is {one.state.value}: {one.reason}"
            for one in self._directories
            if one.state is not State.OK
        ] + [
            f"the store directory {path} is left out until the agent starts again: {reason}"
            for path, reason in self.absent.items()
        ]

    def _set(self, directory: Directory, state: State, reason: str) -> None:
        directory.state, directory.reason = state, reason
        self._show(directory.path, state)

    def _show(self, path: Path, state: State) -> None:
        for known in State:
            gauge = self._metrics.store_state.labels(str(path), known.value)
            gauge.set(1 if known is state else 0)


def store_error(error: OSError, what: str) -> StoreError:
    """What the store says of an error of its disk; `what` could not be done."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreFull(f"{what}: the disk is full; free some space")
    return StoreFailed(f"{what}: {error.strerror}")


def is_dead(error: BaseException) -> bool:
    """Whether an error of opening a directory is its disk's, and not a mistake or another agent."""
    cause = error if isinstance(error, OSError) else error.__cause__
    if isinstance(cause, sqlite3.Error):
        return cause.sqlite_errorcode & 0xFF in DEAD
    return isinstance(cause, OSError) and cause.errno in GONE


def _probe(directory: Directory) -> None:
    """(a thread)"""
    path = directory.path / ".probe"
    try:
        _write(path)
    except OSError as error:
        raise store_error(error, f"cannot write to {directory.path}") from error
    directory.index.transact(
        lambda db: db.execute("INSERT OR REPLACE INTO notes VALUES ('probed', ?)", (str(os.getpid()),))
    )


def _write(path: Path) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        if os.pwrite(fd, bytes(PROBE), 0) < PROBE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(fd)
    finally:
        os.close(fd)
        path.unlink(missing_ok=True)
