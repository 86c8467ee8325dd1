"""How the hashes of a set come together: asked of others, made of what is here, and of one's share.

What nobody has is fetched from the origin by those who warm, in turn one chunk each, so that each byte leaves
the origin once: who warms is seen anew every round, and where that changes nobody begins with another chunk
for a round. Where two agents have different hashes of a chunk nobody is believed: it is fetched here. Loop
only; threads hash.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections import deque
from collections.abc import Iterable, Mapping

from agent.cache.fill import Filler
from agent.errors import HeadraceError, StoreFailed
from agent.metrics import Metrics
from agent.peers.held import At, Held
from agent.peers.member import Peer
from agent.peers.metainfo import Layout
from agent.peers.piece_hashes import Hashes, PieceHashes, fits
from agent.peers.swarm_wire import MOST_CHUNKS, MOST_HASHES, Reply, Run, chunks_in, runs_of

log = logging.getLogger(__name__)

WINDOW = 4  # chunks of its share that an agent fetches at a time: others may come for theirs any moment


class Learning:
    """What is known of one set's hashes, from `load` to `close`."""

    def __init__(
        self,
        layout: Layout,
        held: Held,
        own: Peer,
        filler: Filler,
        straight: set[tuple[str, int]],
        hashes: PieceHashes,
        metrics: Metrics,
    ) -> None:
        """What is put into `straight` while it is fetched comes from the origin itself (`PeerSource`)."""
        self._layout = layout
        self._held = held
        self._own = own
        self._filler = filler
        self._straight = straight
        self._pieces = hashes
        self._warming: list[Peer] = []  # as it was in the round before
        self._metrics = metrics
        self.hashes: Hashes = {}
        self.error: HeadraceError | None = None  # why a chunk cannot be had or hashed
        self._unsaved: Hashes = {}
        self._disputed: set[At] = set()
        self._share: deque[At] = deque()
        self._fetching: set[At] = set()
        self._look = asyncio.Event()
        self._hashing: asyncio.Task[None] | None = None

    async def load(self) -> None:
        """Take up what this agent has kept, and begin to hash what is here."""
        self.hashes = await self._pieces.load(self._layout)
        self._hashing = asyncio.create_task(self._hash())

    async def close(self) -> None:
        """Want nothing more, and keep what is new."""
        if self._hashing is not None:
            self._hashing.cancel()
        self._filler.disown(self)
        unsaved, self._unsaved = self._unsaved, {}
        if unsaved:
            await self._pieces.save(self._layout, unsaved)

    def unknown(self) -> list[At]:
        """The chunks whose hashes are not known yet."""
        return [at for at in self._layout.chunks() if at not in self.hashes]

    @property
    def fetching(self) -> bool:
        """Whether something of the share is on its way."""
        return bool(self._fetching)

    def tell(self, unknown: Iterable[Run]) -> tuple[list[tuple[int, int, str]], list[Run]]:
        """Hashes for another agent, and what else is to come of what it does not know."""
        known: list[tuple[int, int, str]] = []
        coming: list[At] = []
        size = 0
        for at in chunks_in(unknown, self._layout):
            value = self.hashes.get(at)
            if value is not None and len(known) < MOST_CHUNKS and size < MOST_HASHES:
                known.append((*at, value.hex()))
                size += len(value)
            elif value is not None or self._held.has(at) or at in self._fetching:
                coming.append(at)
        self._look.set()
        return known, runs_of(coming)

    def hear(self, replies: Mapping[Peer, Reply]) -> None:
        """Learn what others told."""
        claims: dict[At, set[bytes]] = {}
        for reply in replies.values():
            for number, chunk, text in reply.hashes:
                value = bytes.fromhex(text)
                if number < len(self._layout.refs) and fits(self._layout, number, chunk, value):
                    claims.setdefault((number, chunk), set()).add(value)
        for at, values in claims.items():
            if len(values) > 1:
                self._disputed.add(at)
                log.warning("swarm: peers have different hashes of %s", self._layout.refs[at[0]].uri)
            elif at not in self._disputed:
                self._know(at, next(iter(values)))
        self._look.set()

    def take_share(self, replies: Mapping[Peer, Reply], *, believing: bool) -> None:
        """Fetch what nobody has and is this agent's turn; `believing` what others said is to come."""
        said = {at for reply in replies.values() for at in chunks_in(reply.coming, self._layout)}
        coming = said if believing else set()
        warming = sorted([self._own, *(peer for peer, reply in replies.items() if reply.warming)])
        settled, self._warming = warming == self._warming, warming
        self._share.clear()
        if not settled:  # others see it in a moment, and nobody begins before
            return
        for position, at in enumerate(self._layout.chunks()):
            if at in self.hashes or self._held.has(at) or (at in coming and at not in self._disputed):
                continue
            ours = warming[position % len(warming)] == self._own
            if ours or not believing or at in self._disputed:
                self._share.append(at)
        self._fetch()

    def _fetch(self) -> None:
        while self._share and len(self._fetching) < WINDOW:
            at = self._share.popleft()
            if at in self._fetching:
                continue
            told = functools.partial(self._fetched, at)
            self._straight.add(self._name(at))
            if self._filler.preload(self._held[at[0]], at[1], self, told):
                self._fetching.add(at)
            else:
                self._straight.discard(self._name(at))

    def _fetched(self, at: At, error: HeadraceError | None) -> None:
        self._fetching.discard(at)
        self._straight.discard(self._name(at))
        self.error = self.error or error
        self._look.set()
        if error is None:
            self._fetch()

    def _name(self, at: At) -> tuple[str, int]:
        return self._layout.refs[at[0]].key, self._layout.extent(*at).end

    def _know(self, at: At, value: bytes) -> None:
        if at not in self.hashes:
            self.hashes[at] = self._unsaved[at] = value

    async def _hash(self) -> None:
        try:
            while True:
                await self._hash_what_is_here()
                await self._look.wait()
                self._look.clear()
        except HeadraceError as error:
            self.error = self.error or error
        except Exception as error:
            self.error = StoreFailed(f"the swarm: internal error {type(error).__name__}")
            log.exception("swarm: a fault of this agent")

    async def _hash_what_is_here(self) -> None:
        for at in [at for at in self.unknown() if self._held.has(at)]:
            if at not in self.hashes and self._held.has(at):
                value = await self._pieces.make(self._held[at[0]], self._layout, *at)
                if value is not None:
                    self._metrics.swarm_hashed_bytes.inc(self._layout.extent(*at).length)
                    self._know(at, value)
