"""The reading child: `python -m bench.readers`, a job as JSON on stdin, a reading on stdout.

The clock runs from the first open to the last byte, without the start of the process.
"""

from __future__ import annotations

import json
import mmap
import os
import resource
import sys
import time
from pathlib import Path

MIB = 1024 * 1024


def mapped(path: Path) -> int:
    """Map the whole file privately, as safetensors does, and copy it in order; the count of bytes."""
    buffer = memoryview(bytearray(MIB))
    with path.open("rb") as file:
        pages = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
    with pages, memoryview(pages) as view:
        for offset in range(0, len(view), MIB):
            with view[offset : offset + MIB] as part:
                buffer[: len(part)] = part
        return len(view)


def first(path: Path) -> int:
    """The first MiB of the file."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        buffer = bytearray(MIB)
        view, done = memoryview(buffer), 0
        while done < MIB and (count := os.readv(descriptor, [view[done:]])):
            done += count
        return done
    finally:
        os.close(descriptor)


def uncached(path: Path) -> int:
    """The first 16 MiB, each MiB dropped from the page cache before it is read; the count of bytes."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        done = 0
        for offset in range(0, 16 * MIB, MIB):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            done += len(os.pread(descriptor, MIB, offset))
        return done
    finally:
        os.close(descriptor)


def every(path: Path) -> int:
    """All files of a directory, one after another; the count of bytes."""
    return sum(len((path / name).read_bytes()) for name in sorted(os.listdir(path)))


WAYS = {"mapped": mapped, "first": first, "uncached": uncached, "every": every}


def main() -> None:
    """Do one job: {"way": a name in WAYS, "path": file or directory, "times": how often}."""
    job = json.load(sys.stdin)
    way, path = WAYS[job["way"]], Path(job["path"])
    started = time.monotonic()
    size = sum(way(path) for _ in range(job.get("times", 1)))
    seconds = time.monotonic() - started
    usage = resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps({"seconds": seconds, "size": size, "cpu_seconds": usage.ru_utime + usage.ru_stime}))


if __name__ == "__main__":
    main()
