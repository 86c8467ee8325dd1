"""What the bench says: a table on the terminal and one JSON file a run."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.figures import Goal, Summary, summarise
from bench.options import RESULTS, Options
from bench.workload import HEADRACE, NOT_INSTALLED, Outcome

COLUMNS = ("workload", "subject", "median", "lowest to highest", "ratio to limit", "goal", "MB/s per CPU-s")


def rows(outcome: Outcome) -> list[tuple[str, ...]]:
    """The lines of one workload's part of the table, the limit first."""
    workload = outcome.workload
    summaries = {one.subject: one for one in summarise(outcome.rounds, workload.limit, workload.unit)}
    names = sorted({*summaries, *outcome.notes}, key=lambda name: _place(name, workload.limit))
    found = []
    for number, name in enumerate(names):
        title = workload.title if number == 0 else ""
        goal = workload.goal if name == HEADRACE else None
        found.append((title, name, *_cells(outcome, summaries.get(name), name, goal)))
    return found


def render(outcomes: Sequence[Outcome], console: Console) -> None:
    """Print the table."""
    table = Table(box=None, pad_edge=False)
    for column in COLUMNS:
        table.add_column(column, justify="left" if column in ("workload", "subject") else "right")
    for outcome in outcomes:
        for row in rows(outcome):
            table.add_row(*row)
        table.add_section()
    console.print(table)
    for outcome in outcomes:
        for name, note in outcome.notes.items():
            if note != NOT_INSTALLED:
                console.print(f"{outcome.workload.name}, {name}: {note}", markup=False, highlight=False)


def document(outcomes: Sequence[Outcome], options: Options) -> dict[str, Any]:
    """Everything that was measured, for the JSON file."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": {
            "kernel": platform.release(),
            "architecture": platform.machine(),
            "cpus": os.cpu_count(),
            "python": platform.python_version(),
        },
        "rounds": options.rounds,
        "size": options.size,
        "workloads": [_workload(outcome) for outcome in outcomes],
    }


def save(found: dict[str, Any], path: Path | None) -> Path:
    """Write the JSON file, into bench/results under the time of the run where no path is given."""
    if path is None:
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{found['time'].replace(':', '')}.json"
    path.write_text(json.dumps(found, indent=2) + "\n")
    return path


def _place(name: str, limit: str) -> tuple[int, str]:
    return (0 if name == limit else 1 if name == HEADRACE else 2, name)


def _cells(outcome: Outcome, summary: Summary | None, name: str, goal: Goal | None) -> tuple[str, ...]:
    note = _short(outcome.notes.get(name, ""))
    if summary is None:
        return (note, "", "", "", "")
    unit = outcome.workload.unit.name
    ratio = "" if summary.ratio is None else f"{summary.ratio:.2f}"
    verdict = ""
    if goal is not None and summary.ratio is not None:
        verdict = f"{goal} {'met' if goal.met(summary.ratio) else 'missed'}"
    return (
        f"{_number(summary.median)} {unit}",
        note or f"{_number(summary.low)} to {_number(summary.high)}",
        ratio,
        verdict,
        "" if summary.per_cpu is None else f"{summary.per_cpu:.0f}",
    )


def _short(note: str) -> str:
    return note if note in ("", NOT_INSTALLED) else "failed, see below"


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def _workload(outcome: Outcome) -> dict[str, Any]:
    workload = outcome.workload
    summaries = summarise(outcome.rounds, workload.limit, workload.unit)
    return {
        "name": workload.name,
        "title": workload.title,
        "unit": workload.unit.name,
        "limit": workload.limit,
        "goal": None if workload.goal is None else str(workload.goal),
        "notes": outcome.notes,
        "summary": [asdict(summary) for summary in summaries],
        "rounds": [{name: asdict(reading) for name, reading in found.items()} for found in outcome.rounds],
    }
