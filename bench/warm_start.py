"""Workload `warm-start`: a store with 1,000,000 chunks in its index is opened and gives its first bytes.

The limit is the same with 1,000 chunks. The page cache of the index is dropped before each start; the index
was written under another boot id, so the first object is checked chunk by chunk before it is read.
"""

from __future__ import annotations

import contextlib
import os
import random
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path

import xxhash

from agent.cache.index import Index
from agent.content import ObjectRef
from bench.child import run
from bench.figures import MILLISECONDS, Goal, Reading
from bench.options import Options
from bench.site import Site
from bench.workload import HEADRACE, Measure, Subjects, Workload

CHUNK = 8 << 20
PER_OBJECT = 100  # of the chunks that are only in the index
PRESENT = ObjectRef("s3://bucket/present", "v1", CHUNK)
LIMIT = "1,000 chunks"

START = """
import asyncio, os, sys, time
from pathlib import Path
from agent.cache.directory import StoreLimits
from agent.cache.store import Store
from agent.clock import SystemClock
from agent.content import Extent
from bench.warm_start import CHUNK, PRESENT
async def main():
    began = time.monotonic()
    store = await Store.open([Path(sys.argv[1])], CHUNK, StoreLimits(1 << 50, 0), SystemClock())
    cached = await store.acquire(PRESENT)
    assert cached.begin_read(Extent(0, 1 << 20))
    assert len(os.pread(cached.fd, 1 << 20, 0)) == 1 << 20
    print(time.monotonic() - began)
    cached.end_read(Extent(0, 1 << 20))
    store.release(cached)
    await store.close()
asyncio.run(main())
"""


def _fill(store: Path, chunks: int) -> None:
    """One object that is there, and many of which only the index knows."""
    path = store / "objects" / PRESENT.key[:2] / PRESENT.key
    path.parent.mkdir(parents=True)
    data = random.Random(1).randbytes(CHUNK)
    path.write_bytes(data)
    Index(store / "index.sqlite", "other-boot").close()
    refs = [
        ObjectRef(f"s3://bucket/{number}", "v1", PER_OBJECT * CHUNK) for number in range(chunks // PER_OBJECT)
    ]
    with contextlib.closing(sqlite3.connect(store / "index.sqlite")) as database, database:
        database.executemany(
            "INSERT INTO objects (id, key, uri, version, size, chunk_size, present)"
            " VALUES (?, ?, ?, 'v1', ?, ?, ?)",
            [
                (number, ref.key, ref.uri, ref.size, CHUNK, ref.size)
                for number, ref in enumerate([PRESENT, *refs], start=1)
            ],
        )
        rows = (
            (2 + number // PER_OBJECT, number % PER_OBJECT, bytes(16), "other") for number in range(chunks)
        )
        database.executemany("INSERT INTO chunks VALUES (?, ?, ?, ?)", rows)
        row = (1, 0, xxhash.xxh3_128_digest(data), "other")
        database.execute("INSERT INTO chunks VALUES (?, ?, ?, ?)", row)


def _measure(store: Path) -> Measure:
    def measure(_: int) -> Reading:
        index = os.open(store / "index.sqlite", os.O_RDONLY)
        os.fsync(index)
        os.posix_fadvise(index, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(index)
        return Reading(float(run([sys.executable, "-c", START, str(store)])))

    return measure


@contextlib.contextmanager
def _open(site: Site, _: Options) -> Iterator[Subjects]:
    small, large = site.fresh("few-chunks"), site.fresh("many-chunks")
    _fill(small, 1_000)
    _fill(large, 1_000_000)
    yield {HEADRACE: _measure(large), LIMIT: _measure(small)}


WORKLOAD = Workload(
    name="warm-start",
    title="start with 1,000,000 chunks, to the first bytes",
    unit=MILLISECONDS,
    limit=LIMIT,
    open=_open,
    goal=Goal(3.0, at_least=False),
)
