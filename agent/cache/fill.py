"""Filling chunks: one flight per chunk, whoever wants it, until it is recorded or cannot be had.

Belongs to the loop. A flight goes through the states of flight.py; its bytes go through a `Landing`, which
serves the readers as they arrive. A read that a flight cannot serve comes back here, until its patience ends.
Where the store can take nothing, a flight that somebody waits for passes its bytes through (passing.py).
"""

from __future__ import annotations

import asyncio
import functools
import random
from collections.abc import Callable, Sequence

from agent.cache.flight import Flight, Reader, State
from agent.cache.lanes import Lane
from agent.cache.objects import CachedObject
from agent.cache.passing import PassingChunks, PassingLanding
from agent.cache.setbacks import Setbacks, backoff, respite
from agent.cache.store import Store
from agent.clock import Clock
from agent.content import ObjectRef
from agent.errors import (
    HeadraceError,
    OriginMisbehaved,
    OriginUnavailable,
    PatienceExhausted,
    StoreError,
    StoreFailed,
    StoreFull,
)
from agent.metrics import Metrics
from agent.source import ChunkSource, Urgency
from agent.transfer.landing import Landing


class Filler:
    """All flights of the node."""

    def __init__(
        self,
        store: Store,
        source: ChunkSource,
        clock: Clock,
        metrics: Metrics,
        patience: float,
        rng: random.Random,
        passing: PassingChunks | None = None,
    ) -> None:
        """`patience` is how many seconds a reader waits; `rng` draws the jitter of the backoff."""
        self._store = store
        self._source = source
        self._clock = clock
        self._metrics = metrics
        self._patience = patience
        self._rng = rng
        self._passing = passing or PassingChunks()
        self._flights: dict[tuple[str, int], Flight] = {}
        self._lanes: dict[str, Lane] = {}
        self._setbacks = Setbacks(clock)
        self._closing = False
        # Told of objects that will be fetched: a source that brings many at once asks for them together.
        self.foresee: Callable[[Sequence[ObjectRef]], None] = lambda refs: None
        self._fills = {
            State.DONE: metrics.fills_done,
            State.PASSED: metrics.fills_passed,
            State.FAILED: metrics.fills_failed,
            State.CANCELLED: metrics.fills_cancelled,
        }

    def read(self, cached: CachedObject, reader: Reader) -> None:
        """Have a reader told when its extent is there: `resume`, `ready`, or `fail`; never none of them."""
        if self._closing:
            return
        if reader.deadline is None:
            reader.deadline = self._clock.monotonic() + self._patience
            cached.use(cached.chunks(reader.extent))
        while (gap := cached.first_gap(reader.extent)) is not None:
            setback = self._setbacks.of(cached.ref.key, gap)
            if setback is not None and not isinstance(setback, (OriginUnavailable, StoreError)):
                self._fail(reader, setback)  # where only a prefetch gave up, a reader has its patience still
                return
            flights = [self._want(cached, chunk, Urgency.READER) for chunk in self._gaps(cached, reader, gap)]
            first, *later = flights
            for flight in later:
                flight.owners.add(reader)
            first.owners.discard(reader)
            reader.needs = min(reader.extent.end, first.landing.end)
            if first.landing.wait(reader):
                if reader not in first.readers:  # it may have been told by bytes that were taken back since
                    first.readers.append(reader)
                self._watch(first)
                return
        reader.resume()

    def leave(self, reader: Reader) -> bool:
        """A reader goes away without its bytes; the last one of a flight that nobody else wants ends it.

        False where it was not waiting here: it has been told, or is being told.
        """
        left = False
        for flight in list(self._flights.values()):
            waits = reader in flight.readers and flight.landing.leave(reader)
            if waits:
                left = True
                flight.readers.remove(reader)
            if waits or reader in flight.owners:
                flight.owners.discard(reader)
                self._end_if_unwanted(flight)
        return left

    def prefetch(
        self, cached: CachedObject, chunks: range, owner: object, urgency: Urgency = Urgency.PREFETCH
    ) -> None:
        """Fill chunks ahead of `owner`, less urgently than what readers wait for."""
        for chunk in () if self._closing else chunks:
            flight = self._flights.get((cached.ref.key, chunk))
            if flight is not None and owner in flight.owners and flight.urgency <= urgency:
                continue  # as nearly always: it was wanted at the read before this one
            held = cached.present[chunk] or chunk in cached.passing or chunk in cached.granted
            if not held and self._setbacks.of(cached.ref.key, chunk) is None:
                self._want(cached, chunk, urgency).owners.add(owner)

    def preload(
        self,
        cached: CachedObject,
        chunk: int,
        owner: object,
        told: Callable[[HeadraceError | None], None],
        urgency: Urgency = Urgency.PRELOAD,
    ) -> bool:
        """Fill a chunk, with the least urgency, and call `told` when that has ended (loop), with its error.

        False where there is nothing to do: it is present, the swarm brings it, or it has just failed.
        """
        if self._closing or cached.present[chunk] or chunk in cached.granted:
            return False
        if self._setbacks.of(cached.ref.key, chunk) is not None:
            return False
        flight = self._want(cached, chunk, urgency)
        flight.owners.add(owner)
        flight.told.append(told)
        return True

    async def rest(self, attempt: int) -> None:
        """Wait until chunks that could not be preloaded may be asked for once more."""
        await self._clock.sleep(respite(attempt, self._rng))

    def disown(self, owner: object) -> None:
        """The owner is gone: what was only queued for it is dropped; what is arriving is kept and ends."""
        for flight in list(self._flights.values()):
            if owner in flight.owners and flight.queued:
                flight.owners.discard(owner)
                self._end_if_unwanted(flight)

    def awaited(self, key: str) -> set[int]:
        """The chunks of an object that are wanted together with those on their way.

        A read needs all of its chunks at once: where one of them went to make room for another, two could
        take each other's for ever.
        """
        chunks: set[int] = set()
        for flight in self._flights.values():
            if flight.cached.ref.key == key:
                for one in (*flight.readers, *flight.owners):
                    if isinstance(one, Reader):
                        chunks.update(flight.cached.chunks(one.extent))
        return chunks

    async def close(self) -> None:
        """Cancel every flight and wait until it is over. Its readers are told nothing: a successor serves
        them (agent/mount/inflight.py), and what is read from now on is not taken up."""
        self._closing = True
        flights = list(self._flights.values())
        for flight in flights:
            self._cancel(flight)
        tasks = [flight.task for flight in flights if flight.task is not None]
        if tasks:
            await asyncio.wait(tasks)

    @staticmethod
    def _gaps(cached: CachedObject, reader: Reader, gap: int) -> list[int]:
        behind = (chunk for chunk in cached.chunks(reader.extent) if chunk >= gap)
        return [chunk for chunk in behind if not cached.present[chunk] and chunk not in cached.passing]

    def _want(self, cached: CachedObject, chunk: int, urgency: Urgency) -> Flight:
        key = (cached.ref.key, chunk)
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = self._new_flight(cached, chunk, urgency)
            flight.lane.push(flight)
        elif urgency < flight.urgency:
            flight.landing.urgency = urgency
            if flight.queued:
                flight.lane.push(flight)
        self._pump(flight.lane)
        return flight

    def _new_flight(self, cached: CachedObject, chunk: int, urgency: Urgency) -> Flight:
        self.foresee([cached.ref])
        budget = self._source.budget(cached.ref)
        lane = self._lanes.setdefault(budget.name, Lane(budget))
        extent = cached.extent(chunk)
        landing = Landing(cached.fd, extent, cached.writing)
        landing.urgency = urgency
        cached.landings[chunk] = landing
        self._store.hold(cached)
        return Flight(cached, chunk, lane, landing, extent.length, ahead=urgency is Urgency.PREFETCH)

    def _pump(self, lane: Lane) -> None:
        while (job := lane.pop()) is not None:
            assert isinstance(job, Flight)
            job.state = State.FETCHING
            job.started = self._clock.monotonic()
            job.task = asyncio.create_task(self._fill(job))
            # Not the task's own last lines: one that is cancelled before its first step runs none of them.
            job.task.add_done_callback(functools.partial(self._ended, job))

    def _ended(self, flight: Flight, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if task.cancelled():
            self._close(flight, State.CANCELLED, None)
        elif error is None:
            self._metrics.fill_seconds.observe(self._clock.monotonic() - flight.started)
            self._metrics.prefetch_bytes.inc(flight.length if flight.ahead else 0)
            passed = flight.state is State.PASSING
            self._close(flight, State.PASSED if passed else State.DONE, None)
        elif isinstance(error, HeadraceError):
            self._close(flight, State.FAILED, error)
        else:
            # A fault of ours: it is logged with its traceback, and no reader is left waiting for it.
            flight.state = State.PASSING  # not once more
            message = f"{flight.cached.ref.uri}: internal error {type(error).__name__}"
            self._close(flight, State.FAILED, StoreFailed(message))
            task.get_loop().call_exception_handler({"message": "a fill failed", "exception": error})
        flight.lane.ended(flight)
        self._pump(flight.lane)

    async def _fill(self, flight: Flight) -> None:
        try:
            await self._keep(flight)
        except StoreError as error:
            if not self._may_pass(flight):
                raise
            self._metrics.count_error(error)
            await self._pass(flight)

    async def _keep(self, flight: Flight) -> None:
        cached, chunk = flight.cached, flight.chunk
        await self._store.emptied(cached, chunk)
        await self._reserve(flight)
        try:
            await self._fetch(flight)
            flight.state = State.RECORDING
            await self._store.record(cached, chunk, flight.landing.digest())
        except BaseException as error:
            if isinstance(error, StoreError):
                self._store.failed(cached, error)
            flight.landing.rewind()  # its bytes are about to go
            self._store.unreserve(cached, chunk)
            raise

    async def _reserve(self, flight: Flight) -> None:
        while True:
            try:
                self._store.reserve(flight.cached, flight.chunk)
                return
            except StoreFull:
                if not await self._store.make_room(flight.cached, flight.length):
                    raise

    def _may_pass(self, flight: Flight) -> bool:
        if flight.landing.awaited or (flight.owners and flight.urgency is Urgency.READER):
            return True
        ahead = flight.owners and flight.urgency <= Urgency.PREFETCH
        return bool(ahead) and self._passing.roomy(flight.length)

    async def _pass(self, flight: Flight) -> None:
        """Fetch the chunk for those who wait for it, from its first byte, and keep nothing."""
        cached, chunk = flight.cached, flight.chunk
        flight.state = State.PASSING
        landing = PassingLanding(cached.extent(chunk))
        landing.urgency = flight.urgency
        cached.landings[chunk] = landing
        cached.memory = (*cached.memory, landing)
        for waiter in flight.landing.dismiss():
            landing.wait(waiter)
        flight.landing = landing
        try:
            await self._passing.claim(flight.length)
        except BaseException:
            cached.memory = tuple(held for held in cached.memory if held is not landing)
            raise
        try:
            await self._fetch(flight)
            self._metrics.passing_bytes.inc(flight.length)
        except BaseException:
            landing.rewind()  # whole or not, it is not to be kept
            raise
        finally:
            self._passing.keep(cached, chunk, landing)

    async def _fetch(self, flight: Flight) -> None:
        """Attempts with backoff until all bytes are there. An attempt goes on where the last one ended."""
        deadline = flight.lane.budget.deadline
        attempt, spent = 0, 0.0  # seconds of asking and of pauses; not of waiting for a turn
        while flight.landing.position < flight.landing.end:
            before = flight.landing.position
            error = await self._attempt(flight)
            if error is None:
                continue
            self._metrics.count_error(error)
            flight.error = error
            if flight.lane.budget.proven_late and flight.landing.position == flight.landing.end:
                raise error  # its bytes are here, and nothing has proven them
            spent += error.took
            if spent >= deadline and not flight.readers:
                raise error
            attempt = 0 if flight.landing.position > before else attempt + 1
            pause = backoff(attempt, error.retry_after, deadline, self._rng)
            await self._clock.sleep(pause)
            spent += pause

    async def _attempt(self, flight: Flight) -> OriginUnavailable | None:
        before = flight.landing.position
        try:
            await self._source.fetch(flight.cached.ref, flight.landing)
        except OriginUnavailable as error:
            return error
        if flight.landing.position == before:
            return OriginMisbehaved(f"{flight.cached.ref.uri}: the origin sent nothing")
        return None

    def _watch(self, flight: Flight) -> None:
        """Keep a timer for the reader whose patience ends first: it may have waited elsewhere before."""
        if not flight.readers:
            return
        deadline = min(reader.deadline or 0.0 for reader in flight.readers)
        if flight.timer is not None:
            if flight.expires <= deadline:
                return
            flight.timer.cancel()
        delay = max(0.0, deadline - self._clock.monotonic())
        flight.expires = deadline
        flight.timer = self._clock.call_later(delay, lambda: self._expire(flight))

    def _expire(self, flight: Flight) -> None:
        flight.timer = None
        now = self._clock.monotonic()
        late = [reader for reader in flight.readers if (reader.deadline or 0.0) <= now]
        flight.readers = [reader for reader in flight.readers if reader not in late]
        cause = f": {flight.error}" if flight.error else ""
        error = PatienceExhausted(f"{flight.cached.ref.uri}: waited {self._patience:g} s for bytes{cause}")
        for reader in late:
            if flight.landing.leave(reader):
                self._setbacks.add(flight.cached.ref.key, flight.chunk, error)
                self._metrics.count_error(error)
                self._fail(reader, error)
        self._watch(flight)
        self._end_if_unwanted(flight)

    def _fail(self, reader: Reader, error: HeadraceError) -> None:
        self.leave(reader)  # the chunks behind the one that failed may still come for it
        reader.fail(error)

    def _end_if_unwanted(self, flight: Flight) -> None:
        if not flight.landing.awaited and not flight.owners:
            self._cancel(flight)

    def _cancel(self, flight: Flight) -> None:
        if flight.queued:
            self._close(flight, State.CANCELLED, None)
        elif flight.state in (State.FETCHING, State.PASSING) and flight.task is not None:
            flight.task.cancel()

    def _close(self, flight: Flight, state: State, error: HeadraceError | None) -> None:
        # Who came after the store had refused a chunk that nobody waited for has it passed through.
        again = isinstance(error, StoreError) and flight.state is not State.PASSING
        flight.state = state
        if flight.timer is not None:
            flight.timer.cancel()
        del self._flights[flight.cached.ref.key, flight.chunk]
        del flight.cached.landings[flight.chunk]
        self._fills[state].inc()
        if error is not None:
            self._setbacks.add(flight.cached.ref.key, flight.chunk, error)
            self._metrics.count_error(error)
        waiting = {id(waiter): waiter for waiter in flight.landing.dismiss()}
        left_behind = [reader for reader in flight.readers if waiting.pop(id(reader), None) is not None]
        for reader in left_behind:
            if error is None or again or isinstance(error, OriginUnavailable) or self._closing:
                self.read(flight.cached, reader)  # a flight given up starts again for whoever came late
            else:
                self._fail(reader, error)
        for told in flight.told:
            told(error)
        for stream in waiting.values():
            stream.ready(memoryview(b""), flight.landing.end)  # a peer's: it looks for the bytes anew
        self._store.release(flight.cached)
