"""One directory of the store: what it may hold, what it holds, and how much room is left in it.

<directory>/index.sqlite          which chunks are present, with their checksums; the datasets' listings
<directory>/objects/ab/abcd...    the bytes of one object, at their own offsets; its name is its key
<directory>/trees/                hard links to complete objects (trees.py)
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from agent.cache.index import Index, Totals
from agent.cache.trees import Trees
from agent.errors import ConfigError


@dataclass(frozen=True, slots=True)
class StoreLimits:
    """How much a directory may hold: `capacity` bytes of its own, `reserve` bytes that stay free on the disk.

    None stands for the default: 90 % of the file system, and the smaller of 50 GiB and 10 %.
    """

    capacity: int | None = None
    reserve: int | None = None


@dataclass(slots=True)
class Directory:
    """One store directory; `used` is the loop's running sum of bytes present or being filled."""

    path: Path
    index: Index
    trees: Trees
    capacity: int
    reserve: int
    used: int
    chunks: int
    objects: int

    def file_of(self, key: str) -> Path:
        return self.path / "objects" / key[:2] / key

    @property
    def free(self) -> int:
        """Bytes that the file system has free now."""
        status = os.statvfs(self.path)
        return status.f_bavail * status.f_frsize

    @property
    def room(self) -> int:
        """Bytes that may still be filled."""
        return min(self.capacity - self.used, self.free - self.reserve)


def open_directory(path: Path, limits: StoreLimits) -> Directory:
    """Open or make a store directory. Blocking. Raises ConfigError, StoreFailed."""
    try:
        (path / "objects").mkdir(mode=0o700, parents=True, exist_ok=True)
        status = os.statvfs(path)
        probe = path / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        remedy = "make it and give it to the agent's user"
        raise ConfigError("store.directories", f"{path}: {error.strerror}; {remedy}") from error
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    index = Index(path / "index.sqlite", boot_id)
    trees = Trees(path)
    trees.clean()
    totals: Totals = index.totals()
    size = status.f_blocks * status.f_frsize
    return Directory(
        path=path,
        index=index,
        trees=trees,
        capacity=limits.capacity if limits.capacity is not None else size * 9 // 10,
        reserve=limits.reserve if limits.reserve is not None else min(50 * 2**30, size // 10),
        used=totals.bytes,
        chunks=totals.chunks,
        objects=totals.objects,
    )
