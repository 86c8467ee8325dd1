"""One set of objects in the swarm: hashes are gathered, then pieces.

    LEARNING -> JOINED -> SEEDING -> ENDED        whoever warms; without a torrent where nothing is missing
    LEARNING -> SEEDING -> ENDED                  whoever was asked by a peer, and has some of it

While LEARNING it asks the others for hashes of chunks, and makes those of what is here. What nobody has is
fetched from the origin by those who warm, each its share by rendezvous hashing, so that each byte leaves the
origin once. When all hashes are known everybody has the same torrent. The store grants it the chunks that are
missing; what is here already it has from the start. A chunk that came is read back, checked, and recorded.
What the swarm does not bring in time is filled as any chunk is. SEEDING ends when nobody has asked for a
while, or as soon as the store wants to take something of it away.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from agent.cache.fill import Filler
from agent.cache.objects import CachedObject
from agent.cache.store import Store
from agent.clock import Clock
from agent.content import Extent, ObjectRef
from agent.errors import HeadraceError, StoreFailed, StoreFull
from agent.metrics import Metrics
from agent.peers.member import Peer
from agent.peers.metainfo import Layout, mark_of, pieces_in, tag_of
from agent.peers.piece_hashes import Hashes, PieceHashes, checked, fits
from agent.peers.placement import owner_of
from agent.peers.swarm_wire import MOST_CHUNKS, MOST_HASHES, Reply, Word, chunks_in, objects_as, runs_of

if TYPE_CHECKING:
    from agent.peers.swarm import Swarm, Torrent

log = logging.getLogger(__name__)

POLL = 0.2  # seconds between two rounds while hashes are missing
TALK = 1.0  # seconds between two rounds in the swarm
WINDOW = 8  # chunks of its share that are fetched at a time
STALL = 10.0  # seconds in which the swarm brings nothing, before the rest is filled otherwise
COMING_WITHIN = 30.0  # seconds without a hash, before what others said they have is fetched all the same
LINGER = 20.0  # seconds that a torrent is kept after the last word about it
RECONNECT = 5.0  # seconds

Say = Callable[[Word], Awaitable[Mapping[Peer, Reply]]]
At = tuple[int, int]  # a chunk: number of its object in the set, its own number


@dataclass(frozen=True, slots=True)
class Services:
    """What every gathering needs of the agent."""

    own: Peer
    store: Store
    filler: Filler
    swarm: Swarm
    hashes: PieceHashes
    clock: Clock
    metrics: Metrics
    brought: Callable[[ObjectRef, Extent], None]  # a chunk came by the swarm


class Gathering:
    """One set, from construction until `ended`. Loop only."""

    def __init__(self, services: Services, layout: Layout, secret: bytes, say: Say, *, warming: bool) -> None:
        """`say` puts a word to the other agents, and gives their replies."""
        self._s = services
        self.layout = layout
        self.keys = frozenset(ref.key for ref in layout.refs)
        self.tag = tag_of(secret, layout.id)
        self.warming = warming
        self.error: HeadraceError | None = None
        self.warmed: asyncio.Event = asyncio.Event()  # or it has failed: `error`
        self._secret = secret
        self._say = say
        self._hashes: Hashes = {}
        self._unsaved: Hashes = {}
        self._held: dict[int, CachedObject] = {}
        self._granted: dict[At, int] = {}  # chunks of the torrent: pieces that are missing still
        self._torrent: Torrent | None = None
        self._met: dict[str, tuple[int, float]] = {}
        self._others: Mapping[Peer, Reply] = {}
        self._chunk_of: dict[int, At] = {}
        self._share: deque[At] = deque()
        self._disputed: set[At] = set()
        self._fetching: set[At] = set()
        self._taking: set[asyncio.Task[None]] = set()
        self._opened = asyncio.Event()
        self._to_hash = asyncio.Event()
        self._heard = services.clock.monotonic()
        self._moved = self._heard
        self._task = asyncio.create_task(self._run())

    @property
    def ended(self) -> bool:
        return self._task.done()

    async def end(self) -> None:
        """Leave the swarm; when this returns nothing of the objects is open or written for it."""
        self._task.cancel()
        await asyncio.wait([self._task])

    async def answer(self, sender: str, word: Word) -> Reply:
        """What this agent says to another one about the set, once it knows what is here."""
        await self._opened.wait()
        if word.warming:
            self._heard = self._s.clock.monotonic()
        self._to_hash.set()
        known: list[tuple[int, int, str]] = []
        coming: list[At] = []
        size = 0
        for at in chunks_in(word.unknown, self.layout):
            value = self._hashes.get(at)
            if value is not None and len(known) < MOST_CHUNKS and size < MOST_HASHES:
                known.append((*at, value.hex()))
                size += len(value)
            elif value is not None or self._is_here(at):
                coming.append(at)
        same = word.tag == self.tag
        if same and word.port:
            self._meet(sender, word.port)
        port = self._s.swarm.port if self._torrent is not None and same else 0
        return Reply(port=port, warming=self.warming, hashes=known, coming=runs_of(coming))

    async def _run(self) -> None:
        hashing: asyncio.Task[None] | None = None
        try:
            await self._hold()
            self._hashes = await self._s.hashes.load(self.layout)
            self._opened.set()
            hashing = asyncio.create_task(self._hash_what_is_here())
            if await self._learn():
                await self._keep_hashes()
                await self._gather()
        except HeadraceError as error:
            self.error = error
            log.warning("swarm: %s", error)
        finally:
            if hashing is not None:
                hashing.cancel()
            await _to_the_end(self._leave())
            self.warming = False
            self.warmed.set()
            self._opened.set()

    async def _gather(self) -> None:
        """With all hashes known: by the swarm, then what it did not bring; then be there for others."""
        if self.warming:
            await self._grant()
            if self._granted:
                self._join()
                await self._exchange(lambda: not self._granted or self._stalled())
                await asyncio.gather(*self._taking)
            if self._granted:
                await self._leave_torrent()
            await self._fill_rest()
            self.warming = False
            self.warmed.set()
            if not self._others:
                return
        self._join()
        self._let_go()
        await self._exchange(self._is_idle)

    # objects

    async def _hold(self) -> None:
        """Keep objects open: all that are to be warmed, else those of which something is here."""
        refs = self.layout.refs
        present = await self._s.store.present_bytes([ref.key for ref in refs])
        for number, ref in enumerate(refs):
            if self.warming or present.get(ref.key):
                cached = await self._s.store.acquire(ref)
                self._held[number] = cached
                if self.warming:
                    cached.use()
                if cached.fd < 0 or cached.chunk_size != self.layout.chunk_size:
                    raise StoreFailed(f"{ref.uri}: the store cannot give it to the swarm")

    def _let_go(self) -> None:
        for cached in self._held.values():
            self._s.store.release(cached)
        self._held = {}

    def _is_here(self, at: At) -> bool:
        cached = self._held.get(at[0])
        return cached is not None and at[1] < len(cached.present) and bool(cached.present[at[1]])

    # hashes

    async def _learn(self) -> bool:
        """Until every hash is known; False where nobody asks any more."""
        learned = self._s.clock.monotonic()
        while unknown := [at for at in self.layout.chunks() if at not in self._hashes]:
            before = len(self._hashes)
            await self._talk(unknown)
            now = self._s.clock.monotonic()
            if len(self._hashes) > before or self._fetching:
                learned = now
            self._to_hash.set()
            if self.warming:
                self._take_share(believing=now - learned < COMING_WITHIN)
            elif self._is_idle():
                return False
            if self.error is not None:
                raise self.error
            await self._s.clock.sleep(POLL)
        return True

    async def _talk(self, unknown: Iterable[At]) -> None:
        word = Word(
            set=self.layout.id,
            chunk_size=self.layout.chunk_size,
            objects=objects_as(self.layout.refs),
            tag=self.tag,
            port=self._s.swarm.port if self._torrent is not None else 0,
            warming=self.warming,
            unknown=runs_of(unknown),
        )
        self._others = await self._say(word)
        claims: dict[At, set[bytes]] = {}
        for reply in self._others.values():
            for number, chunk, text in reply.hashes:
                value = bytes.fromhex(text)
                if number < len(self.layout.refs) and fits(self.layout, number, chunk, value):
                    claims.setdefault((number, chunk), set()).add(value)
        for at, values in claims.items():
            if len(values) > 1:
                log.warning("swarm: peers have different hashes of %s", self.layout.refs[at[0]].uri)
                self._disputed.add(at)
            elif at not in self._disputed:
                self._know(at, next(iter(values)))
        for peer, reply in self._others.items():
            if reply.port:
                self._meet(peer.address, reply.port)

    def _know(self, at: At, value: bytes) -> None:
        if at not in self._hashes:
            self._hashes[at] = self._unsaved[at] = value

    async def _keep_hashes(self) -> None:
        unsaved, self._unsaved = self._unsaved, {}
        if unsaved:
            await self._s.hashes.save(self.layout, unsaved)

    async def _hash_what_is_here(self) -> None:
        while True:
            for at in self.layout.chunks():
                if at not in self._hashes and self._is_here(at):
                    value = await self._s.hashes.make(self._held[at[0]], self.layout, *at)
                    if value is not None:
                        self._s.metrics.swarm_hashed_bytes.inc(self.layout.extent(*at).length)
                        self._know(at, value)
            await self._to_hash.wait()
            self._to_hash.clear()

    # this agent's share of what is to come from the origin

    def _take_share(self, *, believing: bool) -> None:
        """See what nobody has and this agent is the owner of; `believing` what others said they have."""
        replies = self._others
        said = {at for reply in replies.values() for at in chunks_in(reply.coming, self.layout)}
        coming = said if believing else set()
        warming = [self._s.own, *(peer for peer, reply in replies.items() if reply.warming)]
        self._share.clear()
        for at in self.layout.chunks():
            if at in self._hashes or self._is_here(at) or (at in coming and at not in self._disputed):
                continue
            owner = owner_of(f"{self.layout.refs[at[0]].key}/{at[1]}", warming)
            if not believing or at in self._disputed or owner == self._s.own:
                self._share.append(at)
        self._fetch()

    def _fetch(self) -> None:
        while self._share and len(self._fetching) < WINDOW:
            at = self._share.popleft()
            told = functools.partial(self._fetched, at)
            if at not in self._fetching and self._s.filler.preload(self._held[at[0]], at[1], self, told):
                self._fetching.add(at)

    def _fetched(self, at: At, error: HeadraceError | None) -> None:
        self._fetching.discard(at)
        self.error = self.error or error
        self._to_hash.set()
        if error is None:
            self._fetch()

    async def _fill_rest(self) -> None:
        """Fill what is missing still as any chunk is filled. Raises HeadraceError."""
        missing = [at for at in self.layout.chunks() if not self._is_here(at)]
        room = asyncio.Semaphore(WINDOW)
        errors: list[HeadraceError] = []

        def told(error: HeadraceError | None) -> None:
            room.release()
            if error is not None:
                errors.append(error)

        for number, chunk in missing:
            await room.acquire()
            if errors or not self._s.filler.preload(self._held[number], chunk, self, told):
                room.release()
        for _ in range(WINDOW):
            await room.acquire()
        if errors:
            raise errors[0]

    # the torrent

    async def _grant(self) -> None:
        """Have the store grant what is missing; what it has no room for is left out."""
        for number, cached in self._held.items():
            for chunk in range(len(cached.present)):
                try:
                    granted = self._s.store.grant(cached, chunk)
                except StoreFull:
                    if not await self._s.store.make_room(cached, cached.extent(chunk).length):
                        return
                    granted = self._s.store.grant(cached, chunk)
                if granted:
                    self._granted[number, chunk] = pieces_in(cached.extent(chunk).length)

    def _join(self) -> None:
        """Add the torrent with what is here now, if it is not there."""
        if self._torrent is not None:
            return
        layout, starts = self.layout, self.layout.starts()
        have, wanted = [False] * layout.pieces, [False] * layout.pieces
        self._chunk_of = {}
        per_chunk = pieces_in(layout.chunk_size)
        for at in layout.chunks():
            first = starts[at[0]] + at[1] * per_chunk
            for piece in range(first, first + pieces_in(layout.extent(*at).length)):
                have[piece] = self._is_here(at)
                wanted[piece] = at in self._granted
                self._chunk_of[piece] = at
        info = layout.info(self._hashes, mark_of(self._secret, layout.id))
        self._torrent = self._s.swarm.add(info, self._paths(), have, wanted, self._came)
        self._s.metrics.swarm_torrents.inc()
        self._met = {}
        self._moved = self._s.clock.monotonic()

    def _paths(self) -> Mapping[int, Path]:
        """The torrent's files; those of which nothing is here are never opened."""
        absent = next(iter(self._held.values())).path.parent if self._held else Path("/nonexistent")
        return {
            file: self._held[number].path if number in self._held else absent / "absent"
            for file, number in enumerate(self.layout.files())
            if number is not None
        }

    def _came(self, piece: int) -> None:
        at = self._chunk_of[piece]
        self._moved = self._s.clock.monotonic()
        if at in self._granted:
            self._granted[at] -= 1
            if not self._granted[at]:
                task = asyncio.create_task(self._take(at))
                self._taking.add(task)
                task.add_done_callback(self._taking.discard)

    async def _take(self, at: At) -> None:
        """A chunk is there: check it once more as it is in the file, and record it."""
        cached, extent = self._held[at[0]], self.layout.extent(*at)
        try:
            padding = self.layout.padding(*at)
            xxh3 = await asyncio.to_thread(checked, cached.fd, extent, padding, self._hashes[at])
            if xxh3 is None:
                self._s.metrics.peer_failures["wrong"].inc()
                log.error("swarm: a chunk of %s is not what its hashes say", cached.ref.uri)
                return
            await self._s.store.record(cached, at[1], xxh3)
        except OSError as error:
            self.error = StoreFailed(f"cannot read {cached.path}: {error.strerror}")
            self._s.store.failed(cached, self.error)
        except StoreFailed as error:
            self.error = error
            self._s.store.failed(cached, error)
        else:
            del self._granted[at]
            self._s.metrics.swarm_received.inc(extent.length)
            self._s.brought(cached.ref, extent)

    async def _exchange(self, over: Callable[[], bool]) -> None:
        """Be in the swarm until that is so."""
        talked = 0.0
        while not over():
            now = self._s.clock.monotonic()
            if now - talked >= TALK:
                talked = now
                self._s.swarm.look()
                if self.warming:
                    await self._talk(())
            if self.error is not None:
                raise self.error
            await self._s.clock.sleep(POLL)

    def _meet(self, address: str, port: int) -> None:
        """Connect to a member, once, and again after a while."""
        now = self._s.clock.monotonic()
        known, when = self._met.get(address, (0, 0.0))
        if self._torrent is not None and (known != port or now - when > RECONNECT):
            self._met[address] = (port, now)
            self._torrent.connect(address.rpartition(":")[0].strip("[]"), port)

    def _stalled(self) -> bool:
        fault = self._torrent is not None and self._torrent.fault
        return bool(fault) or self._s.clock.monotonic() - self._moved > STALL

    def _is_idle(self) -> bool:
        return self._s.clock.monotonic() - self._heard > LINGER

    async def _leave_torrent(self) -> None:
        """Leave the swarm, and give back to the store what it did not bring."""
        torrent, self._torrent = self._torrent, None
        if torrent is not None:
            gone = await torrent.remove()
            self._s.metrics.swarm_torrents.dec()
            self._s.metrics.peer_failures["wrong"].inc(torrent.wrong)
            if not gone:
                return
        if self._taking:
            await asyncio.wait(self._taking)
        back, self._granted = list(self._granted), {}
        for number, chunk in back:
            self._s.store.take_back(self._held[number], [chunk])

    async def _leave(self) -> None:
        await self._leave_torrent()
        self._s.filler.disown(self)
        await self._keep_hashes()
        self._let_go()


async def _to_the_end(work: Coroutine[None, None, None]) -> None:
    """Do it to the end, however often the task is cancelled meanwhile."""
    task = asyncio.ensure_future(work)
    while not task.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait([task])
    task.result()
