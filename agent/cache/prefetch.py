"""How far ahead of one open file to fill: a pure decision over the reads that were seen of it.

The first read of a file goes alone: fetches started beside it would take its bandwidth just when somebody
waits for the first byte. Where reads go on, that is a run: its window opens to `FIRST_WINDOW` chunks and
with the next chunk to `WINDOW`; a jump begins another run, whose window is closed. One page that a program
touches in a mapped file comes as several reads, one behind the other, because the kernel reads around it as
far as its readahead goes. So a run must be longer than that before its window opens, but for one that begins
with the file: who begins there mostly goes on, and gains from not waiting for the proof.

Several threads may read through one handle, each at a place of its own: the last `RUNS` runs are known, and
those that went on lately share the window.
"""

from __future__ import annotations

from collections import deque

from agent.content import Extent

# Measured: 6 to 8 chunks of 8 MiB ahead keep 6 to 8 connections busy and reach the raw download's speed; 4
# came to 0.74 of it, more than 8 brought nothing.
FIRST_WINDOW = 4
WINDOW = 8
RUNS = 8  # with as many the window is one chunk for each


class Run:
    """Reads that go on, each behind the one before it."""

    __slots__ = ("end", "last", "start", "trusted", "window")

    def __init__(self, extent: Extent, last: int) -> None:
        """`last` is the last chunk of the extent."""
        self.start, self.end, self.last = extent.offset, extent.end, last
        self.window = 0
        self.trusted = not self.start  # it needs no proof, as long as nothing is read elsewhere

    def goes_on(self, offset: int, chunk_size: int) -> bool:
        if self.window:
            return abs(offset // chunk_size - self.last) <= 1
        return self.start <= offset <= self.end

    def take(self, extent: Extent, last: int, proof: int) -> bool:
        """Take a read; whether the window opens or the run comes to another chunk in it."""
        self.end = max(self.end, extent.end)
        grown, self.last = last > self.last, max(self.last, last)
        if self.window:
            self.window = WINDOW if grown else self.window
            return grown
        if self.trusted or self.end - self.start > proof:
            self.window = FIRST_WINDOW
        return self.window > 0

    def doubt(self, proof: int) -> None:
        """Something was read elsewhere: a window that was opened without proof is closed."""
        self.trusted = False
        if self.end - self.start <= proof:
            self.window = 0


class Stream:
    """The reads of one open file."""

    def __init__(self, read_around: int) -> None:
        """`read_around` is how many bytes the kernel reads where a program touches a single page."""
        self._read_around = read_around
        self._runs: list[Run] = []  # the latest at the end
        self._steps: deque[Run] = deque(maxlen=WINDOW)  # which runs came to their next chunk lately
        self.closed = True  # whether every read counts; in an open window one of each chunk is enough

    def advance(self, extent: Extent, chunk_size: int, chunks: int) -> range:
        """Take note of a read; the chunks (of `chunks` in all) that should be filled ahead of it."""
        last = max(extent.offset, extent.end - 1) // chunk_size
        run = self._run_of(extent.offset, chunk_size)
        if run is None:
            for other in self._runs:
                other.doubt(self._read_around)
            run = Run(extent, last)
        else:
            self._runs.remove(run)
            if run.take(extent, last, self._read_around):
                self._steps.append(run)
        self._runs = [*self._runs[1 - RUNS :], run]
        self.closed = not run.window
        window = min(run.window, WINDOW // max(1, len(set(self._steps))))
        return range(run.last + 1, min(run.last + 1 + window, chunks))

    def _run_of(self, offset: int, chunk_size: int) -> Run | None:
        """The run that a read belongs to: of those that it may go on the open ones first, then the latest."""
        going_on = [run for run in reversed(self._runs) if run.goes_on(offset, chunk_size)]
        return min(going_on, key=lambda run: not run.window, default=None)
