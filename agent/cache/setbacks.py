"""What follows a failure: how long to wait for the next attempt, and who gets the same answer meanwhile."""

from __future__ import annotations

import random

from agent.clock import Clock
from agent.errors import HeadraceError

FIRST_BACKOFF = 0.1
LAST_BACKOFF = 5.0
# A read that failed is asked again by the kernel at once, page by page: within this many seconds it gets the
# same answer without another wait.
SETBACK_SECONDS = 1.0
# Before what was to be filled ahead is tried again; at least a half of it.
FIRST_RESPITE = 2 * SETBACK_SECONDS
LAST_RESPITE = 60.0
MANY = 1000  # setbacks; beyond them those that are over are dropped


class Setbacks:
    """The chunks that could not be had, each for SETBACK_SECONDS."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._found: dict[tuple[str, int], tuple[float, HeadraceError]] = {}

    def add(self, key: str, chunk: int, error: HeadraceError) -> None:
        """A chunk of the object of this key could not be had."""
        now = self._clock.monotonic()
        if len(self._found) > MANY:
            self._found = {at: found for at, found in self._found.items() if found[0] > now}
        self._found[key, chunk] = (now + SETBACK_SECONDS, error)

    def of(self, key: str, chunk: int) -> HeadraceError | None:
        """Why it could not be had, a moment ago."""
        found = self._found.get((key, chunk))
        if found is None:
            return None
        if found[0] > self._clock.monotonic():
            return found[1]
        del self._found[key, chunk]
        return None


def backoff(attempt: int, retry_after: float | None, deadline: float, rng: random.Random) -> float:
    """Seconds before the next attempt: jitter over an exponential step, or what the origin asked for if that
    is longer.

    Never longer than `deadline`, so that an origin cannot put a reader off for an hour.
    """
    ordinary = _jittered(FIRST_BACKOFF, LAST_BACKOFF, attempt, rng)
    asked = 0.0 if retry_after is None else retry_after + rng.uniform(0, FIRST_BACKOFF)
    return min(max(ordinary, asked), deadline)


def respite(attempt: int, rng: random.Random) -> float:
    """Seconds before chunks that nobody waits for, and that could not be had, are tried once more."""
    return _jittered(FIRST_RESPITE, LAST_RESPITE, attempt, rng)


def _jittered(first: float, last: float, attempt: int, rng: random.Random) -> float:
    """From a half to the whole of a step that doubles with each attempt, from `first` to `last`."""
    step = min(last, first * 2.0 ** min(attempt, 10))
    return rng.uniform(step / 2, step)
