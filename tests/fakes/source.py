"""The in-memory twin of agent/source.py: objects in memory, and a script of what each fetch does."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping

from agent.content import Extent, ObjectRef
from agent.source import Budget, Checksum, Sink, Urgency


class Gate:
    """A step at which a fetch waits: `reached` tells the test, `open` lets the fetch go on."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.open = asyncio.Event()


Step = int | Gate | Exception


class MemorySource:
    """Each fetch takes the next script: an int sends so many bytes, a `Gate` waits, an exception is raised.

    What a script leaves, the fetch sends at its end. `fetches` are the extents asked for, in their order, and
    `urgencies` how urgent they were.
    """

    def __init__(self, data: Mapping[str, bytes], budget: Budget | None = None) -> None:
        self._data = data
        self._budget = budget or Budget("memory", connections=4, bytes_in_flight=1 << 30, deadline=30.0)
        self._scripts: deque[tuple[Step, ...]] = deque()
        self.outage: Exception | None = None
        self.fetches: list[Extent] = []
        self.urgencies: list[Urgency] = []
        self.running = 0
        self.cancelled = asyncio.Event()

    def script(self, *steps: Step) -> None:
        """What the next fetch that has no script yet will do."""
        self._scripts.append(steps)

    def budget(self, ref: ObjectRef) -> Budget:
        return self._budget

    async def fetch(self, ref: ObjectRef, sink: Sink) -> None:
        self.fetches.append(Extent(sink.position, sink.end - sink.position))
        self.urgencies.append(sink.urgency)
        self.running += 1
        try:
            await self._play(ref, sink)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        finally:
            self.running -= 1

    async def checksum(self, ref: ObjectRef) -> Checksum | None:
        return None

    async def _play(self, ref: ObjectRef, sink: Sink) -> None:
        if self.outage is not None:
            raise self.outage
        for step in self._scripts.popleft() if self._scripts else ():
            if isinstance(step, int):
                self._send(ref, sink, step)
            elif isinstance(step, Gate):
                step.reached.set()
                await step.open.wait()
            else:
                raise step
        self._send(ref, sink, sink.end - sink.position)

    def _send(self, ref: ObjectRef, sink: Sink, count: int) -> None:
        start = sink.position
        sink.write(memoryview(self._data[ref.uri])[start : start + count])
