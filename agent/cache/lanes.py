"""Who may fetch next: one lane per origin, within its budget, the most urgent first. No I/O, no clock."""

from __future__ import annotations

import heapq
import itertools
from typing import Protocol

from agent.source import Budget, Urgency

# The share of an origin's budget that each urgency may fill: what is left stays free for the more urgent.
SHARE = {Urgency.READER: 1.0, Urgency.PEER: 0.875, Urgency.PREFETCH: 0.75, Urgency.PRELOAD: 0.5}


class Job(Protocol):
    """Something to start; `queued` turns false when it is started or given up."""

    length: int

    @property
    def urgency(self) -> Urgency: ...
    @property
    def queued(self) -> bool: ...


class Lane:
    """The queue of one origin. `started` and `ended` keep the count of what is under way."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self._heap: list[tuple[Urgency, int, Job]] = []
        self._order = itertools.count()
        self._running = 0
        self._bytes = 0

    def push(self, job: Job) -> None:
        """Queue a job under its present urgency; push it again when that has risen."""
        heapq.heappush(self._heap, (job.urgency, next(self._order), job))

    def pop(self) -> Job | None:
        """The next job that the budget allows to start now; counted as under way."""
        while self._heap:
            urgency, _, job = self._heap[0]
            if job.queued and job.urgency == urgency:
                if not self._allows(job):
                    return None
                heapq.heappop(self._heap)
                self._running += 1
                self._bytes += job.length
                return job
            heapq.heappop(self._heap)
        return None

    def ended(self, job: Job) -> None:
        """Give back what a popped job held."""
        self._running -= 1
        self._bytes -= job.length

    def _allows(self, job: Job) -> bool:
        share = SHARE[job.urgency]
        connections = max(1, int(self.budget.connections * share))
        size = int(self.budget.bytes_in_flight * share)
        return self._running < connections and (not self._running or self._bytes + job.length <= size)
