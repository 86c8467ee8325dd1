"""One object in the store while somebody uses it: its file, what of it is present, what is arriving.

The loop changes these; FUSE threads only look (`begin_read`), under the object's one lock, which also counts
the readers so that a later eviction can wait for them (agent/cache/CONCURRENCY.md).
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

from agent.content import Extent, ObjectRef, chunk_count, chunk_extent, chunks_of
from agent.transfer.landing import Landing


class CachedObject:
    """An open object. `users` is the store's count of who holds it open."""

    def __init__(self, ref: ObjectRef, path: Path, fd: int, row: int, chunk_size: int) -> None:
        """`fd` is the object's file, open for writing too unless it is complete; it is closed by `close`."""
        self.ref = ref
        self.path = path
        self.fd = fd
        self.row = row
        self.chunk_size = chunk_size
        self.present = bytearray(chunk_count(ref.size, chunk_size))
        self.missing = len(self.present)
        self.users = 0
        self.landings: dict[int, Landing] = {}
        self._lock = threading.Lock()
        self._readers = 0

    @property
    def complete(self) -> bool:
        return not self.missing

    def extent(self, chunk: int) -> Extent:
        return chunk_extent(chunk, self.ref.size, self.chunk_size)

    def chunks(self, extent: Extent) -> range:
        return chunks_of(extent, self.ref.size, self.chunk_size)

    def publish(self, chunk: int) -> None:
        """Make a chunk visible (loop only, once its record is in the index)."""
        if not self.present[chunk]:
            self.present[chunk] = 1
            self.missing -= 1

    def begin_read(self, extent: Extent) -> bool:
        """Whether every byte of the extent may be read now; True counts a reader until `end_read`."""
        with self._lock:
            if self.first_gap(extent) is not None:
                return False
            self._readers += 1
            return True

    def end_read(self) -> None:
        with self._lock:
            self._readers -= 1

    def first_gap(self, extent: Extent) -> int | None:
        """The first chunk of the extent of which bytes that are needed have not arrived."""
        present = self.present
        for chunk in self.chunks(extent):
            if not present[chunk]:
                landing = self.landings.get(chunk)
                if landing is None or landing.position < min(extent.end, landing.end):
                    return chunk
        return None

    def open_read_only(self) -> int:
        """A new descriptor of the file for reading only, as the holder wants it; the caller closes it."""
        return os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)

    def close(self) -> None:
        os.close(self.fd)
