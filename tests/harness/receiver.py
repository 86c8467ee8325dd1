"""The transfer engine for tests of the origins, which remembers what it was asked to send."""

from __future__ import annotations

from agent.clock import SystemClock
from agent.source import Sink
from agent.transfer.engine import Engine
from agent.transfer.request import RangedGet


class RecordingEngine:
    """The real engine; `sent` are the GETs in their order."""

    def __init__(self, threads: int = 4) -> None:
        self._engine = Engine(threads, SystemClock())
        self.sent: list[RangedGet] = []

    async def receive(self, get: RangedGet, sink: Sink) -> None:
        assert (get.extent.offset, get.extent.end) == (sink.position, sink.end)
        self.sent.append(get)
        await self._engine.receive(get, sink)

    async def close(self) -> None:
        await self._engine.close()
