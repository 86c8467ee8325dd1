"""Never more bytes than the rate allows, pieces of any size, and first come first served."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from agent.rate import SAVED, Rate
from tests.fakes.clock import ManualClock

STEP = 0.05  # seconds of the test's clock
MIB = 1 << 20


async def taken(rate: float, pieces: list[int], seconds: float) -> list[tuple[float, int]]:
    """When each piece went, where all are wanted at once."""
    clock = ManualClock()
    limit, began = Rate(clock, rate), clock.monotonic()
    gone: list[tuple[float, int]] = []

    async def take(piece: int) -> None:
        await limit.take(piece)
        gone.append((clock.monotonic() - began, piece))

    tasks = [asyncio.create_task(take(piece)) for piece in pieces]
    for _ in range(int(seconds / STEP)):
        for _ in range(8):
            await asyncio.sleep(0)
        clock.advance(STEP)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return gone


@given(st.lists(st.integers(1, 8 * MIB), max_size=12), st.sampled_from([MIB / 100, MIB, 10 * MIB]))
def test_in_any_time_no_more_goes_than_the_rate_allows_and_one_piece(pieces: list[int], rate: float) -> None:
    gone = asyncio.run(taken(rate, pieces, 10.0))
    for first, (begin, _) in enumerate(gone):
        for last in range(first, len(gone)):
            allowed = (gone[last][0] - begin + SAVED) * rate + max(pieces)
            assert sum(piece for _, piece in gone[first : last + 1]) <= allowed + 1
    assert [piece for _, piece in gone] == pieces[: len(gone)]


def test_over_time_the_rate_is_reached() -> None:
    gone = asyncio.run(taken(MIB, [MIB // 4] * 100, 20.0))
    assert 19 * MIB <= sum(piece for _, piece in gone) <= 22 * MIB


async def test_who_goes_away_has_taken_nothing() -> None:
    clock = ManualClock()
    limit = Rate(clock, 100.0)
    await limit.take(200)
    waiting = asyncio.create_task(limit.take(1_000_000))
    await clock.next_sleep()
    waiting.cancel()
    clock.advance(1.1)
    await asyncio.wait_for(limit.take(1), 10)


async def test_who_is_urgent_waits_for_one_that_is_not_at_most() -> None:
    clock, order = ManualClock(), list[str]()
    limit = Rate(clock, 100.0)
    await limit.take(200)

    async def take(name: str, urgent: bool) -> None:
        await limit.take(100, urgent)
        order.append(name)

    wanted = [("one", False), ("two", False), ("three", False), ("reader", True), ("another", True)]
    tasks = [asyncio.create_task(take(*one)) for one in wanted]
    for _ in tasks:
        await clock.next_sleep()
        clock.advance(1.0)
    await asyncio.wait_for(asyncio.gather(*tasks), 10)
    assert order == ["one", "reader", "another", "two", "three"]


async def test_a_rate_that_changes_counts_from_then_on() -> None:
    clock = ManualClock()
    limit = Rate(clock, 100.0)
    await limit.take(1100)
    limit.set(1000.0)
    waiting = asyncio.create_task(limit.take(1))
    await clock.next_sleep()
    clock.advance(1.0)
    await asyncio.wait_for(waiting, 10)
