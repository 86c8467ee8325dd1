"""How long a peer is left out for what it did."""

from __future__ import annotations

import pytest

from agent.peers.liveness import FIRST_REST, LAST_REST, LIAR_REST, Liveness
from tests.fakes.clock import ManualClock


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def liveness(clock: ManualClock) -> Liveness:
    return Liveness(clock)


def test_a_peer_of_which_nothing_is_known_may_be_asked(liveness: Liveness) -> None:
    assert liveness.usable("a")


def test_a_peer_that_fails_is_left_out_for_longer_each_time(liveness: Liveness, clock: ManualClock) -> None:
    rests = []
    for _ in range(10):
        rests.append(liveness.failed("a"))
        assert not liveness.usable("a")
        clock.advance(rests[-1])
        assert liveness.usable("a")
    assert rests[:3] == [FIRST_REST, 2 * FIRST_REST, 4 * FIRST_REST]
    assert rests[-1] == LAST_REST


def test_failures_of_the_same_moment_count_once(liveness: Liveness, clock: ManualClock) -> None:
    for _ in range(5):
        liveness.failed("a")
    clock.advance(FIRST_REST)
    assert liveness.failed("a") == 2 * FIRST_REST


def test_an_answer_makes_all_good(liveness: Liveness, clock: ManualClock) -> None:
    liveness.failed("a")
    clock.advance(FIRST_REST)
    liveness.answered("a")
    assert liveness.failed("a") == FIRST_REST


def test_an_answer_that_was_under_way_does_not_excuse_a_liar(liveness: Liveness, clock: ManualClock) -> None:
    assert liveness.lied("a") == LIAR_REST
    liveness.answered("a")
    assert not liveness.usable("a")
    clock.advance(LIAR_REST)
    assert liveness.usable("a")


def test_one_peer_is_no_other(liveness: Liveness) -> None:
    liveness.failed("a")
    assert liveness.usable("b")
    assert liveness.left_out() == 1


def test_who_is_no_member_any_more_is_forgotten(liveness: Liveness) -> None:
    liveness.failed("a")
    liveness.failed("b")
    liveness.keep_only(frozenset({"b"}))
    assert liveness.usable("a")
    assert not liveness.usable("b")
