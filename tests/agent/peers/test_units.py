"""The two sinks: what is let through, when, and with which digests."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.peers.units import UNIT, CheckedSink, MakingSink, UnitUnknown, UnitWrong, unit_digest
from tests.agent.peers.conftest import random_bytes
from tests.harness.sink import MemorySink

SIZE = 3 * UNIT + 777
DATA = random_bytes(SIZE)
DIGESTS = {n: unit_digest(DATA[n * UNIT : (n + 1) * UNIT]) for n in range(4)}


def pieces(start: int, end: int, seed: int) -> list[memoryview]:
    """The bytes [start, end) in pieces as they might come from a socket."""
    chance = random.Random(seed)
    found = []
    while start < end:
        length = min(end - start, chance.choice([1, 1000, UNIT // 2, UNIT, 2 * UNIT]))
        found.append(memoryview(DATA)[start : start + length])
        start += length
    return found


@given(st.integers(0, SIZE - 1), st.integers(0, SIZE), st.integers(0, 1 << 16))
def test_all_bytes_come_through_whatever_their_pieces_and_wherever_the_sink_stands(
    start: int, end: int, seed: int
) -> None:
    if start >= end:
        return
    inner = MemorySink(start, end)
    checked = CheckedSink(inner, SIZE, DIGESTS.get)
    assert checked.position % UNIT == 0
    for piece in pieces(checked.position, checked.end, seed):
        checked.write(piece)
    assert bytes(inner.data) == DATA[start:end]


@pytest.mark.parametrize("piece", [UNIT, 1000])
def test_no_byte_of_a_wrong_unit_comes_through_and_the_units_before_it_stay(piece: int) -> None:
    wrong = bytearray(DATA)
    wrong[UNIT + 12345] ^= 1
    inner = MemorySink(0, SIZE)
    checked = CheckedSink(inner, SIZE, DIGESTS.get)
    with pytest.raises(UnitWrong):
        for offset in range(0, SIZE, piece):
            checked.write(memoryview(wrong)[offset : offset + piece])
    assert bytes(inner.data) == DATA[:UNIT]


def test_a_unit_whose_digest_nobody_knows_does_not_come_through() -> None:
    inner = MemorySink(0, SIZE)
    with pytest.raises(UnitUnknown):
        CheckedSink(inner, SIZE, lambda unit: None).write(memoryview(DATA)[:UNIT])
    assert not inner.data


def test_a_head_passes_every_byte_on_at_once_and_makes_the_digest_of_each_unit() -> None:
    inner, made = MemorySink(0, SIZE), dict[int, bytes]()
    making = MakingSink(inner, SIZE, made.__setitem__, None)
    for piece in pieces(0, SIZE, 3):
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
