"""One directory of the store: what it may hold, what it holds, and how much room is left in it.

<directory>/index.sqlite          which chunks are present, with their checksums; the datasets' listings
<directory>/objects/ab/abcd...    the bytes of one object, at their own offsets; its name is its key
<directory>/lock, new/, set-aside/      premises.py
<directory>/trees/                hard links to complete objects (trees.py)
"""

from __future__ import annotations

import enum
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from prometheus_client import Counter

from agent.cache.index import Index, Totals
from agent.cache.premises import occupy
from agent.cache.trees import Trees
from agent.metrics import Metrics
from agent.transfer.landing import Landing

# Bytes below the reserve's border that fills leave alone: the index grows too, and its log, and the file
# system's own records of a file.
SLACK = 4 << 20
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")  # proc_sys_kernel(5)


@dataclass(frozen=True, slots=True)
class StoreLimits:
    """How much a directory may hold: `capacity` bytes of its own, `reserve` bytes that stay free on the disk.

    None stands for the default: 90 % of the file system, and the smaller of 50 GiB and 10 %. Eviction begins
    where the `high_watermark` of what the directory may hold is passed, and ends at the `low_watermark`.
    """

    capacity: int | None = None
    reserve: int | None = None
    high_watermark: float = 0.95
    low_watermark: float = 0.90


class State(enum.Enum):
    """OK -> FULL where the disk takes no more bytes, or FAILED where it or the index gives an error; back to
    OK from either once a probe succeeds (conditions.py)."""

    OK = "ok"
    FULL = "full"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Filling:
    """A chunk that has its room: how many bytes, and where they arrive if they are on their way."""

    bytes: int
    landing: Landing | None

    @property
    def unwritten(self) -> int:
        return self.bytes if self.landing is None else self.landing.unwritten


@dataclass(slots=True)
class Directory:
    """One store directory; `used` is the loop's running sum of bytes present or being filled, `filling` has
    the chunks that have room and are not recorded yet, by key and number."""

    path: Path
    index: Index
    trees: Trees
    capacity: int
    reserve: int
    used: int
    chunks: int
    objects: int
    damage: Mapping[str, Counter]  # by kind, as agent/metrics.py names them
    lock: int  # the descriptor that holds it
    high_watermark: float = 0.95
    low_watermark: float = 0.90
    state: State = State.OK
    reason: str = ""
    uncounted: bool = False  # a removal failed half-way: `used`, `chunks` and `objects` are to be asked for
    filling: dict[tuple[str, int], Filling] = field(default_factory=dict)

    def close(self) -> None:
        """Close the index and let go of the directory. Raises StoreFailed."""
        try:
            self.index.close()
        finally:
            os.close(self.lock)

    def file_of(self, key: str) -> Path:
        return self.path / "objects" / key[:2] / key

    @property
    def free(self) -> int:
        """Bytes that the file system has free now."""
        status = os.statvfs(self.path)
        return status.f_bavail * status.f_frsize

    @property
    def unwritten(self) -> int:
        """Bytes that have their room and are not on the disk yet."""
        return sum(one.unwritten for one in self.filling.values())

    @property
    def limit(self) -> int:
        """Bytes that the directory may hold as the disk is now: others may have filled it."""
        return min(self.capacity, self.used - self.unwritten + self.free - self.reserve - SLACK)

    @property
    def room(self) -> int:
        """Bytes that may still be filled."""
        return self.limit - self.used

    def excess(self, watermark: float) -> int:
        """Bytes held above a share of the limit; negative below it."""
        return self.used - int(self.limit * watermark)


def open_directory(path: Path, limits: StoreLimits, metrics: Metrics) -> Directory:
    """Open or make a store directory. Blocking. Raises ConfigError, StoreFailed."""
    lock = occupy(path)
    try:
        return _opened(path, limits, metrics, lock)
    except BaseException:
        os.close(lock)
        raise


def _opened(path: Path, limits: StoreLimits, metrics: Metrics, lock: int) -> Directory:
    index = Index(path / "index.sqlite", BOOT_ID.read_text().strip())
    if index.set_aside is not None:
        metrics.damage["index"].inc()
    trees = Trees(path)
    trees.clean()
    totals: Totals = index.totals()
    status = os.statvfs(path)
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
        damage=metrics.damage,
        lock=lock,
        high_watermark=limits.high_watermark,
        low_watermark=limits.low_watermark,
    )
