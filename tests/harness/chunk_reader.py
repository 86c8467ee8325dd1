"""A program that reads single chunks of files as the lines on its input say: PATH, chunk size, numbers.

It opens, reads, lets go of the page cache and closes, so that the agent sees each of its reads. Prints one
SHA-256 over what a line asked for.
"""

from __future__ import annotations

import hashlib
import os
import sys


def main() -> None:
    for line in sys.stdin:
        path, size, *numbers = line.split("\t")
        digest = hashlib.sha256()
        fd = os.open(path, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        for number in numbers:
            digest.update(os.pread(fd, int(size), int(number) * int(size)))
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)
        print(digest.hexdigest(), flush=True)


if __name__ == "__main__":
    main()
