"""Units: 256 KiB slices of an object, each with a digest that its head made, and the two sinks that use them.

A head's bytes come from the origin and are proven by the version that they were asked for; the head makes the
digests of their units on the way. Whoever has the bytes from a peer checks each unit before it lets it
through. The digest is xxh3-128, which costs 0.02 CPU-seconds a GB of bytes that have just come (BLAKE3 0.18,
SHA-256 0.55). It finds what a peer sends wrong because its disk, memory or program is faulty, not what a
member sends wrong on purpose: whoever can serve has the cluster's secret, so he can be a head or the tracker
as well, and tell digests of what he likes. Against him no hash helps, against all others the token does.

A unit is passed on once it is checked, so each hop of a chain adds the time that a link needs for one: with
1 MiB a fortieth of a second at 200 Mbit/s, too much for a chain of fifteen. Nobody passes on what is wrong,
so whoever sent it is to blame.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import xxhash

from agent.errors import HeadraceError
from agent.source import Sink, Urgency

UNIT = 1 << 18  # bytes; the last unit of an object may be shorter
KIND = "xxh3-128"  # of the digests, see `digests_name`


class UnitWrong(HeadraceError):
    """A peer sent a unit that has another digest than its head made."""


class UnitUnknown(HeadraceError):
    """Nobody told the digest of a unit in time: it cannot be checked, so it is not taken."""


def unit_digest(data: bytes | bytearray | memoryview) -> bytes:
    """The digest of one unit, 16 bytes."""
    return xxhash.xxh3_128_digest(data)


def digests_name(key: str) -> str:
    """By what name agents tell each other the digests of an object: 32 hex digits, as a key has.

    Another kind of digest has another name, so that agents of two versions never compare what cannot be
    equal: to each of them the other's digests are not known. Those of BLAKE3 were told by the key itself.
    """
    return hashlib.blake2b(f"{KIND} {UNIT} {key}".encode(), digest_size=16).hexdigest()


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

    def write(self, data: memoryview) -> None:
        while data:
            start = self._sink.position
            part = data[: unit_end(start, self._size) - start]
            self._sink.write(part)
            data = data[len(part) :]
            if self._hash is not None:
                self._hash.update(part)
            if start + len(part) == unit_end(start, self._size):
                if self._hash is not None:
                    self._made(start // UNIT, self._hash.digest())
                self._hash = None if self._sink.position == self._size else xxhash.xxh3_128()


Rest = tuple[int, xxhash.xxh3_128]


class CheckedSink:
    """Lets a unit through only when it has the digest that it must have; holds one unit at most.

    It begins at the start of the unit in which the wrapped sink stands, and lets through what lies behind
    that sink's position.
    """

    def __init__(self, sink: Sink, size: int, expected: Callable[[int], bytes | None]) -> None:
        """`size` is the object's; `expected` gives a unit's digest, on the writing thread, and may wait
        for it for a bounded time; None where it cannot be had."""
        self._sink = sink
        self._size = size
        self._expected = expected
        self._start = sink.position - sink.position % UNIT  # of the unit that arrives
        self._held = 0
        self._buffer: bytearray | None = None

    @property
    def urgency(self) -> Urgency:
        return self._sink.urgency

    @property
    def position(self) -> int:
        """Offset of the next byte that is wanted of the peer."""
        return self._start + self._held

    @property
    def end(self) -> int:
        """Behind the last byte that is wanted: the end of the last unit that the wrapped sink needs."""
        return unit_end(self._sink.end - 1, self._size)

    def write(self, data: memoryview) -> None:
        """Take the next bytes. Raises UnitWrong, UnitUnknown, and what the wrapped sink raises."""
        while data:
            length = unit_end(self._start, self._size) - self._start
            if not self._held and len(data) >= length:
                self._take(data[:length])
                data = data[length:]
                continue
            part = data[: length - self._held]
            self._hold(part)
            data = data[len(part) :]
            if self._held == length and self._buffer is not None:
                self._take(memoryview(self._buffer)[:length])

    def _hold(self, part: memoryview) -> None:
        if self._buffer is None:
            self._buffer = bytearray(UNIT)
        self._buffer[self._held : self._held + len(part)] = part
        self._held += len(part)

    def _take(self, unit: memoryview) -> None:
        number = self._start // UNIT
        digest = self._expected(number)
        if digest is None:
            raise UnitUnknown(f"nobody told the digest of unit {number}")
        if unit_digest(unit) != digest:
            raise UnitWrong(f"unit {number} is not what its head had")
        begin, end = self._sink.position - self._start, min(len(unit), self._sink.end - self._start)
        if begin < end:
            self._sink.write(unit[begin:end])
        self._start += len(unit)
        self._held = 0
