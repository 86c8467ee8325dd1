"""Random operations on the whole store against a model of it, and the cases that were found so.

The model: an object's bytes are what the origin has, whatever was evicted, damaged or lost in a crash; what
is pinned or leased stays; a directory holds no more than its capacity; counters, index and files agree.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from agent.cache.fsck import Fsck
from agent.content import Extent, ObjectRef
from agent.errors import OriginUnavailable, StoreError, StoreFailed, StoreFull
from tests.agent.cache.modelled import (
    CHUNK,
    REFS,
    Site,
    another_boot,
    contents,
    flip,
    wrong_chunks,
)
from tests.fakes.clock import ManualClock

refs = st.sampled_from(REFS)
places = st.integers(0, 13 * CHUNK)
lengths = st.integers(1, CHUNK)
wheres = st.integers(0, 1 << 20)
FAULTS = (StoreFull("full"), StoreFailed("a bad disk"))


class StoreMachine(RuleBasedStateMachine):
    """The operations; each ends with the reads that it began, most with evictions under way.

    None has a precondition: what threads have done by then is not the same each time, and what is drawn has
    to be.
    """

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="model-"))
        self.runner = asyncio.Runner()
        self.lives = itertools.count()
        self.clock = ManualClock()
        self.kept: dict[str, set[int]] = {}
        self.damaged: set[str] = set()  # keys of objects that were damaged, and not looked at since
        self.site: Site

    @initialize(directories=st.integers(1, 2))
    def start(self, directories: int) -> None:
        self.directories = directories
        self.site = self.runner.run(Site.open(self.paths(), self.clock))

    def paths(self) -> list[Path]:
        """Those of another life."""
        life = self.root / f"life-{next(self.lives)}"
        return [life / f"{number}" for number in range(self.directories)]

    @rule(ref=refs, extents=st.lists(st.tuples(places, lengths), min_size=1, max_size=4))
    def read(self, ref: ObjectRef, extents: list[tuple[int, int]]) -> None:
        self.runner.run(self.site.read(ref, [part(ref, *one) for one in extents]))

    @rule(ref=refs)
    def read_all(self, ref: ObjectRef) -> None:
        self.runner.run(self.site.read_all(ref))

    @rule(ref=refs, where=wheres)
    def begin_a_read(self, ref: ObjectRef, where: int) -> None:
        self.runner.run(self.site.begin(ref, where))

    @rule()
    def end_reads(self) -> None:
        self.runner.run(self.site.settled())

    @rule(number=st.integers(0, 1), chunks=st.integers(1, 9))
    def evict(self, number: int, chunks: int) -> None:
        self.runner.run(self.site.evict(number, chunks))

    @rule(ref=refs, seconds=st.integers(1, 3))
    def pin(self, ref: ObjectRef, seconds: int) -> None:
        self.runner.run(self._pin(ref, seconds * 1000.0))

    async def _pin(self, ref: ObjectRef, seconds: float) -> None:
        await self.site.pins.add(ref.uri, "r", [ref.key], self.clock.time() + seconds, "kept")

    @rule()
    def unpin(self) -> None:
        for pin in self.site.pins.active():
            self.runner.run(self.site.pins.remove(pin.id))
        self.kept.clear()

    @rule(ref=refs)
    def lease(self, ref: ObjectRef) -> None:
        self.site.claims.opened ^= {ref.key}

    @rule(ref=refs)
    def mount(self, ref: ObjectRef) -> None:
        self.site.claims.shown ^= {ref.key}

    @rule(seconds=st.sampled_from([1.0, 100.0, 1100.0]))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule(days=st.sampled_from([-1, 1]))
    def set_the_clock(self, days: int) -> None:
        self.clock.shift(days * 86400.0)

    @rule(sent=st.integers(0, 90))
    def let_the_origin_fail(self, sent: int) -> None:
        self.site.source.script(sent, OriginUnavailable("reset"))

    @rule(taken=st.integers(0, CHUNK), fault=st.sampled_from(FAULTS))
    def let_the_disk_fail(self, taken: int, fault: StoreError) -> None:
        self.site.source.disk.append((taken, fault))

    @rule(where=wheres)
    def damage_and_scrub(self, where: int) -> None:
        self.runner.run(self.site.settled())
        self.runner.run(self.site.repair())
        damaged = [damage(path, where) for path in self.site.paths]
        assert self.runner.run(self.site.repair()) == len([one for one in damaged if one])
        self.kept.clear()
        self.damaged.clear()

    @rule(ref=refs, turns=st.integers(0, 12), boot=st.booleans(), check=st.booleans(), where=wheres)
    def crash(self, ref: ObjectRef, turns: int, boot: bool, check: bool, where: int) -> None:
        """While an object is being read and another pass of eviction goes on."""
        to = self.paths()
        self.runner.run(self._crash(ref, turns, to))
        self.check_files(to)
        if boot:
            for path in to:
                self.damaged.add(damage(path, where))
                another_boot(path)
        if check:
            for path in to:
                list(Fsck(path, lambda _, __: None).run())
            self.damaged.clear()
            self.check_files(to)
        self.kept.clear()
        self.site = self.runner.run(Site.open(to, self.clock))
        if not boot:
            self.runner.run(self.site.settled())

    async def _crash(self, ref: ObjectRef, turns: int, to: Sequence[Path]) -> None:
        tasks = [
            asyncio.create_task(self.site.read_all(ref)),
            asyncio.create_task(self.site.evict(turns, 2)),
        ]
        for _ in range(turns):
            await asyncio.sleep(0)
        await self.site.copy(to)
        await asyncio.gather(*tasks)
        await self.site.close()

    @rule()
    def restart(self) -> None:
        paths = self.site.paths
        self.runner.run(self.site.close())
        self.check_files(paths)
        self.site = self.runner.run(Site.open(paths, self.clock))
        self.runner.run(self.site.settled())

    @rule(ref=refs, cut=st.integers(0, 12))
    def cut_a_file_and_restart(self, ref: ObjectRef, cut: int) -> None:
        paths = self.site.paths
        self.runner.run(self.site.close())
        for path in paths:
            file = path / "objects" / ref.key[:2] / ref.key
            if file.exists():
                # Never longer: zeros behind the end of a file that was cut before are another damage.
                os.truncate(file, min(cut * CHUNK, file.stat().st_size))
        self.damaged.add(ref.key)
        self.site = self.runner.run(Site.open(paths, self.clock))

    def check_files(self, paths: Sequence[Path]) -> None:
        """What the index says is present is right, but for what was damaged and not looked at since."""
        for path in paths:
            assert {key for key, _ in wrong_chunks(path)} <= self.damaged

    @invariant()
    def claims_are_kept(self) -> None:
        found: dict[str, set[int]] = {}
        for directory in self.site.store.directories:
            assert directory.used <= directory.capacity
            for key, extents in contents(directory.path).items():
                found.setdefault(key, set()).update(extent.offset // CHUNK for extent in extents)
        claimed = self.site.pins.keys() | self.site.claims.opened
        for key, chunks in self.kept.items():
            if key in claimed - self.damaged:
                assert chunks <= found.get(key, set()), f"{key} is pinned or leased, and was evicted"
        leaving = self.site.store.leaving  # a claim that comes then is too late
        begun = {key for key in claimed if key in self.kept or not leaving(frozenset((key,)))}
        self.kept = {key: found[key] for key in begun if key in found}

    def teardown(self) -> None:
        try:
            if hasattr(self, "site") and self.site.alive:
                self.runner.run(self.site.settled())
                self.runner.run(self.site.close())
                self.check_files(self.site.paths)
        finally:
            self.runner.close()
            shutil.rmtree(self.root)


def part(ref: ObjectRef, start: int, length: int) -> Extent:
    """An extent within an object."""
    start %= ref.size
    return Extent(start, min(length, ref.size - start))


def damage(path: Path, where: int) -> str:
    """Change a byte of a chunk that is present, if there is one; of which object.

    Nothing is drawn here: what a crash leaves is not the same each time.
    """
    found = contents(path)
    present = sorted((key, extent.offset, extent.length) for key, ones in found.items() for extent in ones)
    if not present:
        return ""
    key, offset, length = present[where % len(present)]
    flip(path, key, offset + where % length)
    return key


@pytest.mark.timeout(120)
def test_whatever_happens_reads_are_right_and_claims_are_kept() -> None:
    run_state_machine_as_test(
        StoreMachine,
        settings=settings(max_examples=60, stateful_step_count=25, phases=(Phase.explicit, Phase.generate)),
    )


async def test_a_read_over_two_chunks_ends_where_the_store_has_room_for_one(tmp_path: Path) -> None:
    site = await Site.open([tmp_path / "store"], ManualClock(), 7 * CHUNK)
    (directory,) = site.store.directories
    directory.high_watermark = directory.low_watermark = 1.0  # nothing goes for the sake of it
    kept, other = REFS[3], REFS[2]
    await site.read_all(kept)
    await site.pins.add(kept.uri, "r", [kept.key], site.clock.time() + 1e6, "six chunks of seven")
    await site.read(other, [Extent(0, 100)])
    fetched = len(site.source.fetches)
    await site.read(other, [Extent(CHUNK - 100, 200)])
    assert len(site.source.fetches) == fetched + 1, "what is there does not go for what is missing"
    await site.close()


@pytest.mark.long
@pytest.mark.timeout(900)
def test_whatever_happens_for_long_reads_are_right_and_claims_are_kept() -> None:
    run_state_machine_as_test(StoreMachine, settings=settings(max_examples=500, stateful_step_count=40))
