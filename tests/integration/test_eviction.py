"""Everything that may go is evicted again and again under readers of all kinds: right bytes, and no stall."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.control.client import AdminClient
from deploy.local.layout import AgentSettings
from deploy.local.stack import LocalStack
from tests.harness.reading import digests, read, start_reader
from tests.harness.s3 import SeaweedS3
from tests.harness.steady import SteadyReader, await_beats, expect, reading

MIB = 1 << 20
WAYS = ("read", "mapped", "held", "walk", "read", "mapped", "held", "read")
STALL = 5.0  # seconds between two reads
EVICTED = 'headrace_evicted_total{kind="%s"}'
BYTES = "headrace_evicted_bytes_total"


@pytest.fixture
def tight(seaweed: SeaweedS3) -> Iterator[LocalStack]:
    """A store of 40 MiB."""
    with LocalStack(AgentSettings(chunk_size="1MiB", capacity="40MiB", patience="20s"), s3=seaweed) as stack:
        yield stack


def put(stack: LocalStack, bucket: str, sizes: dict[str, int], seed: int) -> dict[str, bytes]:
    piece = random.Random(seed).randbytes(64 * MIB)
    contents = {}
    for number, (name, size) in enumerate(sizes.items()):
        begin = number * 4097
        contents[name] = piece[begin : begin + size]
        stack.s3.put(bucket, name, contents[name])
    return contents


def pinned(stack: LocalStack, bucket: str, seed: int) -> tuple[Path, str]:
    """A mount with a file of 4 MiB that is present, which a pin keeps; and its SHA-256."""
    (data,) = put(stack, bucket, {"kept": 4 * MIB}, seed + 1).values()
    mount = stack.mount(f"s3://{bucket}")
    digest = hashlib.sha256(data).hexdigest()
    assert read("sequential", mount / "kept") == [digest]
    asyncio.run(_pin(stack, bucket))
    return mount, digest


async def _pin(stack: LocalStack, bucket: str) -> None:
    async with AdminClient(str(stack.layout.admin_socket)) as client:
        (found,) = [one for one in await client.datasets() if one.uri == f"s3://{bucket}"]
        pin = await client.pin(found.revision, time.time() + 3600, "a test")
        assert await client.pins() == [pin]


def keeps_what_is_pinned(stack: LocalStack, mount: Path, bucket: str, digest: str) -> None:
    """It is all there, and read once more with nothing from the origin."""
    before = asyncio.run(_held(stack, bucket))
    assert before[0] == 4 * MIB
    assert read("mapped", mount / "kept") == [digest]
    assert read("sequential", mount / "kept") == [digest]
    assert asyncio.run(_held(stack, bucket)) == before


async def _held(stack: LocalStack, bucket: str) -> tuple[int, int]:
    """Bytes present of a dataset, and those that readers of its mount had to wait for."""
    async with AdminClient(str(stack.layout.admin_socket)) as client:
        (found,) = [one for one in await client.datasets() if one.uri == f"s3://{bucket}"]
        (mount,) = [one for one in await client.mounts() if one.uri == f"s3://{bucket}"]
        return found.bytes_present, mount.origin_bytes


@pytest.mark.timeout(180)
def test_what_may_go_is_evicted_under_eight_readers_who_see_right_bytes_and_no_stall(
    tight: LocalStack, seed: int, tmp_path: Path
) -> None:
    whole = {f"whole-{number}": 2 * MIB for number in range(30)}
    part = {f"part-{number}": 24 * MIB for number in range(2)}
    contents = put(tight, "churned", whole | part, seed)
    kept, digest = pinned(tight, "churned-kept", seed)
    mount = tight.mount("s3://churned")
    spec = {name: expect(data, 2 * MIB if name in whole else 4 * MIB) for name, data in contents.items()}
    total = sum(length for length, _ in spec.values())
    rng = random.Random(seed)
    readers = []
    for how in WAYS:
        names = rng.sample(list(spec), len(spec))
        readers.append(SteadyReader(how, mount, {name: spec[name] for name in names}, tmp_path))
    with reading(readers):
        for _ in range(25):
            await_beats(readers, files=10)
            seen = tight.metrics()
            if seen[EVICTED % "object"] > len(whole) and seen[BYTES] > 5 * total:
                break
        ended = [reader.end() for reader in readers]
    print(f"{seen[EVICTED % 'object']} objects, {seen[EVICTED % 'chunk']} chunks evicted; {ended}")
    assert seen[EVICTED % "object"] > len(whole)
    assert seen[EVICTED % "chunk"] > len(whole)
    assert seen[BYTES] > 5 * total  # all that is read has gone five times over
    assert max(one.longest for one in ended) < STALL
    keeps_what_is_pinned(tight, kept, "churned-kept", digest)
    for target in (mount, kept):
        tight.umount(target)


@pytest.mark.timeout(180)
def test_a_dataset_twice_the_store_read_by_four_at_once_evicts_and_leaves_what_is_pinned(
    tight: LocalStack, seed: int
) -> None:
    contents = put(tight, "twice", {f"f{number}": 10 * MIB for number in range(8)}, seed)
    kept, digest = pinned(tight, "twice-kept", seed)
    mount = tight.mount("s3://twice")
    expected = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
    names = itertools.cycle(contents)
    readers = []
    for how in ("sequential", "mapped", "sequential", "scattered"):
        order = [next(names) for _ in contents]
        next(names)
        readers.append((start_reader(how, [mount / name for name in order]), order))
    for reader, order in readers:
        assert digests(reader, within=60) == [expected[name] for name in order]
    seen = tight.metrics()
    assert seen[BYTES] >= 20 * MIB
    keeps_what_is_pinned(tight, kept, "twice-kept", digest)
    for target in (mount, kept):
        tight.umount(target)


HOLD = """
import hashlib, os, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
print("open", flush=True)
sys.stdin.read()
print(hashlib.sha256(os.read(fd, 1 << 30)).hexdigest())
"""


def test_what_is_open_in_the_kernel_stays_over_a_restart_of_the_agent_and_may_go_after(
    tight: LocalStack, seed: int
) -> None:
    contents = put(tight, "leased", {"open": 4 * MIB, **{f"f{n}": 10 * MIB for n in range(12)}}, seed)
    expected = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
    first, second = [f"f{n}" for n in range(7)], [f"f{n}" for n in range(7, 12)]
    mount = tight.mount("s3://leased")
    assert read("sequential", mount / "open") == [expected["open"]]
    recorded = lambda: asyncio.run(_present(tight, "leased"))["open"] == 4 * MIB  # noqa: E731
    tight.process("agent").await_ready(recorded, 30.0)  # readers have bytes before the chunk is recorded
    command = [sys.executable, "-c", HOLD, str(mount / "open")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holding:
        try:
            assert holding.stdout is not None
            assert holding.stdout.readline() == "open\n"
            assert tight.metrics()['headrace_opens_total{mode="passthrough"}'] == 1
            tight.kill_agent()
            tight.start_agent()
            assert read("sequential", *(mount / name for name in first)) == [expected[n] for n in first]
            assert tight.metrics()[BYTES] >= 20 * MIB
            assert asyncio.run(_present(tight, "leased"))["open"] == 4 * MIB
            output, _ = holding.communicate("", timeout=20)
        finally:
            holding.kill()
    assert output.split() == [expected["open"]]
    assert read("sequential", *(mount / name for name in second)) == [expected[n] for n in second]
    assert asyncio.run(_present(tight, "leased"))["open"] == 0
    tight.umount(mount)


async def _present(stack: LocalStack, bucket: str) -> dict[str, int]:
    async with AdminClient(str(stack.layout.admin_socket)) as client:
        (found,) = [one for one in await client.datasets() if one.uri == f"s3://{bucket}"]
        return {one.path: one.bytes_present for one in await client.objects(found.revision)}
