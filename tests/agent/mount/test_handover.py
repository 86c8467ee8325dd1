"""The agent's half of the hand-over, on real holders that are killed and started again."""

from __future__ import annotations

import asyncio
import os
import select
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from agent.clock import SystemClock
from agent.metrics import Metrics
from agent.mount.handover import LAST_WAIT, Handover
from agent.mount.holder import HeldMount, Holder, InFlightTable
from tests.csi.holder.test_restore import OLDER, bind, listed
from tests.csi.holding import WITHIN, HolderProcess, answering, scratch
from tests.fakes.clock import ManualClock


@dataclass
class OwnMounts:
    """What the hand-over needs of the mounts: a list, and the table that new ones use."""

    names: list[str] = field(default_factory=lambda: ["m"])
    tables: list[InFlightTable] = field(default_factory=list)

    def served(self) -> Sequence[object]:
        return self.names

    def use_table(self, table: InFlightTable) -> None:
        self.tables.append(table)


@dataclass
class Scene:
    """A holder with one mount that is bound, its agent, and the hand-over that watches."""

    process: HolderProcess
    agent: Holder
    held: HeldMount
    mounts: OwnMounts
    metrics: Metrics
    handover: Handover

    def restart(self, *program: str) -> None:
        self.process = HolderProcess(self.process.base, program or ("-m", "csi"))

    async def connected(self, wanted: bool) -> None:
        """Return once the hand-over knows it."""
        await until(lambda: self.metrics.counters()["headrace_holder_connected"] == wanted)


async def until(true: Callable[[], bool]) -> None:
    """Poll until something is true that other processes bring about."""
    never, asking = os.pipe()
    try:
        async with asyncio.timeout(WITHIN):
            while not true():
                await asyncio.to_thread(select.select, [never], [], [], 0.01)
    finally:
        os.close(never)
        os.close(asking)


@asynccontextmanager
async def scene(clock: SystemClock | ManualClock | None = None) -> AsyncIterator[Scene]:
    with scratch() as base:
        process = HolderProcess(base)
        agent, table, _ = Holder.claim(process.socket, "test")
        held = agent.mount("m", {"revision": "r"})
        metrics, mounts = Metrics(), OwnMounts()
        handover = Handover(agent, mounts, table, clock or SystemClock(), metrics)
        made = Scene(process, agent, held, mounts, metrics, handover)
        with answering(held.fd):
            handover.start()
            yield made
            mounts.names.clear()
            await handover.close()
        made.process.close()
        agent.close()
        os.close(held.fd)


def bound(place: Scene) -> None:
    target = place.process.base / "target"
    target.mkdir(exist_ok=True)
    bind(place.process, "m", target)


async def test_a_killed_holders_successor_is_given_everything_without_being_asked() -> None:
    async with scene() as place:
        bound(place)
        for _ in range(2):
            place.process.kill()
            await place.connected(False)
            assert not place.agent.connected
            place.restart()
            await place.connected(True)
            (told, _) = listed(place.process)
            assert (told["mount"], told["held"], told["record"]) == ("m", True, {"revision": "r"})
        assert place.agent.life == 3


async def test_what_was_unpublished_meanwhile_is_given_up() -> None:
    async with scene() as place:
        place.process.kill()
        await place.connected(False)
        place.restart()
        await until(lambda: place.process.mounted_at("m") is None)


async def test_another_agents_claim_is_waited_out(caplog: pytest.LogCaptureFixture) -> None:
    clock = ManualClock()
    async with scene(clock) as place:
        bound(place)
        place.process.kill()
        pause = await clock.next_sleep()
        place.restart()
        rival = place.process.connect("agent")
        with rival.request("claim", {}, several=True):
            pass
        clock.advance(pause)
        pause = await clock.next_sleep()
        assert f"the agent of pid {os.getpid()} has claimed the descriptors (busy)" in caplog.text
        rival.close()
        clock.advance(pause)
        await place.connected(True)


async def test_an_older_holder_gets_new_mounts_and_its_own_table(caplog: pytest.LogCaptureFixture) -> None:
    async with scene() as place:
        place.process.kill()
        await place.connected(False)
        place.restart("-c", OLDER)
        await place.connected(True)
        assert len(place.mounts.tables) == 1
        assert "takes no mounts back" in caplog.text


async def test_an_agent_that_ends_while_no_holder_is_there_waits_for_one() -> None:
    async with scene() as place:
        bound(place)
        place.process.kill()
        await place.connected(False)
        closing = asyncio.create_task(place.handover.close())
        place.restart()
        await closing
        assert listed(place.process)[0]["held"] is True


async def test_it_does_not_wait_for_ever(caplog: pytest.LogCaptureFixture) -> None:
    clock = ManualClock()
    async with scene(clock) as place:
        place.process.kill()
        await clock.next_sleep()
        closing = asyncio.create_task(place.handover.close())
        await until(lambda: f"waiting up to {LAST_WAIT:g} s" in caplog.text)
        clock.advance(LAST_WAIT)
        await closing
        place.restart()
