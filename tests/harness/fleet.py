"""Several real agents on one machine, each with its own holder, store, mounts and CSI service.

They share an S3 server and a cluster secret; each reads through its own mount, in another process.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from agent.content import ObjectRef
from deploy.local.layout import AgentSettings
from deploy.local.peering import peers_table, write_secret
from deploy.local.s3 import SeaweedS3, free_ports
from deploy.local.stack import LocalStack
from tests.harness.reading import read

MIB = 1 << 20
SIZES = {"a.safetensors": 40 * MIB, "b.safetensors": 24 * MIB + 12345, "config.json": 777}
TOTAL = sum(SIZES.values())


def read_all(mounted: Path) -> dict[str, str]:
    """The SHA-256 of every file, as another process reads them one after the other."""
    return dict(zip(SIZES, read("sequential", *(mounted / name for name in SIZES)), strict=True))


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Fleet:
    """Agents that know each other, and `more` addresses at which there is none of them."""

    def __init__(self, stacks: list[LocalStack], s3: SeaweedS3, secret: Path, addresses: list[str]) -> None:
        self.stacks = stacks
        self.secret = secret
        self.addresses = addresses
        self._s3 = s3

    def upload(self, bucket: str, seed: int) -> dict[str, str]:
        """Store a dataset, and give its files' SHA-256."""
        return {ref.uri.rpartition("/")[2]: sha256(data) for ref, data in self.objects(bucket, seed).items()}

    def objects(self, bucket: str, seed: int) -> dict[ObjectRef, bytes]:
        """Store a dataset, and give its objects as the agents know them."""
        objects = {}
        for name, data in files(seed).items():
            etag = self.put(bucket, name, data).strip('"')
            objects[ObjectRef(f"s3://{bucket}/model/{name}", etag, len(data))] = data
        return objects

    def put(self, bucket: str, name: str, data: bytes) -> str:
        """Store one file of a dataset; its ETag."""
        return self._s3.put(bucket, f"model/{name}", data)

    def read(self, number: int, bucket: str) -> dict[str, str]:
        """Mount the dataset on one agent, and read all of it there."""
        return read_all(self.stacks[number].mount(f"s3://{bucket}/model"))

    def read_at_once(self, bucket: str) -> list[dict[str, str]]:
        """Mount on every agent, then read on all at the same time."""
        with ThreadPoolExecutor(len(self.stacks)) as pool:
            mounted = list(pool.map(lambda one: one.mount(f"s3://{bucket}/model"), self.stacks))
            return list(pool.map(read_all, mounted))

    def origin_bytes(self) -> list[float]:
        """What each agent has had from the origin."""
        return [self._metric(one, 'headrace_origin_bytes_total{origin="s3://"}') for one in self.stacks]

    def peer_bytes(self, direction: str) -> list[float]:
        """What each agent has had from peers, or sent to them."""
        name = f'headrace_peer_bytes_total{{direction="{direction}"}}'
        return [self._metric(one, name) for one in self.stacks]

    def failures(self, reason: str) -> float:
        """How many times peers failed any of the agents for this reason."""
        name = f'headrace_peer_failures_total{{reason="{reason}"}}'
        return sum(self._metric(one, name) for one in self.stacks)

    @staticmethod
    def _metric(stack: LocalStack, name: str) -> float:
        return stack.metrics().get(name, 0.0)


def files(seed: int) -> dict[str, bytes]:
    """The files of a dataset."""
    rng = random.Random(seed)
    return {name: rng.randbytes(size) for name, size in SIZES.items()}


USUAL = AgentSettings(promote="never")


def fleet(
    count: int,
    seaweed: SeaweedS3,
    directory: Path,
    more: int = 0,
    settings: AgentSettings = USUAL,
) -> Iterator[Fleet]:
    """Start `count` agents that know `more` addresses beside their own.

    `settings` are those of all, without names and peers; its `extra` goes on in the table of the peers."""
    secret = write_secret(directory / "peer-secret")
    addresses = [f"127.0.0.1:{port}" for port in free_ports(count + more)]
    with ExitStack() as stack:
        stacks = []
        for number in range(count):
            extra = peers_table(addresses[number], addresses, secret) + settings.extra
            own = replace(settings, name=f"node-{number}", extra=extra)
            stacks.append(stack.enter_context(LocalStack(own, s3=seaweed)))
        yield Fleet(stacks, seaweed, secret, addresses)
