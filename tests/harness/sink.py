"""Sinks for tests: the bytes of one chunk in memory."""

from __future__ import annotations

from agent.content import ObjectRef, chunk_count, chunk_extent
from agent.source import ChunkSource, Urgency


class MemorySink:
    """A `Sink` that keeps its bytes, and the size of the largest piece."""

    def __init__(self, start: int, end: int, urgency: Urgency = Urgency.PRELOAD) -> None:
        self.urgency = urgency
        self._start = start
        self._end = end
        self.data = bytearray()
        self.largest = 0
        self.unproven = False

    @property
    def position(self) -> int:
        return self._start + len(self.data)

    @property
    def end(self) -> int:
        return self._end

    def doubt(self) -> None:
        self.unproven = True

    def write(self, data: memoryview) -> None:
        if self.position + len(data) > self._end:
            raise ValueError("past the end")
        self.largest = max(self.largest, len(data))
        self.data += data


async def read_object(source: ChunkSource, ref: ObjectRef, chunk_size: int = 1 << 20) -> bytes:
    """All bytes of an object, fetched chunk by chunk."""
    found = bytearray()
    for chunk in range(chunk_count(ref.size, chunk_size)):
        extent = chunk_extent(chunk, ref.size, chunk_size)
        sink = MemorySink(extent.offset, extent.end)
        await source.fetch(ref, sink)
        found += sink.data
    return bytes(found)
