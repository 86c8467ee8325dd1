"""Which peers are worth asking, told from what they do: nobody is pinged.

A peer that fails is left out for a while, for longer each time in a row; when the time is over, the next
request tries it again. An answer makes all good. A peer that was caught lying (bytes with another digest than
their unit's) rests longer from the first time.
"""

from __future__ import annotations

from dataclasses import dataclass

from agent.clock import Clock

FIRST_REST = 2.0  # seconds, twice as long each time up to the last; a restarted agent is back in about 2 s
LAST_REST = 60.0
LIAR_REST = 300.0  # seconds; whoever sends wrong bytes has a fault that does not pass by itself


@dataclass(slots=True)
class _Record:
    failures: int
    until: float  # monotonic


class Liveness:
    """What is known of each peer, by its name. Used on the loop."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._records: dict[str, _Record] = {}

    def usable(self, name: str) -> bool:
        """Whether the peer may be asked now."""
        record = self._records.get(name)
        return record is None or record.until <= self._clock.monotonic()

    def answered(self, name: str) -> None:
        """The peer did as it should. A liar's rest goes on."""
        if self.usable(name):
            self._records.pop(name, None)

    def failed(self, name: str) -> float:
        """The peer was slow, silent or gone: leave it out for the seconds that this returns.

        Requests that were under way together fail together, and count once.
        """
        record = self._records.get(name)
        if record is not None and not self.usable(name):
            return record.until - self._clock.monotonic()
        failures = record.failures if record is not None else 0
        return self._rest(name, failures + 1, min(LAST_REST, FIRST_REST * 2.0 ** min(failures, 10)))

    def lied(self, name: str) -> float:
        """The peer sent wrong bytes: leave it out for the seconds that this returns."""
        return self._rest(name, 1, LIAR_REST)

    def left_out(self) -> int:
        """How many peers are left out now."""
        return sum(not self.usable(name) for name in self._records)

    def keep_only(self, names: frozenset[str]) -> None:
        """Forget whoever is no member any more."""
        self._records = {name: record for name, record in self._records.items() if name in names}

    def _rest(self, name: str, failures: int, seconds: float) -> float:
        self._records[name] = _Record(failures, self._clock.monotonic() + seconds)
        return seconds
