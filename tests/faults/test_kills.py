"""The agent is killed at random moments while readers fill its store: each chunk is whole or absent.

The store holds less than what is read, so that fills, evictions and complete files come and go all the time.
After each kill a copy of what the dead agent has left is looked at from outside: every chunk that the index
says is present has the checksum that stands there, and the bytes that the origin has. The readers go on
meanwhile, in processes of their own, and see no error: the holder keeps the mount.
"""

from __future__ import annotations

import itertools
import random
import select
import shutil
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
import xxhash

from agent.content import chunk_extent
from deploy.local.layout import AgentSettings
from deploy.local.stack import LocalStack
from tests.harness.reading import read
from tests.harness.s3 import SeaweedS3
from tests.harness.steady import SteadyReader, await_beats, expect, reading

MIB = 1 << 20
READERS = ("read", "mapped", "read", "mapped")
FILES = 2  # of each reader
SIZE = 9 * MIB + 12_345
CAPACITY = 40 * MIB  # of 72: a reader's own files may become complete, those of all do not fit
LONGEST = 0.6  # seconds that an agent lives at most once it is ready
buckets = (f"kills-{number}" for number in itertools.count())


@dataclass
class Site:
    """The stack, what its origin has, and how the moments are drawn."""

    stack: LocalStack
    data: dict[str, bytes]
    uri: str
    mount: Path
    rng: random.Random
    scratch: Path

    def readers(self) -> list[SteadyReader]:
        return [
            SteadyReader(how, self.mount, {name: expect(self.data[name]) for name in names}, self.scratch)
            for how, names in zip(READERS, in_groups(list(self.data)), strict=True)
        ]

    def kill(self, readers: Sequence[SteadyReader]) -> int:
        """End the agent at a random moment, look at what it leaves, start another; chunks that were there."""
        listen(readers, self.rng.uniform(0, LONGEST))
        self.stack.kill_agent()
        present = self.check()
        self.stack.start_agent()
        return present

    def check(self) -> int:
        """Compare what the index says with the files. The agent must not run."""
        left = self.scratch / "left"
        shutil.rmtree(left, ignore_errors=True)
        left.mkdir()
        for path in self.stack.layout.store.glob("index.sqlite*"):
            shutil.copy(path, left)
        with closing(sqlite3.connect(left / "index.sqlite")) as index:
            assert index.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            query = "SELECT id, key, uri, size, chunk_size, present FROM objects"
            found = [self.check_object(index, *row) for row in index.execute(query).fetchall()]
            totals = index.execute("SELECT objects, chunks, bytes FROM totals").fetchone()
        assert totals == (len(found), sum(map(len, found)), sum(map(sum, found)))
        assert totals[2] <= CAPACITY
        return int(totals[1])

    def check_object(
        self,
        index: sqlite3.Connection,
        row: int,
        key: str,
        uri: str,
        size: int,
        chunk_size: int,
        present: int,
    ) -> list[int]:
        """The lengths of the chunks that are present."""
        data = self.data[uri.rpartition("/")[2]]
        path = self.stack.layout.store / "objects" / key[:2] / key
        query = "SELECT chunk, xxh3 FROM chunks WHERE object = ?"
        lengths = []
        for chunk, xxh3 in index.execute(query, (row,)):
            extent = chunk_extent(chunk, size, chunk_size)
            with path.open("rb") as file:
                file.seek(extent.offset)
                kept = file.read(extent.length)
            assert xxhash.xxh3_128(kept).digest() == xxh3, f"{uri}: chunk {chunk} is not whole"
            assert kept == data[extent.offset : extent.end], f"{uri}: chunk {chunk} has other bytes"
            lengths.append(extent.length)
        assert (size, present) == (len(data), sum(lengths)), uri
        return lengths


def in_groups(names: Sequence[str]) -> list[Sequence[str]]:
    return [names[start : start + FILES] for start in range(0, len(names), FILES)]


def listen(readers: Sequence[SteadyReader], seconds: float) -> None:
    """Take what readers tell for so long; fails where one of them ends."""
    until = time.monotonic() + seconds
    while (rest := until - time.monotonic()) > 0:
        ready, _, _ = select.select([reader.output for reader in readers], [], [], rest)
        for reader in readers:
            if reader.output in ready:
                reader.drain()


@pytest.fixture
def site(seaweed: SeaweedS3, seed: int, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Site]:
    rng = random.Random(f"{seed} {request.node.name}")
    bucket = next(buckets)
    data = {f"file-{number}": rng.randbytes(SIZE) for number in range(FILES * len(READERS))}
    for name, content in data.items():
        seaweed.put(bucket, name, content)
    settings = AgentSettings(
        promote="never", chunk_size="1MiB", capacity=f"{CAPACITY}B", reserve="64MiB", scrub_rate="64MiB"
    )
    with LocalStack(settings, s3=seaweed) as stack:
        uri = f"s3://{bucket}"
        yield Site(stack, data, uri, stack.mount(uri), rng, tmp_path)


def kill_many_times(site: Site, times: int) -> None:
    readers = site.readers()
    present = []
    with reading(readers):
        await_beats(readers)
        for _ in range(times):
            present.append(site.kill(readers))
        await_beats(readers)
        ended = [reader.end() for reader in readers]
    print(f"chunks present after each kill: {present}; {sum(one.files for one in ended)} files read")
    assert len(set(present)) > 1, "nothing was filled between the kills"
    files = [site.mount / name for name in site.data]
    assert read("sequential", *files) == [expect(data)[1] for data in site.data.values()]
    site.stack.stop_agent()
    site.check()


@pytest.mark.timeout(120)
def test_each_chunk_is_whole_or_absent_after_twenty_kills(site: Site) -> None:
    kill_many_times(site, 20)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_each_chunk_is_whole_or_absent_after_two_hundred_kills(site: Site) -> None:
    kill_many_times(site, 200)
