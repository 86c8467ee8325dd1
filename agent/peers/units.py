"""Units: 128 KiB slices of an object, each with a digest that its head made, and the two sinks that use them.

A head's bytes come from the origin and are proven by the version that they were asked for (where only the
end of a fetch proves them, they go to no peer before); the head makes the digests of their units on the way.
Between peers each unit is followed by its digest: whoever receives it checks the unit before it lets it
through, and sends the same digest on with it. It is xxh3-128, which costs
0.02 CPU-seconds a GB of bytes that have just come (BLAKE3 0.18, SHA-256 0.55). It finds what a peer sends
wrong because its disk, memory or program is faulty, not what a member sends wrong on purpose: whoever can
serve has the cluster's secret, so he can be a head as well, and make digests of what he likes. Against him no
hash helps, against all others the token does.

A unit is passed on once it is checked, so each hop of a chain adds the time that a link needs for one: with
1 MiB a fortieth of a second at 200 Mbit/s, too much for a chain of fifteen (bench/README.md has what other
sizes brought). Nobody passes on what is wrong, so whoever sent it is to blame.
"""

from __future__ import annotations

from collections.abc import Callable

import xxhash

from agent.content import Extent
from agent.errors import HeadraceError
from agent.source import Sink, Urgency
from agent.transfer.request import Units

UNIT = 1 << 17  # bytes; the last unit of an object may be shorter
DIGEST = 16  # bytes of a unit's digest, which come behind the unit's own
UNITS = Units(UNIT, DIGEST)  # as they are on the wire
KIND = f"xxh3-128/{UNIT}"  # what agents have to have in common to understand each other's bytes


class UnitWrong(HeadraceError):
    """A peer sent a unit that has another digest than its head made."""


class UnitUnknown(HeadraceError):
    """A peer sends units of another kind, or without digests: they cannot be checked, so none is taken."""


def unit_digest(data: bytes | bytearray | memoryview) -> bytes:
    """The digest of one unit, `DIGEST` bytes."""
    return xxhash.xxh3_128_digest(data)


def are_units(extent: Extent, size: int) -> bool:
    """Whether an extent of an object of `size` bytes begins and ends where units do."""
    return not extent.offset % UNIT and (not extent.end % UNIT or extent.end == size)


def length_with_digests(extent: Extent) -> int:
    """How many bytes an extent of whole units takes between peers."""
    return UNITS.body(extent.length)


def unit_end(offset: int, size: int) -> int:
    """Where the unit that the byte at `offset` belongs to ends, in an object of `size` bytes."""
    return min(size, (offset // UNIT + 1) * UNIT)


class MakingSink:
    """Passes bytes on at once, and makes the digests of the whole units that pass.

    A unit whose beginning did not pass here has no digest, unless it goes on from the `rest`
    of an earlier sink.
    """

    def __init__(self, sink: Sink, size: int, made: Callable[[int, bytes], None], rest: Rest | None) -> None:
        """`size` is the object's; `made` is given the unit's number and digest, on the writing thread."""
        self._sink = sink
        self._size = size
        self._made = made
        self._hash: xxhash.xxh3_128 | None = None
        if sink.position % UNIT == 0:
            self._hash = xxhash.xxh3_128()
        elif rest is not None and rest[0] == sink.position:
            self._hash = rest[1]

    @property
    def urgency(self) -> Urgency:
        return self._sink.urgency

    @property
    def position(self) -> int:
        return self._sink.position

    @property
    def end(self) -> int:
        return self._sink.end

    @property
    def rest(self) -> Rest | None:
        """What a later sink needs to go on in the middle of a unit; read once nobody writes any more."""
        return (self.position, self._hash) if self._hash is not None and self.position % UNIT else None

    @property
    def unproven(self) -> bool:
        return self._sink.unproven

    def doubt(self) -> None:
        self._sink.doubt()

    def write(self, data: memoryview) -> None:
        while data:
            start = self._sink.position
            end = unit_end(start, self._size)
            part = data[: end - start]
            self._make(part, start, end)
            try:
                self._sink.write(part)
            except BaseException:
                self._hash = None  # it is ahead of the sink
                raise
            data = data[len(part) :]
            if start + len(part) == end:
                self._hash = None if end == self._size else xxhash.xxh3_128()

    def _make(self, part: memoryview, start: int, end: int) -> None:
        """Before the bytes are seen: whoever sends them on needs the digest behind the last one."""
        if self._hash is not None:
            self._hash.update(part)
            if start + len(part) == end:
                self._made(start // UNIT, self._hash.digest())


Rest = tuple[int, xxhash.xxh3_128]


class CheckedSink:
    """Takes units with their digests, and lets those through that have the digest they must have.

    It begins at the start of the unit in which the wrapped sink stands, and lets through what lies behind
    that sink's position.
    """

    def __init__(self, sink: Sink, size: int, right: Callable[[int, bytes], None]) -> None:
        """`size` is the object's; `right` is given the digests of units that are right and the number of the
        first, before they are let through, on the writing thread."""
        self._sink = sink
        self._size = size
        self._right = right
        self._position = sink.position - sink.position % UNIT

    @property
    def urgency(self) -> Urgency:
        return self._sink.urgency

    @property
    def position(self) -> int:
        """Offset of the next byte that is wanted of the peer."""
        return self._position

    @property
    def end(self) -> int:
        """Behind the last byte that is wanted: the end of the last unit that the wrapped sink needs."""
        return unit_end(self._sink.end - 1, self._size)

    def take(self, data: memoryview, trailers: memoryview) -> None:
        """Take whole units, the next ones, and their digests.

        Raises UnitWrong, when what is right has been let through, and what the wrapped sink raises."""
        given = bytes(trailers)
        found = b"".join([unit_digest(data[start : start + UNIT]) for start in range(0, len(data), UNIT)])
        right = len(found) if found == given else _first_wrong(found, given)
        self._right(self._position // UNIT, given[:right])
        self._pass_on(data[: right // DIGEST * UNIT])
        if right < len(found):
            raise UnitWrong(f"unit {self._position // UNIT} is not what its head had")

    def _pass_on(self, data: memoryview) -> None:
        begin = self._sink.position - self._position
        end = min(len(data), self._sink.end - self._position)
        if begin < end:
            self._sink.write(data[begin:end])
        self._position += len(data)


def _first_wrong(found: bytes, given: bytes) -> int:
    """Where the first digest begins that is not as it was given."""
    starts = range(0, len(found), DIGEST)
    return next((at for at in starts if found[at : at + DIGEST] != given[at : at + DIGEST]), len(found))
