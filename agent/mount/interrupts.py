"""Readers that are killed while the kernel itself waits for their READ.

Most readers wait for pages that the kernel reads ahead, and a fatal signal ends them. For some READs the
kernel waits in the reader's own context: O_DIRECT, a fault in a mapping with MADV_RANDOM, a page whose last
read failed. Once such a request has been read from the channel it waits for the answer whatever comes, and
says by one INTERRUPT that the first signal has come, of whatever kind (fs/fuse/dev.c, request_wait_answer).
EINTR for any signal would fail programs whose timers restart system calls, so only who is killed gets it:
/proc tells (proc_pid_status(5)), where this process sees the reader's at all.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Final

from agent.mount.reads import PendingRead

LOOK_EVERY: Final = 0.25  # seconds: the signal that kills need not be the first one
UNKNOWN_FOR: Final = 2.0  # and in which a READ may still be on its way to those that wait
_KILL: Final = 1 << (signal.SIGKILL - 1)


class Interrupts:
    """The interrupted READs of one mount. Used on the loop, but for `came`."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        waiting: Collection[PendingRead],
        give_up: Callable[[PendingRead], None],
    ) -> None:
        """`waiting` are the READs that wait, `give_up` is called with each whose caller is killed."""
        self._loop = loop
        self._waiting = waiting
        self._give_up = give_up
        self._since: dict[int, float] = {}  # by `unique`
        self._timer: asyncio.TimerHandle | None = None

    def came(self, unique: int) -> None:
        """The caller of this request has had a signal (any thread)."""
        self._loop.call_soon_threadsafe(self._note, unique)

    def close(self) -> None:
        """Look no more."""
        self._since.clear()
        if self._timer is not None:
            self._timer.cancel()

    def _note(self, unique: int) -> None:
        self._since[unique] = self._loop.time()
        if self._timer is not None:
            self._timer.cancel()
        self._look()

    def _look(self) -> None:
        waiting = {read.unique: read for read in list(self._waiting) if read.unique in self._since}
        for unique, since in list(self._since.items()):
            read = waiting.get(unique)
            if read is None:
                if self._loop.time() - since >= UNKNOWN_FOR:
                    del self._since[unique]
            elif is_killed(read.caller):
                del self._since[unique]
                self._give_up(read)
        self._timer = self._loop.call_later(LOOK_EVERY, self._look) if self._since else None


def is_killed(thread: int) -> bool:
    """Whether SIGKILL is pending for a thread, as for all of a process that ends; False where unseen."""
    try:
        status = Path(f"/proc/{thread}/status").read_text()
    except OSError:
        return False
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    return any(int(fields.get(name, "0"), 16) & _KILL for name in ("SigPnd", "ShdPnd"))
