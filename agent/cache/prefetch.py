"""How far ahead of one open file to fill: a pure decision over the reads that were seen of it.

The first read of a file goes alone: fetches started beside it would take its bandwidth just when somebody
waits for the first byte. Where reads go on, that is a stream: the window opens to `FIRST_WINDOW` chunks and
with the next chunk to `WINDOW`; a jump closes it. One page that a program touches in a mapped file comes as
several reads, one behind the other, because the kernel reads around it as far as its readahead goes. So only
reads that go on for longer than that are a stream, but for those that begin with the file: who begins there
mostly goes on, and gains from not waiting for the proof.
"""

from __future__ import annotations

from agent.content import Extent

# Measured: 6 to 8 chunks of 8 MiB ahead keep 6 to 8 connections busy and reach the raw download's speed; 4
# came to 0.74 of it, more than 8 brought nothing.
FIRST_WINDOW = 4
WINDOW = 8


class Stream:
    """The reads of one open file."""

    def __init__(self, read_around: int) -> None:
        """`read_around` is how many bytes the kernel reads where a program touches a single page."""
        self._read_around = read_around
        self._start = self._end = 0  # of the reads that belong together, as far as they were told
        self._last: int | None = None
        self._window = 0

    @property
    def closed(self) -> bool:
        """Whether every read counts; of an open stream one read of each chunk is enough."""
        return not self._window

    def advance(self, extent: Extent, chunk_size: int, chunks: int) -> range:
        """Take note of a read; the chunks (of `chunks` in all) that should be filled ahead of it."""
        first = extent.offset // chunk_size
        last = max(extent.offset, extent.end - 1) // chunk_size
        if self._last is None or not self._goes_on(extent, first - self._last):
            self._start, self._end, self._last, self._window = extent.offset, extent.end, last, 0
        else:
            self._start, self._end = min(self._start, extent.offset), max(self._end, extent.end)
            if not self._window:
                self._window = FIRST_WINDOW if self._is_stream() else 0
            elif last > self._last:
                self._window = WINDOW
            self._last = max(self._last, last)
        return range(self._last + 1, min(self._last + 1 + self._window, chunks))

    def _goes_on(self, extent: Extent, step: int) -> bool:
        if self._window:
            return abs(step) <= 1
        # Several threads take the kernel's reads: they come nearly in order.
        return self._start - self._read_around <= extent.offset <= self._end + self._read_around

    def _is_stream(self) -> bool:
        return not self._start or self._end - self._start > self._read_around
