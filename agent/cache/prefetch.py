"""How far ahead of one open file to fill: a pure decision over the reads that were seen of it.

The first read of a file goes alone: fetches started beside it would take its bandwidth just when somebody
waits for the first byte. A second read near the last one makes a stream, and the window opens at once to
`FIRST_WINDOW` chunks and then to `WINDOW`; a jump closes it. Reads of a mapped file come as the kernel's
readahead windows, in order or nearly so, and look the same from here.
"""

from __future__ import annotations

from agent.content import Extent

# Measured: 6 to 8 chunks of 8 MiB ahead keep 6 to 8 connections busy and reach the raw download's speed; 4
# came to 0.74 of it, more than 8 brought nothing.
FIRST_WINDOW = 4
WINDOW = 8


class Stream:
    """The reads of one open file."""

    def __init__(self) -> None:
        self._last: int | None = None
        self._window = 0

    def advance(self, extent: Extent, chunk_size: int, chunks: int) -> range:
        """Take note of a read; the chunks (of `chunks` in all) that should be filled ahead of it."""
        first = extent.offset // chunk_size
        last = max(extent.offset, extent.end - 1) // chunk_size
        if self._last is None or abs(first - self._last) > 1:
            self._window = 0
        elif last > self._last:
            self._window = WINDOW if self._window else FIRST_WINDOW
        else:
            self._window = self._window or FIRST_WINDOW
            last = self._last
        self._last = last
        return range(last + 1, min(last + 1 + self._window, chunks))
