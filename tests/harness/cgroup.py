"""A memory cgroup for a test's own process, of version 1 or 2, whichever this machine has."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")


@contextlib.contextmanager
def memory_cgroup(limit: int) -> Iterator[Path]:
    """A new cgroup of at most `limit` bytes; what is written to its `cgroup.procs` is in it.

    Raises OSError where this machine lets nobody make one. Its processes must have ended at the end.
    """
    name = f"headrace-test-{os.getpid()}-{secrets.token_hex(4)}"
    if (ROOT / "memory").is_dir():
        place, setting = _of_version_1() / name, "memory.limit_in_bytes"
    else:
        (ROOT / "cgroup.subtree_control").write_text("+memory")
        place, setting = ROOT / name, "memory.max"
    place.mkdir()
    try:
        (place / setting).write_text(str(limit))
        yield place
    finally:
        place.rmdir()


def _of_version_1() -> Path:
    """Our own memory cgroup (cgroups(7)): a container may not make one beside it."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            own = ROOT / "memory" / path.lstrip("/")
            return own if own.is_dir() else ROOT / "memory"
    return ROOT / "memory"
