"""What all ways share: a cluster on shaped links, a file at its origin, and what is counted of a run."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from bench.child import ROOT, BenchError
from bench.peers.scenario import Scenario
from deploy.local.cluster import LocalCluster
from deploy.local.network import Host

MIB = 1 << 20
MBIT = 1_000_000
LIMIT = 12.0  # times F/C that anything may take
SOON = 2.0  # seconds in which programs have started


@dataclass(frozen=True, slots=True)
class Run:
    """What one way came to in one scenario. Times are seconds of each healthy node from its own start."""

    scenario: str
    way: str
    bound: float  # F/C
    seconds: Sequence[float]
    origin: float  # bytes that the origin sent, over the size
    cpu: float | None = None  # CPU seconds per GiB and node
    notes: Mapping[str, float] = field(default_factory=dict)

    @property
    def slowest(self) -> float:
        """The slowest node, over F/C."""
        return max(self.seconds) / self.bound

    @property
    def spread(self) -> float:
        """The slowest node over the median one."""
        return max(self.seconds) / statistics.median(self.seconds)


class Way(Protocol):
    """A way to bring the file to all nodes; a module of this package has one as `WAY`."""

    name: str

    def takes(self, scenario: Scenario) -> bool:
        """Whether this way can be measured in a scenario."""

    def carry(self, rig: Rig, scenario: Scenario) -> Run:
        """Do it once. Raises BenchError."""


class Rig:
    """A running cluster, and an object of `size` bytes at its origin, another one for each run."""

    def __init__(self, cluster: LocalCluster, size: int, rate: int) -> None:
        """`rate` is a node's link in Mbit/s."""
        self.cluster = cluster
        self.size = size
        self.bound = size * 8 / (rate * MBIT)
        self._runs = 0

    def bucket(self, data: bytes | Path | None = None) -> str:
        """A new bucket with `model/weights.safetensors`, which nobody has yet: random unless given."""
        self._runs += 1
        bucket = f"run-{self._runs}"
        if data is None:
            data = self.file()
        self.cluster.upload(bucket, "model/weights.safetensors", data)
        return bucket

    def file(self) -> Path:
        """A new file of random bytes on the disk of all."""
        path = self.cluster.directory / "object"
        with path.open("wb") as file:
            for _ in range(0, self.size, MIB):
                file.write(os.urandom(min(MIB, self.size - file.tell())))
        return path

    def origin_sent(self) -> int:
        """Bytes that the origin has sent until now."""
        return self.cluster.network.traffic()[0].sent

    def programs(self, module: str, jobs: Sequence[tuple[Host, Mapping[str, Any]]]) -> list[dict[str, Any]]:
        """Run a module on hosts, each with a job as JSON on its input and an answer on its output.

        A job is told `at`, the monotonic time at which all shall begin. Raises BenchError.
        """
        at = time.monotonic() + SOON
        started: list[subprocess.Popen[str]] = []
        try:
            for host, job in jobs:
                with host.namespace.inside():
                    command = [sys.executable, "-m", module, json.dumps({**job, "at": at})]
                    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
                started.append(process)
            return [self._answer(module, process) for process in started]
        finally:
            for process in started:
                process.kill()
                process.wait()

    def _answer(self, module: str, process: subprocess.Popen[str]) -> dict[str, Any]:
        try:
            output, _ = process.communicate(timeout=SOON + LIMIT * self.bound)
        except subprocess.TimeoutExpired as error:
            raise BenchError(f"{module} did not end in time") from error
        if process.returncode:
            raise BenchError(f"{module} ended with {process.returncode}")
        answer: dict[str, Any] = json.loads(output)
        return answer


def per_gib(cpu_seconds: float, size: int, nodes: int) -> float:
    """CPU seconds per GiB and node."""
    return cpu_seconds / (size / 1024**3) / nodes
