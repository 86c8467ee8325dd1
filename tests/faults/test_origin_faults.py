"""An origin that fails in every way seen in the field: right bytes or a clean error, never a wrong byte.

The server behind the scripted proxy is real; each fault comes once, or for ever, and all are there at once,
each at a file of its own: none does harm to another's reader.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fakes.faults import (
    Fault,
    IgnoreRange,
    LengthOff,
    Reset,
    Silence,
    Stall,
    Status,
    Truncate,
    WrongContentRange,
)
from tests.faults.conftest import PATIENCE, Line
from tests.harness.reading import READER, read, read_by_many, run

pytestmark = pytest.mark.timeout(120)

MIB = 1 << 20
DATA = random.Random(7).randbytes(9 * MIB + 4321)
DIGEST = hashlib.sha256(DATA).hexdigest()
SLACK = 6.0  # seconds on top of the patience for starting a reader on a busy machine
FAULTS: dict[str, Fault] = {
    "truncated": Truncate(after=100_000),
    "length too short": LengthOff(-1000),
    "length too long": LengthOff(1000),
    "range ignored": IgnoreRange(DATA),
    "content-range wrong": WrongContentRange(),
    "403": Status(403, s3_code="AccessDenied"),
    "429": Status(429, retry_after=1, s3_code="SlowDown"),
    "503": Status(503, retry_after=1, s3_code="SlowDown"),
    "reset in the body": Reset(after=100_000),
    "reset before the head": Reset(),
    "stalled": Stall(after=100_000),
    "silent": Silence(),
}
buckets = (f"faults-{number}" for number in itertools.count())


@contextlib.contextmanager
def mounted(line: Line, *names: str) -> Iterator[tuple[str, Path]]:
    """A bucket of files with DATA, and its mount."""
    bucket = next(buckets)
    for name in names:
        line.stack.s3.put(bucket, name, DATA)
    mount = line.stack.mount(f"s3://{bucket}")
    try:
        yield bucket, mount
    finally:
        line.stack.umount(mount)


def read_whole(path: Path) -> subprocess.CompletedProcess[str]:
    """Read a file; a reader that takes longer than the patience allows fails the test."""
    return run([sys.executable, str(READER), "sequential", str(path)], within=2 * PATIENCE + SLACK)


def recover(path: Path) -> str:
    """What is read in the end. A read that failed answers the same for a second (SEMANTICS.md)."""
    until = time.monotonic() + 2 * SLACK
    while not (ended := read_whole(path)).stdout.startswith(DIGEST) and time.monotonic() < until:
        pass  # each look is a reader's start
    return ended.stdout or ended.stderr


@dataclass(frozen=True)
class Outcome:
    """How the reader of one file fared: under its fault, and once that was over."""

    status: int
    output: str
    errors: str
    asked: int  # requests for the object while the fault was there
    recovered: str


def under_faults(line: Line, times: int | None) -> dict[str, Outcome]:
    """Every fault at the same time, each at a file of its own with a reader of its own."""
    keys = {name: f"f{number}" for number, name in enumerate(FAULTS)}
    with mounted(line, *keys.values()) as (bucket, mount):
        for name, key in keys.items():
            line.proxy.fault(FAULTS[name], key=f"{bucket}/{key}", times=times)
        with ThreadPoolExecutor(len(keys)) as pool:
            ended = dict(zip(keys, pool.map(lambda key: read_whole(mount / key), keys.values()), strict=True))
            asked = {name: len(line.proxy.object_gets(f"{bucket}/{key}")) for name, key in keys.items()}
            line.proxy.clear()
            recovered = dict(
                zip(keys, pool.map(lambda key: recover(mount / key), keys.values()), strict=True)
            )
    return {
        name: Outcome(one.returncode, one.stdout, one.stderr, asked[name], recovered[name])
        for name, one in ended.items()
    }


@pytest.fixture(scope="module")
def once(running: Line) -> dict[str, Outcome]:
    return under_faults(running, times=1)


@pytest.fixture(scope="module")
def for_ever(running: Line) -> dict[str, Outcome]:
    return under_faults(running, times=None)


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_that_comes_once_is_not_noticed(once: dict[str, Outcome], name: str) -> None:
    ended = once[name]
    if name == "403":  # refused credentials are final until the next read
        assert ended.status == 0 or "Permission denied" in ended.errors
    else:
        assert ended.output.startswith(DIGEST), ended.errors
    assert ended.asked


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_that_stays_ends_in_a_clean_error_or_right_bytes(
    for_ever: dict[str, Outcome], name: str
) -> None:
    ended = for_ever[name]
    if ended.status == 0:
        assert ended.output.startswith(DIGEST)
    else:
        assert "Input/output error" in ended.errors or "Permission denied" in ended.errors, ended.errors
    assert ended.recovered.startswith(DIGEST)


def test_with_the_origin_down_what_is_here_is_served_and_the_rest_recovers(line: Line) -> None:
    with mounted(line, "here", "there") as (_, mount):
        assert read("sequential", mount / "here") == [DIGEST]
        line.proxy.down()
        assert read("mapped", mount / "here") == [DIGEST]
        refused = read_whole(mount / "there")
        assert "Input/output error" in refused.stderr
        line.proxy.up()
        assert recover(mount / "there").startswith(DIGEST)


def test_an_object_that_vanishes_is_stale_and_its_neighbour_is_not(line: Line) -> None:
    with mounted(line, "gone", "kept") as (bucket, mount):
        line.stack.s3.delete(bucket, "gone")
        assert "Stale file handle" in read_whole(mount / "gone").stderr
        assert read("sequential", mount / "kept") == [DIGEST]


def test_eight_cold_readers_make_one_request_for_each_chunk(line: Line) -> None:
    with mounted(line, "f") as (bucket, mount):
        assert read_by_many("sequential", 8, mount / "f") == [[DIGEST]] * 8
        ranges = [seen.range or "none" for seen in line.proxy.object_gets(f"{bucket}/f")]
        assert sorted(ranges) == sorted({f"bytes=0-{8 * MIB - 1}", f"bytes={8 * MIB}-{len(DATA) - 1}"})
