"""The thread that sends one peer its bytes: which of its streams goes next, and the calls that block.

A peer asks for several chunks at once, the first ones the most. Sent side by side they would all come late,
and each hop of a chain would add the time of a unit at the speed of one stream among many: with eight of them
over a link of 200 Mbit/s a twelfth of a second, where the link carries a unit in a hundredth. So one stream
sends at a time, as much as it has, and the next one what time the first leaves. All agents have the same
order, so that a chunk passes down a chain at full speed. What a reader of the peer waits for goes first. No
stream is silent for long, since whoever waits for bytes takes a silent peer for a dead one.

Not the loop's work: by `loop.sendfile` a slice cost it two thirds of a millisecond, which was a third of all
that an agent of a relay spent, and while the disk was slow nothing else was done.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
from bisect import insort
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from agent.cache.objects import CachedObject
from agent.clock import Clock
from agent.content import Extent
from agent.errors import HeadraceError
from agent.transfer.landing import Landing

SLICE = 1 << 20  # bytes sent in one turn
SENT_WITHIN = 10.0  # seconds for a slice: whoever reads more slowly than 100 KiB a second is cut off
ARRIVED_WITHIN = 10.0  # seconds of silence of the landing
LOOK_EVERY = 0.5  # seconds between two looks at what tells nobody: a landing's end, a deadline
SILENT = 1.0  # seconds after which a stream has its turn although one of a lower rank has bytes


class NotHere(HeadraceError):
    """The bytes are not in the store, and do not arrive."""


def landing_of(cached: CachedObject, chunk: int) -> Landing | None:
    """Where a chunk arrives in the object's file; one that is only passed through is no business of peers."""
    landing = cached.landings.get(chunk)
    return landing if type(landing) is Landing else None


def available(cached: CachedObject, offset: int, end: int) -> int:
    """Where the bytes that are there from `offset` on end, at most `end`; `offset` where there are none."""
    for chunk in cached.chunks(Extent(offset, end - offset)):
        if cached.present[chunk]:
            offset = min(end, cached.extent(chunk).end)
            continue
        landing = landing_of(cached, chunk)
        arrived = landing.position if landing is not None else offset
        if arrived < min(end, cached.extent(chunk).end):
            return max(offset, arrived)
        offset = min(end, arrived)
    return offset


@dataclass(eq=False, slots=True)
class Stream:
    """One extent on its way. `ended` is called once, by any thread, with what went wrong.

    `connection` is the stream's own descriptor of the socket, closed at its end; `gone` says whether the
    socket is given up by who serves it.
    """

    cached: CachedObject
    extent: Extent
    urgent: bool  # a reader of the peer waits
    connection: socket.socket
    gone: Callable[[], bool]
    ended: Callable[[BaseException | None], None]
    position: int = field(init=False)
    ready: bool = True  # whether there may be bytes to send; else `arrival` waits in `landing`
    since: float = 0.0  # monotonic, of its last turn, or of the bytes that came since
    landing: Landing | None = None
    arrival: _Arrival | None = None
    given_up: bool = False
    writable: select.poll = field(default_factory=select.poll)

    def __post_init__(self) -> None:
        self.position = self.extent.offset
        self.writable.register(self.connection, select.POLLOUT)

    def __lt__(self, other: Stream) -> bool:
        return (not self.urgent, self.extent.offset) < (not other.urgent, other.extent.offset)


class _Arrival:
    """A waiter (agent/transfer/landing.py) that makes a stream ready."""

    def __init__(self, needs: int, told: Callable[[], None]) -> None:
        self.needs = needs
        self._told = told

    def ready(self, data: memoryview, offset: int) -> None:
        self._told()


def chosen(streams: Sequence[Stream], now: float) -> Stream | None:
    """Whose turn it is of the streams to one peer, which come in their order."""
    ready = [stream for stream in streams if stream.ready]
    late = [stream for stream in ready[1:] if now - stream.since >= SILENT]
    return min(late, key=lambda stream: stream.since) if late else next(iter(ready), None)


class Courier:
    """The streams to one peer. `add` and `give_up` are the loop's; `run` is a thread's."""

    def __init__(self, clock: Clock, pay: Callable[[int], Future[None]] | None = None) -> None:
        """`pay` is called with the count of bytes that were sent; what it gives is done when more may be."""
        self._clock = clock
        self._pay = pay
        self._changed = threading.Condition()
        self._streams: list[Stream] = []
        self._current: Stream | None = None
        self._running = False
        self._looked = clock.monotonic()

    def add(self, stream: Stream) -> bool:
        """Take a stream; True where `run` has to be called in a thread now."""
        with self._changed:
            stream.since = self._clock.monotonic()
            insort(self._streams, stream)
            self._changed.notify()
            start, self._running = not self._running, True
            return start

    def give_up(self, stream: Stream) -> None:
        """End a stream, soon: its `ended` is called."""
        with self._changed:
            stream.given_up = True
            if stream is not self._current:
                self._end(stream, None)
            elif stream in self._streams:
                with contextlib.suppress(OSError):
                    stream.connection.shutdown(socket.SHUT_RDWR)

    def abandon(self, error: OSError) -> None:
        """End all streams with an error: there is no thread that could `run`."""
        with self._changed:
            self._running = False
            streams = list(self._streams)
        for stream in streams:
            self._end(stream, error)

    def run(self) -> None:
        """Send until there are no streams any more."""
        while (stream := self._next()) is not None:
            try:
                over = self._send_slice(stream)
            except Exception as error:  # noqa: BLE001 - it is the stream's, and no other one's
                self._end(stream, error)
            else:
                if over:
                    self._end(stream, None)

    def _next(self) -> Stream | None:
        while True:
            now = self._clock.monotonic()
            if now - self._looked >= LOOK_EVERY:
                self._looked = now
                self._look(now)
            with self._changed:
                self._current = chosen(self._streams, now)
                if self._current is not None:
                    return self._current
                if not self._streams:
                    self._running = False
                    return None
                if not self._changed.wait(LOOK_EVERY):
                    self._looked = 0.0

    def _look(self, now: float) -> None:
        """See to the streams whose landing has ended, or been silent for too long."""
        with self._changed:
            waiting = [stream for stream in self._streams if not stream.ready]
        for stream in waiting:
            if landing_of(stream.cached, stream.position // stream.cached.chunk_size) is not stream.landing:
                self._stop_waiting(stream)
                stream.ready = True
            elif now - stream.since >= ARRIVED_WITHIN or stream.given_up or stream.gone():
                self._end(stream, None)

    def _send_slice(self, stream: Stream) -> bool:
        """Send what there is, one slice at most; True where nothing more is to be sent."""
        cached, start, end = stream.cached, stream.position, stream.extent.end
        until = min(available(cached, start, end), start + SLICE)
        if until <= start:
            return not self._await_bytes(stream)
        extent = Extent(start, until - start)
        if not cached.begin_read(extent):
            return False  # gone, or between its landing and its publication: the next look tells
        try:
            _ask_disk_ahead(cached, until)
            self._send(stream, until)
        finally:
            cached.end_read(extent)
        stream.since = self._clock.monotonic()
        if self._pay is not None:
            _wait_for(self._pay(extent.length), stream)
        return until == end

    def _send(self, stream: Stream, until: int) -> None:
        give_up = self._clock.monotonic() + SENT_WITHIN
        while stream.position < until:
            if stream.given_up or stream.gone():
                raise ConnectionResetError("the peer has gone")
            try:
                length = until - stream.position
                count = os.sendfile(stream.connection.fileno(), stream.cached.fd, stream.position, length)
            except BlockingIOError:
                if self._clock.monotonic() >= give_up:
                    raise TimeoutError("the peer does not take its bytes") from None
                stream.writable.poll(LOOK_EVERY * 1000)
                continue
            if not count:
                raise NotHere("the file is shorter than its object")
            stream.position += count

    def _await_bytes(self, stream: Stream) -> bool:
        """Have a stream made ready by the next byte; False where none comes."""
        landing = landing_of(stream.cached, stream.position // stream.cached.chunk_size)
        if landing is None:
            return available(stream.cached, stream.position, stream.extent.end) > stream.position
        stream.landing, stream.ready = landing, False
        stream.arrival = _Arrival(stream.position + 1, lambda: self._arrived(stream))
        if not landing.wait(stream.arrival):
            stream.ready = True
        return True

    def _arrived(self, stream: Stream) -> None:
        with self._changed:
            stream.since = self._clock.monotonic()
            stream.ready = True
            self._changed.notify()

    def _stop_waiting(self, stream: Stream) -> None:
        if stream.landing is not None and stream.arrival is not None:
            stream.landing.leave(stream.arrival)

    def _end(self, stream: Stream, error: BaseException | None) -> None:
        with self._changed:
            if stream not in self._streams:
                return
            self._streams.remove(stream)
            if stream is self._current:
                self._current = None
            stream.connection.close()
        self._stop_waiting(stream)
        stream.ended(error)


def _ask_disk_ahead(cached: CachedObject, offset: int) -> None:
    """Have what follows in memory, because sendfile waits for the disk.

    Not what arrives just now: it is in memory, and of a hole the kernel would fill pages with zeros.
    """
    if offset < cached.ref.size and cached.present[offset // cached.chunk_size]:
        length = min(SLICE, cached.extent(offset // cached.chunk_size).end - offset)
        os.posix_fadvise(cached.fd, offset, length, os.POSIX_FADV_WILLNEED)


def _wait_for(owed: Future[None], stream: Stream) -> None:
    while not stream.given_up:
        with contextlib.suppress(TimeoutError):
            owed.result(LOOK_EVERY)
            return
    owed.cancel()
