"""A small file system of a test's own: an image, loop-mounted, and a process that watches its free bytes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

WATCH = """
import os, select, sys
least = 1 << 60
while not select.select([sys.stdin], [], [], 0.002)[0]:
    found = os.statvfs(sys.argv[1])
    least = min(least, found.f_bavail * found.f_frsize)
print(least)
"""


@contextmanager
def small_disk(image: Path, at: Path, size: int) -> Iterator[None]:
    """An ext4 of `size` bytes mounted over the directory `at`, which keeps its owner and mode."""
    status = at.stat()
    with image.open("wb") as file:
        file.truncate(size)
    _run("mkfs.ext4", "-q", "-F", "-m", "0", str(image))
    _run("mount", "-o", "loop", str(image), str(at))
    try:
        os.chown(at, status.st_uid, status.st_gid)
        at.chmod(status.st_mode & 0o777)
        yield
    finally:
        _run("umount", str(at))
        image.unlink()


@contextmanager
def least_free(at: Path) -> Iterator[list[int]]:
    """Watch a file system; the list gets the fewest bytes that were free, once the block has ended."""
    found: list[int] = []
    command = [sys.executable, "-c", WATCH, str(at)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as watching:
        try:
            yield found
        finally:
            output, _ = watching.communicate("", timeout=20)
            found.append(int(output))


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=60)
