"""Memory for bytes that the kernel takes from, or puts into, a buffer of ours."""

from __future__ import annotations

import mmap

_FLAGS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE


def resident(size: int) -> memoryview:
    """A new buffer of `size` bytes, zeros, that is there from the start (mmap(2), MAP_POPULATE).

    It begins with a page: from elsewhere the kernel finds and copies each page of a FUSE reply in two parts.
    """
    return memoryview(mmap.mmap(-1, size, _FLAGS))
