"""The thread that sends one peer its bytes: one has the turn, some send beside it (agent/peers/turns.py).

Not the loop's work: by `loop.sendfile` a slice cost it two thirds of a millisecond, which was a third of all
that an agent of a relay spent, and while the disk was slow nothing else was done.
"""

from __future__ import annotations

import contextlib
import functools
import os
import select
import socket
import threading
from bisect import insort
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from agent.cache.objects import CachedObject
from agent.clock import Clock
from agent.content import Extent
from agent.errors import HeadraceError
from agent.peers.turns import Arrival, Stream, available, beside, chosen, landing_of, receiver_is_busy
from agent.peers.units import UNIT, unit_end

SLICE = 1 << 20  # bytes sent in one turn
SENT_WITHIN = 10.0  # seconds for a slice: whoever reads more slowly than 100 KiB a second is cut off
ARRIVED_WITHIN = 10.0  # seconds of silence of the landing
LOOK_EVERY = 0.5  # seconds between two looks at what tells nobody: a landing's end, a deadline


class NotHere(HeadraceError):
    """The bytes are not in the store, and do not arrive."""


DigestOf = Callable[[CachedObject, int], bytes]  # of a unit whose bytes may be read; raises OSError
# Called with the count of bytes that were sent, and whether a reader waits; when that is done more may go.
Pay = Callable[[int, bool], Future[None]]


class Courier:
    """The streams to one peer. `add` and `give_up` are the loop's; `run` is a thread's."""

    def __init__(self, clock: Clock, digest: DigestOf, pay: Pay | None = None) -> None:
        self._clock = clock
        self._digest = digest
        self._pay = pay
        self._lock = threading.RLock()  # taken for each unit: a condition's own way to it costs four calls
        self._changed = threading.Condition(self._lock)
        self._streams: list[Stream] = []
        self._current: Stream | None = None
        self._beside: Stream | None = None
        self._running = False
        self._waiting = False  # the thread waits for streams, and may lend its turn
        self._lent = False
        self._news = 0  # times that there was something new to send
        self._woken: int | None = None  # an eventfd, while the thread waits for sockets
        self._looked = clock.monotonic()

    def add(self, stream: Stream) -> bool:
        """Take a stream; True where `run` has to be called in a thread now."""
        with self._lock:
            stream.since = self._clock.monotonic()
            insort(self._streams, stream)
            self._wake()
            start, self._running = not self._running, True
            return start

    def give_up(self, stream: Stream) -> None:
        """End a stream, soon: its `ended` is called."""
        with self._lock:
            stream.given_up = True
            self._wake()
            if stream is not self._current and stream is not self._beside:
                self._end(stream, None)
            elif stream in self._streams:
                with contextlib.suppress(OSError):
                    stream.connection.shutdown(socket.SHUT_RDWR)

    def abandon(self, error: OSError) -> None:
        """End all streams with an error: there is no thread that could `run`."""
        with self._lock:
            self._running = False
            streams = list(self._streams)
        for stream in streams:
            self._end(stream, error)

    def run(self) -> None:
        """Send until there are no streams any more."""
        while (stream := self._next()) is not None:
            self._turn(stream, self._send_slice, self._send)

    def _turn(self, stream: Stream, send: Callable[..., bool], *arguments: object) -> None:
        """Call `send(stream, ...)`, and end the stream where that fails or has nothing more to send."""
        try:
            over = send(stream, *arguments)
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
            with self._lock:
                if not self._lent:
                    self._current = chosen(self._streams, now)
                    if self._current is not None:
                        return self._current
                    if not self._streams:
                        self._running = False
                        return None
                self._waiting = True
                if not self._changed.wait(LOOK_EVERY):
                    self._looked = 0.0
                self._waiting = False

    def _look(self, now: float) -> None:
        """See to the streams whose landing has ended, or been silent for too long, or that were blocked."""
        with self._lock:
            waiting = [stream for stream in self._streams if not stream.ready or stream.blocked]
        for stream in waiting:
            if stream.blocked:
                self._look_at_blocked(stream, now)
            elif landing_of(stream.cached, stream.position // stream.cached.chunk_size) is not stream.landing:
                self._stop_waiting(stream)
                stream.ready = True
            elif self._silent(stream, now) or stream.given_up or stream.gone():
                self._end(stream, None)

    @staticmethod
    def _silent(stream: Stream, now: float) -> bool:
        """Whether its landing has been; one that is unproven tells nothing before its flight is over."""
        unproven = stream.landing is not None and stream.landing.unproven
        return not unproven and now - stream.since >= ARRIVED_WITHIN

    def _look_at_blocked(self, stream: Stream, now: float) -> None:
        if stream.writable.poll(0) or stream.given_up or stream.gone():
            stream.blocked, stream.due = False, None
        elif stream.due is not None and now >= stream.due:
            self._end(stream, TimeoutError("the peer does not take its bytes"))

    def _send_slice(self, stream: Stream, send: Callable[[Stream, int], None]) -> bool:
        """Send what there is, one slice at most; True where nothing more is to be sent."""
        cached, start, end = stream.cached, stream.position, stream.extent.end
        until = min(available(cached, start, end), start + SLICE)
        if until <= start and not stream.digest:
            return not self._await_bytes(stream)
        # All of a unit: where it came without a digest, that is made of it now.
        first = (start - bool(stream.digest)) // UNIT * UNIT
        extent = Extent(first, until - first)
        stream.blocked = False
        if not cached.begin_read(extent):
            return False  # gone, or between its landing and its publication: the next look tells
        try:
            _ask_disk_ahead(cached, until)
            send(stream, until)
        finally:
            cached.end_read(extent)
        stream.since = self._clock.monotonic()
        if self._pay is not None and stream.position > start:
            self._wait_to_pay(self._pay, stream.position - start, stream)
        if stream.over:
            return True
        if stream.digest or stream.position < until or until == start + SLICE:
            return False
        return not self._await_bytes(stream)

    def _send(self, stream: Stream, until: int) -> None:
        """Send up to `until`, or mark the stream as blocked where another one could use the time."""
        if stream.due is None:
            stream.due = self._clock.monotonic() + SENT_WITHIN
        while stream.position < until or stream.digest:
            if stream.given_up or stream.gone():
                raise ConnectionResetError("the peer has gone")
            try:
                self._send_at_once(stream, until)
            except BlockingIOError:
                if self._clock.monotonic() >= stream.due:
                    raise TimeoutError("the peer does not take its bytes") from None
                news = self._news
                full = self._send_beside(stream)
                if not self._writable([stream, *full], news) and self._others_could(stream):
                    stream.blocked = True
                    return
        stream.due = None

    def _writable(self, streams: Sequence[Stream], news: int) -> bool:
        """Wait until a socket takes more, or there is more new to send than `news`; False where nothing
        comes."""
        poll, woken = select.poll(), os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        poll.register(woken, select.POLLIN)
        try:
            with self._lock:
                if self._news != news:
                    return True
                for stream in streams:
                    if stream in self._streams:
                        poll.register(stream.connection, select.POLLOUT)
                self._woken = woken
            return bool(poll.poll(LOOK_EVERY * 1000))
        finally:
            with self._lock:
                self._woken = None
            os.close(woken)

    def _wake(self) -> None:
        """Have the thread look at what there is; with the lock held."""
        self._news += 1
        self._changed.notify()
        if self._woken is not None:
            os.eventfd_write(self._woken, 1)

    def _send_beside(self, stream: Stream) -> list[Stream]:
        """Let the next ones send what their sockets take, while the stream whose turn it is has to wait.

        Those whose sockets take no more. None under a limit: that is less than the link has.
        """
        if self._pay is not None:
            return []
        busy = receiver_is_busy(stream.connection)
        with self._lock:
            others = beside(self._streams, stream, busy)
        full = [other for other in others if self._slice_beside(other)]
        return [] if busy else full  # then each look costs more than it brings

    def _slice_beside(self, other: Stream) -> bool:
        """Whether its socket takes no more."""
        with self._lock:
            if other not in self._streams:  # given up meanwhile
                return False
            self._beside = other
        error: Exception | None = None
        try:
            over = self._fill(other)
        except Exception as failure:  # noqa: BLE001 - it is that stream's
            over, error = True, failure
        with self._lock:
            self._beside = None
        if over or other.given_up:
            self._end(other, error)
            return False
        return other.full

    def _fill(self, stream: Stream) -> bool:
        """Give a socket all that it takes; True where nothing more is to be sent."""
        stream.full, before = False, -1
        while stream.ready and not stream.full and stream.position > before:
            before = stream.position
            if self._send_slice(stream, self._send_what_fits):
                return True
        return False

    def _send_what_fits(self, stream: Stream, until: int) -> None:
        try:
            while stream.position < until or stream.digest:
                self._send_at_once(stream, until)
        except BlockingIOError:
            stream.full = True

    def _send_at_once(self, stream: Stream, until: int) -> None:
        """Send as much of a unit and its digest as the socket takes.

        Raises BlockingIOError where that is nothing, OSError and NotHere."""
        cached = stream.cached
        if not stream.digest:
            end = unit_end(stream.position, cached.ref.size)
            length = min(until, end) - stream.position
            count = os.sendfile(stream.connection.fileno(), cached.fd, stream.position, length)
            if not count:
                raise NotHere("the file is shorter than its object")
            stream.position += count
            if stream.position < end:
                return
            stream.digest = self._digest(cached, (end - 1) // UNIT)
        more = socket.MSG_MORE if stream.position < until else 0
        stream.digest = stream.digest[stream.connection.send(stream.digest, more) :]

    def _others_could(self, stream: Stream) -> bool:
        with self._lock:
            return any(other.ready for other in self._streams if other is not stream)

    def _wait_to_pay(self, pay: Pay, count: int, stream: Stream) -> None:
        """Pay, before the other peers' streams where something urgent waits or comes meanwhile."""
        urgent = stream.urgent
        owed = self._wakes(pay(count, urgent))
        with self._lock:
            while not owed.done() and not stream.given_up:
                if not urgent and any(one.urgent and one.ready for one in self._streams) and owed.cancel():
                    urgent, owed = True, self._wakes(pay(count, True))
                self._changed.wait(LOOK_EVERY)
        owed.cancel()

    def _wakes(self, owed: Future[None]) -> Future[None]:
        def wake(_: Future[None]) -> None:
            with self._lock:
                self._changed.notify()

        owed.add_done_callback(wake)
        return owed

    def _await_bytes(self, stream: Stream) -> bool:
        """Have a stream made ready by the next byte, or by the end of a landing that is unproven.

        False where none comes."""
        cached, position = stream.cached, stream.position
        landing = landing_of(cached, position // cached.chunk_size)
        if landing is None:
            return available(cached, position, stream.extent.end) > position
        if stream.arrival is None:
            stream.arrival = Arrival(functools.partial(self._arrived, stream))
        stream.landing, stream.ready = landing, False
        stream.arrival.needs = landing.end + 1 if landing.unproven else position + 1
        if not landing.wait(stream.arrival):
            stream.ready = True
        return True

    def _arrived(self, stream: Stream, data: memoryview, offset: int) -> None:
        """Bytes have come: the receiving thread sends them where the courier's own would only be woken."""
        with self._lock:
            stream.since = self._clock.monotonic()
            stream.ready = True
            lent = bool(data) and self._waiting and not self._lent and self._pay is None
            if not lent or chosen(self._streams, stream.since) is not stream:
                self._wake()
                return
            self._lent, self._current = True, stream
        self._turn(stream, self._pass_on, data, offset)
        with self._lock:
            self._lent, self._current = False, None
            # For each unit: `any` over a generator costs a call for each stream, and a list one in all.
            if not self._streams or [one for one in self._streams if one.ready]:
                self._wake()

    def _pass_on(self, stream: Stream, data: memoryview, offset: int) -> bool:
        """Send what has just been written, what the socket takes; True where nothing more is to be sent.

        One unit goes from the memory that it came in: who writes a landing keeps its chunk, so that nothing
        has to be looked up or held.
        """
        end = offset + len(data)
        whole = offset == stream.position and end == unit_end(offset, stream.cached.ref.size)
        whole = whole and available(stream.cached, offset, end) == end
        if stream.digest or not whole or end > stream.extent.end:
            return self._send_slice(stream, self._send_what_fits)
        stream.blocked = False
        digest = self._digest(stream.cached, offset // UNIT)
        try:
            sent = stream.connection.sendmsg((data, digest))
        except BlockingIOError:
            return False
        stream.position += min(sent, len(data))
        if sent < len(data) + len(digest):
            stream.digest = digest[sent - len(data) :] if sent >= len(data) else b""
            return False
        return end == stream.extent.end or not self._await_bytes(stream)

    def _stop_waiting(self, stream: Stream) -> None:
        if stream.landing is not None and stream.arrival is not None:
            stream.landing.leave(stream.arrival)

    def _end(self, stream: Stream, error: BaseException | None) -> None:
        with self._lock:
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
