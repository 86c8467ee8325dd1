"""What the holder knows of each mount: all that the next holder must be given, should this one die.

Kept by the agent's client of the holder (holder.py), with descriptors of its own, so that a mount that is
being made or given up while the holder dies is restored like any other. Threads use it, so it has a lock.
What could not be told, because no holder was there, is noted as owed.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(slots=True)
class Known:
    """Of one mount: its number, its /dev/fuse descriptor (None for a tree), its record, its backing ids."""

    number: int
    fd: int | None
    record: dict[str, object] = field(repr=False)  # may hold credentials
    backing: dict[int, int] = field(default_factory=dict)
    closing: set[int] = field(default_factory=set)  # nodeids whose ids are still to be closed
    owes_record: bool = False


class Ledger:
    """All mounts, by name. Any thread; what it knows nothing of is passed over."""

    def __init__(self) -> None:
        self._known: dict[str, Known] = {}
        self._lock = threading.Lock()

    def keep(
        self, mount: str, number: int, fd: int | None, record: dict[str, object], backing: dict[int, int]
    ) -> None:
        """The holder has a mount; of `fd` a copy is kept."""
        copy = None if fd is None else os.dup(fd)
        with self._lock:
            self._drop(mount)
            self._known[mount] = Known(number, copy, record, dict(backing))

    def drop(self, mount: str) -> None:
        """The holder has it no more."""
        with self._lock:
            self._drop(mount)

    def close(self) -> None:
        """Let go of every descriptor."""
        with self._lock:
            for mount in list(self._known):
                self._drop(mount)

    def _drop(self, mount: str) -> None:
        known = self._known.pop(mount, None)
        if known is not None and known.fd is not None:
            os.close(known.fd)

    @contextmanager
    def known(self) -> Iterator[dict[str, Known]]:
        """All of it, for as long as the block runs and every other thread waits."""
        with self._lock:
            yield self._known

    def record(self, mount: str, record: dict[str, object], *, owed: bool) -> None:
        """The mount's record; `owed` until the holder has it."""
        with self._lock:
            if known := self._known.get(mount):
                known.record, known.owes_record = record, owed

    def opened(self, mount: str, nodeid: int, backing: int) -> None:
        """The holder has a backing id for a nodeid."""
        with self._lock:
            if known := self._known.get(mount):
                known.backing[nodeid] = backing
                known.closing.discard(nodeid)

    def closing(self, mount: str, nodeid: int) -> None:
        """A backing id is to be closed: owed until `closed`."""
        with self._lock:
            known = self._known.get(mount)
            if known and nodeid in known.backing:
                known.closing.add(nodeid)

    def closed(self, mount: str, nodeid: int) -> None:
        """The holder has closed a backing id."""
        with self._lock:
            if known := self._known.get(mount):
                known.backing.pop(nodeid, None)
                known.closing.discard(nodeid)

    def owed_records(self) -> list[tuple[str, dict[str, object]]]:
        """Mounts and records that the holder has not been told."""
        with self._lock:
            return [(mount, known.record) for mount, known in self._known.items() if known.owes_record]

    def owed_closes(self) -> list[tuple[str, int]]:
        """Mounts and nodeids whose backing ids are still to be closed."""
        with self._lock:
            return [(mount, nodeid) for mount, known in self._known.items() for nodeid in known.closing]
