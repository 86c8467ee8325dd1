"""The agent's memory stays bounded whatever is read, and it offers itself first where memory runs out."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest

from deploy.local.stack import LocalStack
from tests.harness.cgroup import memory_cgroup
from tests.harness.reading import digests, start_reader
from tests.harness.s3 import SeaweedS3

MIB = 1 << 20


def peak_kib(pid: int) -> int:
    """VmHWM of a process (proc(5)), KiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


@pytest.mark.long
@pytest.mark.timeout(300)
def test_eight_readers_of_four_gb_keep_the_agent_under_200_mb(stack: LocalStack) -> None:
    piece = random.Random(1).randbytes(64 * MIB)
    data = piece * 8
    for number in range(8):
        stack.s3.put("memory", f"f{number}", data)
    mount = stack.mount("s3://memory")
    try:
        readers = [start_reader("sequential", [mount / f"f{number}"]) for number in range(8)]
        expected = hashlib.sha256(data).hexdigest()
        assert [digests(reader, within=240) for reader in readers] == [[expected]] * 8
        peak = peak_kib(stack.process("agent").pid)
        print(f"the agent's peak: {peak / 1024:.0f} MiB")
        assert peak * 1024 < 200_000_000
    finally:
        stack.umount(mount)


@pytest.mark.timeout(120)
def test_under_a_limit_of_256_mib_eight_cold_readers_are_served(seaweed: SeaweedS3) -> None:
    data = random.Random(2).randbytes(64 * MIB)
    for number in range(8):
        seaweed.put("limited", f"f{number}", data)
    with memory_cgroup(256 * MIB) as cgroup, LocalStack(s3=seaweed, cgroup=cgroup) as stack:
        mount = stack.mount("s3://limited")
        started = stack.process("agent").pid
        readers = [start_reader("sequential", [mount / f"f{number}"]) for number in range(8)]
        expected = hashlib.sha256(data).hexdigest()
        assert [digests(reader, within=90) for reader in readers] == [[expected]] * 8
        assert str(started) in (cgroup / "cgroup.procs").read_text().split()
        stack.umount(mount)


def test_the_kernel_ends_the_agent_before_the_holder_where_memory_runs_out(stack: LocalStack) -> None:
    def score(name: str) -> int:
        return int(Path(f"/proc/{stack.process(name).pid}/oom_score").read_text())

    assert score("agent") > score("holder")
    adjustment = Path(f"/proc/{stack.process('agent').pid}/oom_score_adj").read_text()
    assert int(adjustment) >= 500
