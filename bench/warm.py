"""Workloads `warm` and `warm-mapped`: complete and in the page cache; the limit is a native file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from bench.child import BenchError, dd, run_program
from bench.cold import BUCKET, KEY, Read
from bench.figures import SPEED, Goal, Reading
from bench.mounts import Mount, Mounter, installed
from bench.options import Options
from bench.site import Site
from bench.workload import Measure, Subjects, Workload, refused

TIMES = 3  # a GiB from the page cache takes an eighth of a second: too little to measure once


def sequential(path: Path, size: int) -> Reading:
    """Read a file by dd, TIMES over."""
    readings = [dd(path, size) for _ in range(TIMES)]
    return Reading(sum(reading.seconds for reading in readings), size * TIMES)


def mapped(path: Path, _: int) -> Reading:
    """Copy a file out of its mapping, TIMES over."""
    return run_program("bench.readers", {"way": "mapped", "path": str(path), "times": TIMES})


def _measure(mount: Mount, size: int, read: Read) -> Measure:
    def measure(_: int) -> Reading:
        before = mount.cpu_seconds()
        reading = read(mount.path / KEY, size)
        return replace(reading, cpu_seconds=mount.cpu_seconds() - before)

    return measure


def _prepared(stack: contextlib.ExitStack, mounter: Mounter, site: Site, size: int, read: Read) -> Measure:
    try:
        mount = stack.enter_context(mounter.mounted(site, BUCKET))
        for _ in range(2):
            dd(mount.path / KEY, size)
    except BenchError as error:
        return refused(error)
    return _measure(mount, size, read)


@contextlib.contextmanager
def _subjects(site: Site, options: Options, read: Read) -> Iterator[Subjects]:
    """Every mounter stays mounted over all rounds; each has read the object to its end before, twice."""
    native = site.object(BUCKET, KEY, options.size)
    dd(native, options.size)
    subjects: dict[str, Measure | None] = {"native file": lambda _: read(native, options.size)}
    with contextlib.ExitStack() as stack:
        for name, mounter in installed(site):
            subjects[name] = _prepared(stack, mounter, site, options.size, read) if mounter else None
        yield subjects


SEQUENTIAL = Workload(
    name="warm",
    title="warm read, dd bs=1M",
    unit=SPEED,
    limit="native file",
    open=lambda site, options: _subjects(site, options, sequential),
    goal=Goal(0.90),
)
MAPPED = Workload(
    name="warm-mapped",
    title="warm read, mmap",
    unit=SPEED,
    limit="native file",
    open=lambda site, options: _subjects(site, options, mapped),
    goal=Goal(0.90),
)
