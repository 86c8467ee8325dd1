"""The agent's client against a real holder: what outlives the agent, and errors that say what to do."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.errors import HolderError
from agent.mount.holder import HeldMount, Holder, HolderRefused, InFlightTable
from tests.csi.holding import (
    AGENT_USER,
    REPOSITORY,
    WITHIN,
    HolderProcess,
    answer_one,
    answering,
    ask,
    path_descriptor,
    running_holder,
    scratch,
    stat_elsewhere,
)


@pytest.fixture
def holder() -> Iterator[HolderProcess]:
    with running_holder() as process:
        yield process


def give_back(claim: Holder, table: InFlightTable, mounts: list[HeldMount]) -> None:
    claim.close()
    for fd in (table.fd, *(held.fd for held in mounts)):
        os.close(fd)


def backing_file(holder: HolderProcess) -> int:
    path = holder.store / "object"
    path.write_bytes(b"bytes")
    return os.open(path, os.O_RDONLY)


# An agent of the agent user: mounts, answers INIT, fills a slot, reports, and waits to be killed.
AGENT = """
import json, os, sys
from agent.mount.holder import Holder
from tests.csi.holding import answer_one
holder, table, _ = Holder.claim(sys.argv[1], "test")
held = holder.mount("m", {"state": 0})
answer_one(held.fd)
holder.ready("m", {"state": 1}, 512)
file = os.open(sys.argv[2], os.O_RDONLY)
backing = holder.backing_open("m", 7, file)
os.pwrite(table.fd, b"in flight", 3 * table.slot_size)
print(json.dumps([held.number, backing]), flush=True)
sys.stdin.read()
"""


def test_a_killed_agents_mount_lives_and_its_successor_gets_everything_back(holder: HolderProcess) -> None:
    os.close(backing_file(holder))
    holder.store.chmod(0o755)
    with subprocess.Popen(
        [sys.executable, "-c", AGENT, holder.socket, str(holder.store / "object")],
        cwd=REPOSITORY,
        user=AGENT_USER,
        group="nogroup",
        extra_groups=[],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as agent:
        assert agent.stdout is not None
        ready, _, _ = select.select([agent.stdout], [], [], WITHIN)
        assert ready
        number, backing = json.loads(agent.stdout.readline())
        with pytest.raises(HolderRefused, match=f"pid {agent.pid}") as busy:
            Holder.claim(holder.socket, "test")
        assert busy.value.code == "busy"
        agent.kill()
    entry = holder.mounted_at("m")
    assert entry is not None
    claim, table, mounts = Holder.claim(holder.socket, "test")
    (held,) = mounts
    assert (held.mount, held.number, held.record, held.bound) == ("m", number, {"state": 1}, 0)
    assert held.backing == {7: backing}
    assert os.pread(table.fd, 9, 3 * table.slot_size) == b"in flight"
    with answering(held.fd):
        assert stat_elsewhere(entry.point).stdout.strip() == "416d"
    give_back(claim, table, mounts)


def test_a_mount_can_be_taken_away_and_made_again(holder: HolderProcess) -> None:
    claim, table, _ = Holder.claim(holder.socket, "test")
    first = claim.mount("m", {})
    with pytest.raises(HolderRefused) as refused:
        claim.mount("m", {})
    assert refused.value.code == "exists"
    claim.unmount("m")
    second = claim.mount("m", {"x": 1})
    assert (first.number, second.number) == (1, 2)
    claim.record("m", {"x": 2})
    give_back(claim, table, [first, second])
    claim, table, mounts = Holder.claim(holder.socket, "test")
    assert [held.record for held in mounts] == [{"x": 2}]
    give_back(claim, table, mounts)


def test_bound_mounts_are_told_and_kept(holder: HolderProcess) -> None:
    target = holder.base / "target"
    target.mkdir()
    claim, table, _ = Holder.claim(holder.socket, "test")
    held = claim.mount("m", {})
    serve = holder.connect()
    with path_descriptor(target) as descriptor:
        ask(serve, "bind", {"mount": "m", "target": str(target)}, [descriptor])
    serve.close()
    with pytest.raises(HolderRefused) as refused:
        claim.unmount("m")
    assert refused.value.code == "bound"
    give_back(claim, table, [held])
    claim, table, mounts = Holder.claim(holder.socket, "test")
    assert [held.bound for held in mounts] == [1]
    give_back(claim, table, mounts)


def test_passthrough_ids_come_and_go(holder: HolderProcess) -> None:
    claim, table, _ = Holder.claim(holder.socket, "test")
    held = claim.mount("m", {})
    file = backing_file(holder)
    with pytest.raises(HolderRefused) as refused:
        claim.backing_open("m", 2, file)
    assert refused.value.code == "unsupported"
    answer_one(held.fd)
    assert claim.backing_open("m", 2, file) == claim.backing_open("m", 2, file)
    claim.backing_close("m", 2)
    claim.backing_close("m", 2)
    os.close(file)
    give_back(claim, table, [held])


def test_more_passthrough_ids_than_a_packet_holds_come_back(holder: HolderProcess) -> None:
    claim, table, _ = Holder.claim(holder.socket, "test")
    held = claim.mount("m", {})
    answer_one(held.fd)
    file = backing_file(holder)
    first = (1 << 64) - 3000
    ids = {first + number: claim.backing_open("m", first + number, file) for number in range(3000)}
    os.close(file)
    give_back(claim, table, [held])
    claim, table, mounts = Holder.claim(holder.socket, "test")
    assert mounts[0].backing == ids
    give_back(claim, table, mounts)


def test_many_threads_share_one_claim(holder: HolderProcess) -> None:
    claim, table, _ = Holder.claim(holder.socket, "test")
    held = claim.mount("m", {})
    answer_one(held.fd)
    file = backing_file(holder)
    got: dict[int, int] = {}

    def open_some(base: int) -> None:
        for nodeid in range(base, base + 50):
            got[nodeid] = claim.backing_open("m", nodeid, file)

    threads = [threading.Thread(target=open_some, args=(2 + 50 * number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WITHIN)
    os.close(file)
    give_back(claim, table, [held])
    claim, table, mounts = Holder.claim(holder.socket, "test")
    assert mounts[0].backing == got
    assert len(set(got.values())) == 400
    give_back(claim, table, mounts)


def test_a_missing_holder_is_named_with_its_remedy() -> None:
    with scratch() as base, pytest.raises(HolderError, match="start `headrace-csi hold`"):
        Holder.claim(str(base / "holder.sock"), "test")


def test_a_holder_that_ends_is_told_by_the_next_call(holder: HolderProcess) -> None:
    claim, table, _ = Holder.claim(holder.socket, "test")
    assert holder.terminate() == 0
    for _ in range(2):
        with pytest.raises(HolderError, match="the holder has ended"):
            claim.mount("m", {})
    give_back(claim, table, [])


def test_a_silent_holder_costs_the_deadline_and_no_more(holder: HolderProcess) -> None:
    """A stopped process stands for one that hangs; its late answer is not taken for the next."""
    claim, table, _ = Holder.claim(holder.socket, "test", timeout=0.3)
    holder.popen.send_signal(signal.SIGSTOP)
    with pytest.raises(HolderError, match=r"no answer to mount in 0\.3 s"):
        claim.mount("late", {})
    holder.popen.send_signal(signal.SIGCONT)
    held = claim.mount("next", {})
    assert (held.mount, held.number) == ("next", 2)
    claim.unmount("late")
    give_back(claim, table, [held])


def test_a_record_that_is_too_long_is_refused_with_one_line(holder: HolderProcess) -> None:
    claim, table, _ = Holder.claim(holder.socket, "test")
    for size in (17_000, 100_000):
        with pytest.raises(HolderRefused) as refused:
            claim.mount("m", {"x": "y" * size})
        assert refused.value.code == "bad-request"
        assert "\n" not in str(refused.value)
    give_back(claim, table, [])


def test_no_descriptor_is_leaked_by_what_fails(holder: HolderProcess) -> None:
    claim, table, _ = Holder.claim(holder.socket, "test")
    held = claim.mount("m", {})
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with pytest.raises(HolderError):
            claim.mount("m", {})
        with pytest.raises(HolderError):
            Holder.claim(holder.socket, "test")
    assert len(os.listdir("/proc/self/fd")) == before
    assert Path(f"/proc/self/fd/{held.fd}").exists()
    give_back(claim, table, [held])
