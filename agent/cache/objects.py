"""One object in the store while somebody uses it: its file, what of it is present, what is arriving.

The loop changes these; FUSE threads only look (`begin_read`), under the object's one lock, which also counts
the readers of each chunk: what is taken away is unpublished first, and removed once nobody reads it any more
(agent/cache/CONCURRENCY.md). Uses are numbered, never timed; whoever reads notes the number.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import threading
from array import array
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from agent.cache.passing import PassingLanding
from agent.content import Extent, ObjectRef, chunk_count, chunk_extent, chunks_of
from agent.transfer.landing import Landing


class Uses:
    """The numbers of uses, which only grow; any thread takes the next one."""

    def __init__(self) -> None:
        self.next: Callable[[], int] = itertools.count(1).__next__

    def go_on(self, last: int) -> None:
        """Begin behind the numbers that were given in earlier lives."""
        self.next = itertools.count(max(last + 1, self.next())).__next__


class CachedObject:
    """An open object. `users` is the store's count of who holds it open."""

    def __init__(
        self, ref: ObjectRef, path: Path, fd: int, row: int, chunk_size: int, uses: Uses | None = None
    ) -> None:
        """`fd` is the object's file, open for writing too unless it is complete; it is closed by `close`.

        It is -1 where no directory can have a file: then nothing is kept. `uses` numbers all objects' uses.
        """
        self.ref = ref
        self.path = path
        self.fd = fd
        self.row = row
        self.chunk_size = chunk_size
        self.present = bytearray(chunk_count(ref.size, chunk_size))
        self.missing = len(self.present)
        self.users = 0
        self.landings: dict[int, Landing] = {}
        # Chunks that are passed through without being kept: those that are whole, and all that may be read.
        self.passing: dict[int, PassingLanding] = {}
        self.memory: tuple[PassingLanding, ...] = ()
        self.writing = threading.Lock()  # whoever writes to the file takes its turn (Landing)
        self.granted: set[int] = set()  # chunks that the swarm writes: nobody else fills them meanwhile
        self.unreadable: set[int] = set()  # chunks that the disk did not give back: not kept there again
        self.last_use = 0
        self.chunk_uses = array("Q", bytes(8 * len(self.present)))
        self._uses = uses if uses is not None else Uses()
        self._lock = threading.Lock()
        self._reading: dict[int, int] = {}
        self._drains: list[tuple[frozenset[int], Callable[[], None]]] = []

    @property
    def complete(self) -> bool:
        return not self.missing and self.fd >= 0

    @property
    def writable(self) -> bool:
        """Whether its file may be filled."""
        return self.fd >= 0 and fcntl.fcntl(self.fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR

    def count_uses(self, uses: Uses) -> None:
        """Take the numbers of uses from here."""
        self._uses = uses

    def extent(self, chunk: int) -> Extent:
        return chunk_extent(chunk, self.ref.size, self.chunk_size)

    def chunks(self, extent: Extent) -> range:
        return chunks_of(extent, self.ref.size, self.chunk_size)

    def publish(self, chunk: int) -> None:
        """Make a chunk visible (loop only, once its record is in the index)."""
        if not self.present[chunk]:
            self.present[chunk] = 1
            self.missing -= 1

    def unpublish(self, chunk: int) -> None:
        """Let no new reader in (loop only); those that are reading are waited for with `when_unread`."""
        if self.present[chunk]:
            self.present[chunk] = 0
            self.missing += 1

    def use(self, chunks: Iterable[int] = ()) -> None:
        """Take note of an open or a release, or of a read of these chunks (any thread)."""
        self.last_use = number = self._uses.next()
        for chunk in chunks:
            self.chunk_uses[chunk] = number

    def arrived(self, chunk: int) -> None:
        """Take note that a chunk was published: that counts for the chunk, and not for the object."""
        self.chunk_uses[chunk] = self._uses.next()

    def begin_read(self, extent: Extent) -> bool:
        """Whether every byte of the extent may be read now; True counts a reader until `end_read`."""
        chunks = self.chunks(extent)
        with self._lock:
            if self._first_gap(chunks, extent.end) is not None:
                return False
            for chunk in chunks:
                self._reading[chunk] = self._reading.get(chunk, 0) + 1
        self.use(chunks)
        return True

    def end_read(self, extent: Extent) -> None:
        told: list[Callable[[], None]] = []
        with self._lock:
            for chunk in self.chunks(extent):
                self._reading[chunk] -= 1
                if not self._reading[chunk]:
                    del self._reading[chunk]
            if self._drains:
                told = [call for chunks, call in self._drains if chunks.isdisjoint(self._reading)]
                self._drains = [drain for drain in self._drains if drain[1] not in told]
        for call in told:
            call()

    def when_unread(self, chunks: Iterable[int], told: Callable[[], None]) -> bool:
        """Whether nobody reads any of the chunks now; else `told` is called once, by who ends the last read.

        To be asked after `unpublish`: nobody can begin again.
        """
        waited = frozenset(chunks)
        with self._lock:
            if waited.isdisjoint(self._reading):
                return True
            self._drains.append((waited, told))
            return False

    def first_gap(self, extent: Extent) -> int | None:
        """The first chunk of the extent of which bytes that are needed have not arrived."""
        return self._first_gap(self.chunks(extent), extent.end)

    def _first_gap(self, chunks: range, end: int) -> int | None:
        present = self.present
        for chunk in chunks:
            if not present[chunk] and not self._has_arrived(chunk, end):
                return chunk
        return None

    def read(self, extent: Extent, view: memoryview) -> None:
        """Copy an extent between `begin_read` and `end_read`. Raises OSError as the file does."""
        for start, end, held in self._parts(extent):
            part = view[start - extent.offset : end - extent.offset]
            if held is None:
                self._read_file(part, start)
            else:
                part[:] = held.part(start, end)

    def in_file(self, extent: Extent) -> bool:
        """Whether an extent, between `begin_read` and `end_read`, is in the file, and not in memory only."""
        return not self.memory or all(held is None for _, _, held in self._parts(extent))

    def _parts(self, extent: Extent) -> Iterator[tuple[int, int, PassingLanding | None]]:
        """Where an extent begins and ends in each chunk, and what holds it there; None for the file."""
        for chunk in self.chunks(extent):
            whole = self.extent(chunk)
            start, end = max(extent.offset, whole.offset), min(extent.end, whole.end)
            yield start, end, None if self.present[chunk] else self._in_memory(start, end)

    def _has_arrived(self, chunk: int, end: int) -> bool:
        for landing in (self.landings.get(chunk), self.passing.get(chunk)):
            if landing is not None and landing.position >= min(end, landing.end):
                return True
        return False

    def _in_memory(self, start: int, end: int) -> PassingLanding | None:
        """What holds these bytes. Whoever began to read them there finds it, until `end_read`."""
        return next((held for held in self.memory if held.holds(start, end)), None)

    def _read_file(self, view: memoryview, offset: int) -> None:
        done = 0
        while done < len(view):
            count = os.preadv(self.fd, [view[done:]], offset + done)
            if not count:
                raise OSError(errno.EIO, f"{self.path} is shorter than its object")
            done += count

    def open_read_only(self) -> int:
        """A new descriptor of the file for reading only, as the holder wants it; the caller closes it.

        Of the file that is open, whatever somebody has done to its name meanwhile (proc_pid_fd(5)).
        """
        return os.open(f"/proc/self/fd/{self.fd}", os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
