"""Workload `small-files`: 2,000 cold files of 10 KiB, one after another; the limit is a GET after another."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from bench.child import run_program
from bench.figures import SECONDS, Reading
from bench.mounts import Mounter, installed
from bench.options import Options
from bench.site import Site
from bench.workload import Measure, Subjects, Workload

BUCKET = "bench-small"
LENGTH = 10 * 1024
FILES, QUICK_FILES = 2000, 200


def _key(number: int) -> str:
    return f"small-{number:05}"


def _measure(mounter: Mounter, site: Site) -> Measure:
    def measure(_: int) -> Reading:
        with mounter.mounted(site, BUCKET) as mount:
            return run_program("bench.readers", {"way": "every", "path": str(mount.path)})

    return measure


@contextlib.contextmanager
def _open(site: Site, options: Options) -> Iterator[Subjects]:
    keys = [_key(number) for number in range(QUICK_FILES if options.quick else FILES)]
    for key in keys:
        site.s3.put(BUCKET, key, os.urandom(LENGTH))
    job = {"way": "many", "urls": [site.url(BUCKET, key) for key in keys], "length": LENGTH}
    subjects: dict[str, Measure | None] = {"plain GETs": lambda _: run_program("bench.receive", job)}
    for name, mounter in installed(site):
        subjects[name] = _measure(mounter, site) if mounter else None
    yield subjects


WORKLOAD = Workload(
    name="small-files", title="2,000 cold files of 10 KiB", unit=SECONDS, limit="plain GETs", open=_open
)
