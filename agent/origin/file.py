"""`file://` origins: a file or a directory tree of a local or network file system.

A version is (inode, size, time of change): compared before the first and after the last byte of each chunk,
on the open file and on its path. A writer that changes bytes in place and puts the old time back is not seen.
URIs are not percent-decoded. Everything that may block runs in threads of the origin's own.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from dataclasses import replace

from agent.config import OriginConfig
from agent.content import Dataset, ListedObject, ObjectRef, build_dataset
from agent.errors import AccessDenied, BadRequest, ObjectMissing, OriginUnavailable, VersionChanged
from agent.origin.budget import QUESTION_DEADLINE, budget_of
from agent.origin.file_tree import SCHEME, Walk, version_of
from agent.origin.mounts import OwnMounts, resolve
from agent.origin.pool import WorkPool
from agent.source import Budget, Checksum, Sink

PIECE = 1024 * 1024
_OPEN = (
    os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
)  # a pipe put in a file's place must not block


class FileOrigin:
    """The local file systems (an `Origin` of agent/source.py)."""

    def __init__(self, settings: OriginConfig, name: str = SCHEME) -> None:
        """`name` is the prefix that the settings belong to; budgets and metrics go by it."""
        self._deadline = min(settings.deadline, QUESTION_DEADLINE)
        self._pool = WorkPool(settings.max_connections, "file-origin")
        self._budget = budget_of(settings, name, proven_late=True)

    def budget(self, ref: ObjectRef) -> Budget:
        """The budget that fetches of this object draw on: one for all of the origin."""
        return self._budget

    async def resolve(self, uri: str) -> Dataset:
        """List the tree, or the one file, at `uri`; the deadline is for each directory.

        Raises OriginError; BadRequest for a path of our own mounts.
        """
        path = path_of(uri)
        with _translated(path):
            mounts = await self._pool.run(OwnMounts.read, self._deadline)
            real = await self._pool.run(lambda: resolve(path, mounts), self._deadline)
            info = await self._pool.run(lambda: os.lstat(real), self._deadline)
            if stat.S_ISDIR(info.st_mode):
                return await self._tree(uri, Walk(real, mounts))
        if not stat.S_ISREG(info.st_mode):
            raise BadRequest(f"{path} is neither a file nor a directory")
        ref = ObjectRef(SCHEME + real, version_of(info), info.st_size)
        return build_dataset(uri, [ListedObject(os.path.basename(path), ref, info.st_mtime_ns)])

    async def fetch(self, ref: ObjectRef, sink: Sink) -> None:
        """Read `[sink.position, sink.end)`. Raises VersionChanged, ObjectMissing, OriginError."""
        path = path_of(ref.uri)
        with _translated(path):
            await self._pool.bring(lambda guarded: _read(path, ref.version, guarded), sink)

    async def checksum(self, ref: ObjectRef) -> Checksum | None:
        """File systems state none."""
        return None

    async def close(self) -> None:
        """Let the threads go."""
        self._pool.close()

    async def _tree(self, uri: str, walk: Walk) -> Dataset:
        while walk.pending:
            await self._pool.run(walk.list_next, self._deadline)
        dataset = build_dataset(uri, walk.found)
        unmapped = sorted((*dataset.unmapped, *walk.left_out), key=lambda item: item.key)
        return replace(dataset, unmapped=tuple(unmapped))


def path_of(uri: str) -> str:
    """The absolute path that a URI names. Raises BadRequest."""
    path = uri.removeprefix(SCHEME)
    if not uri.startswith(SCHEME) or not path.startswith("/") or "\0" in path:
        raise BadRequest(f"{uri!r} is not a file URI; write file:///absolute/path")
    return path.rstrip("/") or "/"


def _read(path: str, version: str, sink: Sink) -> None:
    OwnMounts.read().refuse(path)
    fd = os.open(path, _OPEN)
    try:
        _expect(os.fstat(fd), version, path)
        _copy(fd, path, sink)
        _expect(os.fstat(fd), version, path)
        _expect(os.lstat(path), version, path)
    finally:
        os.close(fd)


def _copy(fd: int, path: str, sink: Sink) -> None:
    buffer = memoryview(bytearray(min(PIECE, sink.end - sink.position)))
    while sink.position < sink.end:
        count = os.preadv(fd, [buffer[: sink.end - sink.position]], sink.position)
        if not count:
            raise VersionChanged(f"{path} became shorter while it was read")
        sink.write(buffer[:count])


def _expect(info: os.stat_result, version: str, path: str) -> None:
    if not stat.S_ISREG(info.st_mode) or version_of(info) != version:
        raise VersionChanged(f"{path} has changed; mount it again for the new version")


@contextlib.contextmanager
def _translated(path: str) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ObjectMissing(f"{SCHEME}{path}: there is no such file or directory on this node") from error
    except PermissionError as error:
        raise AccessDenied(f"{SCHEME}{path}: the agent's user may not read it") from error
    except TimeoutError as error:
        raise OriginUnavailable(f"{SCHEME}{path}: the file system does not answer") from error
    except OSError as error:
        raise OriginUnavailable(f"{SCHEME}{path}: {error.strerror or error}") from error
