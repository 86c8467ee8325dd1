"""What agents and the tracker of a dataset revision say to each other: values only, no wire format."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from agent.peers.member import Peer
from agent.peers.relay import SPAN, Place

Reason = Literal["absent", "slow", "silent", "wrong"]
ALL = (1 << SPAN) - 1  # a chunk map with every chunk of a span


class SpanId(NamedTuple):
    """A span of an object: its chunks `[number * SPAN, (number + 1) * SPAN)`. `key` is the object's key."""

    key: str
    number: int

    @classmethod
    def of(cls, key: str, chunk: int) -> SpanId:
        """The span that a chunk of an object lies in; the chunk's bit in its map is `chunk % SPAN`."""
        return cls(key, chunk // SPAN)


@dataclass(frozen=True, slots=True)
class Standing:
    """What one agent has of one span: a bit for each chunk, the lowest bit the first chunk.

    `place` is what the last tracker answered, None where this agent never asked (it only has, or has all).
    """

    has: int
    place: Place | None = None


@dataclass(frozen=True, slots=True)
class Renewal:
    """The tracker's answer to an announcement.

    Announce again within `lease` / 3 seconds. `again`: spans that the agent should ask again for, because its
    routes are from before a change, or its place is not free. `unknown`: the tracker has not heard of this
    agent in this life, so everything has to be announced once (`whole=True`).
    """

    lease: float
    again: tuple[SpanId, ...] = ()
    unknown: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """The tracker's answer to an ask.

    `routes[i]` has the parents for chunk i of the span, the best first, all of them before the asker in the
    chunk's order or in possession of it. With `wait` 0 an empty route makes the asker the chunk's head: it
    reads the origin. With `wait` above 0 the asker has no place yet: it asks again in so many seconds, may
    use what routes there are, and goes to the origin only where a reader cannot wait. Who is in `slow` is
    nobody's parent: streams from it are left at once, and it leaves those of peers that it has no route to.
    """

    wait: float = 0.0
    place: Place | None = None
    routes: tuple[tuple[Peer, ...], ...] = ()
    slow: frozenset[str] = frozenset()
