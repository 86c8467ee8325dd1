"""The bench's arithmetic."""

from __future__ import annotations

import pytest

from bench.figures import MILLISECONDS, SPEED, Goal, Reading, Unit, ratios, rotated, summarise

MB = 1_000_000


def _speed(value: float, cpu: float | None = None) -> Reading:
    """A reading of one second at `value` MB/s."""
    return Reading(seconds=1.0, size=int(value * MB), cpu_seconds=cpu)


def test_a_reading_knows_its_speed_and_what_a_cpu_second_brought() -> None:
    reading = Reading(seconds=0.5, size=100 * MB, cpu_seconds=0.25)
    assert reading.speed == 200
    assert reading.per_cpu == 400
    assert Reading(0.5, 100 * MB).per_cpu is None


def test_no_cpu_time_at_all_is_no_figure_and_no_division_by_zero() -> None:
    assert Reading(0.5, 100 * MB, 0.0).per_cpu is None


@pytest.mark.parametrize(("unit", "value"), [(SPEED, 8.0), (MILLISECONDS, 250.0), (Unit("s", 1.0), 0.25)])
def test_a_unit_turns_a_reading_into_its_figure(unit: Unit, value: float) -> None:
    assert unit.value(Reading(0.25, 2 * MB)) == value


def test_ratios_are_of_figures_of_the_same_round() -> None:
    rounds = [{"a": _speed(50), "limit": _speed(100)}, {"a": _speed(300), "limit": _speed(400)}]
    assert ratios(rounds, "a", "limit", SPEED) == [0.5, 0.75]


def test_a_round_without_the_subject_or_without_the_limit_gives_no_ratio() -> None:
    rounds = [{"limit": _speed(100)}, {"a": _speed(50)}, {"a": _speed(50), "limit": _speed(200)}]
    assert ratios(rounds, "a", "limit", SPEED) == [0.25]


def test_the_ratio_is_the_median_of_ratios_and_not_the_ratio_of_medians() -> None:
    rounds = [
        {"limit": _speed(100), "a": _speed(90)},
        {"limit": _speed(200), "a": _speed(100)},
        {"limit": _speed(1000), "a": _speed(100)},
    ]
    limit, found = summarise(rounds, "limit", SPEED)
    assert (limit.subject, limit.median, limit.ratio) == ("limit", 200, 1.0)
    assert (found.subject, found.median, found.low, found.high) == ("a", 100, 90, 100)
    assert found.ratio == 0.5


def test_an_even_count_of_rounds_takes_the_mean_of_the_two_in_the_middle() -> None:
    rounds = [{"limit": _speed(value)} for value in (100, 200, 400, 800)]
    (summary,) = summarise(rounds, "limit", SPEED)
    assert summary.median == 300


def test_a_times_ratio_says_how_much_longer_it_took() -> None:
    rounds = [{"limit": Reading(0.005), "a": Reading(0.012)}]
    assert summarise(rounds, "limit", MILLISECONDS)[1].ratio == pytest.approx(2.4)


def test_what_a_cpu_second_brought_is_the_median_of_the_rounds_that_know_it() -> None:
    rounds = [{"a": _speed(100, 1.0)}, {"a": _speed(100)}, {"a": _speed(100, 0.5)}, {"a": _speed(100, 0.1)}]
    (summary,) = summarise(rounds, "limit", SPEED)
    assert summary.per_cpu == 200
    assert summary.ratio is None


def test_a_speed_must_reach_its_goal_and_a_time_must_stay_under_it() -> None:
    assert Goal(0.7).met(0.7)
    assert not Goal(0.7).met(0.69)
    assert Goal(3.0, at_least=False).met(3.0)
    assert not Goal(3.0, at_least=False).met(3.1)


def test_each_round_begins_with_another_subject_and_has_all_of_them() -> None:
    orders = [rotated(["a", "b", "c"], turn) for turn in range(4)]
    assert orders == [["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"], ["a", "b", "c"]]
    assert rotated([], 3) == []
