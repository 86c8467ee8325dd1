"""The arithmetic of the bench: medians, and ratios to a limit that was measured in the same round. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

MB = 1_000_000


@dataclass(frozen=True, slots=True)
class Reading:
    """One measurement: `seconds` for `size` bytes, and the CPU seconds of the measured processes."""

    seconds: float
    size: int = 0
    cpu_seconds: float | None = None

    @property
    def speed(self) -> float:
        """MB/s."""
        return self.size / MB / self.seconds

    @property
    def per_cpu(self) -> float | None:
        """MB/s per CPU-second; None where it was not measured."""
        return self.size / MB / self.cpu_seconds if self.cpu_seconds else None


Round = Mapping[str, Reading]


@dataclass(frozen=True, slots=True)
class Unit:
    """What a workload's figures are: a speed, or a time with its factor to seconds."""

    name: str
    per_second: float | None = None

    def value(self, reading: Reading) -> float:
        """The figure of a reading in this unit."""
        return reading.speed if self.per_second is None else reading.seconds * self.per_second


SPEED = Unit("MB/s")
MILLISECONDS = Unit("ms", 1000.0)
SECONDS = Unit("s", 1.0)


@dataclass(frozen=True, slots=True)
class Goal:
    """What the ratio to the limit must be: at least (a speed) or at most (a time) this much."""

    ratio: float
    at_least: bool = True

    def met(self, ratio: float) -> bool:
        return ratio >= self.ratio if self.at_least else ratio <= self.ratio

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.ratio:g}"


@dataclass(frozen=True, slots=True)
class Summary:
    """One subject over all rounds: medians, the extremes, and the median ratio to the limit."""

    subject: str
    median: float
    low: float
    high: float
    ratio: float | None
    per_cpu: float | None


def ratios(rounds: Iterable[Round], subject: str, limit: str, unit: Unit) -> list[float]:
    """The subject's figure over the limit's, for each round that has both."""
    both = [found for found in rounds if subject in found and limit in found]
    return [unit.value(found[subject]) / unit.value(found[limit]) for found in both]


def summarise(rounds: Sequence[Round], limit: str, unit: Unit) -> list[Summary]:
    """The summaries of all subjects, in the order in which they first appear."""
    subjects = dict.fromkeys(subject for found in rounds for subject in found)
    return [_summary(rounds, subject, limit, unit) for subject in subjects]


def _summary(rounds: Sequence[Round], subject: str, limit: str, unit: Unit) -> Summary:
    readings = [found[subject] for found in rounds if subject in found]
    values = [unit.value(reading) for reading in readings]
    per_cpu = [reading.per_cpu for reading in readings if reading.per_cpu is not None]
    found = ratios(rounds, subject, limit, unit)
    return Summary(
        subject=subject,
        median=statistics.median(values),
        low=min(values),
        high=max(values),
        ratio=statistics.median(found) if found else None,
        per_cpu=statistics.median(per_cpu) if per_cpu else None,
    )


def rotated(subjects: Sequence[str], turn: int) -> list[str]:
    """The subjects in the order of one round: each round begins with another one."""
    if not subjects:
        return []
    cut = turn % len(subjects)
    return [*subjects[cut:], *subjects[:cut]]
