"""The in-flight table: the requests that the agent has read from the kernel and not answered yet.

It is a memfd that the holder keeps as well. FUSE threads read requests straight into its slots, and a slot
is freed after its reply; so whatever a killed agent leaves unanswered lies there for its successor, on every
kernel (FUSE_NOTIFY_RESEND is not needed). Layout, in slots of `slot_size` bytes:

    slot 0      magic and version of this layout
    slot 1      for each slot a u32: the number of the mount that its request came from
    slot 2 ...  one request each; free where its first u32 (`fuse_in_header.len`) is 0
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
import threading

from agent.errors import HolderError

MAGIC = b"headrace-inflight"
VERSION = 1
FIRST_SLOT = 2
_FREE = bytes(4)
_HEAD = struct.Struct(f"{len(MAGIC)}sI")


class RequestTable:
    """The table, mapped. `acquire` and `release` may be called from any thread."""

    def __init__(self, fd: int, slots: int, slot_size: int) -> None:
        """Map the memfd (the caller keeps and closes `fd`). HolderError where its layout is another one."""
        if slots <= FIRST_SLOT or slots * 4 > slot_size or os.fstat(fd).st_size < slots * slot_size:
            raise HolderError(
                f"the in-flight table of {slots} slots of {slot_size} bytes has no usable shape"
            )
        view = memoryview(mmap.mmap(fd, slots * slot_size))
        _check_layout(view)
        self._numbers = view[slot_size : slot_size + slots * 4].cast("I")
        self._slots = [view[index * slot_size : (index + 1) * slot_size] for index in range(slots)]
        # The last released is taken first: few slots are touched, few pages become resident.
        self._free = [index for index in reversed(range(FIRST_SLOT, slots)) if self._is_free(index)]
        self._freed = threading.Condition()
        self._starved = 0  # who waits for a slot; without them a slot is taken and given without the lock

    def left_over(self) -> list[tuple[int, int]]:
        """(slot, mount number) of each request that a predecessor had read and not answered."""
        used = range(FIRST_SLOT, len(self._slots))
        return [(index, self._numbers[index]) for index in used if not self._is_free(index)]

    def acquire(self, number: int) -> int:
        """A free slot, for a request of mount `number`; waits where all are taken."""
        try:
            slot = self._free.pop()
        except IndexError:
            slot = self._next_freed()
        self._numbers[slot] = number
        return slot

    def release(self, slot: int) -> None:
        """The request is answered, or none came: the slot is free."""
        self._slots[slot][:4] = _FREE
        self._free.append(slot)
        if self._starved:  # whoever is not counted yet looks once more before he waits
            with self._freed:
                self._freed.notify()

    def view(self, slot: int) -> memoryview:
        """The slot's memory."""
        return self._slots[slot]

    def _next_freed(self) -> int:
        with self._freed:
            self._starved += 1
            try:
                while True:
                    with contextlib.suppress(IndexError):
                        return self._free.pop()
                    self._freed.wait()
            finally:
                self._starved -= 1

    def _is_free(self, slot: int) -> bool:
        return self._slots[slot][:4] == _FREE


def _check_layout(view: memoryview) -> None:
    if view[: _HEAD.size] == bytes(_HEAD.size):
        view[: _HEAD.size] = _HEAD.pack(MAGIC, VERSION)
    magic, version = _HEAD.unpack_from(view)
    if magic != MAGIC or version != VERSION:
        raise HolderError("the in-flight table was left by an agent of another layout; restart the holder")
