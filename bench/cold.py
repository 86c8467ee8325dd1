"""Workload `cold`: one large object, read for the first time by `dd bs=1M`; the limit is a raw download."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from bench.child import dd, kept_memory
from bench.figures import SPEED, Goal, Reading
from bench.limits import raw_download
from bench.mounts import Mounter, installed
from bench.options import Options
from bench.site import Site
from bench.workload import Measure, Subjects, Workload

BUCKET, KEY = "bench-large", "object.bin"
# Times the size of the object: the store's and the mount's page cache, the raw download's, and what the one
# before has left.
KEPT = 4
Read = Callable[[Path, int], Reading]


@contextlib.contextmanager
def cold_subjects(site: Site, options: Options, read: Read) -> Iterator[Subjects]:
    """Every mounter with an empty cache for each reading, and the raw download.

    All find memory at hand: else the raw download alone does, which runs twice in a row in the same pages.
    """
    site.object(BUCKET, KEY, options.size)
    subjects: dict[str, Measure | None] = {
        "raw download": lambda _: raw_download(site, BUCKET, KEY, options.size)
    }
    for name, mounter in installed(site):
        subjects[name] = _measure(mounter, site, options, read) if mounter else None
    with kept_memory(KEPT * options.size):
        yield subjects


def _measure(mounter: Mounter, site: Site, options: Options, read: Read) -> Measure:
    def measure(_: int) -> Reading:
        with mounter.mounted(site, BUCKET) as mount:
            before = mount.cpu_seconds()
            reading = read(mount.path / KEY, options.size)
            return replace(reading, cpu_seconds=mount.cpu_seconds() - before)

    return measure


WORKLOAD = Workload(
    name="cold",
    title="cold read, dd bs=1M",
    unit=SPEED,
    limit="raw download",
    open=functools.partial(cold_subjects, read=dd),
    goal=Goal(0.70),
)
