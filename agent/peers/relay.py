"""Who is whose parent, as arithmetic: one group of agents that want the same span, formed at the same time.

A **span** is `SPAN` chunks of one object: the smallest thing that an agent joins a relay for. A **stripe** is
`RUN` chunks of it, with its own rotation of one ring: so each agent is the head of as many stripes as any
other, and passes nearly everything on to the same neighbour. The chunks of a stripe follow each other down
one chain, at the full speed of its links. With a rotation for each chunk, eight of them came to everybody
at the same time, each at an eighth of the speed, and the hops of fifteen nodes took one to five seconds in
place of half a one. Two of the first chunks of an object have the member on the other side of the ring as
their head, so that it shows at once whose link is slow: behind a slow member all receive alike, and nobody
could tell it from a slow origin.

For each stripe the members have one total order, and a parent always comes before its child in it. Members
that leave make the order shorter and never change it, so answers given before and after cannot form a cycle.
The members of a zone follow each other; each zone has one first member, whose parent is in the zone before.
Within a zone a chain of up to `CHAIN` members costs (M+N-1)/M of the bound (M pieces, N nodes); above, it
is cut into chains of equal length; two more hang on the first members of each, one on a member, since a
member with many children for one chunk slows that chunk down for all behind it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

SPAN = 64  # chunks: 512 MiB of 8 MiB chunks, and the bits of one word in a chunk map
RUN = 32  # chunks of a stripe: the head before gets what the next one reads last, a ring's length late
SCOUT = range(1, 3)  # chunks of an object that the member opposite to its first head reads
CHAIN = 50  # members; measured up to 15, and a chain is as fragile as it is long
BRANCHES = 2
SLOTS = 4  # children for one chunk: the chain, a branch, another zone, and one that joined later or is slow


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where a member stands: kept by the agent, so that the next tracker builds the same order again.

    `group` numbers the groups of a span by arrival; the member is number `index` of the `count` that it was
    formed with, and those of its zone are the numbers `[zone_start, zone_end)`.
    """

    group: int
    index: int
    count: int
    zone_start: int
    zone_end: int

    def __post_init__(self) -> None:
        inside = 0 <= self.zone_start <= self.index < self.zone_end <= self.count
        if self.group < 0 or not inside:
            raise ValueError(f"no such place: {self}")


def stripe_of(chunk: int, count: int, run: int = RUN) -> int:
    """The number of the stripe of a chunk (its number in the object) in a group of `count`."""
    return count // 2 if chunk in SCOUT and run == RUN else chunk // run


def placed(group: int, zones: Iterable[tuple[str, str]]) -> dict[str, Place]:
    """Give each (name, zone) its place in a new group; within its zone in the order given."""
    by_zone: dict[str, list[str]] = {}
    for name, zone in zones:
        by_zone.setdefault(zone, []).append(name)
    count = sum(map(len, by_zone.values()))
    places: dict[str, Place] = {}
    for zone in sorted(by_zone):
        start = len(places)
        end = start + len(by_zone[zone])
        places |= {n: Place(group, start + i, count, start, end) for i, n in enumerate(by_zone[zone])}
    return places


def parent_position(position: int, length: int) -> int:
    """The position of the parent in a zone's order of `length` members; -1 for the first."""
    chains = -(-length // CHAIN)
    each = -(-length // chains)
    if position % each:
        return position - 1
    chain = position // each
    if not chain:
        return -1
    above, branch = divmod(chain - 1, BRANCHES)
    return above * each + branch


def depth_of(length: int) -> int:
    """How many hops lie between the first and the farthest of `length` members, at most."""
    chains = -(-length // CHAIN)
    return BRANCHES * (chains.bit_length() - 1) + -(-length // chains) - 1


class Formation:
    """The members of one group that are still there, and the order of each stripe.

    A member that is `aside` (slow) stays in its place but is nobody's parent.
    """

    def __init__(self) -> None:
        self._names: dict[int, str] = {}
        self._places: dict[str, Place] = {}
        self._zones: list[tuple[int, int]] = []  # sorted (start, end), also of zones that are empty by now
        self._live: dict[
            int, list[int]
        ] = {}  # start of a zone -> sorted numbers of those that may be parents

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: str) -> bool:
        return name in self._places

    @property
    def count(self) -> int:
        """How many members the group was formed with; 0 where none is left."""
        return next((place.count for place in self._places.values()), 0)

    def add(self, name: str, place: Place) -> bool:
        """Put a member at its place; False where the place contradicts what is known, or is taken."""
        bounds = (place.zone_start, place.zone_end)
        at = bisect_left(self._zones, bounds)
        known = at < len(self._zones) and self._zones[at] == bounds
        if place.index in self._names or name in self._places:
            return False
        if not known:
            before, after = self._zones[max(at - 1, 0) : at], self._zones[at : at + 1]
            if any(zone[1] > bounds[0] for zone in before) or any(zone[0] < bounds[1] for zone in after):
                return False
            self._zones.insert(at, bounds)
            self._live[place.zone_start] = []
        self._names[place.index] = name
        self._places[name] = place
        live = self._live[place.zone_start]
        live.insert(bisect_left(live, place.index), place.index)
        return True

    def drop(self, name: str) -> None:
        """Take a member out for good; nothing where it is not there."""
        if name in self._places:
            self.set_aside(name)
            del self._names[self._places.pop(name).index]

    def set_aside(self, name: str) -> None:
        """Give this member no more children."""
        place = self._places[name]
        live = self._live[place.zone_start]
        at = bisect_left(live, place.index)
        if live[at : at + 1] == [place.index]:
            del live[at]

    def restore(self, name: str) -> None:
        """Let a member that was aside have children again."""
        place = self._places[name]
        live = self._live[place.zone_start]
        at = bisect_left(live, place.index)
        if live[at : at + 1] != [place.index]:
            live.insert(at, place.index)

    def place(self, name: str) -> Place:
        """Where a member stands. Raises KeyError."""
        return self._places[name]

    def zone_size(self, zone_start: int) -> int:
        """How many members of a zone may be parents."""
        return len(self._live.get(zone_start, ()))

    def in_zone(self, name: str, stripe: int) -> Iterator[str]:
        """The parents that a member may have in its own zone; nothing for the first of its zone.

        The planned one comes first, then those above it, then all others before the member.
        """
        place = self._places[name]
        live = self._live[place.zone_start]
        start = self._start(place, stripe)
        position = self._position(live, start, place.index)
        if place.index not in live[bisect_left(live, place.index) :][:1]:
            above = list(range(position))
            turn = place.index % position if position else 0
            yield from (self._at(live, start, p) for p in reversed(above[turn + 1 :] + above[: turn + 1]))
            return
        seen = set()
        above_it = parent_position(position, len(live))
        while above_it >= 0:
            seen.add(above_it)
            yield self._at(live, start, above_it)
            above_it = parent_position(above_it, len(live))
        yield from (self._at(live, start, p) for p in range(position) if p not in seen)

    def across(self, name: str, stripe: int) -> Iterator[str]:
        """Parents in the zones that come before the member's own in this stripe, the nearest zone first."""
        place = self._places[name]
        zones = self._zone_order(place.count, stripe)
        for zone in reversed(zones[: zones.index((place.zone_start, place.zone_end))]):
            yield from self.ends(zone[0], stripe, 0)

    def ends(self, zone_start: int, stripe: int, turn: int) -> Iterator[str]:
        """A zone's members from `turn` before the end of its order on, for who comes after them."""
        live = self._live.get(zone_start, [])
        if live:
            of = self._places[self._names[live[0]]]
            start = self._start(of, stripe)
            yield from (self._at(live, start, -1 - turn - p) for p in range(len(live)))

    def zone_starts(self, stripe: int) -> list[int]:
        """The zones of the group in the stripe's order, by the number that each starts with."""
        if not self._places:
            return []
        count = next(iter(self._places.values())).count
        return [start for start, _ in self._zone_order(count, stripe)]

    def _zone_order(self, count: int, stripe: int) -> list[tuple[int, int]]:
        """All zones from that of the head on; from the next one on where the head's is not known."""
        head = stripe % count
        first = next((i for i, zone in enumerate(self._zones) if zone[1] > head), 0)
        return self._zones[first:] + self._zones[:first]

    def _start(self, place: Place, stripe: int) -> int:
        """The number at which the zone's order starts: the head itself in its own zone."""
        head = stripe % place.count
        if place.zone_start <= head < place.zone_end:
            return head
        return place.zone_start + stripe % (place.zone_end - place.zone_start)

    def _position(self, live: list[int], start: int, index: int) -> int:
        """How many of `live` come before the member in the cyclic order that begins at `start`."""
        ahead = bisect_left(live, index) - bisect_left(live, start)
        return ahead if index >= start else ahead + len(live)

    def _at(self, live: list[int], start: int, position: int) -> str:
        return self._names[live[(bisect_left(live, start) + position) % len(live)]]
