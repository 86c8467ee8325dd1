"""A program that reads the same files over and over until its input ends: `steady_reader.py HOW ROOT SPEC`.

SPEC is a JSON file: for each path below ROOT how many bytes of it to read and their SHA-256. A wrong byte
and every error end it with a traceback. It writes a dot for each file that it has read, and at the end a line
of JSON: the longest time that passed between two reads, in seconds, and how many files it read. Imports the
standard library only. HOW is one of

    read     pread in pieces; the page cache is dropped behind it, so that the next turn asks the mount again
    mapped   the same through a memory mapping
    held     as read, but files stay open while others are read, and are read once more before they are closed
    walk     as read, after listing and examining the whole tree
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import select
import sys
import time
from collections.abc import Iterator
from typing import BinaryIO

PIECE = 256 << 10
HELD = 3  # files


class Reader:
    """One turn after the other, and the clock between two reads."""

    def __init__(self, how: str, root: str, spec: dict[str, tuple[int, str]]) -> None:
        self.how = how
        self.root = root
        self.spec = spec
        self.last = time.monotonic()
        self.longest = 0.0
        self.files = 0
        self.held: list[tuple[BinaryIO, str]] = []

    def run(self) -> None:
        while not told_to_stop():
            if self.how == "walk":
                self.walk()
            for path, (length, digest) in self.spec.items():
                if not self.file(path, length, digest):
                    return

    def walk(self) -> None:
        found = {
            os.path.relpath(os.path.join(where, name), self.root)
            for where, _, names in os.walk(self.root, onerror=fail)
            for name in names
        }
        assert set(self.spec) <= found, set(self.spec) - found
        self.beat()

    def file(self, path: str, length: int, digest: str) -> bool:
        """Read one file; False where it was told to stop in the middle."""
        file = open(os.path.join(self.root, path), "rb", buffering=0)  # noqa: SIM115
        self.held.append((file, path))
        if not self.check(file.fileno(), path, length, digest):
            return False
        if self.how != "held" or len(self.held) > HELD:
            first, name = self.held.pop(0)
            with first:
                if self.how == "held" and not self.check(first.fileno(), name, *self.spec[name]):
                    return False
        self.files += 1
        os.write(1, b".")
        return True

    def check(self, fd: int, path: str, length: int, digest: str) -> bool:
        hashed = hashlib.sha256()
        for piece in mapped(fd, length) if self.how == "mapped" else read(fd, length):
            hashed.update(piece)
            self.beat()
            if told_to_stop():
                return False
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        assert hashed.hexdigest() == digest, f"{path} has other bytes"
        return True

    def beat(self) -> None:
        now = time.monotonic()
        self.longest = max(self.longest, now - self.last)
        self.last = now


def read(fd: int, length: int) -> Iterator[bytes]:
    done = 0
    while done < length:
        piece = os.pread(fd, min(PIECE, length - done), done)
        assert piece, f"the file ends at {done}"
        done += len(piece)
        yield piece


def mapped(fd: int, length: int) -> Iterator[bytes]:
    with mmap.mmap(fd, length, prot=mmap.PROT_READ) as view:
        for start in range(0, length, PIECE):
            yield view[start : start + PIECE]


def fail(error: OSError) -> None:
    raise error


def told_to_stop() -> bool:
    return bool(select.select([0], [], [], 0)[0])


def main() -> None:
    how, root, spec = sys.argv[1:]
    with open(spec, encoding="utf-8") as file:
        reader = Reader(how, root, json.load(file))
    reader.run()
    print(json.dumps({"longest": reader.longest, "files": reader.files}))


if __name__ == "__main__":
    main()
