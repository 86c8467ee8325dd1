"""Sizes and durations as people write them: "8MiB", "50GiB", "30s", "5min".

A number without a unit is refused, because 8 could be bytes or mebibytes and 30 seconds or milliseconds;
the message shows the form that is meant. Sizes are binary and exact (int bytes), durations are seconds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

SIZE_UNITS = {
    "B": 1,
    "KiB": 1 << 10,
    "MiB": 1 << 20,
    "GiB": 1 << 30,
    "TiB": 1 << 40,
    "PiB": 1 << 50,
}

DURATION_UNITS_MS = {"ms": 1, "s": 1000, "min": 60_000, "h": 3_600_000, "d": 86_400_000}

_LONGEST = 1e15  # seconds; beyond it a number without a unit is told the form only

_QUANTITY = re.compile(r"(?P<number>[0-9]{1,18}) ?(?P<unit>[A-Za-z]*)", re.ASCII)


def parse_size(value: object) -> int:
    """Bytes of a size such as "8MiB". Raises ValueError with a message that shows the right form."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        raise ValueError(f'a size needs a unit: write "{format_size(value)}"')
    number, unit = _split(value, 'a size is written like "8MiB" or "50GiB"')
    if unit not in SIZE_UNITS:
        raise ValueError(_unit_message("size", number, unit, SIZE_UNITS, _meant_size(unit)))
    return number * SIZE_UNITS[unit]


def parse_duration(value: object) -> float:
    """Seconds of a duration such as "30s". Raises ValueError with a message that shows the right form."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < _LONGEST:
        raise ValueError(f'a duration needs a unit: write "{format_duration(value)}"')
    number, unit = _split(value, 'a duration is written like "30s" or "5min"')
    if unit not in DURATION_UNITS_MS:
        raise ValueError(_unit_message("duration", number, unit, DURATION_UNITS_MS, _meant_duration(unit)))
    return number * DURATION_UNITS_MS[unit] / 1000


def format_size(size: int) -> str:
    """The shortest exact form of a size in bytes; `parse_size` gives the same number back."""
    if size < 0:
        raise ValueError(f"size {size} is negative")
    unit = max((unit for unit in SIZE_UNITS if size % SIZE_UNITS[unit] == 0), key=SIZE_UNITS.__getitem__)
    return f"{size // SIZE_UNITS[unit]}{unit}" if size else "0B"


def format_duration(seconds: float) -> str:
    """The shortest form of a duration, exact to the millisecond; `parse_duration` gives the same back."""
    milliseconds = round(seconds * 1000)
    if milliseconds < 0:
        raise ValueError(f"duration {seconds} is negative")
    exact = (unit for unit in DURATION_UNITS_MS if milliseconds % DURATION_UNITS_MS[unit] == 0)
    unit = max(exact, key=DURATION_UNITS_MS.__getitem__)
    return f"{milliseconds // DURATION_UNITS_MS[unit]}{unit}" if milliseconds else "0s"


def _split(value: object, form: str) -> tuple[int, str]:
    match = _QUANTITY.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise ValueError(form)
    return int(match["number"]), match["unit"]


def _unit_message(kind: str, number: int, unit: str, units: Iterable[str], meant: str | None) -> str:
    if meant is not None:
        return f'write "{number}{meant}" ({kind} units: {", ".join(units)})'
    problem = f"{unit!r} is no unit of a {kind}" if unit else f"a {kind} needs a unit"
    return f"{problem}: use one of {', '.join(units)}"


def _meant_size(unit: str) -> str | None:
    """The unit that "mb", "M", "Mi" or "mib" stand for in other programs' settings."""
    initial = unit[:1].upper()
    known = f"{initial}iB"
    return known if known in SIZE_UNITS and unit[1:].lower() in ("", "i", "b", "ib") else None


_LONG_DURATIONS = {
    "msec": "ms",
    "sec": "s",
    "secs": "s",
    "second": "s",
    "seconds": "s",
    "m": "min",
    "mins": "min",
    "minute": "min",
    "minutes": "min",
    "hour": "h",
    "hours": "h",
    "day": "d",
    "days": "d",
}


def _meant_duration(unit: str) -> str | None:
    lower = unit.lower()
    return lower if lower in DURATION_UNITS_MS else _LONG_DURATIONS.get(lower)
