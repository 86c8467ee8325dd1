"""Headrace's relay and swarm: real agents and stores, told to fill a dataset, or read through mounts."""

from __future__ import annotations

import asyncio
import json
import struct
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from agent.control.client import AdminClient, AdminError
from agent.control.views import MountRequest
from agent.peers.member import Peer
from agent.peers.placement import tracker_of
from bench.child import BenchError, cpu_seconds, run
from bench.peers.rig import LIMIT, Rig, Run, per_gib
from bench.peers.scenario import Scenario
from bench.workload import HEADRACE
from deploy.local.cluster import Node

CHUNK = 8 << 20
FILLED = 'headrace_fills_total{result="done"}'
FAILED = "headrace_peer_failures_total"
LOOK_EVERY = 0.03  # seconds between two looks at the links, and at an agent whose link has carried everything
WARM_EVERY = 0.1  # seconds between two questions to an agent that warms
SETTLED = 1.0  # seconds between the mounts and the start
QUARTER = "50mbit"


@dataclass(eq=False, slots=True)
class _Member:
    """One node, and what it had filled before."""

    node: Node
    client: AdminClient
    filled: float = 0.0
    received: int = 0
    target: Path | None = None
    struck: bool = False


class _Links:
    """What went over the links, looked at once for all: each look costs what an agent could use."""

    def __init__(self, rig: Rig) -> None:
        self._network = rig.cluster.network
        self.traffic = self._network.traffic()
        self.looked = asyncio.Event()  # set at the next look, which makes another one

    async def keep_looking(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY)
            self.traffic = self._network.traffic()
            self.looked.set()
            self.looked = asyncio.Event()


@dataclass(eq=False, slots=True)
class Agents:
    """A `Way`: by the relay, or with `swarm` warmed by libtorrent."""

    name: str
    swarm: bool

    def takes(self, scenario: Scenario) -> bool:
        return not (self.swarm and scenario.read)

    def carry(self, rig: Rig, scenario: Scenario) -> Run:
        file = rig.file()
        if scenario.read == "safetensors":
            make_safetensors(file, rig.size)
        return asyncio.run(_measured(rig, scenario, f"s3://{rig.bucket(file)}/model", self))


WAY = Agents(HEADRACE, swarm=False)
SWARM = Agents(f"{HEADRACE}, swarm", swarm=True)


def make_safetensors(path: Path, size: int) -> None:
    """Turn a file of random bytes into one of one tensor (safetensors: a length, JSON, the data)."""
    room = 256
    shape = [size - 8 - room]
    head = json.dumps({"weights": {"dtype": "U8", "shape": shape, "data_offsets": [0, *shape]}}).ljust(room)
    with path.open("r+b") as file:
        file.write(struct.pack("<Q", room) + head.encode())


def a_thread_each(count: int) -> None:
    """Let so many nodes be mounted and read at the same time: by itself the loop has four threads more than
    there are cores, so that on two of them the last two of eight began when others had ended."""
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(count))


async def _measured(rig: Rig, scenario: Scenario, uri: str, way: Agents) -> Run:
    a_thread_each(scenario.nodes + 1)  # and one for what strikes
    async with AsyncExitStack() as stack:
        members = [await _member(stack, node) for node in rig.cluster.nodes]
        await asyncio.gather(*(_prepare(one, uri, scenario) for one in members))
        await asyncio.sleep(SETTLED)
        traffic = rig.cluster.network.traffic()
        for one in members:
            one.received = traffic[one.node.host.number - 1].received
        pids = [one.node.stack.process("agent").pid for one in members]
        cpu = cpu_seconds(pids)
        striking = asyncio.create_task(_strike(rig, scenario, members, uri))
        links = _Links(rig)
        looking = asyncio.create_task(links.keep_looking())
        timed = [
            _timed(rig, scenario, one, uri, number * scenario.every, way, links)
            for number, one in enumerate(members)
        ]
        limit = LIMIT * rig.bound + scenario.every * len(members)
        seconds = await asyncio.wait_for(asyncio.gather(*timed), limit)
        looking.cancel()
        await striking
        origin = (rig.origin_sent() - traffic[0].sent) / rig.size
        used = None if scenario.strike else per_gib(cpu_seconds(pids) - cpu, rig.size, len(members))
        healthy = [taken for taken, one in zip(seconds, members, strict=True) if not one.struck]
        notes = await _failures(members)
        return Run(scenario.name, way.name, rig.bound, healthy, origin, used, notes)


async def _member(stack: AsyncExitStack, node: Node) -> _Member:
    client = AdminClient(str(node.stack.layout.admin_socket), timeout=10.0)
    return _Member(node, await stack.enter_async_context(client))


async def _prepare(one: _Member, uri: str, scenario: Scenario) -> None:
    """Have the dataset mounted and listed, and nothing of it fetched."""
    if scenario.read:
        one.target = await asyncio.to_thread(one.node.stack.mount, uri)
    else:
        await one.client.mount(MountRequest(uri=uri, prefetch="none"))
    one.filled = (await one.client.counters()).get(FILLED, 0.0)


async def _timed(
    rig: Rig, scenario: Scenario, one: _Member, uri: str, after: float, way: Agents, links: _Links
) -> float:
    await asyncio.sleep(after)
    begun = time.monotonic()
    if one.target is not None:
        await asyncio.to_thread(_read, scenario.read, one.target, LIMIT * rig.bound)
    elif way.swarm:
        await _warmed(one, uri)
    else:
        await one.client.mount(MountRequest(uri=uri, prefetch="all"))
        await _filled(rig, one, links)
    return time.monotonic() - begun


def _read(how: str, target: Path, limit: float) -> None:
    if how == "safetensors":
        run([sys.executable, "-m", "deploy.local.loader", "load", target], limit=limit)
    else:
        file = target / "weights.safetensors"
        run(["dd", f"if={file}", "of=/dev/null", "bs=1M", "status=none"], limit=limit)


async def _warmed(one: _Member, uri: str) -> None:
    """Have a node warmed by the swarm, until it has everything, or is no more. Raises BenchError."""
    try:
        warming = await one.client.warm(uri)
        while warming.state == "running":
            await asyncio.sleep(WARM_EVERY)
            warming = next(found for found in await one.client.warmings() if found.id == warming.id)
    except AdminError:
        if not one.struck:
            raise
    else:
        if warming.state != "done":
            raise BenchError(f"not warmed: {warming.message}")


async def _filled(rig: Rig, one: _Member, links: _Links) -> None:
    """Wait until a node has everything, or is no more; the agent is not asked before its link says so."""
    chunks = -(-rig.size // CHUNK)
    while not one.struck or one.node.stack.process_runs("agent"):
        traffic = links.traffic[one.node.host.number - 1]
        enough = traffic.received - one.received >= rig.size
        if enough and (await one.client.counters()).get(FILLED, 0.0) - one.filled >= chunks:
            return
        await links.looked.wait()


async def _strike(rig: Rig, scenario: Scenario, members: list[_Member], uri: str) -> None:
    if scenario.strike == "slow":  # from the beginning
        members[len(members) // 2].struck = True
        rig.cluster.network.shape(members[len(members) // 2].node.host, QUARTER)
        return
    if not scenario.strike:
        return
    peers = [Peer(one.node.name, one.node.name) for one in members]
    tracker = tracker_of(uri, peers)
    assert tracker is not None
    chosen = [one for one in members if (one.node.name == tracker.name) == ("tracker" in scenario.strike)]
    await asyncio.sleep(scenario.at * rig.bound)
    chosen[0].struck = True
    await asyncio.to_thread(chosen[0].node.stack.kill_agent)


async def _failures(members: list[_Member]) -> dict[str, float]:
    """How often peers failed each other, by reason."""
    found: dict[str, float] = {}
    for one in members:
        if one.node.stack.process_runs("agent"):
            for name, value in (await one.client.counters()).items():
                if name.startswith(FAILED) and value:
                    found[name] = found.get(name, 0.0) + value
    return found
