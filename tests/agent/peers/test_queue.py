"""When a member begins with its next chunk, and how many fetches from an origin a head finds worth having."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

import pytest

from agent.peers.queue import FEWEST, LOOK_EVERY, MOST, ROUND, ROUNDS, Breadth, Queue
from agent.source import Urgency
from tests.fakes.clock import ManualClock
from tests.harness.sink import MemorySink

CHUNK = 8 << 20


def measured(breadth: Breadth, link: float, connection: float, rounds: int) -> list[int]:
    """The streams of each round, where the link brings so many bytes a second, and a connection so many."""
    streams = []
    for _ in range(rounds):
        now = breadth.streams
        streams.append(now)
        for _ in range(now - 1):
            breadth.began()
        for _ in range(ROUND * now):  # one ends, and the next one begins
            breadth.began()
            breadth.ended(CHUNK, CHUNK / min(connection, link / now))
        for _ in range(now - 1):
            breadth.ended(0, 1.0)
    return streams


def test_where_the_link_is_full_one_more_is_tried_and_left() -> None:
    assert measured(Breadth(), 25e6, 100e6, 6) == [FEWEST, FEWEST + 1, *[FEWEST] * 4]


def test_where_each_connection_to_the_origin_is_slow_there_are_as_many_as_may_be() -> None:
    found = measured(Breadth(), 3e9, 10e6, 10)
    assert found == [*range(FEWEST, MOST), *[MOST] * (10 - MOST + FEWEST)]


def test_between_the_two_it_stays_where_the_link_is_full() -> None:
    assert set(measured(Breadth(), 60e6, 10e6, ROUNDS - 1)[-3:]) == {6}


def test_what_has_changed_since_is_found_out_again() -> None:
    breadth = Breadth()
    measured(breadth, 3e9, 10e6, 10)
    assert breadth.streams == MOST
    assert FEWEST in measured(breadth, 25e6, 10e6, 10 * ROUNDS)
    measured(breadth, 3e9, 10e6, 2 * ROUNDS)
    assert breadth.streams >= MOST - 1


def test_a_fetch_that_was_not_beside_as_many_as_there_may_be_says_nothing() -> None:
    breadth = Breadth()
    for _ in range(20 * ROUND):
        breadth.began()
        breadth.ended(CHUNK, 0.1)
    assert breadth.streams == FEWEST


def begin(queue: Queue, stack: ExitStack, count: int, group: str = "a") -> list[MemorySink]:
    sinks = [MemorySink(n * CHUNK, (n + 1) * CHUNK, Urgency.PRELOAD) for n in range(count)]
    for sink in sinks:
        stack.enter_context(queue.under_way(group, sink))
    return sinks


async def turn(queue: Queue, sink: MemorySink, group: str = "a") -> asyncio.Task[bool]:
    task = asyncio.create_task(queue.turn(group, sink))
    await asyncio.sleep(0)
    return task


async def test_the_first_few_begin_and_the_next_one_when_one_of_them_has_ended() -> None:
    queue, stack, ended = Queue(ManualClock()), ExitStack(), ExitStack()
    with stack:
        (first,) = begin(queue, ended, 1)
        others = begin(queue, stack, FEWEST)
        turns = [await turn(queue, sink) for sink in (first, *others)]
        assert [task.done() for task in turns] == [True] * FEWEST + [False]
        assert (await turn(queue, begin(queue, stack, 1, "b")[0], "b")).done()
        ended.close()
        async with asyncio.timeout(10):
            assert [await task for task in turns] == [False] * FEWEST + [True]


@pytest.mark.parametrize("why", ["a reader waits", "nothing arrives"])
async def test_what_a_reader_waits_for_and_what_may_wait_for_this_agent_is_not_held_back(why: str) -> None:
    clock = ManualClock()
    queue = Queue(clock)
    with ExitStack() as stack:
        sinks = begin(queue, stack, FEWEST + 1)
        if why == "a reader waits":
            sinks[-1].urgency = Urgency.READER
        last = await turn(queue, sinks[-1])
        for _ in range(2):
            assert last.done() == (why == "a reader waits")
            sinks[0].write(memoryview(b"x"))
            clock.advance(LOOK_EVERY)
            for _ in range(5):
                await asyncio.sleep(0)
        clock.advance(LOOK_EVERY)
        async with asyncio.timeout(10):
            await last
