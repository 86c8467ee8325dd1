"""Turns of the streams to one peer."""

from __future__ import annotations

import asyncio

from agent.peers.turns import SILENT, Turns
from tests.fakes.clock import ManualClock


async def begun(*tasks: asyncio.Task[None]) -> None:
    """Let tasks come to where they wait."""
    for _ in tasks:
        await asyncio.sleep(0)


def asking(turns: Turns, peer: str, rank: int, order: list[int], urgent: bool = False) -> asyncio.Task[None]:
    async def ask() -> None:
        await turns.take(peer, rank, urgent)
        order.append(rank)

    return asyncio.create_task(ask())


async def test_the_stream_that_comes_first_in_the_object_sends_next() -> None:
    turns, order = Turns(ManualClock()), list[int]()
    await turns.take("a", 50)
    tasks = [asking(turns, "a", rank, order) for rank in (30, 10, 20)]
    await begun(*tasks)
    assert not order
    for _ in tasks:
        turns.give("a")
        await begun(*tasks)
    assert order == [10, 20, 30]


async def test_what_a_reader_waits_for_goes_before_the_others() -> None:
    turns, order = Turns(ManualClock()), list[int]()
    await turns.take("a", 50)
    tasks = [asking(turns, "a", rank, order, urgent=rank >= 80) for rank in (30, 90, 10, 80)]
    await begun(*tasks)
    for _ in tasks:
        turns.give("a")
        await begun(*tasks)
    assert order == [80, 90, 10, 30]


async def test_streams_to_different_peers_do_not_wait_for_each_other() -> None:
    turns = Turns(ManualClock())
    await turns.take("a", 1)
    await turns.take("b", 1)
    turns.give("a")
    turns.give("b")
    await turns.take("a", 2)


async def test_no_stream_is_silent_for_long() -> None:
    clock, order = ManualClock(), list[int]()
    turns = Turns(clock)
    await turns.take("a", 1)
    late = asking(turns, "a", 100, order)
    await begun(late)
    clock.advance(SILENT)
    first = asking(turns, "a", 2, order)
    await begun(first)
    turns.give("a")
    await begun(late, first)
    assert order == [100]
    turns.give("a")
    await first


async def test_a_stream_that_ends_while_it_waits_takes_nobodys_turn() -> None:
    turns, order = Turns(ManualClock()), list[int]()
    await turns.take("a", 1)
    gone, told, last = (asking(turns, "a", rank, order) for rank in (2, 3, 4))
    await begun(gone, told, last)
    gone.cancel()
    await begun(gone)
    turns.give("a")
    told.cancel()  # it has its turn, and has not noticed yet
    await asyncio.wait([gone, told])
    await last
    assert order == [4]
