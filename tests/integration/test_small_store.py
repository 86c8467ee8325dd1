"""A store smaller than what is read through it: right bytes, the reserve kept, the policy followed."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from agent.control.client import AdminClient
from agent.control.views import PinView
from deploy.local.layout import AgentSettings
from deploy.local.stack import LocalStack
from tests.harness import chunk_reader
from tests.harness.disk import least_free, small_disk
from tests.harness.lines import await_line
from tests.harness.reading import digests, read, start_reader
from tests.harness.s3 import SeaweedS3

MIB = 1 << 20
RESERVE = 16 * MIB
SLACK = 4 * MIB  # CONCURRENCY.md, "Eviction"
CHUNKS = 8  # of each file, of 1 MiB; the last one is never read
ORDER = (0, 2, 4, 6, 1, 3, 5)  # jumps, so that nothing is filled ahead
SETTINGS = AgentSettings(chunk_size="1MiB", reserve="16MiB", scrub_rate="1MiB")


@pytest.fixture
def small(seaweed: SeaweedS3, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[LocalStack]:
    stack = LocalStack(SETTINGS, s3=seaweed)
    try:
        with small_disk(tmp_path / "image", stack.layout.store, getattr(request, "param", 128 * MIB)):
            try:
                stack.start()
                yield stack
            finally:
                stack.kill_agent()
                stack.kill_holder()
    finally:
        stack.close()


async def pin(stack: LocalStack, bucket: str) -> PinView:
    async with AdminClient(str(stack.layout.admin_socket)) as client:
        (found,) = [one for one in await client.datasets() if one.uri == f"s3://{bucket}"]
        return await client.pin(found.revision, time.time() + 3600, "a test")


async def bytes_present(stack: LocalStack, bucket: str) -> int:
    async with AdminClient(str(stack.layout.admin_socket)) as client:
        (found,) = [one for one in await client.datasets() if one.uri == f"s3://{bucket}"]
        return found.bytes_present


@dataclass
class Simulated:
    """The policy as CONCURRENCY.md states it, over (file, chunk) with logical times; sizes in chunks."""

    limit: int
    held: dict[str, dict[int, int]] = field(default_factory=dict)
    used: dict[str, int] = field(default_factory=dict)
    now: int = 0
    hits: int = 0

    def read(self, file: str, chunk: int) -> None:
        self.now += 1
        self.used[file] = self.now
        chunks = self.held.setdefault(file, {})
        self.hits += chunk in chunks
        chunks[chunk] = self.now
        if self.count() > self.limit * 0.95:
            self.evict(self.limit * 0.90)

    def count(self) -> int:
        return sum(map(len, self.held.values()))

    def evict(self, until: float) -> None:
        for file in sorted(self.held, key=lambda name: self.used[name]):
            for chunk in sorted(self.held[file], key=lambda number: self.held[file][number]):
                if self.count() <= until:
                    return
                del self.held[file][chunk]


def rounds(names: list[str], seed: int) -> list[str]:
    """All names three times, each time in another order, and between them often one of a few favourites."""
    rng = random.Random(seed)
    found: list[str] = []
    for _ in range(3):
        for name in rng.sample(names, len(names)):
            found += [name, *([rng.choice(names[:6])] if rng.random() < 0.7 else [])]
    return found


def read_chunks(mount: Path, names: list[str], contents: dict[str, bytes]) -> None:
    """Read the chunks of ORDER of each file, and hold them against what the origin has."""
    lines = "".join("\t".join([str(mount / name), str(MIB), *map(str, ORDER)]) + "\n" for name in names)
    command = [sys.executable, chunk_reader.__file__]
    done = subprocess.run(command, input=lines, capture_output=True, text=True, timeout=500, check=True)
    wanted = {
        name: hashlib.sha256(b"".join(data[n * MIB : (n + 1) * MIB] for n in ORDER)).hexdigest()
        for name, data in contents.items()
    }
    assert done.stdout.split() == [wanted[name] for name in names]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("small", "files"),
    [
        pytest.param(128 * MIB, 48, id="128 MiB"),
        pytest.param(1024 * MIB, 384, id="1 GiB", marks=pytest.mark.long),
    ],
    indirect=["small"],
)
def test_three_rounds_over_three_times_the_store_hit_as_the_policy_says_and_keep_the_reserve(
    small: LocalStack, files: int, seed: int
) -> None:
    piece = random.Random(seed).randbytes(64 * MIB)
    names = [f"f{number}" for number in range(files)]
    bucket = f"rounds-{files}"
    contents = {}
    for number, name in enumerate(names):
        begin = number * 4097 % (56 * MIB)
        contents[name] = piece[begin : begin + CHUNKS * MIB]
        small.s3.put(bucket, name, contents[name])
    small.s3.put(f"pinned-{files}", "kept", piece[: 5 * MIB])
    kept = small.mount(f"s3://pinned-{files}")
    assert read("sequential", kept / "kept") == [hashlib.sha256(piece[: 5 * MIB]).hexdigest()]
    asyncio.run(pin(small, f"pinned-{files}"))
    mount = small.mount(f"s3://{bucket}")
    free = small.layout.store
    room = _free(free) - RESERVE - SLACK + 5 * MIB
    order = rounds(names, seed)
    simulated = Simulated(room // MIB - 5)
    for name in order:
        for chunk in ORDER:
            simulated.read(name, chunk)
    before = small.metrics()
    with least_free(free) as least:
        read_chunks(mount, order, contents)
    after = small.metrics()
    assert least[0] >= RESERVE
    done = 'headrace_fills_total{result="done"}'
    reads = len(order) * len(ORDER)
    hits = reads - (after[done] - before[done])
    print(f"hits {hits / reads:.3f}, simulated {simulated.hits / reads:.3f}, least free {least[0]}")
    assert abs(hits - simulated.hits) / reads < 0.05
    assert after["headrace_passing_bytes_total"] == 0
    assert asyncio.run(bytes_present(small, f"pinned-{files}")) == 5 * MIB
    for target in (mount, kept):
        small.umount(target)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("count", [pytest.param(4, marks=pytest.mark.long), 8])
def test_a_dataset_twice_the_store_is_read_and_mapped_by_many_at_once(
    small: LocalStack, seed: int, count: int
) -> None:
    data = random.Random(seed).randbytes(50 * MIB)
    for number in range(4):
        small.s3.put("oversized", f"f{number}", data)
    mount = small.mount("s3://oversized")
    expected = hashlib.sha256(data).hexdigest()
    with least_free(small.layout.store) as least:
        readers = [
            start_reader(how, [mount / f"f{(number + shift) % 4}" for shift in range(4)])
            for number, how in enumerate(("sequential", "mapped") * (count // 2))
        ]
        assert [digests(reader, within=90) for reader in readers] == [[expected] * 4] * count
    assert least[0] >= RESERVE
    small.umount(mount)


@pytest.mark.timeout(120)
def test_a_disk_that_others_fill_is_read_past_and_used_again_once_it_has_room(
    small: LocalStack, seed: int
) -> None:
    data = random.Random(seed).randbytes(20 * MIB)
    for name in ("one", "two", "three"):
        small.s3.put("crowded", name, data)
    mount = small.mount("s3://crowded")
    expected = [hashlib.sha256(data).hexdigest()]
    ballast = small.layout.store / "others"
    with ballast.open("wb") as file:
        while _free(small.layout.store) > RESERVE:
            file.write(bytes(MIB))
            file.flush()
    assert read("sequential", mount / "one") == expected
    assert small.metrics()["headrace_passing_bytes_total"] >= 20 * MIB
    ballast.unlink()
    passed = small.metrics()["headrace_passing_bytes_total"]
    assert read("sequential", mount / "two") == expected
    assert small.metrics()["headrace_passing_bytes_total"] == passed
    assert asyncio.run(bytes_present(small, "crowded")) >= 20 * MIB
    small.umount(mount)


def _free(path: Path) -> int:

    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


@contextmanager
def failing(pid: int, calls: str, which: str = "1+") -> Iterator[None]:
    """These system calls of a process fail with EIO, in all of its threads: of each thread `which` of them.

    As strace(1) has it for `when`: all, or "2+2" for every second one.
    """
    command = [
        "strace",
        "-f",
        "-e",
        f"trace={calls}",
        "-e",
        f"inject={calls}:error=EIO:when={which}",
        "-p",
        str(pid),
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as tracing:
        assert tracing.stderr is not None
        drained = threading.Thread(target=lambda: deque(tracing.stderr or (), 0))
        try:
            assert "attached" in tracing.stderr.readline()  # with all threads
            drained.start()
            yield
        finally:
            tracing.send_signal(signal.SIGINT)
            drained.join()


@pytest.mark.timeout(120)
def test_writes_that_fail_are_read_past_and_the_directory_is_used_again_without_a_restart(
    seaweed: SeaweedS3, seed: int
) -> None:
    data = random.Random(seed).randbytes(10 * MIB)
    expected = [hashlib.sha256(data).hexdigest()]
    with LocalStack(SETTINGS, s3=seaweed) as stack:
        for name in ("one", "two"):
            stack.s3.put("failing", name, data)
        mount = stack.mount("s3://failing")
        failed = f'headrace_store_state{{directory="{stack.layout.store}",state="failed"}}'
        with failing(stack.process("agent").pid, "pwrite64"):
            assert read("sequential", mount / "one") == expected
            assert stack.metrics()[failed] == 1
        await_line(stack.process("agent").log, lambda: not stack.metrics()[failed], within=30)
        passed = stack.metrics()["headrace_passing_bytes_total"]
        assert passed >= 10 * MIB
        assert read("sequential", mount / "two") == expected
        assert stack.metrics()["headrace_passing_bytes_total"] == passed
        stack.umount(mount)


def passed_through_while_failing(seaweed: SeaweedS3, data: bytes, calls: str, which: str = "1+") -> float:
    """Bytes that are passed through while what is stored is read, and these calls of the agent fail."""
    with LocalStack(SETTINGS, s3=seaweed) as stack:
        stack.s3.put("unreadable", "part", data)
        mount = stack.mount("s3://unreadable")
        read_chunks(mount, ["part"], {"part": data})
        before = stack.metrics()["headrace_passing_bytes_total"]
        with failing(stack.process("agent").pid, calls, which):
            read_chunks(mount, ["part"], {"part": data})
        passed = stack.metrics()["headrace_passing_bytes_total"]
        stack.umount(mount)
    return passed - before


@pytest.mark.timeout(120)
def test_what_the_disk_does_not_give_back_is_read_from_the_origin(seaweed: SeaweedS3, seed: int) -> None:
    data = random.Random(seed).randbytes(30 * MIB)
    passed = passed_through_while_failing(seaweed, data, "preadv,preadv2,splice")
    assert passed >= len(ORDER) * MIB


@pytest.mark.timeout(120)
def test_what_the_kernel_does_not_take_from_a_pipe_it_gets_from_a_buffer(
    seaweed: SeaweedS3, seed: int
) -> None:
    data = random.Random(seed).randbytes(8 * MIB)
    # Of each reply the first call loads the pipe, and the second gives it to the kernel.
    assert passed_through_while_failing(seaweed, data, "splice", "2+2") == 0
