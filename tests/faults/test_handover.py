"""Holder and agent die and are replaced under readers: no reader sees an error, a wrong byte or a long stall.

What is read is cold (from an origin that is slow, so that reads are in flight at each kill), partly present
(served by the agent each time) and complete (opened in passthrough).
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import shutil
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from csi.holder.client import HolderConnection
from csi.holder.mountinfo import mount_entries
from csi.mounting import volume_id
from csi.proto import csi_pb2
from deploy.local.layout import AgentSettings, OriginSettings
from deploy.local.process import StackError
from deploy.local.stack import CHECKOUT, LocalStack
from tests.fakes.faults import Slow
from tests.fakes.scripted_proxy import ScriptedProxy
from tests.harness.publishing import Kubelet
from tests.harness.reading import run
from tests.harness.s3 import SeaweedS3
from tests.harness.steady import Spec, SteadyReader, await_beats, expect, reading

MIB = 1 << 20
PIECE = 2 * MIB
LINE_RATE = 3 * MIB  # bytes a second of each of the origin's connections
CONNECTIONS = 8
GRACE = 2.0  # seconds that a reader may stand still beyond a restart
OTHER_BUILD = "9.9.9"
WITHIN = 20.0

buckets = (f"handover-{number}" for number in itertools.count())


@dataclass
class Site:
    """The stack behind a slow origin, another build of its code, and how long each restart took."""

    stack: LocalStack
    proxy: ScriptedProxy
    other: Path
    restarts: list[float] = field(default_factory=list)

    def replaced(self, name: str, end: Callable[[], None], start: Callable[[], None]) -> None:
        began = time.monotonic()
        end()
        start()
        self.await_connected()
        self.restarts.append(time.monotonic() - began)

    def kill_agent(self) -> None:
        self.replaced("agent", self.stack.kill_agent, self.stack.start_agent)

    def kill_holder(self) -> None:
        self.replaced("holder", self.stack.kill_holder, self.stack.start_holder)

    def kill_both(self) -> None:
        self.kill_agent()
        self.kill_holder()

    def upgrade_agent(self) -> None:
        self._other_build()
        self.replaced("agent", self.stack.stop_agent, self.stack.start_agent)

    def upgrade_holder(self) -> None:
        self._other_build()
        self.replaced("holder", self.stack.stop_holder, self.stack.start_holder)

    def _other_build(self) -> None:
        self.stack.code = self.other if self.stack.code == CHECKOUT else CHECKOUT

    def await_connected(self) -> None:
        """The agent has given the holder everything back."""
        agent = self.stack.process("agent")
        agent.await_ready(lambda: self.stack.metrics()["headrace_holder_connected"] == 1, WITHIN)

    def holder(self) -> HolderConnection:
        return HolderConnection.open(str(self.stack.layout.holder_socket), "command", "test", WITHIN)

    def status(self) -> list[dict[str, Any]]:
        """`headrace-csi status --json`."""
        layout = self.stack.layout
        sockets = ("--holder-socket", str(layout.holder_socket), "--admin-socket", str(layout.admin_socket))
        found = json.loads(
            self.stack.run([sys.executable, "-m", "csi", "status", *sockets, "--json"], WITHIN)
        )
        assert isinstance(found, list)
        return found

    def descriptors(self, name: str) -> int:
        return len(os.listdir(f"/proc/{self.stack.process(name).pid}/fd"))

    def kept(self, name: str) -> int:
        """The descriptors that are no connections, which may come and go."""
        directory, links = Path(f"/proc/{self.stack.process(name).pid}/fd"), list[str]()
        for number in os.listdir(directory):
            with contextlib.suppress(FileNotFoundError):  # a connection that has just ended
                links.append(os.readlink(directory / number))
        return sum(not link.startswith("socket:") for link in links)

    def await_all_answered(self) -> None:
        """What the kernel still reads ahead of readers that have gone comes from the slow line."""
        self.stack.process("agent").await_ready(lambda: self._unanswered() == 0, WITHIN)

    def _unanswered(self) -> int:
        """Slots of the in-flight table that are taken, as the holder's memory has them."""
        directory = Path(f"/proc/{self.stack.process('holder').pid}/fd")
        (table,) = (link for link in directory.iterdir() if "headrace-in-flight" in os.readlink(link))
        data = table.read_bytes()
        return sum(struct.unpack_from("=I", data, slot * 8192)[0] != 0 for slot in range(2, 2048))


@pytest.fixture(scope="module")
def other_build() -> Iterator[Path]:
    """The same code under another version, where the agent's user can read it."""
    tree = Path(tempfile.mkdtemp(prefix="headrace-build-"))
    tree.chmod(0o755)
    for package in ("agent", "csi", "deploy", "preload"):
        shutil.copytree(CHECKOUT / package, tree / package, ignore=shutil.ignore_patterns("__pycache__"))
    about = tree / f"headrace-{OTHER_BUILD}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: headrace\nVersion: {OTHER_BUILD}\n")
    yield tree
    shutil.rmtree(tree)


@pytest.fixture(scope="module")
def running(seaweed: SeaweedS3, other_build: Path) -> Iterator[Site]:
    with ScriptedProxy(seaweed.endpoint) as proxy:
        reached: OriginSettings = {"endpoint_url": proxy.endpoint, "max_connections": CONNECTIONS}
        settings = AgentSettings(patience="60s", chunk_size="1MiB", origins={"s3://": reached})
        with LocalStack(settings, s3=seaweed) as stack:
            yield Site(stack, proxy, other_build)


@pytest.fixture
def site(running: Site) -> Iterator[Site]:
    running.restarts.clear()
    yield running
    running.proxy.clear()
    running.stack.code = CHECKOUT
    for name, start in (("holder", running.stack.start_holder), ("agent", running.stack.start_agent)):
        try:
            running.stack.process(name)
        except StackError:
            start()


@dataclass(frozen=True)
class Data:
    """A mount, and what its eight readers must find."""

    mount: Path
    specs: list[tuple[str, Spec]]


@pytest.fixture
def data(site: Site, seed: int, cold_files: int) -> Iterator[Data]:
    """Cold files for three readers, files that are present in part for two, complete ones for three."""
    bucket, draw = next(buckets), random.Random(seed)
    specs = _upload(site.stack.s3, bucket, draw, cold_files)
    mount = site.stack.mount(f"s3://{bucket}")
    warm = [str(mount / path) for how, spec in specs for path in spec if not path.startswith("cold")]
    assert (
        run(["sh", "-c", 'for f; do head -c 2097152 "$f" > /dev/null || exit 1; done', "-", *warm]).returncode
        == 0
    )
    site.proxy.fault(Slow(LINE_RATE), key="*/cold-*", times=None)
    yield Data(mount, specs)
    site.stack.umount(mount)


def _upload(s3: SeaweedS3, bucket: str, draw: random.Random, cold_files: int) -> list[tuple[str, Spec]]:
    pieces = [draw.randbytes(PIECE) for _ in range(4)]
    specs: list[tuple[str, Spec]] = []
    for reader, how in enumerate(("read", "read", "mapped")):
        spec = {}
        for number in range(cold_files):
            spec[f"cold-{reader}-{number}"] = expect(pieces[number % 4])
            s3.put(bucket, f"cold-{reader}-{number}", pieces[number % 4])
        specs.append((how, spec))
    for reader, how in enumerate(("read", "mapped")):
        s3.put(bucket, f"part-{reader}", b"".join(pieces) * 8)
        specs.append((how, {f"part-{reader}": expect(pieces[0])}))
    for reader, how in enumerate(("read", "mapped")):
        s3.put(bucket, f"whole-{reader}", pieces[reader])
        specs.append((how, {f"whole-{reader}": expect(pieces[reader])}))
    small = {f"tree/{number % 5}/{number}": draw.randbytes(10_000) for number in range(30)}
    for path, content in small.items():
        s3.put(bucket, path, content)
    specs.append(("walk", {path: expect(content) for path, content in small.items()}))
    return specs


REPLACED = {
    "the agent is killed": Site.kill_agent,
    "the holder is killed": Site.kill_holder,
    "both are killed, one after the other": Site.kill_both,
    "the agent is upgraded": Site.upgrade_agent,
    "the holder is upgraded": Site.upgrade_holder,
}
QUICK = ("the agent is killed", "the holder is upgraded")  # the others, and these, ten times: long


def go_on_reading(site: Site, data: Data, scratch: Path, replace: Callable[[Site], None], times: int) -> None:
    readers = [SteadyReader(how, data.mount, spec, scratch) for how, spec in data.specs]
    with reading(readers):
        await_beats(readers)
        for _ in range(times):
            replace(site)
            await_beats(readers)
        ended = [reader.end() for reader in readers]
    longest = max(one.longest for one in ended)
    print(f"longest stall {longest:.2f} s, longest restart {max(site.restarts):.2f} s")
    assert longest <= max(site.restarts) + GRACE
    site.await_all_answered()


@pytest.mark.timeout(180)
class TestUnderReaders:
    """Eight readers, and three replacements of what serves them."""

    @pytest.fixture
    def cold_files(self) -> int:
        return 10

    @pytest.mark.parametrize("how", QUICK)
    def test_no_reader_notices_when(self, site: Site, data: Data, tmp_path: Path, how: str) -> None:
        go_on_reading(site, data, tmp_path, REPLACED[how], 2)


@pytest.mark.long
@pytest.mark.timeout(400)
class TestUnderReadersTenTimes:
    """The same ten times."""

    @pytest.fixture
    def cold_files(self) -> int:
        return 100

    @pytest.mark.parametrize("how", REPLACED)
    def test_no_reader_notices_when(self, site: Site, data: Data, tmp_path: Path, how: str) -> None:
        go_on_reading(site, data, tmp_path, REPLACED[how], 10)
        assert site.descriptors("holder") < 30
        assert site.descriptors("agent") < 300


Usage = csi_pb2.VolumeUsage
MOUNTS = 5


@pytest.mark.timeout(120)
def test_a_new_holder_knows_five_volumes_and_unpublishes_them(site: Site) -> None:
    bucket = next(buckets)
    for number in range(MOUNTS):
        site.stack.s3.put(bucket, f"d{number}/file", b"bytes")
    targets = [site.stack.mount(f"s3://{bucket}/d{number}") for number in range(MOUNTS)]
    kept = site.kept("holder")
    before = site.descriptors("holder")  # one more at times: the connection of the last mount may still end
    site.kill_holder()
    status = {mount["targets"][0]: mount for mount in site.status()}
    assert sorted(status) == sorted(map(str, targets))
    assert {mount["uri"] for mount in status.values()} == {f"s3://{bucket}/d{n}" for n in range(MOUNTS)}
    assert site.kept("holder") == kept
    site.stack.process("holder").await_ready(lambda: site.descriptors("holder") <= before, WITHIN)
    kubelet = Kubelet(site.stack.layout.csi_socket)
    for target in targets:
        stats = kubelet.stats(target, volume_id(str(target)))
        assert not stats.volume_condition.abnormal
        assert [(usage.unit, usage.total) for usage in stats.usage if usage.unit == Usage.BYTES] == [
            (Usage.BYTES, len(b"bytes"))
        ]
        assert run(["cat", str(target / "file")]).stdout == "bytes"
        site.stack.umount(target)
    assert site.status() == []
    assert not [entry for entry in mount_entries() if str(site.stack.layout.root) in entry.point]


@pytest.mark.timeout(120)
def test_without_a_holder_complete_files_are_read_and_new_mounts_are_refused(site: Site) -> None:
    bucket = next(buckets)
    for name in ("open", "fresh"):
        site.stack.s3.put(bucket, name, b"bytes")
    target = site.stack.mount(f"s3://{bucket}")
    assert run(["cat", str(target / "open"), str(target / "fresh")]).stdout == "bytesbytes"
    assert run(["cat", str(target / "open")]).stdout == "bytes"  # complete now: it gets a backing id
    site.stack.kill_holder()
    assert run(["cat", str(target / "open"), str(target / "fresh")]).stdout == "bytesbytes"
    with pytest.raises(StackError, match="holder"):
        site.stack.mount(f"s3://{bucket}/fresh")
    with pytest.raises(HTTPError, match="503") as unready:
        urlopen(f"http://127.0.0.1:{site.stack.metrics_port}/readyz", timeout=WITHIN)
    assert b"the holder is away" in unready.value.read()
    unready.value.close()
    site.stack.start_holder()
    site.await_connected()
    assert run(["cat", str(target / "fresh")]).stdout == "bytes"
    site.stack.umount(target)


@pytest.mark.timeout(120)
def test_when_both_died_at_once_the_dead_mount_is_replaced_and_unpublished(site: Site) -> None:
    bucket = next(buckets)
    site.stack.s3.put(bucket, "file", b"bytes")
    dead, again = site.stack.mount(f"s3://{bucket}"), site.stack.mount(f"s3://{bucket}")
    site.stack.kill_holder()
    site.stack.kill_agent()
    assert run(["cat", str(dead / "file")]).returncode != 0
    site.stack.start_holder()
    site.stack.start_agent()
    site.stack.csi("mount", f"s3://{bucket}", str(again), within=WITHIN)
    assert run(["cat", str(again / "file")]).stdout == "bytes"
    for target in (dead, again):
        site.stack.umount(target)
    assert site.status() == []


@pytest.mark.timeout(120)
def test_the_other_build_is_the_one_that_runs_after_an_upgrade(site: Site) -> None:
    site.upgrade_agent()
    assert site.stack.metrics()[f'headrace_build_info{{version="{OTHER_BUILD}"}}'] == 1
    site.replaced("holder", site.stack.stop_holder, site.stack.start_holder)
    connection = site.holder()
    assert connection.build == OTHER_BUILD
    connection.close()
    site.upgrade_agent()
    site.replaced("holder", site.stack.stop_holder, site.stack.start_holder)
