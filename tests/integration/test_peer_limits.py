"""What bounds the traffic of agents: their limits, the origin's for all of them, and its Retry-After."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from deploy.local.layout import AgentSettings
from deploy.local.s3 import SeaweedS3
from tests.fakes.faults import Status
from tests.fakes.scripted_proxy import ScriptedProxy
from tests.harness.fleet import MIB, Fleet, fleet, sha256
from tests.harness.reading import read

pytestmark = [pytest.mark.long, pytest.mark.timeout(240)]

SIZE = 24 * MIB
LIMIT = 4 * MIB  # bytes a second
CHUNK = MIB
SAVED = 1.0  # seconds of a limit that may have been saved up (agent/rate.py)
RETRY_AFTER = 4  # seconds
FILES = 20  # which are read one after the other: some of them before the others are told

Start = Callable[[AgentSettings], AbstractContextManager[Fleet]]


@pytest.fixture
def start(seaweed: SeaweedS3, traversable: Path) -> Start:
    """Starts two agents."""

    def started(settings: AgentSettings) -> AbstractContextManager[Fleet]:
        return contextmanager(fleet)(2, seaweed, traversable, settings=settings)

    return started


def limited(**origin: str | int | bool) -> AgentSettings:
    return AgentSettings(promote="never", chunk_size="1MiB", origins={"s3://": origin})


def put(agents: Fleet, bucket: str) -> str:
    """Store one file, and give its SHA-256."""
    data = random.Random(bucket).randbytes(SIZE)
    agents.put(bucket, "weights", data)
    return sha256(data)


def seconds_to_read(agents: Fleet, number: int, bucket: str, expected: str) -> float:
    """How long one agent takes for it, as another process reads it."""
    mounted = agents.stacks[number].mount(f"s3://{bucket}/model")
    begun = time.monotonic()
    assert read("sequential", mounted / "weights") == [expected]
    return time.monotonic() - begun


@pytest.mark.parametrize(
    ("name", "direction", "number"), [("upload_limit", "sent", 0), ("download_limit", "received", 1)]
)
def test_agents_exchange_no_more_than_their_limits(
    start: Start, name: str, direction: str, number: int
) -> None:
    settings = AgentSettings(promote="never", chunk_size="1MiB", extra=f'{name} = "4MiB"\n')
    with start(settings) as agents:
        expected = put(agents, f"limits-{direction}")
        seconds_to_read(agents, 0, f"limits-{direction}", expected)
        seconds = seconds_to_read(agents, 1, f"limits-{direction}", expected)
        moved = agents.peer_bytes(direction)[number]
        assert 0 < moved <= LIMIT * (seconds + SAVED) + CHUNK


def test_agents_together_read_no_more_from_an_origin_than_its_cluster_rate(start: Start) -> None:
    settings = limited(cluster_rate="4MiB", deadline="2s")  # what is filled ahead waits for longer than that
    with start(settings) as agents, ThreadPoolExecutor(2) as pool:
        buckets = ["limits-first", "limits-second"]
        expected = [put(agents, bucket) for bucket in buckets]
        reading = [pool.submit(seconds_to_read, agents, n, buckets[n], expected[n]) for n in (0, 1)]
        seconds = max(one.result() for one in reading)
        assert sum(agents.origin_bytes()) == 2 * SIZE
        assert LIMIT * (seconds + SAVED) + 2 * CHUNK >= 2 * SIZE
        errors = {name for stack in agents.stacks for name in stack.metrics() if "errors_total" in name}
        assert not errors, "to wait for the rate is no failure"


def test_what_an_origin_asks_of_one_agent_with_retry_after_all_heed(start: Start, seaweed: SeaweedS3) -> None:
    with ScriptedProxy(seaweed.endpoint) as proxy, start(limited(endpoint_url=proxy.endpoint)) as agents:
        expected = put(agents, "limits-asked")
        for number in range(FILES):
            agents.put("limits-told", f"{number:02}", bytes(2 * CHUNK))
        asked, told = [
            stack.mount(f"s3://{bucket}/model")
            for stack, bucket in zip(agents.stacks, ("limits-asked", "limits-told"), strict=True)
        ]
        proxy.fault(Status(503, retry_after=RETRY_AFTER, s3_code="SlowDown"), key="limits-asked/*")
        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(read, "sequential", asked / "weights")
            assert any(waits(told / f"{number:02}") for number in range(FILES))
            assert reading.result() == [expected]


def waits(path: Path) -> bool:
    """Whether a file that takes a moment otherwise takes most of the time that the origin asked for."""
    begun = time.monotonic()
    read("sequential", path)
    return time.monotonic() - begun >= RETRY_AFTER / 2
