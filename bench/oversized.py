"""Workload `oversized`: a dataset twice as large as the store, read by four readers at once.

Each reads all of it, beginning with another quarter. The limit is the same four readers over a store that is
as empty and has room for everything, so that no byte of theirs was cached before and none is evicted.
"""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.child import READER_SECONDS, BenchError, cpu_seconds
from bench.figures import SPEED, Goal, Reading
from bench.mounts import local_stack
from bench.options import Options
from bench.site import MIB, Site
from bench.workload import HEADRACE, Measure, Subjects, Workload
from deploy.local.layout import AgentSettings

BUCKET = "bench-oversized"
READERS = 4
FILES = 8
LIMIT = "room for all"


def _measure(site: Site, size: int, capacity: int | None) -> Measure:
    settings = AgentSettings(capacity=None if capacity is None else f"{capacity // MIB}MiB")

    def measure(_: int) -> Reading:
        with local_stack(site, settings) as stack:
            mount = stack.mount(f"s3://{BUCKET}")
            pids = [stack.process(name).pid for name in ("holder", "agent")]
            before = cpu_seconds(pids)
            seconds = _read(mount)
            used = cpu_seconds(pids) - before
            if capacity is not None and not stack.metrics()["headrace_evicted_bytes_total"]:
                raise BenchError("headrace: nothing was evicted")
            return Reading(seconds, READERS * size, used)

    return measure


def _read(mount: Path) -> float:
    """The seconds until all four have read everything. Raises BenchError."""
    names = [f"part-{number}" for number in range(FILES)]
    orders = [names[shift:] + names[:shift] for shift in range(0, FILES, FILES // READERS)]
    started = time.monotonic()
    readers = [_reader([mount / name for name in order]) for order in orders]
    try:
        statuses = [reader.wait(READER_SECONDS) for reader in readers]
    except subprocess.TimeoutExpired:
        raise BenchError("a reader takes too long") from None
    finally:
        for reader in readers:
            reader.kill()
    if any(statuses):
        raise BenchError("a reader failed")
    return time.monotonic() - started


def _reader(paths: Sequence[Path]) -> subprocess.Popen[bytes]:
    script = 'for path; do dd if="$path" of=/dev/null bs=1M status=none || exit 1; done'
    command = ["sh", "-c", script, "sh", *map(str, paths)]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL)


@contextlib.contextmanager
def _open(site: Site, options: Options) -> Iterator[Subjects]:
    part = max(options.size // FILES // MIB, 1) * MIB
    for number in range(FILES):
        site.object(BUCKET, f"part-{number}", part)
    size = part * FILES
    yield {LIMIT: _measure(site, size, None), HEADRACE: _measure(site, size, size // 2)}


WORKLOAD = Workload(
    name="oversized",
    title="twice the store, read by four at once",
    unit=SPEED,
    limit=LIMIT,
    open=_open,
    goal=Goal(0.5),
)
