"""Takes memory from the machine and gives it back: `python -m bench.memory BYTES`.

A virtual machine may have to fetch each page that it has not used for a while from its host: measured here, a
new file's page cache then costs 1.2 s a GiB and 0.2 s otherwise, more than all of what the bench is to
measure, and it hits hardest whoever caches bytes twice. So a cold
measurement begins with memory that was in use a moment ago.
"""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

MADV_POPULATE_WRITE = 23  # linux/mman.h, since Linux 5.14
MIB = 1024 * 1024


def available() -> int:
    """Bytes that can be had without swapping (proc(5), meminfo)."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def main(arguments: list[str]) -> None:
    """Touch that many bytes, but at most half of what is available, and end, which frees them."""
    size = min(int(arguments[0]), available() // 2) // MIB * MIB
    with mmap.mmap(-1, size) as pages:
        pages.madvise(MADV_POPULATE_WRITE)


if __name__ == "__main__":
    main(sys.argv[1:])
