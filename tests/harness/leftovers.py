"""What a test session must not leave behind: processes that it started, mounts of Headrace.

Orphans count too: the session adopts the processes whose parent died (PR_SET_CHILD_SUBREAPER, prctl(2)), so
a server that outlives the command that started it is found.
"""

from __future__ import annotations

import ctypes
import os
import select
import time
from collections.abc import Iterator
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36  # include/uapi/linux/prctl.h
GRACE = 5.0  # seconds that what was told to end may still take
FILE_SYSTEM = "fuse.headrace"


def adopt_orphans() -> None:
    """Become the parent of every descendant that loses its own."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def processes_left() -> list[str]:
    """Our children that do not end within the grace, as "PID command"."""
    deadline = time.monotonic() + GRACE
    return [f"{pid} {_command(pid)}" for pid in _children() if not _ended(pid, deadline)]


def mounts(below: tuple[Path, ...]) -> set[Path]:
    """Where file systems and trees of Headrace are mounted below these directories, for this process."""
    found = set()
    for line in Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape").splitlines():
        before, _, behind = line.partition(" - ")
        _, _, _, root, point, *_ = before.split(" ")
        if behind.split(" ", 1)[0] == FILE_SYSTEM or "/trees/" in root:
            found.add(Path(point))
    return {mount for mount in found if any(mount.is_relative_to(directory) for directory in below)}


def mounts_left(below: tuple[Path, ...]) -> set[Path]:
    """Mounts below these directories that do not go within the grace.

    The kernel marks /proc/self/mountinfo with POLLPRI on each change of the mount table (proc(5)).
    """
    deadline = time.monotonic() + GRACE
    with open("/proc/self/mountinfo", "rb") as table:
        poll = select.poll()
        poll.register(table, select.POLLPRI)
        while (left := mounts(below)) and (rest := deadline - time.monotonic()) > 0:
            poll.poll(rest * 1000)
    return left


def _children() -> Iterator[int]:
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_text("utf-8", "replace").rpartition(")")[2].split()[:2]
        except OSError:
            continue  # it ended meanwhile
        if (
            int(parent) == os.getpid()
            and state != "Z"
            and "resource_tracker" not in _command(int(path.parent.name))
        ):
            yield int(path.parent.name)


def _command(pid: int) -> str:
    try:
        return (
            Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace").strip()
        )
    except OSError:
        return ""


def _ended(pid: int, deadline: float) -> bool:
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        wait = max(0.0, deadline - time.monotonic())
        return bool(select.select([descriptor], [], [], wait)[0])
    finally:
        os.close(descriptor)
