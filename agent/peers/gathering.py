"""One set of objects in the swarm: hashes are gathered, then pieces.

    LEARNING -> JOINED -> SEEDING -> ENDED        whoever warms; without JOINED where nothing is missing
    LEARNING -> SEEDING -> ENDED                  whoever was asked by a peer, and has some of it

When all hashes are known everybody has the same torrent (learning.py, joined.py). What the swarm does not
bring in time is filled as any chunk is, and so is a set that no word can name. SEEDING ends when nobody who
warms has said a word for a while, or as soon as the store wants to take something of it away. Loop only.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.cache.fill import Filler
from agent.cache.store import Store
from agent.clock import Clock, ended
from agent.errors import HeadraceError, StoreFailed
from agent.metrics import Metrics
from agent.peers.held import Held
from agent.peers.joined import Brought, Joined
from agent.peers.learning import WINDOW, Learning
from agent.peers.member import Peer
from agent.peers.metainfo import Layout, tag_of
from agent.peers.piece_hashes import PieceHashes
from agent.peers.swarm_wire import Reply, Run, Word, nameable, objects_as, runs_of

if TYPE_CHECKING:
    from agent.peers.swarm import Swarm

log = logging.getLogger(__name__)

POLL = 0.2  # seconds between two rounds while hashes are missing
TALK = 1.0  # seconds between two rounds in the swarm
AWAITED = 1.0  # seconds in which others that begin at the same time are heard of, before shares are taken
COMING_WITHIN = 30.0  # seconds without a hash, before what others said they have is fetched all the same
LINGER = 20.0  # seconds that an agent stays in a swarm after the last word of one that warms

Say = Callable[[Word], Awaitable[Mapping[Peer, Reply]]]


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
    brought: Brought
    straight: set[tuple[str, int]]  # `PeerSource.straight`


class Gathering:
    """One set, from construction until `ended`."""

    def __init__(self, services: Services, layout: Layout, secret: bytes, say: Say, *, warming: bool) -> None:
        """`say` puts a word to the other agents, and gives their replies."""
        s = self._services = services
        self.layout = layout
        self.keys = frozenset(ref.key for ref in layout.refs)
        self.warming = warming
        self.error: HeadraceError | None = None
        self.warmed = asyncio.Event()  # every chunk is held, or `error` says why not
        self._tag = tag_of(secret, layout.id)
        self._secret = secret
        self._say = say
        self._held = Held(s.store, layout)
        self._learning = Learning(layout, self._held, s.own, s.filler, s.straight, s.hashes, s.metrics)
        self._joined = Joined(layout, self._held, s.store, s.swarm, s.clock, s.metrics, s.brought, s.own.zone)
        self._others: Mapping[Peer, Reply] = {}
        self._opened = asyncio.Event()
        self._heard = services.clock.monotonic()
        self._task = asyncio.create_task(self._run())
        # Not the task's own last lines: one that is cancelled before its first step runs none of them.
        self._task.add_done_callback(self._over)

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
            self._heard = self._services.clock.monotonic()
        known, coming = self._learning.tell(word.unknown)
        same = word.tag == self._tag
        if same and word.port:
            self._joined.meet(sender, word.port, word.zone)
        port = self._joined.port if same else 0
        zone = self._services.own.zone
        return Reply(port=port, zone=zone, warming=self.warming, hashes=known, coming=coming)

    async def _run(self) -> None:
        try:
            await self._held.open(every=self.warming)
            if self.warming and not nameable(self.layout.refs):
                await self._fill_rest()
                self.warming = False
                return
            await self._learning.load()
            self._opened.set()
            if await self._learn():
                await self._gather()
        except HeadraceError as error:
            self.error = error
            log.warning("swarm: %s", error)
        except Exception as error:
            self.error = StoreFailed(f"the swarm: internal error {type(error).__name__}")
            log.exception("swarm: a fault of this agent")
        finally:
            await _to_the_end(self._leave())

    def _over(self, task: asyncio.Task[None]) -> None:
        if self.warming and self.error is None:
            self.error = StoreFailed("the warming was ended before all of it was here; try again")
        self.warming = False
        self._opened.set()
        self.warmed.set()

    async def _learn(self) -> bool:
        """Until every hash is known; False where nobody wants them any more."""
        learning, clock = self._learning, self._services.clock
        begun = learned = clock.monotonic()
        while unknown := learning.unknown():
            await self._talk(runs_of(unknown))
            if len(learning.unknown()) < len(unknown) or learning.fetching:
                learned = clock.monotonic()
            if self.warming and (not self._others or clock.monotonic() - begun >= AWAITED):
                believing = clock.monotonic() - learned < COMING_WITHIN
                learning.take_share(self._others, believing=believing)
            elif not self.warming and self._is_idle():
                return False
            if learning.error is not None:
                raise learning.error
            await clock.sleep(POLL)
        await learning.close()
        return True

    async def _gather(self) -> None:
        """With all hashes known: by the swarm, then what it did not bring; then be there for others."""
        if self.warming:
            await self._joined.grant()
            if self._joined.waiting:
                self._joined.join(self._learning.hashes, self._secret)
                await self._exchange(lambda: not self._joined.waiting or self._joined.stalled())
                await self._joined.taken()
            if self._joined.waiting:
                await self._joined.leave()
            await self._fill_rest()
            self.warming = False
            self.warmed.set()
            if not self._others:
                return
        self._joined.join(self._learning.hashes, self._secret)
        self._held.let_go()  # from here on the store may take it away: it says so before
        await self._exchange(self._is_idle)

    async def _exchange(self, over: Callable[[], bool]) -> None:
        """Be in the swarm until that is so."""
        clock = self._services.clock
        talked, talking = -TALK, None
        try:
            while not over():
                if clock.monotonic() - talked >= TALK and (talking is None or talking.done()):
                    talked = clock.monotonic()
                    self._joined.look()
                    talking = asyncio.create_task(self._talk([])) if self.warming else None
                if self._joined.error is not None:
                    raise self._joined.error
                await clock.sleep(POLL)
        finally:
            if talking is not None:
                talking.cancel()

    async def _talk(self, unknown: list[Run]) -> None:
        word = Word(
            set=self.layout.id,
            chunk_size=self.layout.chunk_size,
            objects=objects_as(self.layout.refs),
            tag=self._tag,
            port=self._joined.port,
            zone=self._services.own.zone,
            warming=self.warming,
            unknown=unknown,
        )
        self._others = await self._say(word)
        self._learning.hear(self._others)
        for peer, reply in self._others.items():
            if reply.port:
                self._joined.meet(peer.address, reply.port, reply.zone)

    async def _fill_rest(self) -> None:
        """Fill what is missing still as any chunk is filled. Raises HeadraceError."""
        room = asyncio.Semaphore(WINDOW)
        errors: list[HeadraceError] = []

        def told(error: HeadraceError | None) -> None:
            room.release()
            if error is not None:
                errors.append(error)

        for number, chunk in [at for at in self._held.chunks() if not self._held.has(at)]:
            await room.acquire()
            if errors or not self._services.filler.preload(self._held[number], chunk, self, told):
                room.release()
        for _ in range(WINDOW):
            await room.acquire()
        if errors:
            raise errors[0]
        if missing := [at for at in self.layout.chunks() if not self._held.has(at)]:
            raise StoreFailed(f"{len(missing)} chunks are missing still; try again")

    def _is_idle(self) -> bool:
        return self._services.clock.monotonic() - self._heard > LINGER

    async def _leave(self) -> None:
        await self._joined.leave()
        self._services.filler.disown(self)
        await self._learning.close()
        self._held.let_go()


async def _to_the_end(work: Coroutine[None, None, None]) -> None:
    """Do it to the end, however often the task is cancelled meanwhile."""
    task = asyncio.ensure_future(work)
    await ended(task)
    task.result()
