"""Who holds an agent up: children that leave waiting what they could have."""

from __future__ import annotations

import pytest

from agent.peers.drains import BEHIND, HELD, LATELY, LOOK_EVERY, Look, Looks

MIB = 1 << 20


def seen(
    received: float, *children: tuple[str, float, int], limit: float | None = None, count: int = HELD
) -> Looks:
    """Looks at an agent that receives, and sends to children, so many bytes a second; with what waits."""
    looks = Looks(limit)
    for number in range(count):
        at = number * LOOK_EVERY
        sent = {name: int(rate * at) for name, rate, _ in children}
        waiting = {name: waits for name, _, waits in children}
        looks.add(Look(100.0 + at, int(received * at), sent, waiting))
    return looks


def test_a_child_that_takes_a_quarter_of_what_comes_in_holds_its_parent_up() -> None:
    looks = seen(25e6, ("slow", 6e6, 4 * BEHIND))
    assert looks.held_up_by() == ["slow"]
    assert looks.fastest == pytest.approx(25e6, rel=0.01)


def test_a_child_that_takes_nothing_at_all_is_cut_off_and_not_slow() -> None:
    assert seen(25e6, ("child", 0.0, 9 * BEHIND)).held_up_by() == []


def test_the_fastest_moment_of_the_last_five_seconds_counts() -> None:
    looks, received = Looks(), 0
    for number in range(3 * LATELY):
        received += 5 * MIB if number in (30, 31) else MIB
        looks.add(Look(100.0 + number * LOOK_EVERY, received))
        if number >= 2:
            lately = 31 <= number < 31 + LATELY - 1
            assert (looks.fastest == pytest.approx(10 * MIB / (2 * LOOK_EVERY))) == lately
            assert looks.short == (33 <= number < 31 + LATELY)


def test_a_child_that_has_all_that_is_there_holds_nobody_up_however_little_that_is() -> None:
    assert seen(25e6, ("child", 6e6, BEHIND - 1)).held_up_by() == []


def test_a_child_that_keeps_up_holds_nobody_up_though_bytes_wait_for_it() -> None:
    assert seen(25e6, ("child", 24e6, 9 * BEHIND)).held_up_by() == []


def test_children_that_share_an_uplink_hold_nobody_up_but_one_that_does_not_use_its_part() -> None:
    both = seen(25e6, ("a", 12e6, 9 * BEHIND), ("b", 12e6, 9 * BEHIND))
    assert both.held_up_by() == []
    one = seen(25e6, ("a", 20e6, 9 * BEHIND), ("b", 4e6, 9 * BEHIND))
    assert one.held_up_by() == ["b"]


def test_a_parent_under_an_upload_limit_is_held_up_by_that_and_by_no_child() -> None:
    assert seen(25e6, ("child", 5e6, 9 * BEHIND), limit=5e6).held_up_by() == []
    assert seen(25e6, ("child", 1e6, 9 * BEHIND), limit=5e6).held_up_by() == ["child"]


def test_how_fast_is_not_known_of_one_that_has_just_begun_to_receive() -> None:
    looks = Looks()
    for number in range(HELD + 2):
        looks.add(Look(100.0 + number * LOOK_EVERY, max(0, number - 1) * MIB))
        assert (looks.fastest is None) == (number < HELD + 1)
    idle = seen(0.0)
    assert idle.fastest == 0.0


def test_who_has_nothing_to_go_by_says_nothing() -> None:
    assert seen(0.0, ("child", 6e6, 9 * BEHIND), count=HELD - 1).held_up_by() == []
    looks = Looks()
    looks.add(Look(1.0, 0))
    assert looks.fastest is None
    assert not looks.short
    assert looks.held_up_by() == []


def test_what_waited_before_a_pause_does_not_count() -> None:
    looks = seen(25e6, ("slow", 6e6, 9 * BEHIND))
    for number in range(HELD):
        assert looks.held_up_by() == ([] if number else ["slow"])
        looks.add(
            Look(200.0 + number * LOOK_EVERY, 50 * MIB, {"slow": (3 + number) * MIB}, {"slow": 9 * BEHIND})
        )
    assert looks.held_up_by() == ["slow"]
