from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agent.units import (
    DURATION_UNITS_MS,
    SIZE_UNITS,
    format_duration,
    format_size,
    parse_duration,
    parse_size,
)


@given(st.integers(min_value=0, max_value=1 << 58))
def test_a_size_survives_being_written_and_read(size: int) -> None:
    assert parse_size(format_size(size)) == size


@given(st.integers(min_value=0, max_value=10**15))
def test_a_duration_of_whole_milliseconds_survives_being_written_and_read(milliseconds: int) -> None:
    seconds = milliseconds / 1000
    assert parse_duration(format_duration(seconds)) == seconds


@given(st.integers(min_value=0, max_value=10**6), st.sampled_from(list(SIZE_UNITS)))
def test_every_size_unit_is_read_exactly(number: int, unit: str) -> None:
    assert parse_size(f"{number}{unit}") == parse_size(f" {number} {unit} ") == number * SIZE_UNITS[unit]


@given(st.integers(min_value=0, max_value=10**6), st.sampled_from(list(DURATION_UNITS_MS)))
def test_every_duration_unit_is_read_exactly(number: int, unit: str) -> None:
    assert parse_duration(f"{number}{unit}") == number * DURATION_UNITS_MS[unit] / 1000


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0B"), (1, "1B"), (1 << 20, "1MiB"), (1536, "1536B"), (50 << 30, "50GiB"), (1 << 50, "1PiB")],
)
def test_a_size_is_written_in_the_largest_unit_that_keeps_it_exact(size: int, text: str) -> None:
    assert format_size(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0s"), (0.5, "500ms"), (30.0, "30s"), (300.0, "5min"), (90.0, "90s"), (86400, "1d")],
)
def test_a_duration_is_written_in_the_largest_unit_that_keeps_it_exact(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "advice"),
    [
        (8388608, 'write "8MiB"'),
        (0, 'write "0B"'),
        ("8", "needs a unit"),
        ("8MB", 'write "8MiB"'),
        ("8mb", 'write "8MiB"'),
        ("8M", 'write "8MiB"'),
        ("8Mi", 'write "8MiB"'),
        ("50gib", 'write "50GiB"'),
        ("8 chunks", "'chunks' is no unit of a size: use one of B, KiB, MiB"),
        ("8.5MiB", 'like "8MiB"'),
        ("-8MiB", 'like "8MiB"'),
        (-8, 'like "8MiB"'),
        ("MiB", 'like "8MiB"'),
        ("", 'like "8MiB"'),
        ("٨MiB", 'like "8MiB"'),
        ("9" * 30 + "B", 'like "8MiB"'),
        (True, 'like "8MiB"'),
        (1.5, 'like "8MiB"'),
        (None, 'like "8MiB"'),
        (["8MiB"], 'like "8MiB"'),
    ],
)
def test_what_is_no_size_is_refused_with_the_right_form(value: object, advice: str) -> None:
    with pytest.raises(ValueError, match=re.escape(advice)) as caught:
        parse_size(value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "advice"),
    [
        (300, 'write "5min"'),
        (0.5, 'write "500ms"'),
        ("30", "needs a unit"),
        ("30sec", 'write "30s"'),
        ("5m", 'write "5min"'),
        ("5 Minutes", 'write "5min"'),
        ("2H", 'write "2h"'),
        ("2 fortnights", "'fortnights' is no unit of a duration: use one of ms, s, min, h, d"),
        ("1.5s", 'like "30s"'),
        ("1min30s", 'like "30s"'),
        (-1, 'like "30s"'),
        (float("nan"), 'like "30s"'),
        (float("inf"), 'like "30s"'),
        (1.7e308, 'like "30s"'),
        (10**400, 'like "30s"'),
        (False, 'like "30s"'),
        ({}, 'like "30s"'),
    ],
)
def test_what_is_no_duration_is_refused_with_the_right_form(value: object, advice: str) -> None:
    with pytest.raises(ValueError, match=re.escape(advice)):
        parse_duration(value)


@example(1.7e308)
@example(10**400)
@given(st.one_of(st.text(), st.integers(), st.floats(), st.booleans(), st.none(), st.binary()))
def test_whatever_is_given_is_read_or_refused_in_one_line(value: object) -> None:
    for parse in (parse_size, parse_duration):
        try:
            assert parse(value) >= 0
        except ValueError as error:
            assert len(str(error).splitlines()) == 1


def test_what_is_negative_cannot_be_written() -> None:
    with pytest.raises(ValueError, match="negative"):
        format_size(-1)
    with pytest.raises(ValueError, match="negative"):
        format_duration(-1)
