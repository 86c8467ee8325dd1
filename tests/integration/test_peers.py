"""Agents on one machine that read from each other, while some of them end, misbehave or are upgraded."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from agent.peers.member import Peer
from agent.peers.placement import tracker_of
from deploy.local.s3 import SeaweedS3
from deploy.local.stack import CHECKOUT
from tests.fakes.rogue_peer import RoguePeer
from tests.harness.fleet import SIZES, TOTAL, Fleet, fleet, read_all, sha256

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def three(seaweed: SeaweedS3, traversable: Path) -> Iterator[Fleet]:
    yield from fleet(3, seaweed, traversable)


@pytest.fixture
def eight(seaweed: SeaweedS3, traversable: Path) -> Iterator[Fleet]:
    yield from fleet(8, seaweed, traversable)


def test_the_second_agent_reads_what_the_first_has_with_no_byte_of_the_origin(three: Fleet) -> None:
    expected = three.upload("peers-second", 1)
    assert three.read(0, "peers-second") == expected
    first = three.origin_bytes()
    assert sum(first) >= TOTAL
    assert first[0] >= TOTAL - SIZES["config.json"]  # whose owner may be another
    assert three.read(1, "peers-second") == expected
    assert three.read(2, "peers-second") == expected
    assert three.origin_bytes() == first
    assert all(TOTAL - SIZES["config.json"] <= size <= TOTAL for size in three.peer_bytes("received")[1:])


def test_an_object_of_two_revisions_and_of_two_datasets_leaves_the_origin_once(three: Fleet) -> None:
    expected = three.upload("peers-shared", 8)
    assert three.read(0, "peers-shared") == expected
    changed = b"another configuration"
    three.put("peers-shared", "config.json", changed)
    expected["config.json"] = sha256(changed)
    before = sum(three.origin_bytes())
    assert three.read(1, "peers-shared") == expected  # a new revision of the dataset
    assert read_all(three.stacks[2].mount("s3://peers-shared") / "model") == expected  # a dataset around it
    assert sum(three.origin_bytes()) - before == len(changed)


def test_without_its_peers_an_agent_reads_the_origin(three: Fleet) -> None:
    expected = three.upload("peers-gone", 2)
    assert three.read(0, "peers-gone") == expected
    three.stacks[0].kill_agent()
    three.stacks[1].kill_agent()
    assert three.read(2, "peers-gone") == expected


def test_an_agent_that_is_killed_while_others_read_from_it_costs_them_no_read(three: Fleet) -> None:
    expected = three.upload("peers-killed", 6)
    assert three.read(0, "peers-killed") == expected
    with ThreadPoolExecutor(2) as pool:
        reading = [pool.submit(three.read, number, "peers-killed") for number in (1, 2)]
        while not sum(three.peer_bytes("received")) and not all(one.done() for one in reading):
            pass  # each look is a request to the agents
        three.stacks[0].kill_agent()
        assert [one.result() for one in reading] == [expected, expected]


def test_a_secret_that_is_replaced_costs_no_read_also_where_an_agent_starts_with_the_new_one(
    three: Fleet,
) -> None:
    expected = three.upload("peers-secret", 7)
    assert three.read(0, "peers-secret") == expected
    before = three.origin_bytes()[2]  # as the owner of a small object
    three.secret.write_text(os.urandom(32).hex())
    three.stacks[1].restart_agent()
    assert three.read(1, "peers-secret") == expected
    assert three.read(2, "peers-secret") == expected
    assert three.origin_bytes()[2] == before


def another_build(directory: Path) -> Path:
    """A copy of the programs that says to be of another version, where the agent's user can read it."""
    tree = directory / "build"
    tree.mkdir()
    tree.chmod(0o755)
    for package in ("agent", "csi", "deploy", "preload"):
        shutil.copytree(CHECKOUT / package, tree / package, ignore=shutil.ignore_patterns("__pycache__"))
    about = tree / "headrace-99.0.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: headrace\nVersion: 99.0.0\n")
    return tree


@pytest.mark.long
def test_peers_leave_return_are_upgraded_and_the_secret_rotates_and_no_read_fails(
    three: Fleet, traversable: Path
) -> None:
    build = another_build(traversable)
    buckets = [f"peers-rolled-{number}" for number in range(4)]
    expected = [three.upload(bucket, 20 + number) for number, bucket in enumerate(buckets)]
    assert three.read(0, buckets[0]) == expected[0]

    first, second, third = three.stacks
    # Before: while an agent is restarted nothing can be mounted on its node, but all can be read.
    mounted = [[one.mount(f"s3://{bucket}/model") for bucket in buckets] for one in (second, third)]

    def read_on(datasets: list[Path]) -> list[dict[str, str]]:
        return [read_all(one) for one in datasets]

    with ThreadPoolExecutor(2) as pool:
        reading = [pool.submit(read_on, datasets) for datasets in mounted]
        first.kill_agent()
        first.start_agent()
        three.secret.write_text(os.urandom(32).hex())
        first.code = build
        first.restart_agent()
        second.code = build  # under its own reader
        second.restart_agent()
        assert [one.result() for one in reading] == [expected, expected]
    assert first.metrics()['headrace_build_info{version="99.0.0"}'] == 1
    assert sum(three.peer_bytes("received")) > 0
    assert three.read(0, buckets[3]) == expected[3]


@pytest.mark.long
def test_eight_agents_that_read_at_once_have_each_byte_of_the_origin_once(eight: Fleet) -> None:
    expected = eight.upload("peers-eight", 3)
    assert eight.read_at_once("peers-eight") == [expected] * 8
    assert sum(eight.origin_bytes()) <= 1.03 * TOTAL


@pytest.fixture
def two(seaweed: SeaweedS3, traversable: Path) -> Iterator[Fleet]:
    """Two agents, which know a third address."""
    yield from fleet(2, seaweed, traversable, more=1)


def bucket_with_tracker(fleet: Fleet, prefix: str, rogue: bool) -> str:
    """A bucket whose dataset the rogue is the tracker of, or is not."""
    peers = [Peer(address, address) for address in fleet.addresses]
    for number in range(100):
        bucket = f"{prefix}-{number}"
        found = tracker_of(f"s3://{bucket}/model", peers)
        if found is not None and (found.name == fleet.addresses[-1]) == rogue:
            return bucket
    raise AssertionError("no such bucket")


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("flips", "wrong"),
        ("stalls", "silent"),
        pytest.param("ignores Range", "wrong", marks=pytest.mark.long),
        pytest.param("closes", "silent", marks=pytest.mark.long),
        pytest.param("lies about the length", "wrong", marks=pytest.mark.long),
    ],
)
def test_a_member_that_misbehaves_costs_a_bounded_time_and_is_left_out(
    two: Fleet, fault: str, reason: str
) -> None:
    bucket = bucket_with_tracker(two, f"rogue-{reason}-{fault.partition(' ')[0]}".lower(), rogue=False)
    objects = two.objects(bucket, 4)
    port = int(two.addresses[-1].rpartition(":")[2])
    with RoguePeer(port, two.secret, fault, two.addresses[:-1]) as rogue:
        rogue.has(objects)
        assert rogue.known.wait(20)
        begun = time.monotonic()
        assert list(two.read(0, bucket).values()) == [sha256(data) for data in objects.values()]
        assert list(two.read(1, bucket).values()) == [sha256(data) for data in objects.values()]
        assert time.monotonic() - begun < 30
        assert rogue.asked
        assert two.failures(reason) >= 1
        assert rogue.asked <= 40
    assert sum(two.origin_bytes()) <= 1.03 * TOTAL


def test_a_tracker_that_answers_nonsense_is_left_out(two: Fleet) -> None:
    bucket = bucket_with_tracker(two, "rogue-tracker", rogue=True)
    objects = two.objects(bucket, 5)
    port = int(two.addresses[-1].rpartition(":")[2])
    with RoguePeer(port, two.secret, "closes", two.addresses[:-1]) as rogue:
        assert list(two.read(0, bucket).values()) == [sha256(data) for data in objects.values()]
        assert list(two.read(1, bucket).values()) == [sha256(data) for data in objects.values()]
        assert rogue.tracked
