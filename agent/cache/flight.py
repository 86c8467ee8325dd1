"""A flight: one chunk on its way into the store, the states that it goes through, and who waits for it."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from agent.cache.lanes import Lane
from agent.cache.objects import CachedObject
from agent.clock import Timer
from agent.content import Extent
from agent.errors import HeadraceError, OriginUnavailable
from agent.source import Urgency
from agent.transfer.landing import Landing, Waiter


class State(enum.Enum):
    """QUEUED -> FETCHING -> RECORDING -> DONE; from each of the first three also to FAILED or CANCELLED, and
    from FETCHING or RECORDING to PASSING, where the store fails."""

    QUEUED = enum.auto()  # waits for its lane
    FETCHING = enum.auto()  # bytes arrive, or a retry waits for its backoff
    RECORDING = enum.auto()  # all bytes are in the file, the index does not know yet
    PASSING = enum.auto()  # as FETCHING, into memory: the store does not take the bytes
    DONE = enum.auto()
    PASSED = enum.auto()
    FAILED = enum.auto()
    CANCELLED = enum.auto()  # nobody wants it any more


@runtime_checkable
class Reader(Waiter, Protocol):
    """A read that waits for bytes. `needs` and `deadline` are written by the filler only."""

    needs: int
    deadline: float | None

    @property
    def extent(self) -> Extent: ...

    def resume(self) -> None:
        """Every byte is there: answer (called on the loop)."""

    def fail(self, error: HeadraceError) -> None:
        """The bytes cannot be had (called on the loop)."""


@dataclass(eq=False, slots=True)
class Flight:
    """One chunk on its way into the store."""

    cached: CachedObject
    chunk: int
    lane: Lane
    landing: Landing
    length: int
    state: State = State.QUEUED
    readers: list[Reader] = field(default_factory=list)
    owners: set[object] = field(
        default_factory=set
    )  # of a prefetch, or readers that wait for an earlier chunk
    timer: Timer | None = None
    expires: float = 0.0  # when the timer is due
    started: float = 0.0
    task: asyncio.Task[None] | None = None
    error: OriginUnavailable | None = None
    ahead: bool = False  # a prefetch began it
    told: list[Callable[[HeadraceError | None], None]] = field(default_factory=list)

    @property
    def urgency(self) -> Urgency:
        return self.landing.urgency

    @property
    def queued(self) -> bool:
        return self.state is State.QUEUED
