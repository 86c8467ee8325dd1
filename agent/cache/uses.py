"""What the index knows of the use of objects, for eviction. Blocking; on the index thread.

The last use of an object is a logical number, never a time: uses are numbered on through all lives of the
agent. `ever_complete` stays with an object until its file is unlinked: others may read such a file without
asking, so no hole is ever punched into it (agent/cache/CONCURRENCY.md).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass

from agent.cache.index import Index


@dataclass(frozen=True, slots=True)
class Used:
    """An object of which bytes are present: row and key, how many bytes, and when it was last used."""

    row: int
    key: str
    size: int
    chunk_size: int
    bytes: int
    last_use: int
    ever_complete: bool


def last_number(index: Index) -> int:
    """The highest number that any use has. Raises StoreFailed, as all of these do."""

    def ask(db: sqlite3.Connection) -> int:
        (number,) = db.execute("SELECT COALESCE(MAX(last_use), 0) FROM objects").fetchone()
        return int(number)

    return index.transact(ask)


def save(index: Index, uses: Iterable[tuple[str, int]]) -> None:
    """Record the last uses of objects, each by its key."""
    index.transact(
        lambda db: db.executemany(
            "UPDATE objects SET last_use = ? WHERE key = ?", ((number, key) for key, number in uses)
        )
    )


def used(index: Index) -> list[Used]:
    """Every object of which something is present, the one used longest ago first."""
    query = (
        "SELECT id, key, size, chunk_size, present, last_use, ever_complete FROM objects "
        "WHERE present > 0 ORDER BY last_use, id"
    )
    rows = index.transact(lambda db: db.execute(query).fetchall())
    return [
        Used(row, key, size, chunk_size, present, last_use, bool(complete))
        for row, key, size, chunk_size, present, last_use, complete in rows
    ]


def chunks(index: Index, row: int) -> list[int]:
    """The numbers of the chunks that are recorded of an object, in their order."""
    query = "SELECT chunk FROM chunks WHERE object = ? ORDER BY chunk"
    return [chunk for (chunk,) in index.transact(lambda db: db.execute(query, (row,)).fetchall())]


def ever_complete(index: Index, row: int) -> bool:
    """Whether all of an object was present at one time."""
    query = "SELECT 1 FROM objects WHERE id = ? AND ever_complete"
    return index.transact(lambda db: db.execute(query, (row,)).fetchone()) is not None
