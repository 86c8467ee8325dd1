"""Random lives of members: whatever order they come, ask, fail and go in, bytes find their way."""

from __future__ import annotations

from collections.abc import Mapping

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.peers.member import Peer
from agent.peers.messages import SpanId
from agent.peers.tracker import GATHER, Tracker
from tests.fakes.clock import ManualClock

SPAN0 = SpanId("object", 0)
CHUNKS = 6
PEERS = [Peer(f"node-{number}", "x:1", "ab"[number % 2]) for number in range(9)]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["ask", "ask", "ask", "leave", "slow", "silent", "done", "holds up"]),
        st.sampled_from(PEERS),
    ),
    max_size=60,
)


class Lives:
    """Members with the routes that they hold, as agents do until they ask again."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.tracker = Tracker(self.clock)
        self.held: dict[str, tuple[tuple[Peer, ...], ...]] = {}
        self.has: dict[str, set[int]] = {}

    def ask(self, peer: Peer) -> None:
        answer = self.tracker.ask(peer, SPAN0, CHUNKS)
        if answer.wait == 0:
            self.held[peer.name] = answer.routes

    def leave(self, peer: Peer) -> None:
        self.tracker.leave(peer.name)
        self.held.pop(peer.name, None)
        self.has.pop(peer.name, None)

    def blame(self, peer: Peer, reason: str) -> None:
        parents = [route[0].name for route in self.held.get(peer.name, ()) if route]
        if parents:
            self.tracker.failed(peer.name, SPAN0, 0, parents[0], "slow" if reason == "slow" else "silent")

    def hold_up(self, peer: Peer) -> None:
        """A member takes its bytes slowly, as its first parent and it itself say, until it is slow."""
        parents = [route[0].name for route in self.held.get(peer.name, ()) if route]
        for _ in range(3 if parents else 0):
            self.tracker.speeds(parents[0], 100.0, [peer.name])
            self.tracker.speeds(peer.name, 20.0, [])
            self.clock.advance(GATHER)

    def done(self, peer: Peer) -> None:
        if peer.name in self.held:
            self.tracker.done(peer.name, SPAN0, 0b11)
            self.has.setdefault(peer.name, set()).update({0, 1})

    def above(self, chunk: int) -> Mapping[str, str | None]:
        """Who waits for whom: nobody that has the chunk, nobody for one that is gone."""
        found: dict[str, str | None] = {}
        for name, routes in self.held.items():
            parents = [one.name for one in routes[chunk] if one.name in self.held]
            waits = parents and chunk not in self.has.get(name, set())
            found[name] = parents[0] if waits else None
        return found


def play(steps: list[tuple[str, Peer]]) -> Lives:
    lives = Lives()
    for action, peer in steps:
        lives.clock.advance(GATHER / 2)
        if action == "ask":
            lives.ask(peer)
        elif action == "leave":
            lives.leave(peer)
        elif action == "done":
            lives.done(peer)
        elif action == "holds up":
            lives.hold_up(peer)
        else:
            lives.blame(peer, action)
        for chunk in range(CHUNKS):
            assert_all_reach_an_end(lives.above(chunk))
    return lives


def ask_again(lives: Lives) -> None:
    """All are there, and have asked since whatever happened."""
    for _ in range(14):
        lives.clock.advance(0.6)
        for peer in PEERS:
            lives.tracker.announce(peer, {})
            lives.ask(peer)


def assert_all_reach_an_end(above: Mapping[str, str | None]) -> None:
    for name in above:
        seen, at = {name}, above[name]
        while at is not None:
            assert at not in seen, f"a cycle over {at}: {above}"
            seen.add(at)
            at = above[at]


@given(STEPS)
@settings(max_examples=300, deadline=None)
def test_no_answers_however_old_make_a_cycle(steps: list[tuple[str, Peer]]) -> None:
    play(steps)


@given(STEPS, st.sampled_from(PEERS))
@settings(max_examples=100, deadline=None)
def test_a_member_that_is_known_as_slow_is_a_leaf_in_all_paths_given_from_then_on(
    steps: list[tuple[str, Peer]], slow: Peer
) -> None:
    lives = play(steps)
    ask_again(lives)
    for _ in range(8):
        lives.hold_up(slow)
        for peer in PEERS:
            lives.ask(peer)
    for _ in range(14):
        known = [one.name for one in PEERS if lives.tracker.is_slow(one.name)]
        assert len(known) <= 3
        lives.clock.advance(0.3)
        for peer in PEERS:
            lives.ask(peer)
            assert not {one.name for route in lives.held[peer.name] for one in route}.intersection(known)
        for chunk in range(CHUNKS):
            assert_all_reach_an_end(lives.above(chunk))
    if lives.tracker.is_slow(slow.name):
        assert all(lives.held[slow.name]), "it has a parent for each chunk"


@given(STEPS)
@settings(max_examples=100, deadline=None)
def test_once_all_have_asked_again_each_chunk_that_nobody_has_has_few_heads(
    steps: list[tuple[str, Peer]],
) -> None:
    lives = play(steps)
    ask_again(lives)
    assert len(lives.held) == len(PEERS)
    for chunk in range(2, CHUNKS):
        above = lives.above(chunk)
        assert_all_reach_an_end(above)
        assert sum(parent is None for parent in above.values()) == 1
