"""Workloads `promoted` and `promoted-mapped`: a complete dataset published again, against a native file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from bench.child import BenchError, dd
from bench.cold import BUCKET, KEY, Read
from bench.figures import SPEED, Goal
from bench.mounts import local_stack
from bench.options import Options
from bench.site import Site
from bench.warm import mapped, sequential
from bench.workload import HEADRACE, Subjects, Workload
from csi.holder.mountinfo import FSTYPE, mount_entries


@contextlib.contextmanager
def _subjects(site: Site, options: Options, read: Read) -> Iterator[Subjects]:
    """Read to the end through FUSE, published again, and then read once more before the rounds begin."""
    native = site.object(BUCKET, KEY, options.size)
    dd(native, options.size)
    with local_stack(site) as stack:
        through_fuse = stack.mount(f"s3://{BUCKET}")
        dd(through_fuse / KEY, options.size)
        stack.umount(through_fuse)
        target = stack.mount(f"s3://{BUCKET}")
        if any(entry.point == str(target) and entry.fstype == FSTYPE for entry in mount_entries()):
            raise BenchError("the dataset was not promoted")
        dd(target / KEY, options.size)
        yield {
            "native file": lambda _: read(native, options.size),
            HEADRACE: lambda _: read(target / KEY, options.size),
        }


SEQUENTIAL = Workload(
    name="promoted",
    title="read of a promoted dataset, dd bs=1M",
    unit=SPEED,
    limit="native file",
    open=lambda site, options: _subjects(site, options, sequential),
    goal=Goal(0.97),
)
MAPPED = Workload(
    name="promoted-mapped",
    title="read of a promoted dataset, mmap",
    unit=SPEED,
    limit="native file",
    open=lambda site, options: _subjects(site, options, mapped),
    goal=Goal(0.97),
)
