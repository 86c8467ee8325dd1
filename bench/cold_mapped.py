"""Workload `cold-mapped`: one large object, mapped and copied in order before any of it is there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from bench.child import run_program
from bench.cold import cold_subjects
from bench.figures import SPEED, Goal, Reading
from bench.options import Options
from bench.site import Site
from bench.workload import Subjects, Workload


def read_mapped(path: Path, _: int) -> Reading:
    """Map a file in a child and copy it in order."""
    return run_program("bench.readers", {"way": "mapped", "path": str(path)})


@contextlib.contextmanager
def _open(site: Site, options: Options) -> Iterator[Subjects]:
    yield cold_subjects(site, options, read_mapped)


WORKLOAD = Workload(
    name="cold-mapped",
    title="cold read, mmap",
    unit=SPEED,
    limit="raw download",
    open=_open,
    goal=Goal(0.70),
)
