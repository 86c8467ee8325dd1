"""Workload `cold`: one large object, read for the first time by `dd bs=1M`; the limit is a raw download."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from bench.child import dd
from bench.figures import SPEED, Goal, Reading
from bench.limits import raw_download
from bench.mounts import Mounter, installed
from bench.options import Options
from bench.site import Site
from bench.workload import Measure, Subjects, Workload

BUCKET, KEY = "bench-large", "object.bin"
Read = Callable[[Path, int], Reading]


def cold_subjects(site: Site, options: Options, read: Read) -> Subjects:
    """Every mounter with an empty cache for each reading, and the raw download."""
    site.object(BUCKET, KEY, options.size)
    subjects: dict[str, Measure | None] = {
        "raw download": lambda _: raw_download(site, BUCKET, KEY, options.size)
    }
    for name, mounter in installed(site):
        subjects[name] = _measure(mounter, site, options, read) if mounter else None
    return subjects


def _measure(mounter: Mounter, site: Site, options: Options, read: Read) -> Measure:
    def measure(_: int) -> Reading:
        with mounter.mounted(site, BUCKET) as mount:
            before = mount.cpu_seconds()
            reading = read(mount.path / KEY, options.size)
            return replace(reading, cpu_seconds=mount.cpu_seconds() - before)

    return measure


@contextlib.contextmanager
def _open(site: Site, options: Options) -> Iterator[Subjects]:
    yield cold_subjects(site, options, dd)


WORKLOAD = Workload(
    name="cold",
    title="cold read, dd bs=1M",
    unit=SPEED,
    limit="raw download",
    open=_open,
    goal=Goal(0.70),
)
