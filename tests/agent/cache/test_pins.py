"""Pins: durable, in force until their own time wherever the clock goes, kept by a directory that works."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from agent.cache.directory import State, StoreLimits
from agent.cache.pins import RETAINED, Pin, Pins
from agent.cache.store import Store
from agent.errors import BadRequest, StoreFailed
from agent.metrics import Metrics
from tests.fakes.clock import ManualClock

HOUR = 3600.0


class Site:
    """A store of two directories, and pins over it that can be loaded anew."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.clock = ManualClock()
        self.metrics = Metrics("test")
        self.pins = Pins(store, self.clock, self.metrics)

    @classmethod
    async def make(cls, path: Path) -> Site:
        paths = [path / "one", path / "two"]
        return cls(await Store.open(paths, 65536, StoreLimits(1 << 30, 0), ManualClock()))

    async def pin(self, seconds: float, *keys: str) -> Pin:
        return await self.pins.add("s3://b", "r", keys, self.clock.time() + seconds, "the campaign")

    async def loaded(self) -> list[Pin]:
        again = Pins(self.store, self.clock, self.metrics)
        await again.load()
        return again.active()


async def test_a_pin_ends_at_its_own_time_and_not_before(tmp_path: Path) -> None:
    site = await Site.make(tmp_path)
    long, short = await site.pin(2 * HOUR, "a", "b"), await site.pin(HOUR, "b", "c")
    assert site.pins.active() == [short, long]
    assert site.pins.keys() == {"a", "b", "c"}
    site.clock.advance(HOUR)
    assert (site.pins.keys(), site.metrics.counters()["headrace_pins"]) == ({"a", "b"}, 1)
    site.clock.advance(HOUR)
    assert (site.pins.keys(), site.pins.active()) == (set(), [])
    await site.store.close()


@pytest.mark.parametrize("day", [24 * HOUR, -24 * HOUR])
async def test_a_clock_that_goes_a_day_off_and_back_costs_no_pin(tmp_path: Path, day: float) -> None:
    site = await Site.make(tmp_path)
    pin = await site.pin(HOUR, "a")
    site.clock.shift(day)
    in_force = [] if day > 0 else [pin]
    assert site.pins.active() == in_force == await site.loaded()
    site.clock.shift(-day)
    assert site.pins.active() == [pin] == await site.loaded()
    await site.store.close()


async def test_what_ended_long_ago_is_forgotten(tmp_path: Path) -> None:
    site = await Site.make(tmp_path)
    await site.pin(HOUR, "a")
    site.clock.shift(HOUR + RETAINED + 1)
    assert await site.loaded() == []
    site.clock.shift(-HOUR - RETAINED - 1)
    assert await site.loaded() == []
    await site.store.close()


async def test_a_time_that_has_passed_and_a_pin_that_is_not_there_are_refused(tmp_path: Path) -> None:
    site = await Site.make(tmp_path)
    with pytest.raises(BadRequest, match="passed"):
        await site.pin(0.0, "a")
    with pytest.raises(BadRequest, match="no pin"):
        await site.pins.remove("none")
    assert site.pins.active() == []
    await site.store.close()


async def test_an_end_is_told_to_who_waits_for_room(tmp_path: Path) -> None:
    site = await Site.make(tmp_path)
    ended = asyncio.Event()
    site.pins.on_removed = ended.set
    pin = await site.pin(HOUR, "a")
    assert not ended.is_set()
    await site.pins.remove(pin.id)
    assert ended.is_set()
    assert await site.loaded() == []
    await site.store.close()


async def test_a_pin_goes_to_the_next_directory_where_the_first_one_has_failed(tmp_path: Path) -> None:
    site = await Site.make(tmp_path)
    first, second = site.store.directories
    site.store.conditions.mark(first, StoreFailed("a test"))
    one = await site.pin(HOUR, "a")
    await site.store.conditions.probe()
    await site.store.blocking(first.index.close)  # fails at the next use
    two = await site.pin(2 * HOUR, "b")
    assert first.state is State.FAILED
    rows = await site.store.blocking(
        second.index.transact, lambda db: db.execute("SELECT id FROM pins ORDER BY until").fetchall()
    )
    assert rows == [(one.id,), (two.id,)]
    await site.store.close()
