"""Replies that the kernel copies from the store's page cache itself: they pass through no memory of ours.

The reply's head is written into a pipe, the pages of the object's file are spliced behind it by reference,
and all of it is spliced into /dev/fuse at once (splice(2); fuse_dev_splice_write in fs/fuse/dev.c). Through
a buffer each byte is copied twice. The pages cannot go away while they are in the pipe, so that a process
that is killed in the middle has answered all or nothing.

A reply of 256 pages and its head need a pipe of 2 MiB. More than `fs.pipe-max-size` (1 MiB by default) is
for CAP_SYS_RESOURCE only, which the agent has not: `headrace-csi hold` raises that limit where it may.
Without such pipes replies go through buffers.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from collections import deque

from agent.content import Extent

log = logging.getLogger(__name__)

PIPE_SIZE = 2 << 20  # bytes: a pipe has a slot for each page of its size, and the head takes one
SPLICED = 128 << 10  # bytes from which a reply is worth the three calls


class Pipe:
    """A pipe that takes a whole reply; used by one thread at a time, and empty between two replies."""

    def __init__(self) -> None:
        """Raises OSError, EPERM where pipes may not be that large."""
        self._out, self._in = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._length = 0
        try:
            fcntl.fcntl(self._in, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
        except OSError:
            self.close()
            raise

    def load(self, head: bytes, fd: int, extent: Extent) -> None:
        """Take a head and bytes of a file. Raises OSError as the file does, EOFError where it is shorter."""
        self._length = os.write(self._in, head)
        try:
            while (offset := extent.offset + self._length - len(head)) < extent.end:
                count = os.splice(fd, self._in, extent.end - offset, offset_src=offset)
                if not count:
                    raise EOFError
                self._length += count
        except BaseException:
            self._empty()
            raise

    def send(self, fd: int) -> None:
        """Give what was loaded to /dev/fuse, as one reply. Raises OSError as a write of it would."""
        try:
            os.splice(self._out, fd, self._length)
        except OSError:
            self._empty()
            raise

    def close(self) -> None:
        os.close(self._out)
        os.close(self._in)

    def _empty(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while os.read(self._out, PIPE_SIZE):
                pass


class Pipes:
    """The pipes of all threads that answer reads; any thread may take one and give it back."""

    def __init__(self, count: int) -> None:
        """Make them, or none where the machine does not allow it."""
        self._free: deque[Pipe] = deque()
        try:
            for _ in range(count):
                self._free.append(Pipe())
        except OSError as error:
            log.info(
                "reads are answered through buffers, which costs CPU: no pipe of %d bytes (%s); "
                "`sysctl fs.pipe-max-size=%d` allows it",
                PIPE_SIZE,
                error.strerror,
                PIPE_SIZE,
            )
            self.close()

    def take(self) -> Pipe | None:
        """A pipe for one reply; None where none is free."""
        try:
            return self._free.pop()
        except IndexError:
            return None

    def give_back(self, pipe: Pipe) -> None:
        self._free.append(pipe)

    def close(self) -> None:
        """Close those that are free; nobody answers reads any more."""
        while (pipe := self.take()) is not None:
            pipe.close()
