"""A program that reads files in one way and prints their SHA-256: `reader.py HOW PATH...`, HOW as below.

Run as another process with a time limit: whatever reads a mount must not be the process that serves it, and
must not be able to hang a test. Imports the standard library only.
"""

from __future__ import annotations

import hashlib
import itertools
import mmap
import os
import random
import sys
from collections.abc import Callable

PIECE = 1 << 20


def sequential(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while data := file.read(PIECE):
            digest.update(data)
    return digest.hexdigest()


def scattered(path: str) -> str:
    """Every byte once, by pread of odd sizes in random order, put together again."""
    size = os.stat(path).st_size
    rng = random.Random(size)
    cuts = sorted({0, size, *(rng.randrange(size + 1) for _ in range(64))})
    extents = list(itertools.pairwise(cuts))
    rng.shuffle(extents)
    whole = bytearray(size)
    fd = os.open(path, os.O_RDONLY)
    try:
        for start, end in extents:
            done = start
            while done < end:
                data = os.pread(fd, end - done, done)
                whole[done : done + len(data)] = data
                done += len(data)
    finally:
        os.close(fd)
    return hashlib.sha256(whole).hexdigest()


def mapped(path: str) -> str:
    if not os.stat(path).st_size:
        return hashlib.sha256().hexdigest()
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        return hashlib.sha256(view).hexdigest()


def touched(path: str) -> str:
    """Through a mapping a byte in the middle of every third chunk of 8 MiB, from the last chunk on."""
    digest = hashlib.sha256()
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        for offset in range(len(view) - 4 * PIECE, 0, -24 * PIECE):
            digest.update(view[offset : offset + 1])
    return digest.hexdigest()


WAYS: dict[str, Callable[[str], str]] = {
    "sequential": sequential,
    "scattered": scattered,
    "mapped": mapped,
    "touched": touched,
}


def main() -> None:
    way = WAYS[sys.argv[1]]
    for path in sys.argv[2:]:
        print(way(path), path)


if __name__ == "__main__":
    main()
