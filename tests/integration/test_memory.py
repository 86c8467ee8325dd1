"""The agent's memory stays bounded whatever is read."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest

from deploy.local.stack import LocalStack
from tests.harness.reading import digests, start_reader

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
