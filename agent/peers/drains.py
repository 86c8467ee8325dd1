"""How fast this agent receives at its best, and which children hold it up, by what is seen at each look.

An agent stores what it receives and sends it from there, so a slow child never holds up its own parent, but
whoever comes after it in the chain waits for what it passes on. The parent sees it first: bytes wait that the
child asked for. But they also wait where a stream stands still for a moment, as any does that has lost
packets. A slow link differs from that in what it never does: bring much in any third of a second. So what
counts of the member is its fastest one of late, from whomever. Pure: told what is seen at each look.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

LOOK_EVERY = 0.15  # seconds between two looks
LATELY = 33  # looks: a stream that lost packets stands still for a second or two, not for five
BURST = 2  # looks: less is what buffers and schedulers make of any link
HELD = 4  # looks in a row at which bytes wait for a child that holds this agent up
SLOW = 0.4  # of what the child could have had, by these looks
BEHIND = 2 << 20  # bytes that wait; less is what any stream has while its next slice is on the way


@dataclass(frozen=True, slots=True)
class Look:
    """What is seen at one moment: bytes in all, received, sent to each child, and waiting for each."""

    at: float
    received: int
    sent: Mapping[str, int] = field(default_factory=dict)
    waiting: Mapping[str, int] = field(default_factory=dict)

    @property
    def sent_in_all(self) -> int:
        return sum(self.sent.values())


class Looks:
    """The last looks."""

    def __init__(self, limit: float | None = None) -> None:
        """`limit` is that of all that is sent, bytes a second."""
        self._limit = limit or float("inf")
        self._looks: deque[Look] = deque(maxlen=LATELY + 1)
        self._received: deque[float] = deque(maxlen=LATELY + 1 - BURST)  # bytes a second, over `BURST` looks
        self._in_a_row = 0

    def add(self, look: Look) -> None:
        """See how things are. After a pause that is longer than a look should be, waiting counts anew."""
        if self._looks and look.at <= self._looks[-1].at:
            return
        late = bool(self._looks) and look.at - self._looks[-1].at >= 2 * LOOK_EVERY
        self._in_a_row = 1 if late else self._in_a_row + 1
        self._looks.append(look)
        if len(self._looks) > BURST:
            before = self._looks[-1 - BURST]
            self._received.append((look.received - before.received) / (look.at - before.at))

    @property
    def fastest(self) -> float | None:
        """Bytes a second that this agent has received in its best moment of late.

        None where that is not known yet: it has not looked for long enough, or only just begun to receive.
        """
        counts = [look.received for look in self._looks]
        idle = counts.count(counts[0]) if counts else 0
        if len(counts) <= BURST or (idle > 1 and 0 < len(counts) - idle < HELD):
            return None
        return max(self._received)

    @property
    def short(self) -> bool:
        """Whether this agent receives much less now than it has of late: somebody above it may be slow."""
        return bool(self._received) and self._received[-1] < SLOW * max(self._received)

    def held_up_by(self) -> list[str]:
        """The children that had bytes waiting all the time, and took some, but less than their share.

        That is of the uplink, which carries at least what this agent receives; several share it. Who takes
        nothing at all is not slow.
        """
        if self._in_a_row < HELD:
            return []
        looks = list(self._looks)[-HELD:]
        first, last = looks[0], looks[-1]
        seconds = last.at - first.at
        took = {one: (sent - first.sent.get(one, 0)) / seconds for one, sent in last.sent.items()}
        busy = [one for one, speed in took.items() if speed or last.waiting.get(one)]
        behind = [one for one in busy if all(look.waiting.get(one, 0) >= BEHIND for look in looks)]
        if not behind:
            return []
        share = min(max(self.fastest or 0.0, self._sent()), self._limit) / len(busy)
        return sorted(one for one in behind if 0 < took[one] < SLOW * share)

    def _sent(self) -> float:
        """Bytes a second that this agent has sent in its best moment of late."""
        looks = [(look.at, look.sent_in_all) for look in self._looks]
        pairs = zip(looks, looks[BURST:], strict=False)
        return max(((sent - before) / (at - began) for (began, before), (at, sent) in pairs), default=0.0)
