"""One /dev/fuse descriptor, and the requests that came from it."""

from __future__ import annotations

import errno
import logging
import os
from typing import Final

from agent.content import Extent
from agent.mount import wire
from agent.mount.inflight import RequestTable
from agent.mount.splicing import Pipe

log = logging.getLogger(__name__)

# What writing a reply may say without harm: the request was aborted or answered before (ENOENT), its caller
# is gone (EINTR), the mount is gone (ENODEV, EBADF after the channel's close).
_GONE: Final = frozenset({errno.ENOENT, errno.EINTR, errno.ENODEV, errno.EBADF, errno.ECONNABORTED})


class Channel:
    """A mount's descriptor (non-blocking). Any thread may read and write."""

    def __init__(self, fd: int, number: int, table: RequestTable) -> None:
        """`number` names the mount in the in-flight table."""
        self.fd = fd
        self.number = number
        self._table = table
        self.free = table.release

    def receive(self) -> Request | None:
        """The next request, None where there is none now. Raises OSError(ENODEV) once the mount is gone."""
        slot = self._table.acquire(self.number)
        view = self._table.view(slot)
        while True:
            try:
                return Request(self, slot, view, os.readv(self.fd, [view]))
            except OSError as error:
                # ENOENT: a request was aborted before it could be copied; others may wait behind it.
                if error.errno in (errno.ENOENT, errno.EINTR):
                    continue
                self._table.release(slot)
                if error.errno == errno.EAGAIN:
                    return None
                raise

    def recover(self, slot: int) -> Request:
        """The request that a predecessor left in a slot."""
        return Request(self, slot, self._table.view(slot), None)

    def send(self, *parts: wire.Buffer) -> bool:
        """Write one reply; False where its request is gone, or the kernel does not take it (logged)."""
        try:
            os.writev(self.fd, parts)
        except OSError as error:
            if error.errno not in _GONE:
                log.error("the kernel refuses a reply: %s", error.strerror)
            return False
        return True

    def send_loaded(self, pipe: Pipe) -> bool:
        """Send the reply that a pipe was loaded with; False where it has to be sent in another way."""
        try:
            pipe.send(self.fd)
        except OSError as error:
            return error.errno in _GONE
        return True

    def retire(self) -> int:
        """Use the descriptor no more. Given back is its number, to be closed when no thread can be in a call
        with it any more: it may be another file's at once, whose bytes were read or written then."""
        number, self.fd = self.fd, -1
        return number


class Request:
    """A request in its slot, until it is answered: by `answer`, `refuse` or `drop`, one of them, once."""

    __slots__ = ("_slot", "buffer", "channel", "received", "unique")

    def __init__(self, channel: Channel, slot: int, buffer: memoryview, received: int | None) -> None:
        """`buffer` is the slot's memory, `received` the length as read, None where only the slot's own word
        is known."""
        self.channel = channel
        self.buffer = buffer
        self.received = received
        self.unique = 0
        self._slot = slot

    def answer(self, payload: wire.Buffer = b"") -> bool:
        """Reply with a payload; False where nobody waits for it any more."""
        try:
            return self.channel.send(wire.reply_header(self.unique, 0, len(payload)), payload)
        finally:
            self.drop()

    def answer_from(self, pipe: Pipe, fd: int, extent: Extent) -> bool:
        """Reply with an extent of a file; False where it is to be answered still.

        Raises what `Pipe.load` does, and then it is as well.
        """
        pipe.load(wire.reply_header(self.unique, 0, extent.length), fd, extent)
        if not self.channel.send_loaded(pipe):
            return False
        self.drop()
        return True

    def refuse(self, error: int) -> None:
        """Reply with an errno."""
        try:
            self.channel.send(wire.reply_header(self.unique, error))
        finally:
            self.drop()

    def drop(self) -> None:
        """A request that takes no reply is done with; nothing happens where it was before."""
        if self._slot:  # slot 0 is the table's head
            self.channel.free(self._slot)
            self._slot = 0
