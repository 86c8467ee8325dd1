"""Where the bytes of one chunk arrive: written, hashed and handed to waiting readers in one pass.

A receiving thread (or a task of an fsspec origin) writes pieces in order. Each piece goes to the object's
file, into the running xxh3-128, and then straight from the receive buffer to the readers whose last byte it
brought: they wait for neither the chunk nor the loop. The loop adds readers and takes back those that are
left when the fetch fails. One short lock orders the two (agent/cache/CONCURRENCY.md).
"""

from __future__ import annotations

import ctypes
import errno
import os
import threading
from typing import Protocol

import xxhash

from agent.content import Extent
from agent.errors import StoreError, StoreFailed, StoreFull
from agent.source import Urgency

WRITTEN_AT_ONCE = 256 << 10  # bytes of one pwrite, see `write_all`
ALLOCATED_AT_ONCE = 1 << 20  # bytes; of smaller chunks all is written soon after the first byte
KEEP_SIZE = 1  # linux/falloc.h
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


class Waiter(Protocol):
    """Somebody who waits until the bytes before `needs` (an offset in the object) have arrived."""

    @property
    def needs(self) -> int: ...

    def ready(self, data: memoryview, offset: int) -> None:
        """Called once, by the thread that wrote `data` at `offset`; must neither block nor raise.

        One that is no reader is also called when its chunk's flight is over, without data."""


class Landing:
    """The sink of one chunk of one object (a `Sink` of agent/source.py)."""

    def __init__(self, fd: int, extent: Extent, turn: threading.Lock | None = None) -> None:
        """`fd` is the object's file, open for writing; it must outlive every `write`.

        `turn` is the file's own: its writers wait for it asleep. The kernel lets one of them write at a
        time, and those that wait for that spin (measured: 0.29 CPU-seconds a GB with eight, 0.19 in turn).
        """
        self._fd = fd
        self._turn = turn or threading.Lock()
        self._extent = extent
        self.urgency = Urgency.PRELOAD  # the filler sets it
        self._position = extent.offset
        self._end = extent.end
        self._proven: int | None = None  # where the unproven bytes begin
        self._allocated = False
        self._hash = xxhash.xxh3_128()
        self._lock = threading.Lock()
        self._waiters: list[Waiter] = []

    @property
    def position(self) -> int:
        """Offset behind the last byte that is in the file: what lies before it may be read."""
        return self._position

    @property
    def unproven(self) -> bool:
        """Whether what comes now is proven only by the end of its fetch."""
        return self._proven is not None

    @property
    def proven(self) -> int:
        """Offset behind the last byte that peers may have."""
        return self._position if self._proven is None else min(self._position, self._proven)

    @property
    def start(self) -> int:
        """Offset of the first byte."""
        return self._extent.offset

    @property
    def end(self) -> int:
        return self._end

    @property
    def length(self) -> int:
        return self._extent.length

    @property
    def unwritten(self) -> int:
        """Bytes that take disk space yet."""
        return 0 if self._allocated else self._end - self._position

    def write(self, data: memoryview) -> None:
        """Take the next bytes. Raises StoreFull or StoreFailed as the disk does; ValueError past the end."""
        start = self._position
        position = start + len(data)
        if position > self._end:
            raise ValueError(f"{len(data)} bytes at {start} go past {self._end}")
        self._keep(data, start)
        self._hash.update(data)
        self._advance(position, data, start)

    def doubt(self) -> None:
        """What comes from now on is for this node's readers only (before the first of it is written)."""
        if self._proven is None:
            self._proven = self._position

    def digest(self) -> bytes:
        """xxh3-128 (16 bytes, canonical order) of the chunk; only right once `position` is `end`."""
        return self._hash.digest()

    def rewind(self) -> None:
        """Take back that bytes have arrived: they will not stay. Nobody writes any more."""
        with self._lock:
            self._position = self.start

    def wait(self, waiter: Waiter) -> bool:
        """Tell a waiter when its bytes are there; False where they are already (it is not called then)."""
        with self._lock:
            if waiter.needs <= self._position:
                return False
            self._waiters.append(waiter)
            return True

    def leave(self, waiter: Waiter) -> bool:
        """Take a waiter back; False where it has been told, or is being told."""
        with self._lock:
            if waiter not in self._waiters:
                return False
            self._waiters.remove(waiter)
            return True

    def dismiss(self) -> list[Waiter]:
        """Take back all waiters, because the bytes will not come this way."""
        with self._lock:
            waiters, self._waiters = self._waiters, []
            return waiters

    @property
    def awaited(self) -> bool:
        """Whether anybody waits now."""
        return bool(self._waiters)

    def _keep(self, data: memoryview, offset: int) -> None:
        """Where the bytes stay: here in the object's file."""
        with self._turn:
            if not self._allocated and self.length > ALLOCATED_AT_ONCE:
                # Measured on ext4: 0.27 CPU-seconds for a GB that is written so, 0.39 block by block.
                _allocate(self._fd, self._extent)
                self._allocated = True
            write_all(self._fd, data, offset)

    def _advance(self, position: int, data: memoryview, offset: int) -> None:
        with self._lock:
            self._position = position
            if not self._waiters:
                return
            served = [waiter for waiter in self._waiters if waiter.needs <= position]
            if len(served) == len(self._waiters):
                self._waiters = []
            elif served:
                self._waiters = [waiter for waiter in self._waiters if waiter.needs > position]
        for waiter in served:
            waiter.ready(data, offset)


def fallocate(fd: int, mode: int, extent: Extent) -> None:
    """As fallocate(2), for which Python has no name. Raises OSError."""
    if _libc.fallocate(fd, mode, extent.offset, extent.length):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _allocate(fd: int, extent: Extent) -> None:
    """Have the disk blocks of an extent, where the file system can. Raises StoreFull, StoreFailed."""
    try:
        fallocate(fd, KEEP_SIZE, extent)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINTR):  # then each write takes its own
            raise _refused(error) from error


def write_all(fd: int, data: memoryview, offset: int) -> None:
    """Write all bytes, in pieces that fit into small blocks of free memory. Raises StoreFull, StoreFailed.

    For one write the kernel takes page cache in blocks (folios) as large as it, and large ones are those
    that a virtual machine gives back to its host, which then has to find them again.
    Measured in one: 1.4 CPU-seconds for a GB that is written MiB by MiB, 0.2 in these pieces.
    """
    try:
        while data:
            written = os.pwrite(fd, data[:WRITTEN_AT_ONCE], offset)
            data = data[written:]
            offset += written
    except OSError as error:
        raise _refused(error) from error


def _refused(error: OSError) -> StoreError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreFull(f"the disk of the store is full ({error.strerror}); free some space")
    return StoreFailed(f"cannot write to the store: {error.strerror}")
