"""A READ whose bytes are not all there: it waits with its slot only, no thread and no buffer.

Whichever thread brings its last byte answers it: the receiving one straight from its buffer where that has
the whole extent, else through the file, which the page cache still has.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import threading
from collections.abc import Callable
from typing import Protocol

from agent.cache.objects import CachedObject
from agent.content import Extent
from agent.errors import HeadraceError
from agent.memory import resident
from agent.metrics import Metrics
from agent.mount import wire
from agent.mount.channel import Request
from agent.mount.errnos import to_errno
from agent.mount.splicing import SPLICED, Pipes
from agent.mount.tally import Tally

log = logging.getLogger(__name__)

MAX_READ = 1024 * 1024  # max_pages of INIT in bytes: no READ asks for more


class Buffers(threading.local):
    """A resident, reused buffer for each thread that answers reads.

    It is no mapping of a file: a process killed in the middle of a `writev` from there has ended the reader's
    request with EIO.
    """

    def __init__(self) -> None:
        self.view = resident(MAX_READ)


class Replies:
    """How bytes that are there are given to the kernel (any thread)."""

    def __init__(self, pipes: Pipes) -> None:
        self._pipes = pipes
        self._buffers = Buffers()

    def answer(self, request: Request, cached: CachedObject, extent: Extent) -> None:
        """Answer a READ, between `begin_read` and `end_read`. Raises OSError, and then it is not answered."""
        if extent.length >= SPLICED and cached.in_file(extent) and self._spliced(request, cached, extent):
            return
        view = self._buffers.view[: extent.length]
        cached.read(extent, view)
        request.answer(view)

    def _spliced(self, request: Request, cached: CachedObject, extent: Extent) -> bool:
        pipe = self._pipes.take()
        if pipe is None:
            return False
        try:
            return request.answer_from(pipe, cached.fd, extent)
        except EOFError:
            raise OSError(errno.EIO, f"{cached.path} is shorter than its object") from None
        finally:
            self._pipes.give_back(pipe)


class Desk(Protocol):
    """What a waiting read needs of its mount."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop: ...
    @property
    def metrics(self) -> Metrics: ...
    @property
    def replies(self) -> Replies: ...
    @property
    def tally(self) -> Tally: ...
    def submit(self, job: Callable[[], None]) -> None: ...
    def wait_again(self, read: PendingRead) -> None: ...
    def lost(self, cached: CachedObject, extent: Extent) -> None: ...
    def answered(self, read: PendingRead) -> None: ...


class PendingRead:
    """One waiting READ; a `Reader` of agent/cache/fill.py."""

    __slots__ = ("_desk", "_request", "cached", "deadline", "extent", "fh", "needs")

    def __init__(self, desk: Desk, request: Request, fh: int, cached: CachedObject, extent: Extent) -> None:
        self._desk = desk
        self._request = request
        self.fh = fh
        self.cached = cached
        self.extent = extent
        self.needs = extent.end
        self.deadline: float | None = None

    def ready(self, data: memoryview, offset: int) -> None:
        """The bytes before `needs` are in the file, and `data` at `offset` are the last of them."""
        start, end = self.extent.offset - offset, self.extent.end - offset
        if start >= 0 and end <= len(data):
            self._request.answer(data[start:end])
            self._answered()
        else:
            self._from_file()

    def resume(self) -> None:
        """Every byte is there: a FUSE thread answers, the loop copies nothing."""
        self._desk.submit(self._from_file)

    def fail(self, error: HeadraceError) -> None:
        self._refuse(error)

    @property
    def unique(self) -> int:
        """The number that the kernel gave the request."""
        return self._request.unique

    @property
    def caller(self) -> int:
        """The thread that reads, as the holder's pid namespace numbers it; 0 where it is in no such one."""
        return wire.decode_header(self._request.buffer).pid

    def interrupt(self) -> None:
        """Its caller is killed."""
        self._request.refuse(errno.EINTR)
        self._desk.answered(self)

    def drop(self) -> None:
        """Nobody waits for it any more, and it waits for nothing."""
        self._request.drop()
        self._desk.answered(self)

    def _from_file(self) -> None:
        if not self.cached.begin_read(self.extent):
            # It reaches into the next chunk, which is not there yet.
            self._desk.loop.call_soon_threadsafe(self._desk.wait_again, self)
            return
        try:
            self._desk.replies.answer(self._request, self.cached, self.extent)
        except OSError as error:
            log.error("cannot read %s: %s", self.cached.path, error.strerror)
            self._desk.loop.call_soon_threadsafe(self._lost)
            return
        finally:
            self.cached.end_read(self.extent)
        self._answered()

    def _lost(self) -> None:
        """(loop) The disk does not give what has just been there: it is had from elsewhere."""
        self._desk.lost(self.cached, self.extent)
        self._desk.wait_again(self)

    def _answered(self) -> None:
        self._desk.metrics.read_bytes_origin.inc(self.extent.length)
        self._desk.tally.from_origin(self.extent.length)
        self._desk.answered(self)

    def _refuse(self, error: HeadraceError) -> None:
        self._desk.tally.failed(error)
        self._request.refuse(to_errno(error))
        self._desk.answered(self)
