"""One mounted dataset: the requests of its channel, its open files, and how each file is served.

FUSE threads call `serve`. What the tree can answer, and reads of present bytes, they answer themselves;
OPEN, RELEASE, INIT and reads of bytes that are missing go to the loop (methods marked so), which alone
changes handles, generations and backing ids.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import logging
import os
import secrets
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

from agent.cache.fill import Filler
from agent.cache.objects import CachedObject
from agent.cache.prefetch import Stream
from agent.cache.store import Store
from agent.content import Dataset, Extent
from agent.errors import HeadraceError
from agent.metrics import Metrics
from agent.mount import wire
from agent.mount.abi import Opcode, OpenFlag
from agent.mount.channel import Channel, Request
from agent.mount.errnos import to_errno
from agent.mount.holder import Holder
from agent.mount.interrupts import Interrupts
from agent.mount.negotiation import READ_AHEAD, InitResult, UnsupportedKernel, encode_init, negotiate
from agent.mount.operations import Operations, Refused, split
from agent.mount.passthrough import Passthrough
from agent.mount.pool import Pool
from agent.mount.reads import PendingRead, Replies
from agent.mount.retries import Retries
from agent.mount.tally import Tally
from agent.mount.tree import Tree
from agent.mount.wire import READ_REQUEST, Header, WireError

log = logging.getLogger(__name__)

READ: Final = int(Opcode.READ)
CACHED_FLAGS: Final = OpenFlag.KEEP_CACHE | OpenFlag.NOFLUSH
PASSTHROUGH_FLAGS: Final = OpenFlag.PASSTHROUGH | OpenFlag.NOFLUSH


@dataclass(slots=True, eq=False)
class Handle:
    """An open file. `chunk` is the last chunk that the stream was told of, `served` whether any read was."""

    cached: CachedObject
    stream: Stream = field(default_factory=lambda: Stream(READ_AHEAD))
    chunk: int = -1
    served: bool = False

    def tells(self, offset: int) -> bool:
        """Whether a read at `offset` is one that the stream has to be told of, by whoever asks.

        Not of the chunk that it was told of last, nor of the one before: the reads of one stream come in by
        several threads, the last ones of a chunk often behind the first ones of the next."""
        chunk = offset // self.cached.chunk_size
        if self.chunk - 1 <= chunk <= self.chunk and not self.stream.closed:
            return False
        self.chunk = chunk
        return True


@dataclass(frozen=True, slots=True)
class Services:
    """What all mounts share."""

    loop: asyncio.AbstractEventLoop
    store: Store
    filler: Filler
    metrics: Metrics
    pool: Pool
    holder: Holder
    replies: Replies


class Mounted:
    """A mount that is served. Made on the loop; `backing` are the ids that the holder has for nodeids."""

    def __init__(
        self,
        name: str,
        dataset: Dataset,
        channel: Channel,
        services: Services,
        init: InitResult | None,
        backing: dict[int, int],
        on_gone: Callable[[Mounted], None],
    ) -> None:
        self.name = name
        self.dataset = dataset
        self.channel = channel
        self.read_ahead = True  # whether reads are filled ahead of (loop)
        self.initialised: asyncio.Future[InitResult] = services.loop.create_future()
        self.loop = services.loop
        self.metrics = services.metrics
        self.replies = services.replies
        self.tally = Tally()
        self._services = services
        self._on_gone = on_gone
        self._passthrough = Passthrough(name, services.holder, services.loop, backing)
        self._passthrough.allow(init is not None and init.passthrough)
        self._operations = Operations(
            Tree(dataset), self._passthrough.generations, self._passthrough.looked_up
        )
        self._handles: dict[int, Handle] = {}
        # The inodes that may have backing ids, by the key of what they show: those opened in any life.
        self._inos: dict[str, set[int]] = {}
        for nodeid in backing:
            self._opened_once(nodeid)
        # Handles of a predecessor must not meet ours: each life of the agent numbers in a range of its own.
        self._numbers = itertools.count(secrets.randbits(32) << 31)
        self._stale_told: set[int] = set()
        self._retries = Retries(services.store, services.loop, taken_over=init is not None)
        self._waiting: set[PendingRead] = set()
        self._interrupts = Interrupts(services.loop, self._waiting, self._killed)
        self._tasks: set[asyncio.Task[None]] = set()
        self._counters = {int(code): services.metrics.fuse_request(code.name.lower()) for code in Opcode}
        if init is not None:
            self.initialised.set_result(init)

    def serve(self, request: Request) -> None:
        """Answer one request, now or later (FUSE threads)."""
        length, opcode, unique, nodeid, number, offset, size = READ_REQUEST.unpack_from(request.buffer)
        if (
            opcode == READ and READ_REQUEST.size <= length == request.received
        ):  # all else is looked at with care
            request.unique = unique
            self._read(request, nodeid, number, offset, size)
            return
        try:
            header = wire.decode_header(request.buffer, request.received)
            request.unique = header.unique
            if header.opcode != READ:
                self._counters[header.opcode].inc()
            self._dispatch(request, header)
        except (Refused, WireError) as error:
            if isinstance(error, WireError):
                log.warning("%s: %s", self.name, error)
                request.unique = error.unique
            if request.unique:
                request.refuse(error.errno)
            else:
                request.drop()

    def gone(self) -> None:
        """The kernel has let go of the mount (a FUSE thread)."""
        self.loop.call_soon_threadsafe(self._abandoned)

    def close(self) -> None:
        """Give back every open file (loop); the channel is closed by who made it. Reads that wait stay in
        their slots: a successor answers them."""
        for task in self._tasks:
            task.cancel()
        for number in list(self._handles):
            self._released(number)
        self._retries.close()
        self._interrupts.close()

    @cached_property
    def keys(self) -> frozenset[str]:
        """The keys of the objects that the mount shows."""
        return frozenset(entry.ref.key for entry in self.dataset.entries)

    def leased(self) -> set[str]:
        """The keys of the objects that may be open passthrough since before this agent's life (loop)."""
        entries = (self._operations.file(nodeid).entry for nodeid in self._passthrough.unsure)
        return {entry.ref.key for entry in entries if entry is not None}

    async def let_go(self, key: str) -> None:
        """The file of an object is about to be evicted or replaced (loop)."""
        if inos := self._inos.get(key):
            await self._passthrough.let_go(inos)

    def _opened_once(self, nodeid: int) -> None:
        entry = self._operations.file(nodeid).entry
        if entry is not None:
            self._inos.setdefault(entry.ref.key, set()).add(split(nodeid)[0])

    def submit(self, job: Callable[[], None]) -> None:
        self._services.pool.submit(job)

    def _dispatch(self, request: Request, header: Header) -> None:
        opcode = header.opcode
        if opcode == Opcode.READ:
            if request.received is None:  # a predecessor's, who may have been told of a signal
                self._interrupts.came(header.unique)
            self._read(request, header.nodeid, *wire.decode_read(request.buffer, header))
        elif opcode == Opcode.OPEN:
            self.loop.call_soon_threadsafe(self._start_open, request, header)
        elif opcode == Opcode.RELEASE:
            number = wire.decode_fh(request.buffer, header)
            request.answer()
            self.loop.call_soon_threadsafe(self._released, number)
            self.loop.call_soon_threadsafe(self._passthrough.told, header.nodeid)
        elif opcode in (Opcode.FORGET, Opcode.BATCH_FORGET):
            self._forget(request, header)
        elif opcode == Opcode.INTERRUPT:
            unique = wire.decode_interrupt(request.buffer, header)
            request.drop()
            self._interrupts.came(unique)
        elif opcode == Opcode.INIT:
            self._initialise(request, header)
        else:
            request.answer(self._operations.answer(request.buffer, header))

    def _abandoned(self) -> None:
        """(loop) Nobody is left who could be answered: what was read for them alone is not fetched on."""
        for read in list(self._waiting):
            if self._services.filler.leave(read):
                read.drop()
        self._on_gone(self)

    def _killed(self, read: PendingRead) -> None:
        """(loop)"""
        if self._services.filler.leave(read):  # else it is being answered
            read.interrupt()

    # READ: hits in the thread, misses on the loop

    def _read(self, request: Request, nodeid: int, number: int, offset: int, size: int) -> None:
        handle = self._handles.get(number)
        if handle is None:
            self.loop.call_soon_threadsafe(self._adopt, request, nodeid, number, offset, size)
            return
        cached = handle.cached
        extent = _within(cached, offset, size)
        if not cached.begin_read(extent):
            self.loop.call_soon_threadsafe(self._miss, request, number, handle, extent)
            return
        try:
            self.replies.answer(request, cached, extent)
        except OSError as error:
            log.error("%s: cannot read %s: %s", self.name, cached.path, error.strerror)
            self.loop.call_soon_threadsafe(self._unreadable, request, number, handle, extent)
            return
        finally:
            cached.end_read(extent)
        self.metrics.hit(extent.length)
        self.tally.from_store(extent.length)
        if not cached.complete and handle.tells(offset):
            handle.served = True
            self.loop.call_soon_threadsafe(self._note, handle, extent)

    def _miss(self, request: Request, number: int, handle: Handle, extent: Extent) -> None:
        """(loop)"""
        self.metrics.missed()
        self.metrics.waiting_reads.inc()
        read = PendingRead(self, request, number, handle.cached, extent)
        self._waiting.add(read)
        self._services.filler.read(handle.cached, read)
        if handle.tells(extent.offset):
            self._note(handle, extent)

    def _unreadable(self, request: Request, number: int, handle: Handle, extent: Extent) -> None:
        """(loop) The disk does not give what is present: it is had from elsewhere."""
        self.lost(handle.cached, extent)
        self._miss(request, number, handle, extent)

    def lost(self, cached: CachedObject, extent: Extent) -> None:
        """The disk does not give an extent that is present (loop)."""
        self._services.store.lost(cached, cached.chunks(extent))

    def wait_again(self, read: PendingRead) -> None:
        """A read needs bytes beyond those that it waited for (loop)."""
        self._services.filler.read(read.cached, read)

    def answered(self, read: PendingRead) -> None:
        """A waiting read is done with (any thread); after a file's first one its stream may run ahead."""
        self.metrics.waiting_reads.dec()
        self._waiting.discard(read)
        handle = self._handles.get(read.fh)
        if handle is not None and not handle.served:
            handle.served = True
            self.loop.call_soon_threadsafe(self._note, handle, read.extent)

    def _note(self, handle: Handle, extent: Extent) -> None:
        """Take note of a read, and fill ahead of it once the file's first read has been served (loop)."""
        cached = handle.cached
        ahead = handle.stream.advance(extent, cached.chunk_size, len(cached.present))
        if self.read_ahead and handle.served and cached.users:
            self._services.filler.prefetch(cached, ahead, handle)

    def _adopt(self, request: Request, nodeid: int, number: int, offset: int, size: int) -> None:
        """A read through a handle that a predecessor opened (loop)."""
        self._task(self._adopted(request, nodeid, number, offset, size), request)

    async def _adopted(self, request: Request, nodeid: int, number: int, offset: int, size: int) -> None:
        if number not in self._handles:
            entry = self._operations.file(nodeid).entry
            assert entry is not None
            cached = await self._services.store.acquire(entry.ref)
            if number in self._handles:
                self._services.store.release(cached)
            else:
                self._handles[number] = Handle(cached)
        handle = self._handles[number]
        extent = _within(handle.cached, offset, size)
        self._miss(request, number, handle, extent)

    # OPEN and RELEASE: the loop

    def _start_open(self, request: Request, header: Header) -> None:
        self._task(self._open(request, header), request)

    def _task(self, work: Coroutine[None, None, None], request: Request) -> None:
        """Run a request's work; what it raises is the answer."""
        task = self.loop.create_task(self._refusing(work, request))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _refusing(self, work: Coroutine[None, None, None], request: Request) -> None:
        try:
            await work
        except Refused as error:
            request.refuse(error.errno)
        except HeadraceError as error:
            log.error("%s: %s", self.name, error)
            self.metrics.count_error(error)
            self.tally.failed(error)
            request.refuse(to_errno(error))

    async def _open(self, request: Request, header: Header) -> None:
        flags = wire.decode_open(request.buffer, header)
        entry = self._operations.file(header.nodeid).entry
        assert entry is not None
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise Refused(errno.EROFS)
        cached = await self._services.store.acquire(entry.ref)
        try:
            number = next(self._numbers)
            payload = await self._opened(header.nodeid, number, cached)
        except BaseException:
            self._services.store.release(cached)
            raise
        cached.use()
        self._retries.came(split(header.nodeid)[0])
        self._passthrough.told(header.nodeid)
        self._handles[number] = Handle(cached)
        if not request.answer(payload):
            self._released(number)

    async def _opened(self, nodeid: int, number: int, cached: CachedObject) -> bytes:
        """The reply to OPEN. Refused(ESTALE) makes the kernel look the name up again, and find the nodeid
        under which the file is served now."""
        ino, generation = split(nodeid)
        self._opened_once(nodeid)
        current = await self._passthrough.generation(ino, cached)
        # A file that is bound by itself is never looked up again: the second time, serve what it has.
        again = nodeid in self._stale_told or self._retries.expected(ino)
        if generation != current and (generation % 2 or not again):
            self._stale_told.add(nodeid)
            self._retries.expect(ino, cached)
            raise Refused(errno.ESTALE)
        if generation % 2 == 0:
            self.metrics.opens_cached.inc()
            self.tally.opened(passthrough=False)
            return wire.encode_open(number, CACHED_FLAGS)
        backing = await self._passthrough.backing_id(nodeid, cached)
        if backing is None:
            self._retries.expect(ino, cached)
            raise Refused(errno.ESTALE)
        self.metrics.opens_passthrough.inc()
        self.tally.opened(passthrough=True)
        return wire.encode_open(number, PASSTHROUGH_FLAGS, backing)

    def _released(self, number: int) -> None:
        """(loop)"""
        handle = self._handles.pop(number, None)
        if handle is not None:
            self._services.filler.disown(handle)
            handle.cached.use()
            self._services.store.release(handle.cached)

    def _forget(self, request: Request, header: Header) -> None:
        one = header.opcode == Opcode.FORGET
        decode = wire.decode_forget if one else wire.decode_batch_forget
        forgotten = decode(request.buffer, header)
        request.drop()
        for nodeid, count in [forgotten] if isinstance(forgotten, wire.Forgotten) else forgotten:
            self._passthrough.forgotten(nodeid, count)

    # INIT

    def _initialise(self, request: Request, header: Header) -> None:
        try:
            result = negotiate(wire.decode_init(request.buffer, header))
        except UnsupportedKernel as error:
            log.error("%s", error)
            self.loop.call_soon_threadsafe(self._init_failed, error)
            raise Refused(errno.EPROTO) from error
        request.answer(encode_init(result))
        self.loop.call_soon_threadsafe(self._init_done, result)

    def _init_done(self, result: InitResult) -> None:
        self._passthrough.allow(result.passthrough)
        if not self.initialised.done():
            self.initialised.set_result(result)

    def _init_failed(self, error: UnsupportedKernel) -> None:
        if not self.initialised.done():
            self.initialised.set_exception(error)


def _within(cached: CachedObject, offset: int, size: int) -> Extent:
    """What a READ asks for, cut at the end of the file."""
    return Extent(offset, max(0, min(size, cached.ref.size - offset)))
