"""Many datasets mounted and unmounted, over and over: nothing grows in agent, serve and holder."""

from __future__ import annotations

import os
import re
import select
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from deploy.local.layout import AgentSettings
from deploy.local.mounts import mounts_below
from deploy.local.stack import LocalStack
from tests.harness.publishing import Kubelet
from tests.harness.reading import run
from tests.harness.s3 import SeaweedS3

PROCESSES = ("agent", "serve", "holder")
SETTLES_WITHIN = 5.0  # seconds
# Pools make their threads as they are needed: one that had enough so far may come to its bound later. A
# thread left by each publish would be ten times as many.
POOLED = 3
GROWTH = 10 * 1024  # KiB of RSS that five rounds may cost beyond the second


@dataclass(frozen=True)
class Use:
    """What a process holds."""

    descriptors: int
    threads: int
    rss: int  # KiB

    def within(self, before: Use) -> bool:
        same = self.descriptors <= before.descriptors and self.threads <= before.threads + POOLED
        return same and self.rss <= before.rss + GROWTH


def use(pid: int) -> Use:
    status = Path(f"/proc/{pid}/status").read_text()

    def number(field: str) -> int:
        found = re.search(rf"^{field}:\s+(\d+)", status, re.M)
        assert found is not None
        return int(found[1])

    return Use(len(os.listdir(f"/proc/{pid}/fd")), number("Threads"), number("VmRSS"))


@pytest.fixture
def stack(seaweed: SeaweedS3) -> Iterator[LocalStack]:
    # Few connections: as many are kept after each round as the settings allow.
    settings = AgentSettings(patience="30s", origins={"s3://": {"max_connections": 2}})
    with LocalStack(settings, s3=seaweed) as running:
        yield running


def in_rounds(stack: LocalStack, datasets: int, rounds: int) -> None:
    """Publish all at once, read a byte or more of each, unpublish all at once; the last round must leave as
    little as the second."""
    kubelet = Kubelet(stack.layout.csi_socket)
    for number in range(datasets):
        stack.s3.put("many", f"{number}/f", b"%d" % number)
    targets = [stack.layout.targets / f"pod-{number}" for number in range(datasets)]

    def publish(number: int) -> None:
        attributes = {"uri": f"s3://many/{number}"}
        kubelet.publish(targets[number], attributes, volume=f"volume-{number}")

    def unpublish(number: int) -> None:
        kubelet.unpublish(targets[number], f"volume-{number}")

    for number in range(rounds):
        _at_once(publish, datasets)
        assert len(mounts_below(stack.layout.targets)) == datasets
        read = run(["cat", *(str(target / "f") for target in targets)])
        assert read.stdout == "".join(map(str, range(datasets)))
        _at_once(unpublish, datasets)
        assert list(mounts_below(stack.layout.root)) == []
        if number == 1:
            second = {name: use(stack.process(name).pid) for name in PROCESSES}
    for name in PROCESSES:
        settles(stack.process(name).pid, second[name])


def _at_once(call: Callable[[int], None], count: int) -> None:
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(call, range(count)))


def settles(pid: int, before: Use) -> None:
    """Wait, a little, until the process holds no more than before: connections end after their answers."""
    watched, deadline = os.pidfd_open(pid), time.monotonic() + SETTLES_WITHIN
    try:
        while not (now := use(pid)).within(before):
            assert time.monotonic() < deadline, (Path(f"/proc/{pid}/cmdline").read_bytes(), before, now)
            select.select([watched], [], [], 0.1)  # the process's end would wake this
    finally:
        os.close(watched)


def test_thirty_datasets_mounted_four_times_over_leave_nothing(stack: LocalStack) -> None:
    in_rounds(stack, 30, 4)


@pytest.mark.long
@pytest.mark.timeout(300)
def test_two_hundred_datasets_mounted_five_times_over_leave_nothing(stack: LocalStack) -> None:
    in_rounds(stack, 200, 5)
