"""Workload `cold-mapped`: one large object, mapped and copied in order before any of it is there."""

from __future__ import annotations

import functools
from pathlib import Path

from bench.child import run_program
from bench.cold import cold_subjects
from bench.figures import SPEED, Goal, Reading
from bench.workload import Workload


def read_mapped(path: Path, _: int) -> Reading:
    """Map a file in a child and copy it in order."""
    return run_program("bench.readers", {"way": "mapped", "path": str(path)})


WORKLOAD = Workload(
    name="cold-mapped",
    title="cold read, mmap",
    unit=SPEED,
    limit="raw download",
    open=functools.partial(cold_subjects, read=read_mapped),
    goal=Goal(0.70),
)
