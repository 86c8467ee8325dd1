"""The relay of one span: groups of members by arrival, and the parents that follow from them. Pure state.

Members that arrive together form a group (agent/peers/relay.py). The first members of a later group have
their parents at the end of an earlier one, so that who joins late has somebody that began earlier, and a
crowd that comes one by one stands in a chain by arrival. Groups are numbered; an earlier group comes before a
later one in every stripe's order. That order never changes while anybody may go by it: a member that is
moved, or comes back without its old place, gets its new one only when all others have asked since
(`settled`).
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from itertools import islice

from agent.peers.relay import CHAIN, RUN, SPAN, Formation, Place, depth_of, placed, stripe_of

PARENTS = 3  # in a route: one, and two to go on with


@dataclass(slots=True)
class _Member:
    zone: str
    has: int = 0
    place: Place | None = None
    seen: int = 0  # the generation of the routes that it goes by
    aside: bool = False
    moved: bool = False  # to the end, since it is aside


@dataclass(slots=True)
class _Group:
    formation: Formation = field(default_factory=Formation)
    starts: dict[str, int] = field(default_factory=dict)  # zone -> its first number
    base: dict[str, tuple[int, int]] = field(default_factory=dict)  # zone -> earlier group, turn
    followers: dict[str, int] = field(default_factory=dict)  # zone -> groups that follow it
    depth: dict[str, int] = field(default_factory=dict)  # zone -> hops above its first member

    def size(self, zone: str) -> int:
        """How many of a zone may be parents."""
        return self.formation.zone_size(self.starts[zone]) if zone in self.starts else 0


class SpanRelay:
    """Members, places and routes of one span. Its generation grows whenever somebody leaves a place."""

    def __init__(self, key: str, number: int, run: int = RUN) -> None:
        """`run` is how many chunks a stripe has."""
        self._generation = 1
        self._shift = zlib.crc32(key.encode())  # objects of a single chunk have different heads too
        self._first = number * SPAN
        self._run = run
        self._members: dict[str, _Member] = {}
        self._groups: dict[int, _Group] = {}
        self._left: dict[str, int] = {}  # name -> the generation since which it is not where it was
        self._count = 0  # chunks that were asked for

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def place(self, name: str) -> Place | None:
        """Where a member stands; None where it has none, or is not there."""
        member = self._members.get(name)
        return member.place if member else None

    def note(self, name: str, zone: str, has: int) -> None:
        """Know a member, and what it has by now."""
        member = self._members.setdefault(name, _Member(zone))
        member.has |= has

    def lost(self, name: str, chunk: int) -> None:
        """A member does not have a chunk after all."""
        if name in self._members:
            self._members[name].has &= ~(1 << chunk)

    def held(self, name: str, count: int) -> bool:
        """Whether others have all of the first `count` chunks."""
        has = 0
        for other, member in self._members.items():
            has |= member.has if other != name and not member.aside else 0
        return not ~has & ((1 << count) - 1)

    def saw(self, name: str) -> None:
        """A member goes by routes as they are now."""
        self._members[name].seen = self._generation

    def routed(self) -> set[str]:
        """Members that have a place, and go by routes from it."""
        return {name for name, member in self._members.items() if member.place is not None and member.seen}

    def awaited(self, name: str) -> bool:
        """Whether somebody can have its new place only after this member has asked again."""
        member = self._members[name]
        waiting = (self._left.get(n, 0) for n, m in self._members.items() if m.place is None and n != name)
        return bool(self._left) and member.place is not None and member.seen < max(waiting, default=0)

    def form(self, names: Collection[str]) -> None:
        """Give those of `names` without a place theirs, in one new group; in the next one who is aside.

        The same order each time makes the same neighbours in all spans."""
        fresh = [name for name in names if self._members[name].place is None and self.settled(name)]
        for aside in (False, True):  # who is nobody's parent comes after all others
            number = max(self._groups, default=-1) + 1
            zones = [(name, self._members[name].zone) for name in fresh if self._members[name].aside == aside]
            for name, place in placed(number, zones).items():
                self._left.pop(name, None)
                self._members[name].moved = aside
                self.put(name, place)

    def put(self, name: str, place: Place) -> bool:
        """Put a member without a place where it stood before; False where the place is not free."""
        member = self._members[name]
        group = self._groups.setdefault(place.group, _Group())
        if member.place is not None or not group.formation.add(name, place):
            return member.place == place
        member.place = place
        group.starts.setdefault(member.zone, place.zone_start)
        if member.aside:
            group.formation.set_aside(name)
        return True

    def settled(self, name: str) -> bool:
        """Whether nobody goes by an answer from before this member left its place."""
        since = self._left.get(name, 0)
        others = (m for n, m in self._members.items() if m.place is not None and n != name)
        return not since or all(member.seen >= since for member in others)

    def move(self, name: str) -> bool:
        """Take the place of a member that is aside away, once, so that the next group has it.

        Whether that was done. Who has all that was asked for stays."""
        member = self._members[name]
        if member.place is None or not member.aside or member.moved or member.has + 1 >= 1 << self._count:
            return False
        self._take(name, member.place)
        member.place = None
        return True

    def drop(self, name: str) -> None:
        """Forget a member."""
        member = self._members.pop(name, None)
        if member is not None and member.place is not None:
            self._take(name, member.place)

    def set_aside(self, name: str, aside: bool) -> None:
        """Whether a member is left out as a parent."""
        member = self._members[name]
        if member.aside == aside:
            return
        member.aside = aside
        member.moved = member.moved and aside
        if member.place is not None:
            formation = self._groups[member.place.group].formation
            (formation.set_aside if aside else formation.restore)(name)

    def routes(self, name: str, count: int, without: Collection[str]) -> tuple[tuple[str, ...], ...]:
        """The parents of a member for each of the first `count` chunks. Raises KeyError."""
        self._count = max(self._count, count)
        return tuple(self.route(name, i, without) for i in range(count))

    def route(self, name: str, chunk: int, without: Collection[str] = ()) -> tuple[str, ...]:
        """The parents of a member for one chunk, the best first; none where it has to be the head."""
        found = (p for p in self._before(name, chunk) if p not in without)
        parents = tuple(islice(dict.fromkeys(islice(found, PARENTS * 2)), PARENTS))
        return parents or self._holders(name, chunk, without)

    def _before(self, name: str, chunk: int) -> Iterator[str]:
        """Those before the member in the order of a chunk's stripe, the best first."""
        member = self._members[name]
        if member.place is None:
            return
        number = member.place.group
        formation, stripe = self._groups[number].formation, self._stripe(number, chunk)
        # Of a chain one has its parent there; of those that are aside each has, and not all the same.
        spread = member.place.index if member.aside else 0
        yield from formation.in_zone(name, stripe)
        yield from self._earlier(number, member.zone, chunk, spread)
        yield from formation.across(name, stripe)
        zones = {zone for n, group in self._groups.items() if n < number for zone in group.starts}
        for zone in sorted(zones - {member.zone}):
            yield from self._earlier(number, zone, chunk, spread)

    def _stripe(self, number: int, chunk: int) -> int:
        """The stripe of a chunk for a group. In a tree of chains those where two more hang send everything
        twice: there it is another one for each chunk, so that all have their turn at that."""
        count = self._groups[number].formation.count
        run = self._run if count <= CHAIN else 1
        return self._shift + stripe_of(self._first + chunk, count, run)

    def _earlier(self, number: int, zone: str, chunk: int, spread: int) -> Iterator[str]:
        """Members of a zone in the earlier group that this one follows, from `spread` before its end on."""
        if not number:
            return
        base, turn = self._base(number, zone)
        if base >= 0:
            group, stripe = self._groups[base], self._stripe(base, chunk)
            yield from group.formation.ends(group.starts[zone], stripe, turn + spread)

    def _base(self, number: int, zone: str) -> tuple[int, int]:
        """The earlier group that a group follows in a zone, and how many followed it before; -1 for none."""
        group = self._groups[number]
        base, turn = group.base.get(zone, (-1, 0))
        if base >= 0 and base in self._groups and self._groups[base].size(zone):
            return base, turn
        earlier = [n for n, one in self._groups.items() if n < number and one.size(zone)]
        base = min(earlier, key=lambda n: self._load(n, zone), default=-1)
        if base < 0:
            return -1, 0
        chosen = self._groups[base]
        turn = chosen.followers.get(zone, 0)
        chosen.followers[zone] = turn + 1
        group.base[zone] = base, turn
        group.depth[zone] = chosen.depth.get(zone, 0) + 1 + depth_of(chosen.size(zone))
        return base, turn

    def _load(self, number: int, zone: str) -> tuple[bool, int, int]:
        group = self._groups[number]
        size = group.size(zone)
        too_deep = group.depth.get(zone, 0) + depth_of(size) >= CHAIN
        return too_deep, -(-group.followers.get(zone, 0) // size), -number

    def _holders(self, name: str, chunk: int, without: Collection[str]) -> tuple[str, ...]:
        """Members that have the chunk: they wait for nobody, so they come before everybody."""
        zone = self._members[name].zone
        bit = 1 << chunk
        found = [
            (one.zone != zone, zlib.crc32(f"{name} {chunk} {holder}".encode()), holder)
            for holder, one in self._members.items()
            if one.has & bit and not one.aside and holder != name and holder not in without
        ]
        return tuple(holder for _, _, holder in sorted(found)[:PARENTS])

    def _take(self, name: str, place: Place) -> None:
        group = self._groups[place.group]
        group.formation.drop(name)
        if not len(group.formation) and place.group != max(self._groups):
            del self._groups[place.group]
        self._generation += 1
        self._left[name] = self._generation
