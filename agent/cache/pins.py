"""Pins: what an operator wants kept in the store until a time, and why. Durable; loop only.

A pin ends at its own time by the wall clock, which may be moved: so nothing is deleted when a pin ends. It is
not in force any more, and again if the clock goes back. Rows are deleted long after (RETAINED).
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from agent.cache.directory import Directory, State
from agent.cache.index import Index
from agent.cache.store import Store
from agent.clock import Clock
from agent.errors import BadRequest, StoreFailed
from agent.metrics import Metrics

RETAINED = 7 * 24 * 3600.0  # seconds: no clock is wrong for so long unnoticed


@dataclass(frozen=True, slots=True)
class Pin:
    """A claim on the objects of a dataset's revision until a time (seconds since 1970)."""

    id: str
    uri: str
    revision: str
    until: float
    reason: str
    keys: frozenset[str]


class Pins:
    """The pins of one store."""

    def __init__(self, store: Store, clock: Clock, metrics: Metrics) -> None:
        self._store = store
        self._clock = clock
        self._metrics = metrics
        self._pins: dict[str, tuple[Pin, Index | None]] = {}
        self.on_removed: Callable[[], None] = _nothing

    async def load(self) -> None:
        """Take up the pins of earlier lives. Raises StoreFailed."""
        for directory in self._store.directories:
            oldest = self._clock.time() - RETAINED
            for pin in await self._store.blocking(_load, directory.index, oldest):
                self._pins[pin.id] = (pin, directory.index)
        self.active()

    async def add(self, uri: str, revision: str, keys: Iterable[str], until: float, reason: str) -> Pin:
        """Pin objects. BadRequest where the time has passed; StoreFailed."""
        if until <= self._clock.time():
            raise BadRequest("until: that time has passed; give one in the future, in seconds since 1970")
        pin = Pin(secrets.token_hex(8), uri, revision, until, reason, frozenset(keys))
        self._pins[pin.id] = (pin, None)  # in force before it is durable: eviction may be under way
        try:
            self._pins[pin.id] = (pin, await self._saved(pin))
        except BaseException:
            del self._pins[pin.id]
            raise
        self.active()
        return pin

    async def _saved(self, pin: Pin) -> Index:
        """The index that has taken a pin: of the first directory that is well, and can."""
        well = sorted(self._store.directories, key=_condition)
        for directory in well[:-1]:
            try:
                await self._store.blocking(_save, directory.index, pin)
                return directory.index
            except StoreFailed as error:
                self._store.conditions.mark(directory, error)
        await self._store.blocking(_save, well[-1].index, pin)
        return well[-1].index

    async def remove(self, name: str) -> None:
        """End a pin now. BadRequest where there is none."""
        _, index = self._pins.get(name, (None, None))
        if index is None:
            raise BadRequest(f"there is no pin {name!r}")
        await self._store.blocking(_delete, index, name)
        self._pins.pop(name, None)
        self.active()
        self.on_removed()

    def active(self) -> list[Pin]:
        """The pins that are in force now, the one that ends first before the others."""
        now = self._clock.time()
        found = sorted((pin for pin, _ in self._pins.values() if pin.until > now), key=lambda pin: pin.until)
        self._metrics.pins.set(len(found))
        return found

    def keys(self) -> set[str]:
        """The keys of the objects that are pinned now."""
        return set().union(*(pin.keys for pin in self.active()))


def _condition(directory: Directory) -> int:
    return list(State).index(directory.state)


def _nothing() -> None:
    """What happens when a pin is removed and nobody waits for room."""


def _load(index: Index, oldest: float) -> list[Pin]:
    def work(db: sqlite3.Connection) -> list[Pin]:
        db.execute("DELETE FROM pins WHERE until < ?", (oldest,))
        keys: dict[str, set[str]] = {}
        for name, key in db.execute("SELECT pin, key FROM pinned"):
            keys.setdefault(name, set()).add(key)
        rows = db.execute("SELECT id, uri, revision, until, reason FROM pins").fetchall()
        return [
            Pin(name, uri, revision, until, reason, frozenset(keys.get(name, ())))
            for name, uri, revision, until, reason in rows
        ]

    return index.transact(work)


def _save(index: Index, pin: Pin) -> None:
    def work(db: sqlite3.Connection) -> None:
        row = (pin.id, pin.uri, pin.revision, pin.until, pin.reason)
        db.execute("INSERT INTO pins VALUES (?, ?, ?, ?, ?)", row)
        db.executemany("INSERT INTO pinned VALUES (?, ?)", ((pin.id, key) for key in pin.keys))

    index.transact(work)


def _delete(index: Index, name: str) -> None:
    index.transact(lambda db: db.execute("DELETE FROM pins WHERE id = ?", (name,)))
