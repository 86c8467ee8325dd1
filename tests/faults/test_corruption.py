"""Damage to the store behind a stopped agent's back: whatever is damaged, what readers get is right.

Bytes of cache files are flipped, files cut at 4 KiB boundaries, the index is deleted or damaged, all drawn
from the seed. Then the agent starts under another boot id (rows are made to be of another one), or it scrubs.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from deploy.local.layout import AgentSettings
from deploy.local.process import StackError
from deploy.local.stack import CHECKOUT, LocalStack
from tests.harness.lines import await_line
from tests.harness.reading import read
from tests.harness.s3 import SeaweedS3

pytestmark = pytest.mark.timeout(120)

MIB = 1 << 20
PAGE = 4096
SIZES = (8 * MIB, 5 * MIB + 4321, 3 * MIB, 700_000)
WITHIN = 30.0  # seconds for a scrub of a few MiB
buckets = (f"corrupt-{number}" for number in itertools.count())


@dataclass
class Site:
    """A stack with a bucket that the store has all of."""

    stack: LocalStack
    uri: str
    digests: list[str]
    rng: random.Random

    @property
    def store(self) -> Path:
        return self.stack.layout.store

    @property
    def index(self) -> Path:
        return self.store / "index.sqlite"

    def files(self) -> list[Path]:
        return sorted(path for path in (self.store / "objects").glob("??/*") if path.is_file())

    def read(self) -> list[str]:
        """The digests of all files as a reader of a new mount sees them."""
        mount = self.stack.mount(self.uri)
        found = read("sequential", *(mount / f"file-{number}" for number in range(len(SIZES))))
        self.stack.umount(mount)
        return found

    def damage(self, kind: str) -> float:
        return self.stack.metrics()[f'headrace_store_damage_total{{kind="{kind}"}}']

    def another_boot(self) -> None:
        """As after a crash of the machine: what the index has was written before it."""
        with sqlite3.connect(self.index) as database:
            database.execute("UPDATE chunks SET boot = 'another'")
        database.close()
        self.keep_owner()

    def keep_owner(self) -> None:
        """What root has made here is the agent's."""
        owner = self.store.stat()
        for path in self.store.glob("index.sqlite*"):
            os.chown(path, owner.st_uid, owner.st_gid)

    def flip(self, path: Path) -> int:
        """One bit of one byte at random; where."""
        offset = self.rng.randrange(path.stat().st_size)
        with path.open("r+b") as file:
            file.seek(offset)
            byte = file.read(1)[0]
            file.seek(offset)
            file.write(bytes([byte ^ 1 << self.rng.randrange(8)]))
        return offset

    def cut(self, path: Path) -> None:
        os.truncate(path, self.rng.randrange(path.stat().st_size // PAGE) * PAGE)

    def awaited(self, kind: str, count: float) -> None:
        """Wait until so much damage was found."""
        await_line(self.stack.process("agent").log, lambda: self.damage(kind) >= count, WITHIN)


@pytest.fixture(scope="module")
def running(seaweed: SeaweedS3) -> Iterator[LocalStack]:
    with LocalStack(s3=seaweed) as stack:
        stack.stop_agent()
        yield stack


@pytest.fixture
def stack(running: LocalStack) -> Iterator[LocalStack]:
    """The agent is stopped and the store is empty."""
    yield running
    try:
        running.process("agent")
    except StackError:
        pass  # stopped already
    else:
        running.stop_agent()
    for path in running.layout.store.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.fixture
def site(stack: LocalStack, seed: int, request: pytest.FixtureRequest) -> Site:
    """The files are filled and the agent is stopped."""
    rng = random.Random(f"{seed} {request.node.name}")
    bucket = next(buckets)
    digests = []
    for number, size in enumerate(SIZES):
        data = rng.randbytes(size)
        digests.append(hashlib.sha256(data).hexdigest())
        stack.s3.put(bucket, f"file-{number}", data)
    promote = "auto" if rng.random() < 0.5 else "never"
    stack.settings = AgentSettings(patience="20s", promote=promote, chunk_size="1MiB", scrub_rate="0B")
    stack.start_agent()
    made = Site(stack, f"s3://{bucket}", digests, rng)
    assert made.read() == digests
    stack.stop_agent()
    return made


def test_flipped_bytes_are_repaired_at_the_first_read_of_another_boot(site: Site) -> None:
    damaged = {(path, site.flip(path) // MIB) for path in site.files() for _ in range(3)}
    site.another_boot()
    site.stack.start_agent()
    assert site.read() == site.digests
    assert 1 <= site.damage("chunk") <= len(damaged)
    assert site.read() == site.digests


def test_files_that_are_cut_are_fetched_anew(site: Site) -> None:
    cut = site.rng.sample(site.files(), 2)
    for path in cut:
        site.cut(path)
    site.stack.start_agent()  # under the same boot id: a length needs no checksum
    assert site.read() == site.digests
    assert site.damage("file") == len(cut)


ALSO = [pytest.param(kind, marks=pytest.mark.long) for kind in ("empty", "cut", "deleted")]


@pytest.mark.parametrize("kind", ["first page", "pages", "log", *ALSO])
def test_a_damaged_index_costs_a_fetch_and_no_wrong_byte(site: Site, kind: str) -> None:
    def garbage(offset: int, length: int) -> int:
        with site.index.open("r+b") as file:
            file.seek(offset)
            return file.write(site.rng.randbytes(length))

    pages = site.index.stat().st_size // PAGE
    damage: dict[str, Callable[[], object]] = {
        "deleted": site.index.unlink,
        "empty": lambda: os.truncate(site.index, 0),
        "cut": lambda: site.cut(site.index),
        "first page": lambda: garbage(0, PAGE),
        "pages": lambda: [garbage(site.rng.randrange(1, pages) * PAGE, PAGE) for _ in range(pages // 2)],
        "log": lambda: site.index.with_name("index.sqlite-wal").write_bytes(site.rng.randbytes(3 * PAGE)),
    }
    for path in site.files():
        site.flip(path)  # nothing of what lies there may be believed without its row
    if kind == "pages":
        site.another_boot()  # rows can be changed and sound
    damage[kind]()
    site.keep_owner()
    site.stack.start_agent()
    assert site.read() == site.digests
    if kind in ("empty", "cut", "first page"):
        assert site.damage("index") == 1
        assert site.store.joinpath("index.sqlite.corrupt-1").exists()


def test_files_that_no_row_names_are_removed_behind_the_start(site: Site) -> None:
    files = site.files()
    site.index.unlink()
    foreign = site.store / "objects" / "notes.txt"
    foreign.write_text("mine")
    site.stack.start_agent()
    site.awaited("unknown", len(files))
    assert site.files() == [] and foreign.read_text() == "mine"
    assert site.read() == site.digests


def test_the_scrub_finds_flipped_bytes_within_one_boot(site: Site) -> None:
    files = site.files()
    damaged = {(path, site.flip(path) // MIB) for path in files for _ in range(2)}
    site.stack.settings = AgentSettings(
        patience="20s", promote=site.stack.settings.promote, chunk_size="1MiB", scrub_rate="1GiB"
    )
    site.stack.start_agent()
    site.awaited("chunk", len(damaged))
    assert site.read() == site.digests
    assert site.damage("chunk") == len(damaged)


def test_fsck_repairs_what_a_start_would_believe(site: Site) -> None:
    damaged = {(path, site.flip(path) // MIB) for path in site.files()[:2]}
    command = [sys.executable, "-m", "agent", "fsck", "--config", str(site.stack.layout.config), "--json"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=CHECKOUT)
    assert ended.returncode == 1, ended.stderr
    assert json.loads(ended.stdout)["summary"]["damage"] == len({path for path, _ in damaged})
    site.stack.start_agent()
    assert site.read() == site.digests
    assert site.damage("chunk") == 0
