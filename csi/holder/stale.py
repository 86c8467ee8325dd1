"""Mounts that a killed holder left behind: find out which are dead, without being caught by one that hangs.

A dead FUSE mount (its last descriptor is closed) answers every request with ENOTCONN at once; one that
somebody still holds may not answer at all. So a child asks, and is waited for by a deadline only.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import signal
import time
from collections.abc import Iterable

from csi.holder import kernel
from csi.holder.mountinfo import mount_entries

PROBE_TIMEOUT = 1.0  # seconds; a dead mount answers in microseconds

_log = logging.getLogger("headrace.holder")


def is_dead(path: str) -> bool:
    """Whether the mount at `path` has lost its last descriptor."""
    return path in dead_among([path])


def dead_among(paths: Iterable[str], timeout: float = PROBE_TIMEOUT) -> set[str]:
    """Which of the mounts have lost their last descriptor; all are asked at once, by a child each.

    A child may be stuck for as long as the mount's server pleases, so nobody waits for its end: the
    caller has SIGCHLD ignored, and the kernel reaps it.
    """
    probes = {}
    for path in paths:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            _probe(path, writing)
        os.close(writing)
        probes[reading] = (path, child)
    try:
        return {probes[reading][0] for reading in _answers(probes, timeout) if os.read(reading, 1) == b"d"}
    finally:
        for reading, (_, child) in probes.items():
            os.close(reading)
            os.kill(child, signal.SIGKILL)


def _answers(pipes: Iterable[int], timeout: float) -> set[int]:
    """The pipes that become readable in time."""
    waiting, answered, deadline = set(pipes), set[int](), time.monotonic() + timeout
    poll = select.poll()
    for pipe in waiting:
        poll.register(pipe, select.POLLIN)
    while waiting and (ready := poll.poll(max(0.0, deadline - time.monotonic()) * 1000)):
        for pipe, _ in ready:
            poll.unregister(pipe)
            waiting.discard(pipe)
            answered.add(pipe)
    return answered


def _probe(path: str, writing: int) -> None:
    """In the child: report and stay until killed, so that its pid can be no other process's.

    It lets go of all that the holder has open first: stuck, it would keep mounts and locks alive.
    """
    os.closerange(0, writing)
    os.closerange(writing + 1, os.sysconf("SC_OPEN_MAX"))
    try:
        os.statvfs(path)
        report = b"a"
    except OSError as error:
        report = b"d" if error.errno == errno.ENOTCONN else b"a"
    os.write(writing, report)
    signal.pause()
    os._exit(0)


def clean(directory: str, keep: frozenset[str]) -> None:
    """Remove what earlier holders left dead below `directory`; leave alone what somebody still serves, and
    the paths `keep`."""
    points = {entry.point for entry in mount_entries() if entry.ours}
    paths = {os.path.join(directory, name) for name in os.listdir(directory)} - keep
    dead = dead_among(paths & points)
    for path in paths:
        if path in points - dead:
            _log.info("the mount %s is of an earlier holder and still served; its agent gives it back", path)
            continue
        remove(path, mounted=path in points)


def remove(path: str, *, mounted: bool) -> None:
    """Take a mount directory away, whatever is mounted there."""
    try:
        if mounted:
            kernel.unmount(path, kernel.MNT_DETACH | kernel.UMOUNT_NOFOLLOW)
        os.rmdir(path)
    except OSError as error:
        _log.warning("cannot remove %s: %s", path, error.strerror)
