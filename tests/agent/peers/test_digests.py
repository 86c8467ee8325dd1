"""What is known of units, and how much of that is kept."""

from __future__ import annotations

from agent.content import Extent
from agent.peers.digests import BLOCK, UnitDigests
from agent.peers.units import UNIT

KEY, OTHER = "a" * 32, "b" * 32


def digest(number: int) -> bytes:
    return number.to_bytes(16, "big")


def test_a_digest_is_known_by_its_object_and_its_unit() -> None:
    digests = UnitDigests()
    for unit in (0, BLOCK - 1, BLOCK, 10**9):
        digests.put(KEY, unit, digest(unit))
    assert [digests.get(KEY, unit) for unit in (0, BLOCK - 1, BLOCK, 10**9)] == [
        digest(unit) for unit in (0, BLOCK - 1, BLOCK, 10**9)
    ]
    assert digests.get(KEY, 1) is None
    assert digests.get(OTHER, 0) is None
    digests.put(KEY, 0, digest(7))
    assert digests.get(KEY, 0) == digest(7)


def test_digests_of_many_units_are_known_at_once_also_over_the_border_of_a_block() -> None:
    digests = UnitDigests()
    units = range(BLOCK - 2, 2 * BLOCK + 3)
    digests.put(KEY, units.start, b"".join(digest(unit) for unit in units))
    assert [digests.get(KEY, unit) for unit in units] == [digest(unit) for unit in units]
    assert digests.get(KEY, units.start - 1) is digests.get(KEY, units.stop) is None
    assert digests.knows(KEY, Extent(units.start * UNIT, len(units) * UNIT))
    assert not digests.knows(KEY, Extent(units.start * UNIT, len(units) * UNIT + 1))
    assert not digests.knows(KEY, Extent(units.start * UNIT - 1, UNIT))


def test_an_extent_is_known_with_its_last_unit() -> None:
    digests = UnitDigests()
    digests.put(KEY, 0, digest(0))
    assert digests.knows(KEY, Extent(5, UNIT - 5))
    assert not digests.knows(KEY, Extent(5, UNIT - 4))
    digests.put(KEY, 1, digest(1))
    assert digests.knows(KEY, Extent(5, UNIT - 4))


def test_what_came_first_is_forgotten_where_there_is_too_much() -> None:
    digests = UnitDigests(most_blocks=2)
    for unit in (0, BLOCK, 1, 2 * BLOCK):
        digests.put(KEY, unit, digest(unit))
    assert [digests.get(KEY, unit) for unit in (0, 1)] == [None, None]
    assert digests.get(KEY, BLOCK) == digest(BLOCK)
    assert digests.get(KEY, 2 * BLOCK) == digest(2 * BLOCK)
