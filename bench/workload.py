"""What a workload is, and how its rounds are run: all subjects in turn, each round beginning with another."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from bench.child import BenchError
from bench.figures import Goal, Reading, Round, Unit, rotated
from bench.options import Options
from bench.site import Site

# A subject takes the number of the round; None stands for one that is not installed.
Measure = Callable[[int], Reading]
Subjects = Mapping[str, Measure | None]

HEADRACE = "headrace"
NOT_INSTALLED = "not installed"


@dataclass(frozen=True, slots=True)
class Workload:
    """`limit` names the subject that the others are compared with; `goal` is Headrace's ratio to it.
    `open` prepares what is to be read and gives the subjects; they may be used until it is closed.
    """

    name: str
    title: str
    unit: Unit
    limit: str
    open: Callable[[Site, Options], AbstractContextManager[Subjects]]
    goal: Goal | None = None


@dataclass(slots=True)
class Outcome:
    """What came of a workload; `notes` say why a subject has no figures, or not all of them."""

    workload: Workload
    rounds: list[Round] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)


def refused(error: BenchError) -> Measure:
    """The measure of a subject that could not be prepared: it fails, and only it."""

    def measure(_: int) -> Reading:
        raise error

    return measure


def run(workload: Workload, site: Site, options: Options) -> Outcome:
    """Run the rounds. A subject that fails once is left out from then on. Raises BenchError for the limit."""
    outcome = Outcome(workload)
    with workload.open(site, options) as subjects:
        outcome.notes.update({name: NOT_INSTALLED for name, measure in subjects.items() if measure is None})
        for turn in range(options.rounds):
            outcome.rounds.append(_round(workload, subjects, outcome.notes, turn, options))
    return outcome


def _round(
    workload: Workload, subjects: Subjects, notes: dict[str, str], turn: int, options: Options
) -> dict[str, Reading]:
    found: dict[str, Reading] = {}
    for name in rotated(list(subjects), turn):
        measure = subjects[name]
        if measure is None or name in notes:
            continue
        # What the one before has left to be written must not slow the next one down.
        os.sync()
        try:
            found[name] = measure(turn)
        except BenchError as error:
            if name == workload.limit:
                raise
            notes[name] = f"failed: {error}"
            continue
        value = f"{workload.unit.value(found[name]):.1f} {workload.unit.name}"
        print(f"{workload.name} {turn + 1}/{options.rounds} {name}: {value}", file=sys.stderr, flush=True)
    return found
