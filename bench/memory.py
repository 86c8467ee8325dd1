"""Keeps memory at hand: `python -m bench.memory BYTES`, until its input ends.

A virtual machine may have to fetch each page that it has not used for a while from its host: measured here, a
new file's page cache then costs 1.2 s a GiB and 0.2 s otherwise, more than all of what the bench is to
measure, and it hits hardest whoever caches bytes twice.
"""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

MADV_NOHUGEPAGE = 15  # linux/mman.h
MADV_POPULATE_WRITE = 23  # since Linux 5.14
HUGE = 2 * 1024 * 1024


def available() -> int:
    """Bytes that can be had without swapping (proc(5), meminfo)."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def keep(size: int) -> mmap.mmap:
    """Memory of `size` bytes of which one page in each 2 MiB is held, and all others are free again.

    Hosts take back whole 2 MiB only (free page reporting): what lies between the held pages stays, and
    half of it in blocks of 1 MiB, which is what a write of a MiB takes. With it the same write of a new file
    costs 0.2 CPU-seconds a GB each time, without 0.2 to 2.4.
    """
    pages = mmap.mmap(-1, size // HUGE * HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    pages.madvise(MADV_NOHUGEPAGE)
    pages.madvise(MADV_POPULATE_WRITE)
    for offset in range(0, len(pages), HUGE):
        pages.madvise(mmap.MADV_DONTNEED, offset + mmap.PAGESIZE, HUGE - mmap.PAGESIZE)
    return pages


def main(arguments: list[str]) -> None:
    """Keep memory at hand, at most half of what is available, until the input ends."""
    with keep(min(int(arguments[0]), available() // 2)):
        print("kept", flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1:])
