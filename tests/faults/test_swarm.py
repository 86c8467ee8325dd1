"""Real agents in a swarm, each in a network namespace, while things go wrong."""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.control.client import AdminClient, AdminError
from deploy.local.cluster import LocalCluster, Node
from deploy.local.layout import AgentSettings
from tests.harness.reading import read

pytestmark = [pytest.mark.long, pytest.mark.timeout(240)]

MIB = 1 << 20
SIZE = 96 * MIB + 4321
NAME = "weights.safetensors"
RECEIVED = 'headrace_swarm_bytes_total{direction="received"}'
WITHIN = 60.0  # seconds


SETTINGS = AgentSettings(patience="2min", extra="swarm = true\n")  # of [peers]


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """Three nodes on links of 200 Mbit/s, in a swarm."""
    with LocalCluster(3, rate="200mbit", origin_rate="400mbit", settings=SETTINGS) as running:
        yield running


@pytest.fixture
def zoned() -> Iterator[LocalCluster]:
    """The same, two of them in one zone and the third in another one."""
    zones = ("a", "a", "b")
    with LocalCluster(3, rate="200mbit", origin_rate="400mbit", settings=SETTINGS, zones=zones) as running:
        yield running


def upload(cluster: LocalCluster, bucket: str, seed: int) -> tuple[str, str]:
    """Store an object; the dataset's URI, and the object's SHA-256."""
    data = random.Random(seed).randbytes(SIZE)
    uri = cluster.upload(bucket, f"model/{NAME}", data)
    return uri.rpartition("/")[0], hashlib.sha256(data).hexdigest()


async def warm(node: Node, uri: str) -> str:
    """Warm a dataset on a node to its end; how that was, "gone" where the agent was killed."""
    try:
        async with AdminClient(str(node.stack.layout.admin_socket)) as client:
            warming = await client.warm(uri)
            while warming.state == "running":
                warming = await client.warmed(warming.id)
            return warming.state
    except AdminError:
        return "gone"


def datagrams(node: Node) -> int:
    """How many UDP packets have come to a node (RFC 4113, udpInDatagrams)."""

    def read_counter() -> int:
        names, values = [
            line.split()
            for line in Path("/proc/thread-self/net/snmp").read_text().splitlines()
            if line.startswith("Udp:")
        ]
        return int(values[names.index("InDatagrams")])

    return node.inside(read_counter)


def received(node: Node) -> float:
    """What came to a node by the swarm in this life of its agent."""
    return node.inside(node.stack.metrics).get(RECEIVED, 0.0)


def came(node: Node, more_than: float) -> None:
    """Wait until something more has come to a node by the swarm."""
    give_up = time.monotonic() + WITHIN
    while received(node) <= more_than:  # each look is a request to the agent
        assert time.monotonic() < give_up


def test_an_agent_that_is_killed_in_a_swarm_goes_on_where_it_was_and_the_others_end(
    cluster: LocalCluster,
) -> None:
    uri, expected = upload(cluster, "swarm-killed", 1)
    first, second, doomed = cluster.nodes

    async def strike() -> list[str]:
        warming = [asyncio.create_task(warm(node, uri)) for node in cluster.nodes]
        await asyncio.to_thread(came, doomed, 0.0)
        await asyncio.to_thread(doomed.stack.kill_agent)
        return await asyncio.gather(*warming)

    assert asyncio.run(strike()) == ["done", "done", "gone"]
    doomed.inside(doomed.stack.start_agent)
    assert asyncio.run(warm(doomed, uri)) == "done"
    again = received(doomed)
    assert again < SIZE  # some of it was there
    for node in (first, second, doomed):
        mounted = node.stack.mount(uri)
        assert read("sequential", mounted / NAME) == [expected]
    assert received(doomed) == again


def test_a_dataset_is_read_right_while_the_swarm_brings_it(cluster: LocalCluster) -> None:
    uri, expected = upload(cluster, "swarm-read", 2)
    first, second, _ = cluster.nodes
    assert asyncio.run(warm(first, uri)) == "done"
    before = received(second)

    async def read_meanwhile() -> tuple[str, list[str]]:
        warming = asyncio.create_task(warm(second, uri))
        mounted = await asyncio.to_thread(second.stack.mount, uri)
        await asyncio.to_thread(came, second, before)
        digests = await asyncio.to_thread(read, "sequential", mounted / NAME)
        return await warming, digests

    assert asyncio.run(read_meanwhile()) == ("done", [expected])


def test_pieces_go_by_tcp_within_a_zone_and_by_utp_to_another_one(zoned: LocalCluster) -> None:
    uri, _ = upload(zoned, "swarm-zones", 3)
    first, near, far = zoned.nodes
    assert asyncio.run(warm(first, uri)) == "done"
    assert asyncio.run(warm(near, uri)) == "done"
    assert received(near) == SIZE
    assert datagrams(near) < 100
    assert asyncio.run(warm(far, uri)) == "done"
    assert received(far) == SIZE
    assert datagrams(far) > SIZE / 1500  # its packets are not larger than a link's
