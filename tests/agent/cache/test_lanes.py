"""Lanes under random load: within the budget, the most urgent first, and nobody waits for ever."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from agent.cache.lanes import SHARE, Lane
from agent.source import Budget, Urgency


@dataclass(eq=False)
class Want:
    urgency: Urgency
    length: int
    queued: bool = True


def take(lane: Lane, running: list[Want]) -> list[Want]:
    """Start what the budget allows, as the filler does."""
    started = []
    while (job := lane.pop()) is not None:
        assert isinstance(job, Want) and job.queued
        job.queued = False
        started.append(job)
    running += started
    return started


BUDGETS = st.builds(Budget, st.just("x"), st.integers(1, 8), st.integers(1, 50), st.just(30.0))
WANTS = st.builds(Want, st.sampled_from(Urgency), st.integers(1, 20))
ACTIONS = st.lists(st.one_of(WANTS, st.sampled_from(["end", "raise", "give up"])), max_size=60)


@given(budget=BUDGETS, actions=ACTIONS)
def test_the_budget_is_never_exceeded_and_everything_starts_in_the_end(
    budget: Budget, actions: list[Want | str]
) -> None:
    lane, running, waiting = Lane(budget), list[Want](), list[Want]()
    for action in actions:
        if isinstance(action, Want):
            waiting.append(action)
            lane.push(action)
        elif action == "end" and running:
            lane.ended(running.pop(0))
        elif action == "raise" and waiting:
            waiting[0].urgency = Urgency.READER
            lane.push(waiting[0])
        elif action == "give up" and waiting:
            waiting.pop().queued = False
        for job in take(lane, running):
            waiting.remove(job)
            less = [other for other in waiting if other.urgency < job.urgency]
            assert not less, "a less urgent job went first"
        size = sum(job.length for job in running)
        assert len(running) <= budget.connections
        assert size <= budget.bytes_in_flight or len(running) == 1
    while running:
        lane.ended(running.pop(0))
        for job in take(lane, running):
            waiting.remove(job)
    assert waiting == []


@given(budget=BUDGETS, lengths=st.lists(st.integers(1, 20), max_size=30))
def test_a_less_urgent_load_leaves_room_for_readers(budget: Budget, lengths: list[int]) -> None:
    for urgency in (Urgency.PEER, Urgency.PREFETCH, Urgency.PRELOAD):
        lane, running = Lane(budget), list[Want]()
        for length in lengths:
            lane.push(Want(urgency, length))
        take(lane, running)
        share = SHARE[urgency]
        assert len(running) <= max(1, int(budget.connections * share))
        assert sum(job.length for job in running) <= budget.bytes_in_flight * share or len(running) == 1


def test_readers_start_although_prefetch_has_filled_its_share() -> None:
    lane, running = Lane(Budget("x", 4, 1000, 30.0)), list[Want]()
    for _ in range(9):
        lane.push(Want(Urgency.PREFETCH, 10))
    assert len(take(lane, running)) == 3
    reader = Want(Urgency.READER, 10)
    lane.push(reader)
    assert take(lane, running) == [reader]


def test_of_equal_urgency_the_first_goes_first_and_a_raised_one_before_them() -> None:
    lane, running = Lane(Budget("x", 1, 1000, 30.0)), list[Want]()
    busy, *ahead = [Want(Urgency.PREFETCH, 1) for _ in range(4)]
    for job in (busy, *ahead):
        lane.push(job)
    assert take(lane, running) == [busy]
    ahead[2].urgency = Urgency.READER
    lane.push(ahead[2])
    order = []
    while running:
        lane.ended(running.pop())
        order += take(lane, running)
    assert order == [ahead[2], ahead[0], ahead[1]]


def test_a_job_larger_than_the_budget_goes_alone() -> None:
    lane, running = Lane(Budget("x", 4, 10, 30.0)), list[Want]()
    large, small = Want(Urgency.READER, 99), Want(Urgency.READER, 1)
    lane.push(large)
    lane.push(small)
    assert take(lane, running) == [large]
    lane.ended(large)
    assert take(lane, running) == [small]
