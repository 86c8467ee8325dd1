"""The tracker on a clock that stands still: joining, failing, moving, and being rebuilt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from agent.peers.member import Peer
from agent.peers.messages import ALL, Answer, SpanId, Standing
from agent.peers.relay import CHAIN, RUN, SCOUT, SPAN
from agent.peers.tracker import GATHER, LEASE, REBUILD, SETTLE, Tracker
from tests.fakes.clock import ManualClock

SPAN0 = SpanId("object", 0)


def peer(number: int, zone: str = "") -> Peer:
    return Peer(f"node-{number}", f"10.0.0.{number}:7411", zone)


class Cluster:
    """A tracker, its clock, and members that ask it."""

    def __init__(self, clock: ManualClock | None = None) -> None:
        self.clock = clock or ManualClock()
        self.tracker = Tracker(self.clock)
        self.answers: dict[str, Answer] = {}

    def ask(self, who: Peer, without: Iterable[str] = (), span: SpanId = SPAN0) -> Answer:
        answer = self.tracker.ask(who, span, without=frozenset(without))
        self.answers[who.name] = answer
        return answer

    def start(self, *peers: Peer) -> None:
        """All begin at once."""
        assert all(self.ask(one).wait > 0 for one in peers)
        self.clock.advance(GATHER)
        assert all(self.ask(one).wait == 0 for one in peers)

    def first_parents(self, name: str) -> Counter[str]:
        return Counter(route[0].name if route else "origin" for route in self.answers[name].routes)

    def heads(self, chunk: int) -> list[str]:
        return [name for name, answer in self.answers.items() if not answer.routes[chunk]]


def test_agents_that_start_together_share_the_heads_evenly() -> None:
    cluster, heads = Cluster(), Counter[str]()
    for number in range(32):
        for gathering in (True, False):
            waits = [cluster.ask(peer(n), span=SpanId("object", number)).wait for n in range(8)]
            assert all(bool(wait) == gathering for wait in waits)
            cluster.clock.advance(GATHER)
        assert all(len(cluster.heads(chunk)) == 1 for chunk in range(SPAN))
        heads.update(cluster.heads(chunk)[0] for chunk in range(SPAN))
    assert max(heads.values()) <= 1.1 * min(heads.values())


def test_where_the_origin_is_limited_the_heads_change_from_chunk_to_chunk() -> None:
    cluster = Cluster()
    cluster.tracker.run = 1
    cluster.start(*map(peer, range(8)))
    heads = [cluster.heads(chunk)[0] for chunk in range(SPAN)]
    assert all(sorted(heads[at : at + 8]) == sorted(map(str, cluster.answers)) for at in range(SPAN - 8))


def test_in_a_tree_of_chains_the_heads_change_from_chunk_to_chunk() -> None:
    cluster = Cluster()
    cluster.start(*map(peer, range(CHAIN + 1)))
    heads = [cluster.heads(chunk) for chunk in range(CHAIN + 1)]
    assert len({head for (head,) in heads}) == CHAIN + 1


def test_a_late_joiner_has_the_last_that_came_as_its_parent_for_every_chunk() -> None:
    cluster = Cluster()
    cluster.start(peer(0))
    for number in range(1, 6):
        cluster.clock.advance(2.0)
        for other in range(number):
            cluster.tracker.announce(peer(other), {})
        cluster.start(peer(number))
        assert cluster.first_parents(f"node-{number}") == {f"node-{number - 1}": 64}


def test_a_late_joiner_prefers_its_own_zone() -> None:
    cluster = Cluster()
    cluster.start(peer(0, "a"), peer(1, "a"), peer(2, "b"), peer(3, "b"))
    cluster.start(peer(4, "a"))
    cluster.start(peer(5, "b"))
    assert set(cluster.first_parents("node-4")) <= {"node-0", "node-1"}
    assert set(cluster.first_parents("node-5")) <= {"node-2", "node-3"}


def test_the_first_of_a_zone_gets_its_bytes_from_another_zone_and_not_from_the_origin() -> None:
    cluster = Cluster()
    cluster.start(peer(0, "a"), peer(1, "a"))
    cluster.start(peer(2, "b"), peer(3, "b"), peer(4, "c"))
    assert not {"node-2", "node-3", "node-4"} & {name for c in range(64) for name in cluster.heads(c)}


def test_a_crowd_that_comes_one_by_one_stands_in_chains_that_end() -> None:
    cluster = Cluster()
    depth = {"node-0": 0}
    cluster.start(peer(0))
    for number in range(1, 160):
        cluster.clock.advance(0.01)
        for other in range(0, number, 1 + number // 9):
            cluster.tracker.announce(peer(other), {})
        cluster.start(peer(number))
        (above,) = cluster.first_parents(f"node-{number}")
        depth[f"node-{number}"] = depth[above] + 1
    assert max(depth.values()) <= 60
    children = Counter(p for n in range(1, 160) for p in cluster.first_parents(f"node-{n}"))
    assert max(children.values()) <= 4


def test_who_has_a_chunk_gives_it_so_that_the_origin_does_not_and_nobody_waits_for_others() -> None:
    cluster = Cluster()
    cluster.tracker.announce(peer(9), {SPAN0: Standing(has=ALL)})
    assert all(cluster.ask(peer(number)).wait == 0 for number in range(4))
    assert all(not cluster.heads(chunk) for chunk in range(64))
    assert sum(cluster.first_parents(f"node-{n}")["node-9"] for n in range(4)) == 64


def test_where_a_chunk_is_at_the_origin_only_those_who_begin_together_share_the_heads() -> None:
    cluster = Cluster()
    cluster.tracker.announce(peer(9), {SPAN0: Standing(has=ALL & ~2)})
    cluster.start(*map(peer, range(4)))
    assert [chunk for chunk in range(64) if cluster.heads(chunk)] == [1]


def test_what_a_member_reports_as_done_is_given_by_it() -> None:
    cluster = Cluster()
    cluster.start(peer(0), peer(1))
    mine = next(chunk for chunk in range(64) if cluster.heads(chunk) == ["node-0"])
    cluster.tracker.done("node-1", SPAN0, 1 << mine)
    assert cluster.ask(peer(0)).routes[mine] == (peer(1),)


def test_the_children_of_a_dead_head_have_one_new_head_among_them() -> None:
    cluster = Cluster()
    cluster.start(*map(peer, range(5)))
    dead = cluster.heads(7)[0]
    (child,) = (n for n, answer in cluster.answers.items() if answer.routes[7][:1] == (_peer_of(dead),))
    cluster.tracker.failed(child, SPAN0, 7, dead, "silent")
    cluster.ask(_peer_of(child), without={dead})
    assert not cluster.answers[child].routes[7]
    del cluster.answers[dead]
    assert cluster.heads(7) == [child]


def test_a_member_without_a_word_is_forgotten_after_its_lease() -> None:
    cluster = Cluster()
    cluster.start(peer(0), peer(1), peer(2))
    for _ in range(4):
        cluster.clock.advance(LEASE / 3)
        cluster.tracker.announce(peer(0), {})
        cluster.tracker.announce(peer(2), {})
    assert cluster.tracker.members() == [peer(0), peer(2)]
    for one in (peer(0), peer(2)):
        cluster.ask(one)
        assert "node-1" not in cluster.first_parents(one.name)


def test_who_comes_back_with_its_place_stands_there_again() -> None:
    cluster = Cluster()
    cluster.start(*map(peer, range(4)))
    before = cluster.answers["node-2"]
    cluster.tracker.leave("node-2")
    renewal = cluster.tracker.announce(peer(2), {SPAN0: Standing(0, before.place)})
    assert renewal.unknown
    assert renewal.again == ()
    assert cluster.ask(peer(2)).routes == before.routes


def test_who_comes_back_without_its_place_waits_until_nobody_goes_by_the_old_one() -> None:
    cluster = Cluster()
    cluster.start(*map(peer, range(3)))
    cluster.tracker.leave("node-1")
    assert cluster.ask(peer(1)).wait > 0
    cluster.clock.advance(GATHER)
    assert cluster.ask(peer(1)).wait > 0
    for one in (peer(0), peer(2)):
        assert cluster.tracker.announce(one, {}).again == (SPAN0,)
        cluster.ask(one)
        assert cluster.tracker.announce(one, {}).again == ()
    cluster.clock.advance(1.0)
    assert cluster.ask(peer(1)).wait == 0
    assert "origin" not in cluster.first_parents("node-1")


def test_a_slow_member_loses_its_children_and_goes_to_the_end() -> None:
    cluster = Cluster()
    cluster.start(*map(peer, range(8)))
    _slow_in_the_middle(cluster, 3)
    for number in range(8):
        cluster.ask(peer(number))
    assert all("node-3" not in cluster.first_parents(f"node-{n}") for n in range(8))
    for number in (0, 1, 2, 4, 5, 6, 7):
        cluster.tracker.announce(peer(number), {})
        cluster.ask(peer(number))
    cluster.clock.advance(1.0)
    assert cluster.ask(peer(3)).wait == 0
    assert "origin" not in cluster.first_parents("node-3")
    place = cluster.ask(peer(3)).place
    cluster.clock.advance(0.5)
    assert cluster.ask(peer(3)).place == place, "a slow member moves once"


def test_a_member_that_holds_its_parent_up_is_a_leaf_at_the_end_as_soon_as_all_have_asked_again() -> None:
    cluster = Cluster()
    cluster.start(*map(peer, range(8)))
    assert cluster.tracker.again("node-0") == []
    _held_up(cluster, "node-2", "node-3")
    assert all(cluster.tracker.again(f"node-{n}") == [SPAN0] for n in range(8))
    assert cluster.ask(peer(3)).wait > 0
    for number in (0, 1, 2, 4, 5, 6, 7):
        answer = cluster.ask(peer(number))
        assert answer.slow == {"node-3"}
        assert cluster.tracker.again(f"node-{number}") == []
    cluster.clock.advance(SETTLE)
    assert cluster.ask(peer(3)).wait == 0
    assert all("node-3" not in cluster.first_parents(f"node-{n}") for n in range(8))
    parents = cluster.first_parents("node-3")
    assert "origin" not in parents
    assert max(parents.values()) <= RUN + len(SCOUT), (
        "it hangs on the last of each chain, which has no other child"
    )
    assert all(cluster.tracker.again(f"node-{n}") == [] for n in range(8))


def test_members_that_start_together_with_one_that_is_known_as_slow_stand_before_it() -> None:
    cluster = Cluster()
    cluster.start(*map(peer, range(8)))
    _held_up(cluster, "node-2", "node-3")
    span = SpanId("object", 1)
    for _ in range(2):
        answers = {number: cluster.ask(peer(number), span=span) for number in range(8)}
        cluster.clock.advance(GATHER)
    assert all(answer.wait == 0 for answer in answers.values())
    assert all("node-3" not in cluster.first_parents(f"node-{n}") for n in range(8))
    assert "origin" not in cluster.first_parents("node-3")


def test_a_slow_member_that_has_everything_stays_where_it_is() -> None:
    cluster = Cluster()
    cluster.start(*map(peer, range(8)))
    cluster.tracker.done("node-3", SPAN0, ALL)
    _held_up(cluster, "node-2", "node-3")
    assert all(cluster.tracker.again(f"node-{n}") == [] for n in range(8))


def test_a_slow_member_puts_nobody_aside_who_gives_it_its_few_bytes_late() -> None:
    cluster = Cluster()
    cluster.start(*map(peer, range(8)))
    _held_up(cluster, "node-2", "node-3")
    cluster.tracker.failed("node-3", SPAN0, 0, "node-5", "silent")
    assert any("node-5" in cluster.first_parents(f"node-{n}") for n in range(8) if cluster.ask(peer(n)))


def test_a_member_out_of_favour_with_one_is_a_parent_of_others() -> None:
    cluster = Cluster()
    cluster.start(*map(peer, range(4)))
    left_out = next(iter(cluster.first_parents("node-0") - Counter(origin=64)))
    answer = cluster.ask(peer(0), without={left_out})
    assert all(one.name != left_out for route in answer.routes for one in route)
    cluster.start(peer(9))
    assert left_out in cluster.first_parents("node-9")


def test_a_liar_that_two_caught_is_nobodys_parent() -> None:
    cluster = Cluster()
    cluster.start(*map(peer, range(6)))
    for reporter in ("node-0", "node-1"):
        cluster.tracker.failed(reporter, SPAN0, 0, "node-5", "wrong")
    cluster.tracker.announce(peer(5), {})
    for number in range(5):
        answer = cluster.ask(peer(number))
        assert all(one.name != "node-5" for route in answer.routes for one in route)


def test_a_chunk_that_turned_out_absent_is_not_offered_again() -> None:
    cluster = Cluster()
    cluster.tracker.announce(peer(9), {SPAN0: Standing(has=1)})
    cluster.start(peer(0))
    assert cluster.answers["node-0"].routes[0] == (peer(9),)
    cluster.tracker.failed("node-0", SPAN0, 0, "node-9", "absent")
    assert cluster.ask(peer(0)).routes[0] == ()


def test_nobody_outside_reports_anything() -> None:
    cluster = Cluster()
    cluster.start(peer(0), peer(1))
    for reason in ("silent", "wrong", "slow"):
        cluster.tracker.failed("stranger", SPAN0, 0, "node-0", reason)
    cluster.tracker.done("stranger", SPAN0, ALL)
    assert "node-0" in cluster.first_parents("node-1")


def test_the_next_tracker_gives_the_same_routes_once_all_have_announced() -> None:
    cluster = Cluster()
    zones = ["a", "a", "b", "b", "b"]
    peers = [peer(number, zone) for number, zone in enumerate(zones)]
    cluster.start(*peers)
    cluster.start(peer(7, "a"))
    peers.append(peer(7, "a"))
    before = {one.name: cluster.ask(one) for one in peers}
    after = Cluster(cluster.clock)
    for one in reversed(peers):
        said = Standing(has=0, place=before[one.name].place)
        assert after.tracker.announce(one, {SPAN0: said}, whole=True).again == ()
    assert after.ask(peers[0]).wait > 0
    cluster.clock.advance(REBUILD)
    assert {one.name: after.ask(one) for one in peers} == before


def test_who_tells_a_new_tracker_its_place_late_has_its_children_again_as_soon_as_they_have_asked() -> None:
    cluster, peers = Cluster(), [peer(number) for number in range(4)]
    cluster.start(*peers)
    before = dict(cluster.answers)
    late, *others = peers
    cluster.tracker = Tracker(cluster.clock)
    for one in others:
        cluster.tracker.announce(one, {SPAN0: Standing(0, before[one.name].place)}, whole=True)
    cluster.clock.advance(REBUILD)
    assert all(late not in route for one in others for route in cluster.ask(one).routes)
    assert not any(cluster.tracker.again(one.name) for one in peers)
    cluster.tracker.announce(late, {SPAN0: Standing(0, before[late.name].place)}, whole=True)
    for one in others:
        assert cluster.tracker.again(one.name) == [SPAN0]
        assert cluster.ask(one).routes == before[one.name].routes
    assert not any(cluster.tracker.again(one.name) for one in peers)


def test_somebody_new_waits_while_a_new_tracker_learns_and_then_comes_last() -> None:
    cluster = Cluster()
    cluster.start(peer(0), peer(1))
    after = Cluster(cluster.clock)
    places = {name: answer.place for name, answer in cluster.answers.items()}
    after.tracker.announce(peer(0), {SPAN0: Standing(0, places["node-0"])}, whole=True)
    assert after.ask(peer(5)).wait > 0
    after.tracker.announce(peer(1), {SPAN0: Standing(0, places["node-1"])}, whole=True)
    cluster.clock.advance(REBUILD)
    assert after.ask(peer(5)).wait > 0
    cluster.clock.advance(GATHER)
    assert after.ask(peer(5)).wait == 0
    assert "origin" not in after.first_parents("node-5")


def test_a_whole_announcement_takes_back_what_is_not_in_it() -> None:
    cluster = Cluster()
    cluster.tracker.announce(peer(9), {SPAN0: Standing(has=ALL)})
    cluster.tracker.announce(peer(9), {}, whole=True)
    cluster.start(peer(0))
    assert len([c for c in range(64) if cluster.heads(c)]) == 64


def test_an_object_that_nobody_holds_any_more_is_forgotten() -> None:
    cluster = Cluster()
    cluster.start(peer(0))
    cluster.tracker.release("node-0", SPAN0)
    assert cluster.tracker.members() == [peer(0)]


def _peer_of(name: str) -> Peer:
    return peer(int(name.removeprefix("node-")))


def _held_up(cluster: Cluster, parent: str, child: str) -> None:
    """The child takes its bytes at a fifth of its parent's speed, for as long as it takes to be believed."""
    for _ in range(3):
        cluster.tracker.speeds(parent, 100.0, [child])
        cluster.tracker.speeds(child, 20.0, [])
        cluster.clock.advance(0.25)


def _slow_in_the_middle(cluster: Cluster, number: int) -> None:
    """The slow member finds its parent slow, and its child finds it slow."""
    slow = f"node-{number}"
    chunk, child = next(
        (chunk, name)
        for name, answer in cluster.answers.items()
        for chunk, route in enumerate(answer.routes)
        if route[:1] == (_peer_of(slow),) and cluster.heads(chunk) != [slow]
    )
    parent = cluster.answers[slow].routes[chunk][0].name
    cluster.tracker.failed(slow, SPAN0, chunk, parent, "slow")
    cluster.tracker.failed(child, SPAN0, chunk, slow, "slow")
