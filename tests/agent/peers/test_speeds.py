"""Who counts as slow, from what parents say of their children and all say of themselves."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from agent.peers.drains import BEHIND, BURST, HELD, LATELY, LOOK_EVERY, Look, Looks
from agent.peers.speeds import RECENT, SHARE, SLOW_FOR, Speeds

FULL = 25e6
STEP = 0.25  # seconds between two messages of a member


class Group:
    """Eight members that receive at full speed, but those of `rates`, and parents that are held up."""

    def __init__(self, **rates: float) -> None:
        self.speeds = Speeds()
        self.rates = {f"n{number}": FULL for number in range(8)} | rates
        self.now = 0.0

    def say(self, seconds: float, **held_up_by: str) -> None:
        """Let time pass in which parents say who holds them up."""
        until = self.now + seconds
        while self.now < until:
            for name, rate in self.rates.items():
                self.speeds.receives(name, rate, self.now, len(self.rates))
            for parent, child in held_up_by.items():
                self.speeds.held_up(parent, [child], self.now, len(self.rates))
            self.now += STEP

    @property
    def slow(self) -> set[str]:
        return {name for name in self.rates if self.speeds.slow(name, self.now)}


def test_a_child_that_holds_its_parent_up_and_receives_much_less_is_slow_at_once() -> None:
    group = Group(n3=FULL / 4)
    group.say(STEP)
    assert group.slow == set()
    group.say(STEP, n2="n3")
    assert group.slow == {"n3"}


def test_what_a_parent_said_is_believed_for_a_moment_also_where_its_childs_word_comes_later() -> None:
    group = Group()
    group.say(STEP, n2="n3")
    group.rates["n3"] = FULL / 4
    group.say(STEP)
    assert group.slow == {"n3"}


def test_those_behind_a_slow_member_receive_little_too_and_are_not_slow_since_they_hold_nobody_up() -> None:
    group = Group(n3=FULL / 4, n4=FULL / 4, n5=FULL / 4)
    group.say(3.0, n2="n3")
    assert group.slow == {"n3"}


def test_who_receives_as_others_do_is_not_slow_whoever_says_so() -> None:
    group = Group()
    group.say(3.0, n2="n3", n4="n3", n5="n3")
    assert group.slow == set()


def test_a_slow_member_is_slow_for_as_long_as_it_holds_somebody_up_and_a_while_longer() -> None:
    group = Group(n3=FULL / 4)
    group.say(2 * SLOW_FOR, n2="n3")
    assert group.slow == {"n3"}
    group.say(SLOW_FOR + RECENT + STEP)
    assert group.slow == set()


def test_a_member_that_receives_well_from_others_is_cleared_at_once() -> None:
    group = Group(n3=FULL / 4)
    group.say(3 * STEP, n2="n3")
    group.rates["n3"] = FULL
    group.say(STEP)
    assert group.slow == set()


def test_a_parent_that_was_wrong_about_two_children_is_the_slow_one() -> None:
    group = Group()
    for child in ("n3", "n4"):
        group.rates[child] = FULL / 4
        group.say(3 * STEP, n2=child)
        assert group.slow == {child}
        group.rates[child] = FULL
        group.say(STEP)
    assert group.slow == {"n2"}


def test_one_of_two_members_may_be_slow() -> None:
    speeds, now = Speeds(), 0.0
    while now <= 3 * STEP:
        speeds.receives("a", FULL, now, 2)
        speeds.receives("b", FULL / 4, now, 2)
        speeds.held_up("a", ["b"], now, 2)
        now += STEP
    assert speeds.slow("b", now)


def test_who_has_gone_is_forgotten() -> None:
    group = Group(n3=FULL / 4)
    group.say(3 * STEP, n2="n3")
    group.speeds.forget("n3")
    assert group.slow == set()


NAMES = st.sampled_from([f"n{number}" for number in range(8)])
SAID = st.tuples(NAMES, st.floats(0, 2 * FULL), st.lists(NAMES, max_size=8), st.floats(0, 2))


@given(st.lists(SAID, max_size=60))
def test_no_more_than_a_quarter_is_slow_whatever_is_said(
    said: list[tuple[str, float, list[str], float]],
) -> None:
    speeds, now = Speeds(), 0.0
    for name, rate, children, later in said:
        now += later
        before = {one for one in speeds.names() if speeds.slow(one, now)}
        changed = speeds.receives(name, rate, now, 8) | speeds.held_up(name, children, now, 8)
        after = {one for one in speeds.names() if speeds.slow(one, now)}
        assert len(after) <= max(1, SHARE * 8)
        assert before ^ after <= changed


def verdicts(parts: Sequence[float]) -> list[bool]:
    """Whether a child is slow at each look: it takes these parts of its parent's speed, and more waits."""
    speeds, child, parent, taken = Speeds(), Looks(), Looks(), 0.0
    found = []
    for number, part in enumerate((0.0, *parts)):
        now = 100.0 + number * LOOK_EVERY
        taken += part * FULL * LOOK_EVERY
        child.add(Look(now, int(taken)))
        sent, waiting = {"child": int(taken)}, {"child": 4 * BEHIND}
        parent.add(Look(now, int(number * FULL * LOOK_EVERY), sent, waiting))
        for name in ("parent", "another", "third"):
            speeds.receives(name, FULL, now, 4)
        if child.fastest is not None:
            speeds.receives("child", child.fastest, now, 4)
        speeds.held_up("parent", parent.held_up_by(), now, 4)
        found.append(speeds.slow("child", now))
    return found


@given(st.lists(st.integers(0, LATELY - BURST - 1), max_size=12), st.floats(0.45, 1.0))
def test_a_stream_that_stands_still_again_and_again_makes_nobody_slow_who_has_a_good_moment_in_five_seconds(
    stalls: list[int], speed: float
) -> None:
    moments = [[*([0.0] * stall), *([speed] * BURST)] for stall in stalls]
    assert not any(verdicts([part for moment in moments for part in moment]))


@given(st.floats(0.05, 0.3), st.lists(st.floats(0.8, 1.25), min_size=HELD + 1, max_size=40))
def test_a_link_that_never_brings_more_than_a_third_is_found_as_soon_as_it_has_held_its_parent_up(
    share: float, jitter: list[float]
) -> None:
    found = verdicts([share * one for one in jitter])
    assert not any(found[: HELD - 1])
    assert all(found[HELD:])
