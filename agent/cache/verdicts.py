"""What the index knows of whole objects (whole.py). Blocking, on the index thread; all raise StoreFailed."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum

from agent.cache.index import Index


class Verdict(Enum):
    """UNKNOWN -> RIGHT | UNSTATED | DOUBTED; from DOUBTED, dropped and fetched anew -> RIGHT | REFUSED.

    RIGHT and UNSTATED go back to UNKNOWN with the bytes that they are about: triggers see to that.
    """

    UNKNOWN = ""
    RIGHT = "right"
    UNSTATED = "unstated"
    DOUBTED = "doubted"
    REFUSED = "refused"


def verdict(index: Index, key: str) -> Verdict:
    """What is known of an object."""
    row = index.transact(
        lambda db: db.execute("SELECT verdict FROM verdicts WHERE key = ?", (key,)).fetchone()
    )
    return Verdict.UNKNOWN if row is None else Verdict(row[0])


def verified(index: Index, keys: Iterable[str]) -> set[str]:
    """Those of the keys that need no check any more."""
    query = "SELECT 1 FROM verdicts WHERE key = ? AND verdict IN ('right', 'unstated')"
    return index.transact(lambda db: {key for key in keys if db.execute(query, (key,)).fetchone()})


def judge(index: Index, key: str, found: Verdict) -> None:
    """Make a verdict durable."""
    index.transact(lambda db: db.execute("INSERT OR REPLACE INTO verdicts VALUES (?, ?)", (key, found.value)))


def refused(index: Index) -> set[str]:
    """The keys of the objects that are not served."""
    query = "SELECT key FROM verdicts WHERE verdict = ?"
    rows = index.transact(lambda db: db.execute(query, (Verdict.REFUSED.value,)).fetchall())
    return {key for (key,) in rows}
