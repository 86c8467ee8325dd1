"""A new file for an object of which chunks are damaged: its good chunks are copied, the old file is let go.

A file that was ever complete may be open in the kernel (passthrough) or linked by a tree: it is never written
again. Whoever has it open keeps it as it is. The copy is made under another name and takes the place of the
old one by rename(2), so a crash leaves one or the other. Blocking; on any thread.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from agent.content import Extent
from agent.errors import StoreFailed

FILE_MODE = 0o644


def renew(store: Path, path: Path, size: int, kept: Iterable[Extent]) -> int:
    """Put a new file in the place of `path`, with the kept extents in it; it is returned open for writing.

    Raises StoreFailed; the old file is then still in its place.
    """
    made = store / "new" / path.name
    flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        fd = os.open(made, flags, FILE_MODE)
        try:
            os.ftruncate(fd, size)
            _copy(path, fd, kept)
            made.rename(path)
        except BaseException:
            os.close(fd)
            raise
    except OSError as error:
        with suppress(OSError):
            made.unlink()
        raise StoreFailed(f"cannot make {path} anew: {error.strerror}") from error
    return fd


def _copy(path: Path, target: int, kept: Iterable[Extent]) -> None:
    source = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        for extent in kept:
            done = extent.offset
            while done < extent.end:
                count = os.copy_file_range(source, target, extent.end - done, done, done)
                if not count:
                    raise OSError(5, "it is shorter than its object")
                done += count
    finally:
        os.close(source)
