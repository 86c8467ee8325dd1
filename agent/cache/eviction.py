"""What to evict: the policy, a pure function over values. CONCURRENCY.md states it for who simulates it.

- What is protected (leased, pinned) or busy (being read, waited for, opened or filled) is never taken.
- Objects go in the order (mounted, last use): first those that no mount shows, the coldest first.
- An object that was ever complete goes whole; of any other go single chunks, those used longest ago first
  and, where that is the same, the lower number first.
- Nothing more goes once as many bytes are freed as are needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Chunk:
    """A chunk that may go: its number, its bytes, and the number of its last use (0: not known)."""

    number: int
    bytes: int
    last_use: int = 0


@dataclass(frozen=True, slots=True)
class Candidate:
    """An object with bytes present. `ever_complete` ones go whole; of others those of `chunks`, which has
    none that is being filled."""

    key: str
    bytes: int
    last_use: int
    ever_complete: bool = False
    mounted: bool = False
    chunks: tuple[Chunk, ...] = ()


@dataclass(frozen=True, slots=True)
class Removal:
    """What goes of one object: all of it with its file (`chunks` is None), or these chunks."""

    key: str
    bytes: int
    chunks: tuple[int, ...] | None = None


def rank(candidate: Candidate) -> tuple[bool, int, str]:
    """The order in which objects go; the key decides between those never used."""
    return candidate.mounted, candidate.last_use, candidate.key


def plan(needed: int, candidates: Iterable[Candidate], untouchable: Set[str]) -> list[Removal]:
    """What to remove, in order, so that `needed` bytes are freed; less where no more may go.

    `untouchable` are the keys of what is protected, and of ever-complete objects that are busy.
    """
    removals: list[Removal] = []
    for candidate in sorted(candidates, key=rank):
        if needed <= 0:
            break
        if candidate.key in untouchable:
            continue
        removal = _removal(needed, candidate)
        if removal.bytes:
            removals.append(removal)
            needed -= removal.bytes
    return removals


def _removal(needed: int, candidate: Candidate) -> Removal:
    if candidate.ever_complete:
        return Removal(candidate.key, candidate.bytes)
    taken: list[Chunk] = []
    freed = 0
    for chunk in sorted(candidate.chunks, key=lambda chunk: (chunk.last_use, chunk.number)):
        if freed >= needed:
            break
        taken.append(chunk)
        freed += chunk.bytes
    return Removal(candidate.key, freed, tuple(chunk.number for chunk in taken))
