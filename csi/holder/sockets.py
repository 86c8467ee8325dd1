"""A server's socket file: one server at a time, and closed to others from its first moment on."""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class SocketTaken(Exception):
    """The path is another server's, or no socket: one line that says what to do."""


@contextmanager
def socket_lock(path: str) -> Iterator[None]:
    """Own a socket's path; what a killed server left there is removed. The lock file stays.

    The lock ends with the process. Raises SocketTaken, OSError.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    lock = os.open(f"{path}.lock", flags, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SocketTaken(f"{path}: another process serves there; stop it first") from None
        _remove_stale(path)
        yield
    finally:
        os.close(lock)


def _remove_stale(path: str) -> None:
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise SocketTaken(f"{path}: is there and no socket; remove it or choose another path")
        os.unlink(path)


@contextmanager
def private_files() -> Iterator[None]:
    """Files made inside are their owner's alone (umask(2), of the whole process)."""
    before = os.umask(0o177)
    try:
        yield
    finally:
        os.umask(before)
