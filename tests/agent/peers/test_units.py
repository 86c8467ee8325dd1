"""The two sinks: what is let through, when, and with which digests."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.content import Extent
from agent.errors import StoreFull
from agent.peers.units import (
    DIGEST,
    UNIT,
    CheckedSink,
    MakingSink,
    UnitWrong,
    are_units,
    length_with_digests,
    unit_digest,
)
from tests.agent.peers.conftest import random_bytes
from tests.harness.sink import MemorySink

SIZE = 3 * UNIT + 777
DATA = random_bytes(SIZE)
DIGESTS = {n: unit_digest(DATA[n * UNIT : (n + 1) * UNIT]) for n in range(4)}
ALL = b"".join(DIGESTS.values())


def pieces(data: bytes, seed: int) -> list[memoryview]:
    """Bytes in pieces as they might come from a socket."""
    chance = random.Random(seed)
    found, start = [], 0
    while start < len(data):
        length = chance.choice([1, 1000, UNIT // 2, UNIT, 2 * UNIT])
        found.append(memoryview(data)[start : start + length])
        start += length
    return found


def take(checked: CheckedSink, data: bytes | bytearray, digests: bytes | bytearray, at_once: int = 1) -> None:
    """As they come from a connection, so many units at a time."""
    for start in range(0, len(data), at_once * UNIT):
        first = start // UNIT * DIGEST
        part = memoryview(data)[start : start + at_once * UNIT]
        checked.take(part, memoryview(digests)[first : first + at_once * DIGEST])


def noting(right: dict[int, bytes]) -> Callable[[int, bytes], None]:
    """Have the digest of each unit in a table."""

    def note(unit: int, digests: bytes) -> None:
        for number in range(len(digests) // DIGEST):
            right[unit + number] = digests[number * DIGEST : (number + 1) * DIGEST]

    return note


@given(st.integers(0, SIZE - 1), st.integers(0, SIZE), st.integers(1, 4))
def test_all_bytes_come_through_however_many_at_a_time_and_wherever_the_sink_stands(
    start: int, end: int, at_once: int
) -> None:
    if start >= end:
        return
    inner = MemorySink(start, end)
    right: dict[int, bytes] = {}
    checked = CheckedSink(inner, SIZE, noting(right))
    wanted = Extent(checked.position, checked.end - checked.position)
    assert are_units(wanted, SIZE)
    units = range(start // UNIT, -(-end // UNIT))
    take(checked, DATA[wanted.offset : wanted.end], b"".join(DIGESTS[unit] for unit in units), at_once)
    assert bytes(inner.data) == DATA[start:end]
    assert checked.position == wanted.end
    assert right == {unit: DIGESTS[unit] for unit in units}
    assert length_with_digests(wanted) == wanted.length + len(units) * DIGEST


def test_a_digest_is_known_before_its_last_byte_can_be_seen() -> None:
    right: dict[int, bytes] = {}

    class Looking(MemorySink):
        def write(self, data: memoryview) -> None:
            super().write(data)
            assert set(right) == set(range(-(-self.position // UNIT)))

    take(CheckedSink(Looking(0, SIZE), SIZE, noting(right)), DATA, ALL, 2)
    right.clear()
    MakingSink(Looking(0, SIZE), SIZE, right.__setitem__, None).write(memoryview(DATA))
    assert right == DIGESTS


@pytest.mark.parametrize("in_digest", [False, True])
@pytest.mark.parametrize("at_once", [1, 4])
def test_no_byte_of_a_wrong_unit_comes_through_and_the_units_before_it_stay(
    at_once: int, in_digest: bool
) -> None:
    data, digests, right = bytearray(DATA), bytearray(ALL), dict[int, bytes]()
    if in_digest:
        digests[DIGEST + 3] ^= 1
    else:
        data[UNIT + 12345] ^= 1
    inner = MemorySink(0, SIZE)
    with pytest.raises(UnitWrong):
        take(CheckedSink(inner, SIZE, noting(right)), data, digests, at_once)
    assert bytes(inner.data) == DATA[:UNIT]
    assert right == {0: DIGESTS[0]}


def test_a_head_passes_every_byte_on_at_once_and_makes_the_digest_of_each_unit() -> None:
    inner, made = MemorySink(0, SIZE), dict[int, bytes]()
    making = MakingSink(inner, SIZE, made.__setitem__, None)
    for piece in pieces(DATA, 3):
        before = len(inner.data)
        making.write(piece)
        assert len(inner.data) == before + len(piece)
    assert made == DIGESTS
    assert making.rest is None


def test_a_second_attempt_goes_on_with_the_digest_of_the_first() -> None:
    inner, made = MemorySink(0, SIZE), dict[int, bytes]()
    first = MakingSink(inner, SIZE, made.__setitem__, None)
    first.write(memoryview(DATA)[: UNIT + 5])
    MakingSink(inner, SIZE, made.__setitem__, first.rest).write(memoryview(DATA)[UNIT + 5 :])
    assert made == DIGESTS


def test_a_unit_whose_beginning_came_another_way_has_no_digest() -> None:
    inner, made = MemorySink(5, SIZE), dict[int, bytes]()
    MakingSink(inner, SIZE, made.__setitem__, None).write(memoryview(DATA)[5:])
    assert made == {n: DIGESTS[n] for n in (1, 2, 3)}


def test_after_a_write_that_failed_no_digest_is_made_of_what_did_not_arrive() -> None:
    made: dict[int, bytes] = {}

    class Full(MemorySink):
        def write(self, data: memoryview) -> None:
            raise StoreFull("full")

    making = MakingSink(Full(0, SIZE), SIZE, made.__setitem__, None)
    with pytest.raises(StoreFull):
        making.write(memoryview(DATA)[:1000])
    assert making.rest is None
    assert not made
