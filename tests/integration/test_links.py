"""The relay between network namespaces, over links of a stated speed: what bench/peers measures, counted."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from deploy.local.cluster import LocalCluster, Node
from deploy.local.layout import AgentSettings
from tests.harness.reading import read

pytestmark = [pytest.mark.long, pytest.mark.timeout(240)]

MIB = 1 << 20
SIZE = 48 * MIB + 4321
NAME = "weights.safetensors"


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """Four nodes on links of 200 Mbit/s, and an origin on one of 400."""
    settings = AgentSettings(promote="never", patience="2min")
    with LocalCluster(4, rate="200mbit", origin_rate="400mbit", settings=settings) as running:
        yield running


def upload(cluster: LocalCluster, bucket: str, seed: int) -> tuple[str, str]:
    """Store an object; the dataset's URI, and the object's SHA-256."""
    data = random.Random(seed).randbytes(SIZE)
    uri = cluster.upload(bucket, f"model/{NAME}", data)
    return uri.rpartition("/")[0], hashlib.sha256(data).hexdigest()


def read_through(node: Node, uri: str) -> str:
    """Mount a dataset and read its file, in other processes; its SHA-256."""
    return read("sequential", node.stack.mount(uri) / NAME)[0]


def test_four_nodes_that_read_at_once_have_the_bytes_of_the_origin_about_once(cluster: LocalCluster) -> None:
    uri, expected = upload(cluster, "links-once", 1)
    before = cluster.network.traffic()
    assert cluster.each(lambda node: read_through(node, uri)) == [expected] * 4
    after = cluster.network.traffic()
    assert after[0].sent - before[0].sent < 1.5 * SIZE
    for earlier, later in zip(before[1:], after[1:], strict=True):
        assert later.received - earlier.received >= SIZE
    received = cluster.metric('headrace_peer_bytes_total{direction="received"}')
    assert sum(received) >= 2.5 * SIZE  # of the four times that it was needed


def test_a_node_that_is_killed_while_it_passes_bytes_on_harms_nobody(cluster: LocalCluster) -> None:
    uri, expected = upload(cluster, "links-killed", 2)
    *healthy, last = cluster.nodes
    before = cluster.network.traffic()[last.host.number - 1].sent
    mounts = [node.stack.mount(uri) for node in healthy]
    doomed = last.stack.mount(uri)
    with ThreadPoolExecutor(4) as pool:
        reading = [pool.submit(read, "sequential", mounted / NAME) for mounted in mounts]
        lost = pool.submit(read, "sequential", doomed / NAME)
        while cluster.network.traffic()[last.host.number - 1].sent - before < SIZE // 4:
            if all(one.done() for one in reading):
                break  # it was nobody's parent
        last.stack.kill_agent()
        assert [one.result() for one in reading] == [[expected]] * 3
        last.inside(last.stack.start_agent)
        assert lost.result() == [expected]
