"""Rendezvous hashing: all agree, the load is even, and little moves."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from agent.peers.member import Peer
from agent.peers.placement import owners_of, ranked, tracker_of

KEYS = [f"revision-{number}" for number in range(2000)]


def peers(count: int) -> list[Peer]:
    return [Peer(f"node-{number}", f"10.0.0.{number}:7411") for number in range(count)]


@given(st.lists(st.text(max_size=12), min_size=1, max_size=12, unique=True), st.text(), st.data())
def test_all_agents_name_the_same_tracker_in_whatever_order_they_know_the_peers(
    names: list[str], revision: str, data: st.DataObject
) -> None:
    known = [Peer(name, "x:1") for name in names]
    shuffled = data.draw(st.permutations(known))
    assert tracker_of(revision, known) == tracker_of(revision, shuffled)
    assert owners_of(revision, known, 3) == owners_of(revision, shuffled, 3)


def test_at_most_two_nths_of_the_trackers_move_when_a_peer_comes_and_all_of_them_to_it() -> None:
    for count in (2, 8, 15, 60):
        before = {key: tracker_of(key, peers(count)) for key in KEYS}
        after = {key: tracker_of(key, peers(count + 1)) for key in KEYS}
        moved = [key for key in KEYS if before[key] != after[key]]
        assert len(moved) <= 2 / (count + 1) * len(KEYS)
        assert {after[key] for key in moved} == {peers(count + 1)[-1]}


def test_only_the_trackers_of_a_peer_that_goes_move() -> None:
    before = {key: tracker_of(key, peers(15)) for key in KEYS}
    left = [peer for peer in peers(15) if peer.name != "node-3"]
    moved = [key for key in KEYS if tracker_of(key, left) != before[key]]
    assert {before[key] for key in moved} == {peers(15)[3]}
    assert len(moved) <= 2 / 15 * len(KEYS)


def test_trackers_are_spread_over_all_peers() -> None:
    shares = Counter(tracker_of(key, peers(8)) for key in KEYS)
    assert len(shares) == 8
    assert max(shares.values()) < 1.3 * len(KEYS) / 8


def test_the_next_in_rank_is_the_tracker_once_the_first_has_gone() -> None:
    first, second, *_ = ranked("revision", peers(9))
    assert tracker_of("revision", peers(9)) == first
    assert tracker_of("revision", [peer for peer in peers(9) if peer != first]) == second


def test_the_next_owner_in_rank_follows_where_the_first_goes() -> None:
    for key in KEYS[:200]:
        first, *rest = owners_of(key, peers(9), 4)
        assert owners_of(key, [peer for peer in peers(9) if peer != first], 3) == rest


def test_a_peer_at_another_address_answers_for_the_same_keys() -> None:
    moved = [Peer(peer.name, "other:1", "zone") for peer in peers(9)]
    assert all(_name(tracker_of(key, moved)) == _name(tracker_of(key, peers(9))) for key in KEYS[:200])


def test_without_peers_nobody_answers() -> None:
    assert tracker_of("revision", []) is None
    assert owners_of("key", [], 3) == []


def _name(peer: Peer | None) -> str:
    assert peer is not None
    return peer.name
