"""Checking a whole store directory at once, with no agent in it: `headrace-agent fsck`. Blocking, one thread.

It repairs as the agent does, by taking away what is not proven: a miss that is fetched again when it is read.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from agent.cache.directory import BOOT_ID
from agent.cache.index import Index, StoredObject
from agent.cache.opening import condemn, pages_fault
from agent.cache.premises import occupy, set_aside
from agent.cache.renewal import renew
from agent.cache.sweep import look, remove_unknown, strangers, subdirectories
from agent.cache.verify import checksum_at
from agent.content import Extent, chunk_extent
from agent.errors import StoreFailed

BATCH = 100  # objects looked up at once


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that was not as it should be. `kind` is one of agent/metrics.py's kinds of damage, `foreign`
    for what is left alone, or `unreadable` for what could not be checked or repaired."""

    directory: str
    kind: str
    message: str

    @property
    def repaired(self) -> bool:
        return self.kind != "unreadable"


Step = Callable[[int, int], None]  # bytes checked so far, and of all


class Fsck:
    """One directory under the check. `step` is told how far it is."""

    def __init__(self, path: Path, step: Step) -> None:
        self._path = path
        self._step = step
        self.objects = 0
        self.bytes = 0
        self._total = 0

    def run(self) -> Iterator[Finding]:
        """Check everything, repairing on the way. Raises ConfigError, and StoreFailed where an agent is in it
        or the directory cannot be worked in."""
        lock = occupy(self._path)
        try:
            index, findings = self._index()
            yield from findings
            try:
                yield from self._objects(index)
                yield from self._files(index)
            finally:
                index.close()
        finally:
            os.close(lock)

    def _index(self) -> tuple[Index, list[Finding]]:
        path = self._path / "index.sqlite"
        boot_id = BOOT_ID.read_text().strip()
        index = Index(path, boot_id)
        found = [self._aside(index)] if index.set_aside else []
        if fault := pages_fault(path):
            index.close()
            condemn(path, fault)
            index = Index(path, boot_id)
            found.append(self._aside(index))
        self._total = index.totals().bytes
        return index, found

    def _aside(self, index: Index) -> Finding:
        return self._finding("index", f"it is damaged: kept as {index.set_aside}, a new one begins")

    def _objects(self, index: Index) -> Iterator[Finding]:
        after = ""
        while objects := index.objects_after(after, BATCH):
            for one in objects:
                try:
                    yield from self._object(index, one)
                except (OSError, StoreFailed) as error:
                    yield self._finding("unreadable", f"{one.uri}: {error}")
                self.objects += 1
            after = objects[-1].key

    def _object(self, index: Index, one: StoredObject) -> Iterator[Finding]:
        path = self._path / "objects" / one.key[:2] / one.key
        rows = index.checksums(one.id)
        fault = self._file_fault(path, one.size)
        if fault:
            index.forget(one.key)
            yield self._finding("file", f"{one.uri}: {path} {fault}: it is fetched anew")
            return
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            good, bad = self._checked(fd, one, rows)
        finally:
            os.close(fd)
        extents = {chunk: chunk_extent(chunk, one.size, one.chunk_size) for chunk, _ in rows}
        index.settle(one.id, good, [(chunk, extents[chunk].length) for chunk in bad])
        if bad:
            os.close(renew(self._path, path, one.size, [extents[chunk] for chunk in good]))
            index.renewed(one.id)
            yield self._finding("chunk", f"{one.uri}: {len(bad)} of {len(rows)} chunks are wrong: dropped")

    def _checked(
        self, fd: int, one: StoredObject, rows: list[tuple[int, bytes]]
    ) -> tuple[list[int], list[int]]:
        good: list[int] = []
        bad: list[int] = []
        for chunk, xxh3 in rows:
            extent: Extent = chunk_extent(chunk, one.size, one.chunk_size)
            (good if checksum_at(fd, extent) == xxh3 else bad).append(chunk)
            self.bytes += extent.length
            self._step(self.bytes, self._total)
        return good, bad

    def _file_fault(self, path: Path, size: int) -> str:
        """Why there is no such file as the row says; what is none is moved away."""
        try:
            status = path.lstat()
        except FileNotFoundError:
            return "is gone"
        if not stat.S_ISREG(status.st_mode):
            return f"is no file (moved to {set_aside(self._path, path)})"
        return "" if status.st_size == size else f"has {status.st_size} bytes and not {size}"

    def _files(self, index: Index) -> Iterator[Finding]:
        foreign = strangers(self._path)
        removed = 0
        for subdirectory in subdirectories(self._path):
            found = look(subdirectory)
            foreign += found.foreign
            removed += remove_unknown(index, subdirectory, found.keys)
        if removed:
            yield self._finding("unknown", f"{removed} files that the index does not know are removed")
        for path in foreign:
            yield self._finding("foreign", f"{path} is not the store's: left alone")

    def _finding(self, kind: str, message: str) -> Finding:
        return Finding(str(self._path), kind, message)
