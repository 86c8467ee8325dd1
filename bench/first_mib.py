"""Workload `first-mib`: the first MiB of a cold file; the limit is a plain ranged GET of it."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.child import BenchError, run_program
from bench.figures import MILLISECONDS, Goal, Reading
from bench.mounts import Mounter, installed
from bench.options import MIB, Options
from bench.site import Site
from bench.workload import Measure, Subjects, Workload, refused

BUCKET = "bench-first"
FILES = 3  # cold files a round: single readings of some milliseconds jump
# Larger than what is ever fetched ahead of a reader, so that the file looks like a far larger one.
FILE_SIZE = 96 * MIB


def _key(turn: int, number: int) -> str:
    return f"{turn:03}-{number}.bin"


def _median(readings: list[Reading]) -> Reading:
    return Reading(statistics.median(reading.seconds for reading in readings), MIB)


def _through(root: Path) -> Callable[[str], Reading]:
    return lambda key: run_program("bench.readers", {"way": "first", "path": str(root / key)})


def _measure(read: Callable[[str], Reading]) -> Measure:
    return lambda turn: _median([read(_key(turn, number)) for number in range(FILES)])


def _prepared(stack: contextlib.ExitStack, mounter: Mounter, site: Site) -> Measure:
    try:
        mount = stack.enter_context(mounter.mounted(site, BUCKET))
    except BenchError as error:
        return refused(error)
    return _measure(_through(mount.path))


@contextlib.contextmanager
def _open(site: Site, options: Options) -> Iterator[Subjects]:
    for turn in range(options.rounds):
        for number in range(FILES):
            site.object(BUCKET, _key(turn, number), min(FILE_SIZE, options.size))
    get = _measure(lambda key: run_program("bench.receive", {"way": "one", "url": site.url(BUCKET, key)}))
    subjects: dict[str, Measure | None] = {"ranged GET": get}
    with contextlib.ExitStack() as stack:
        for name, mounter in installed(site):
            subjects[name] = _prepared(stack, mounter, site) if mounter else None
        yield subjects


WORKLOAD = Workload(
    name="first-mib",
    title="first MiB of a cold file",
    unit=MILLISECONDS,
    limit="ranged GET",
    open=_open,
    goal=Goal(3.0, at_least=False),
)
