"""Many small objects in a cluster of real agents: each leaves the origin once, and comes from its owner."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from deploy.local.s3 import SeaweedS3
from tests.harness.fleet import Fleet, fleet, sha256
from tests.harness.reading import read

pytestmark = pytest.mark.timeout(240)

COUNT = 150
LENGTH = 10 * 1024
GETS = 'headrace_origin_requests_total{kind="object",origin="s3://"}'


@pytest.fixture
def three(seaweed: SeaweedS3, traversable: Path) -> Iterator[Fleet]:
    yield from fleet(3, seaweed, traversable)


def read_small(mounted: Path) -> list[str]:
    return read("sequential", *(mounted / f"{number:05}.json" for number in range(COUNT)))


def test_small_objects_that_three_agents_read_at_once_are_asked_of_the_origin_once(three: Fleet) -> None:
    rng = random.Random(11)
    files = [rng.randbytes(LENGTH) for _ in range(COUNT)]
    for number, data in enumerate(files):
        three.put("peers-small", f"{number:05}.json", data)
    mounted = [stack.mount("s3://peers-small/model") for stack in three.stacks]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(read_small, mounted))
    assert found == [[sha256(data) for data in files]] * 3
    gets = [stack.metrics().get(GETS, 0.0) for stack in three.stacks]
    assert sum(gets) == COUNT
    assert all(gets)  # the work of asking is shared
    assert sum(three.origin_bytes()) == COUNT * LENGTH
