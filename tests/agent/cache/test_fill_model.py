"""Random operations on a filler with a real store: right bytes or one clean error, and nothing stays held."""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.cache.fill import Filler
from agent.cache.objects import CachedObject
from agent.content import Extent, ObjectRef
from agent.errors import AccessDenied, HeadraceError, OriginUnavailable, StoreFull
from agent.metrics import Metrics
from agent.origin.pacing import PacedOrigins
from agent.source import Budget
from tests.agent.cache.conftest import TappedStore, open_store
from tests.fakes.clock import ManualClock
from tests.fakes.source import Gate, MemorySource

CHUNK = 4096
DATA = random.Random(7).randbytes(5 * CHUNK + 100)
REF = ObjectRef("s3://bucket/object", "v1", len(DATA))
PATIENCE = 30.0
ERRORS: Sequence[Exception] = (OriginUnavailable("reset"), AccessDenied("no"), StoreFull("full"))

Operation = tuple[str, int, int]
OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["read", "read", "leave", "prefetch", "disown", "script", "open", "advance", "turn"]),
        st.integers(0, len(DATA) + 10),
        st.integers(1, 3 * CHUNK),
    ),
    max_size=40,
)


class Read:
    """A reader that checks what it is told: once, and the right bytes."""

    def __init__(self, filler: Filler, cached: CachedObject, extent: Extent) -> None:
        self.extent = extent
        self.needs = extent.end
        self.deadline: float | None = None
        self.left = False
        self.result: asyncio.Future[HeadraceError | None] = asyncio.get_running_loop().create_future()
        self._filler = filler
        self._cached = cached

    def ready(self, data: memoryview, offset: int) -> None:
        assert offset < self.needs <= offset + len(data)
        self.resume()

    def resume(self) -> None:
        if not self._cached.begin_read(self.extent):
            asyncio.get_running_loop().call_soon(self._again)
            return
        expected = DATA[self.extent.offset : self.extent.end]
        found = bytearray(len(expected))
        self._cached.read(Extent(self.extent.offset, len(expected)), memoryview(found))
        self._cached.end_read(self.extent)
        assert found == expected
        assert not self.left
        self.result.set_result(None)

    def fail(self, error: HeadraceError) -> None:
        assert not self.left
        self.result.set_result(error)

    def _again(self) -> None:
        if not self.left:
            self._filler.read(self._cached, self)


class Run:
    """One filler, and what was done with it."""

    def __init__(self, store: TappedStore, cached: CachedObject) -> None:
        self.store = store
        self.cached = cached
        self.clock = ManualClock()
        self.source = MemorySource({REF.uri: DATA}, Budget("memory", 2, 3 * CHUNK, deadline=20.0))
        self.metrics = Metrics("test")
        paced = PacedOrigins(self.source, {}, self.clock, random.Random(2))
        self.filler = Filler(store, paced, self.clock, self.metrics, PATIENCE, random.Random(1))
        self.reads: list[Read] = []
        self.gates: list[Gate] = []

    async def do(self, operation: Operation) -> None:
        name, offset, length = operation
        if name == "read":
            self.reads.append(Read(self.filler, self.cached, Extent(offset, length)))
            self.filler.read(self.cached, self.reads[-1])
        elif name == "leave":
            self._leave(offset)
        elif name == "prefetch":
            chunks = range(offset // CHUNK, min(offset // CHUNK + 3, len(self.cached.present)))
            self.filler.prefetch(self.cached, chunks, length % 2)
        elif name == "disown":
            self.filler.disown(length % 2)
        elif name == "script":
            self._script(offset, length)
        elif name == "open" and self.gates:
            self.gates.pop(0).open.set()
        elif name == "advance":
            self.clock.advance(length / CHUNK * 10)
        await turn(length % 4)
        self.check()

    def _leave(self, number: int) -> None:
        waiting = [read for read in self.reads if not read.result.done() and not read.left]
        if waiting:
            read = waiting[number % len(waiting)]
            self.filler.leave(read)
            read.left = True

    def _script(self, offset: int, length: int) -> None:
        sent = offset % CHUNK
        if length % 2:
            self.gates.append(Gate())
            self.source.script(min(sent, 100), self.gates[-1])
        else:
            self.source.script(min(sent, 100), ERRORS[length // 2 % len(ERRORS)])

    def check(self) -> None:
        assert self.source.running <= 2
        assert 0 <= self.store.directories[0].used <= len(DATA)
        now = self.clock.monotonic()
        for read in self.reads:
            assert read.result.done() or read.left or (read.deadline or now) >= now

    async def finish(self) -> None:
        """Everything that still waits is answered once the origin answers; then nothing is held."""
        for gate in self.gates:
            gate.open.set()
        open_reads = [read.result for read in self.reads if not read.left]
        give_up = time.monotonic() + 10
        while not all(result.done() for result in open_reads):
            assert time.monotonic() < give_up, "a reader was told nothing"
            await turn(1)
            self.clock.advance(1.0)
        await asyncio.wait_for(self.filler.close(), 10)
        present = [self.cached.extent(number).length for number, bit in enumerate(self.cached.present) if bit]
        assert self.store.directories[0].used == sum(present)
        assert (self.cached.landings, self.cached.users, self.source.running) == ({}, 1, 0)


async def turn(times: int) -> None:
    """Let the loop run what is ready, so many times."""
    for _ in range(times):
        ready = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(ready.set_result, None)
        await ready


@settings(max_examples=60, deadline=None)
@given(operations=OPERATIONS)
def test_whatever_happens_each_reader_gets_the_right_bytes_or_one_error(operations: list[Operation]) -> None:
    asyncio.run(play(operations))


async def play(operations: list[Operation]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        store = await open_store(Path(directory), chunk=CHUNK)
        run = Run(store, await store.acquire(REF))
        faults: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
        for operation in operations:
            await run.do(operation)
        await run.finish()
        await store.close()
        assert faults == []
