"""When a reader leaves a path for the origin: the decision, and what it is made of."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.peers.exchange_client import PeerSilent
from agent.peers.paths import (
    JUDGED_AFTER,
    JUDGED_BUSY,
    KEPT_OFF,
    SILENT_WITHIN,
    WORTH,
    Path,
    Paths,
    PathSlower,
    Speed,
    leaves,
)
from agent.source import Urgency
from tests.fakes.clock import ManualClock
from tests.harness.sink import MemorySink

CHUNK = 8 << 20
PATIENCE = 100.0
SECONDS = st.floats(0, 100)
RATES = st.floats(0, 1e9)
BYTES = st.integers(1, 1 << 28)


@given(seconds=SECONDS, rate=RATES, left=BYTES, anew=BYTES)
def test_where_the_origin_was_not_measured_a_reader_stays(
    seconds: float, rate: float, left: int, anew: int
) -> None:
    assert not leaves(seconds, seconds, rate, left, anew, None)


@given(seconds=SECONDS, rate=RATES, left=BYTES, anew=BYTES, origin=st.floats(1, 1e9))
def test_a_reader_leaves_where_the_rest_would_take_twice_as_long_and_not_at_once(
    seconds: float, rate: float, left: int, anew: int, origin: float
) -> None:
    left = min(left, anew)
    found = leaves(seconds, seconds, rate, left, anew, origin)
    if seconds < JUDGED_AFTER or rate >= origin:
        assert not found
    elif not rate:
        assert found
    else:
        ratio = (left / rate) / (anew / origin) / WORTH
        assert found == (ratio > 1) or ratio == pytest.approx(1)


@given(seconds=SECONDS, rate=RATES, more=RATES, left=BYTES, origin=RATES)
def test_on_a_quicker_path_nobody_leaves_who_would_stay_on_a_slower_one(
    seconds: float, rate: float, more: float, left: int, origin: float
) -> None:
    slower = leaves(seconds, seconds, rate, left, left, origin)
    assert slower or not leaves(seconds, seconds, rate + more, left, left, origin)


@given(seconds=SECONDS, idle=SECONDS, more=SECONDS, rate=RATES, left=BYTES, origin=RATES)
def test_who_fetches_from_the_origin_itself_leaves_later_than_who_does_not_and_not_never(
    seconds: float, idle: float, more: float, rate: float, left: int, origin: float
) -> None:
    found = leaves(seconds, idle, rate, left, left, origin)
    alone = leaves(seconds, seconds, rate, left, left, origin)
    assert alone or not found
    assert not found or leaves(seconds, idle + more, rate, left, left, origin)
    assert found == alone or seconds < JUDGED_BUSY


@given(fetches=st.lists(st.tuples(BYTES, st.floats(0.001, 100)), min_size=1, max_size=30))
def test_what_is_known_of_an_origin_lies_between_its_fastest_fetch_and_its_slowest(
    fetches: list[tuple[int, float]],
) -> None:
    speed = Speed()
    assert speed.rate is None
    for count, seconds in fetches:
        speed.took(count, seconds)
    rates = [count / seconds for count, seconds in fetches]
    assert speed.rate is not None
    assert min(rates) * 0.999 <= speed.rate <= max(rates) * 1.001


def test_an_origin_that_brings_nothing_any_more_is_not_worth_going_to() -> None:
    speed = Speed()
    speed.took(0, 10.0)
    assert speed.rate is None
    speed.took(100 << 20, 1.0)
    before = speed.rate
    speed.took(0, 30.0)
    assert before is not None and speed.rate is not None
    assert speed.rate < before / 5


class Stream:
    """One path, its clock, and bytes that come."""

    def __init__(self, urgency: Urgency, known: bool = True) -> None:
        self.clock = ManualClock()
        self.paths = Paths(self.clock)
        if known:
            self.paths.fetch_began("s3")
            self.paths.fetch_ended("s3", 10 << 20, 1.0)
            self.clock.advance(100.0)
        self._sink = MemorySink(0, CHUNK, urgency)
        self._path = Path(self.paths, "peer", "s3", self._sink, self._sink, urgency)

    def bring(self, count: int, seconds: float = 0.5) -> None:
        """So many bytes come in so many seconds, then the path is judged."""
        self.clock.advance(seconds)
        self._sink.write(memoryview(bytes(count)))
        self._path.look()
        self._path.judge(PATIENCE)


def test_a_reader_leaves_a_path_that_trickles_after_a_second() -> None:
    stream = Stream(Urgency.READER)
    stream.bring(1000)
    with pytest.raises(PathSlower):
        stream.bring(1000)


def test_a_reader_stays_while_the_agent_fetches_from_the_origin_itself_and_for_a_second_after_that() -> None:
    stream = Stream(Urgency.READER)
    stream.paths.fetch_began("s3")
    for _ in range(4):
        stream.bring(1000)
    stream.paths.fetch_ended("s3", 10 << 20, 1.0)
    stream.bring(1000)
    with pytest.raises(PathSlower):
        stream.bring(1000)


def test_a_reader_does_not_stay_for_ever_though_the_agent_fetches_from_the_origin_all_the_time() -> None:
    stream = Stream(Urgency.READER)
    stream.paths.fetch_began("s3")
    with pytest.raises(PathSlower):
        for _ in range(int(JUDGED_BUSY / 0.5)):
            stream.bring(1000)


@pytest.mark.parametrize("urgency", [Urgency.PEER, Urgency.PREFETCH, Urgency.PRELOAD])
def test_what_no_reader_of_this_agent_asked_for_stays_on_its_path(urgency: Urgency) -> None:
    stream = Stream(urgency)
    for _ in range(20):
        stream.bring(1000)


def test_a_reader_stays_where_nothing_is_known_of_the_origin() -> None:
    stream = Stream(Urgency.READER, known=False)
    for _ in range(20):
        stream.bring(1000)
    with pytest.raises(PeerSilent):
        stream.bring(0, SILENT_WITHIN)


def test_a_path_that_begins_late_and_then_is_quick_is_not_slow() -> None:
    stream = Stream(Urgency.READER)
    stream.bring(0)
    stream.bring(6 << 20, 0.6)


def test_readers_keep_off_a_path_that_one_has_left_and_others_do_not() -> None:
    clock = ManualClock()
    paths = Paths(clock)
    paths.left("slow")
    assert not paths.worth_asking("slow", Urgency.READER)
    assert paths.worth_asking("slow", Urgency.PREFETCH)
    assert paths.worth_asking("slow", Urgency.PEER)
    assert paths.worth_asking("other", Urgency.READER)
    clock.advance(KEPT_OFF)
    assert paths.worth_asking("slow", Urgency.READER)


def test_a_peer_has_longer_where_this_agents_own_link_is_slow() -> None:
    clock = ManualClock()
    path = Path(Paths(clock), "peer", "origin", MemorySink(0, 10), MemorySink(0, 10), Urgency.PREFETCH)
    clock.advance(SILENT_WITHIN)
    path.look()
    path.judge(100.0, grace=2.0)
    clock.advance(SILENT_WITHIN)
    path.look()
    with pytest.raises(PeerSilent):
        path.judge(100.0, grace=2.0)
