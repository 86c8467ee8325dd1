"""The arithmetic of parents: complete, without cycles, even, in zones."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.peers.relay import CHAIN, SLOTS, Formation, Place, depth_of, parent_position, placed


def formed(zones: list[str]) -> Formation:
    formation = Formation()
    members = [(f"node-{number}", zone) for number, zone in enumerate(zones)]
    for name, place in placed(0, members).items():
        assert formation.add(name, place)
    return formation


def parent(formation: Formation, name: str, stripe: int) -> str | None:
    found = next(formation.in_zone(name, stripe), None)
    return found or next(formation.across(name, stripe), None)


def parents(formation: Formation, names: list[str], stripe: int) -> dict[str, str | None]:
    return {name: parent(formation, name, stripe) for name in names}


def hops(tree: dict[str, str | None], name: str) -> int:
    """How far a member is from the head. Fails where there is a cycle."""
    count, above = 0, tree[name]
    while above is not None:
        count, above = count + 1, tree[above]
        assert count <= len(tree), "a cycle"
    return count


ZONES = st.lists(st.sampled_from(["a", "b", "c", ""]), min_size=1, max_size=130)


@given(ZONES, st.integers(0, 10_000))
def test_every_member_has_a_path_to_one_head(zones: list[str], stripe: int) -> None:
    names = [f"node-{number}" for number in range(len(zones))]
    tree = parents(formed(zones), names, stripe)
    assert max(hops(tree, name) for name in names) <= depth_of(len(zones)) + len(set(zones)) * CHAIN
    assert sum(above is None for above in tree.values()) == 1


@given(ZONES, st.integers(0, 10_000))
def test_nobody_has_more_children_for_a_chunk_than_it_has_slots(zones: list[str], stripe: int) -> None:
    names = [f"node-{number}" for number in range(len(zones))]
    children = Counter(parents(formed(zones), names, stripe).values())
    assert max((count for name, count in children.items() if name), default=0) < SLOTS


@given(ZONES, st.integers(0, 10_000))
def test_bytes_enter_each_zone_once(zones: list[str], stripe: int) -> None:
    zone_of = {f"node-{number}": zone for number, zone in enumerate(zones)}
    tree = parents(formed(zones), list(zone_of), stripe)
    crossed = [zone_of[name] for name, above in tree.items() if above and zone_of[above] != zone_of[name]]
    assert len(crossed) == len(set(crossed)) == len(set(zones)) - 1


@given(ZONES, st.data())
def test_whoever_goes_or_is_slow_every_path_still_ends_and_mixed_answers_make_no_cycle(
    zones: list[str], data: st.DataObject
) -> None:
    names = [f"node-{number}" for number in range(len(zones))]
    stripe = data.draw(st.integers(0, 500))
    formation = formed(zones)
    held = parents(formation, names, stripe)
    for name in data.draw(st.lists(st.sampled_from(names), unique=True, max_size=20)):
        data.draw(st.sampled_from([formation.drop, formation.set_aside]))(name)
        live = [one for one in names if one in formation]
        for one in data.draw(st.lists(st.sampled_from(live), max_size=9)) if live else ():
            held[one] = parent(formation, one, stripe)
    assert all(hops(held, name) >= 0 for name in names)


@pytest.mark.parametrize("zones", [["a"] * 8, ["a"] * 15, ["a"] * 10 + ["b"] * 3 + ["c"], ["a", "b"] * 60])
def test_heads_uplinks_and_entries_of_zones_are_loaded_evenly(zones: list[str]) -> None:
    names = [f"node-{number}" for number in range(len(zones))]
    formation, heads, sent = formed(zones), Counter[str](), Counter[str]()
    stripes = 20 * len(zones)
    for stripe in range(stripes):
        tree = parents(formation, names, stripe)
        heads.update(name for name, above in tree.items() if above is None)
        sent.update(above for above in tree.values() if above is not None)
    assert len(heads) == len(zones)
    assert max(heads.values()) <= 1.1 * stripes / len(zones)
    assert min(heads.values()) >= 0.9 * stripes / len(zones)
    assert max(sent.values()) <= 1.35 * stripes


def test_members_of_one_zone_pass_nearly_all_chunks_to_one_neighbour() -> None:
    formation = formed(["a"] * 15)
    above = Counter(parent(formation, "node-4", stripe) for stripe in range(15))
    assert above == {"node-3": 14, None: 1}


def test_up_to_fifty_stand_in_one_chain_and_more_in_a_tree_of_equal_chains() -> None:
    assert [parent_position(p, 50) for p in range(50)] == [-1, *range(49)]
    assert depth_of(50) == 49
    tree = [parent_position(p, 200) for p in range(200)]
    assert [p for p in range(200) if tree[p] != p - 1] == [50, 100, 150]
    assert (tree[50], tree[100], tree[150]) == (0, 1, 50)
    assert depth_of(3000) == 49 + 10


@given(st.integers(1, 4000))
def test_no_position_is_deeper_than_is_said(length: int) -> None:
    depths: list[int] = []
    for position in range(length):
        above = parent_position(position, length)
        assert above < position
        depths.append(depths[above] + 1 if above >= 0 else 0)
    assert max(depths) <= depth_of(length)


def test_the_order_of_a_zone_is_the_same_after_members_have_gone_and_come_back() -> None:
    formation = formed(["a"] * 9)
    place = formation.place("node-3")
    formation.drop("node-3")
    assert parent(formation, "node-4", 0) == "node-2"
    assert formation.add("node-3", place)
    assert parent(formation, "node-4", 0) == "node-3"


def test_the_next_member_is_the_head_where_the_head_has_gone() -> None:
    formation = formed(["a"] * 4)
    formation.drop("node-1")
    assert parent(formation, "node-2", 1) is None
    assert [parent(formation, name, 1) for name in ("node-3", "node-0")] == ["node-2", "node-3"]


def test_a_slow_member_has_a_parent_and_no_child() -> None:
    formation = formed(["a"] * 6)
    formation.set_aside("node-3")
    for stripe in range(6):
        tree = parents(formation, [f"node-{n}" for n in range(6)], stripe)
        assert "node-3" not in tree.values()
        assert tree["node-3"] is not None or stripe == 3
    formation.restore("node-3")
    assert parent(formation, "node-4", 0) == "node-3"


def test_the_parents_to_go_on_with_are_all_before_the_member() -> None:
    formation = formed(["a"] * 120)
    order = ["node-0", *(f"node-{number}" for number in range(1, 120))]
    for earlier, name in pairwise(order):
        found = list(formation.in_zone(name, 0))
        assert len(found) == len(set(found)) == order.index(name)
        assert earlier in found


@pytest.mark.parametrize("numbers", [(0, 3, 3, 0, 3), (0, 1, 5, 2, 5), (-1, 0, 1, 0, 1), (0, 0, 2, 0, 3)])
def test_a_place_that_cannot_be_is_refused(numbers: tuple[int, int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="no such place"):
        Place(*numbers)


def test_a_place_that_is_taken_or_contradicts_the_others_is_refused() -> None:
    formation = formed(["a", "a", "b"])
    assert not formation.add("other", Place(0, 1, 3, 0, 2))
    assert not formation.add("other", Place(0, 1, 3, 1, 3))
    assert not formation.add("node-0", Place(0, 0, 3, 0, 2))
