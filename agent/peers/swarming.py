"""The sets of objects that this agent is in a swarm for, and its word with the other agents about them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import dataclass

from agent.content import ObjectRef
from agent.errors import BadRequest, StoreFailed
from agent.peers.discovery import Discovery
from agent.peers.exchange_client import ExchangeClient, PeerSilent
from agent.peers.gathering import Gathering, Services
from agent.peers.liveness import Liveness
from agent.peers.member import Peer
from agent.peers.metainfo import Layout, secret_with, sets_of
from agent.peers.placement import ranked
from agent.peers.secrets import Secrets
from agent.peers.swarm_wire import CALL, Reply, Word, parse_reply, parse_word, refs_of

log = logging.getLogger(__name__)

CALL_WITHIN = 3.0  # seconds
REST = 10.0  # seconds for which an agent is not asked that did not answer: perhaps it takes no part
ASKED = 32  # agents that are asked about a set, the same ones by all: they know each other's shares
MOST_SETS = 64  # that others may have this agent join


@dataclass(frozen=True, slots=True)
class Members:
    """Who the other agents are, and how they are asked."""

    discovery: Discovery
    liveness: Liveness
    client: ExchangeClient
    secrets: Secrets


class Swarming:
    """This agent's part in the swarm. Loop only."""

    def __init__(self, services: Services, members: Members, chunk_size: int) -> None:
        self._services = services
        self._members = members
        self._chunk_size = chunk_size
        self._sets: dict[str, Gathering] = {}
        self._resting: dict[str, float] = {}
        self._admitting: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Let members in from now on."""
        self._services.swarm.on_banned = self._banned
        self._admitting = asyncio.create_task(self._admit())

    async def close(self) -> None:
        """Leave all swarms."""
        if self._admitting is not None:
            self._admitting.cancel()
        await asyncio.gather(*(one.end() for one in self._sets.values()))
        self._sets = {}

    async def warm(self, refs: Iterable[ObjectRef]) -> None:
        """Bring objects into the store, one set after the other. Raises HeadraceError; also where something
        of them is not here any more in the end."""
        sets = sets_of(refs)
        for objects in sets:
            gathering = await self._warming(Layout(objects, self._chunk_size))
            try:
                await gathering.warmed.wait()
            except asyncio.CancelledError:
                await gathering.end()
                raise
            if gathering.error is not None:
                raise gathering.error
        sizes = {ref.key: ref.size for objects in sets for ref in objects}
        present = await self._services.store.present_bytes(sizes)
        if gone := [key for key, size in sizes.items() if present.get(key, 0) < size]:
            raise StoreFailed(f"the store took {len(gone)} objects away meanwhile; try again")

    async def end(self, key: str) -> None:
        """Leave every swarm that gives away bytes of this object: they are about to go."""
        for gathering in [one for one in self._sets.values() if key in one.keys]:
            await gathering.end()

    def claimed(self) -> set[str]:
        """The keys of the objects that are being warmed: what came of them is not to go at once."""
        return set().union(*(one.keys for one in self._sets.values() if one.warming))

    async def call(self, sender: str, body: bytes) -> bytes:
        """A `Call` of the exchange. Raises BadRequest."""
        word = parse_word(body)
        return (await self._answer(sender, word)).model_dump_json().encode()

    async def _answer(self, sender: str, word: Word) -> Reply:
        if word.chunk_size != self._chunk_size or sender not in {one.name for one in self._others()}:
            return Reply()
        gathering = self._running(word.set)
        if gathering is None:
            if not word.objects:
                return Reply(stranger=True)
            gathering = await self._joined(word)
        return Reply() if gathering is None else await gathering.answer(sender, word)

    async def _joined(self, word: Word) -> Gathering | None:
        """Take part in what another agent warms, if something of it is here."""
        layout = Layout(refs_of(word.objects), self._chunk_size)
        if layout.id != word.set or list(layout.refs) != list(sets_of(layout.refs)[0]):
            raise BadRequest("no word about a swarm: the set is another one")
        secret = secret_with(word.tag, self._members.secrets.accepted(), layout.id)
        present = await self._services.store.present_bytes([ref.key for ref in layout.refs])
        if secret is None or not word.warming or not any(present.values()):
            return None
        return self._running(layout.id) or self._begin(layout, secret, warming=False)

    async def _warming(self, layout: Layout) -> Gathering:
        found = self._running(layout.id)
        if found is not None and not found.warming:
            await found.end()
            found = self._running(layout.id)
        return found or self._begin(layout, self._members.secrets.accepted()[0], warming=True)

    def _running(self, name: str) -> Gathering | None:
        found = self._sets.get(name)
        return None if found is None or found.ended else found

    def _begin(self, layout: Layout, secret: bytes, *, warming: bool) -> Gathering:
        self._sets = {name: one for name, one in self._sets.items() if not one.ended}
        if len(self._sets) >= MOST_SETS:
            raise BadRequest("too many swarms at a time")
        made = Gathering(self._services, layout, secret, self._say, warming=warming)
        self._sets[layout.id] = made
        return made

    async def _say(self, word: Word) -> dict[Peer, Reply]:
        usable = [one for one in self._others() if self._usable(one.name)]
        peers = ranked(word.set, usable)[:ASKED]
        replies = await asyncio.gather(*(self._say_to(peer, word) for peer in peers))
        return {peer: reply for peer, reply in zip(peers, replies, strict=True) if reply is not None}

    async def _say_to(self, peer: Peer, word: Word) -> Reply | None:
        try:
            reply = await self._ask(peer, word.model_copy(update={"objects": []}))
            return await self._ask(peer, word) if reply.stranger else reply
        except (PeerSilent, BadRequest) as error:
            self._resting[peer.name] = self._services.clock.monotonic() + REST
            log.info("swarm: %s is not asked for a while: %s", peer.name, error)
            return None

    def _usable(self, name: str) -> bool:
        rests = self._resting.get(name, 0.0) > self._services.clock.monotonic()
        return not rests and self._members.liveness.usable(name)

    async def _ask(self, peer: Peer, word: Word) -> Reply:
        body = word.model_dump_json().encode()
        return parse_reply(await self._members.client.call(peer, CALL, body, CALL_WITHIN))

    def _others(self) -> tuple[Peer, ...]:
        return self._members.discovery.peers()

    def _banned(self, host: str) -> None:
        for peer in self._others():
            if peer.host == host:
                rest = self._members.liveness.lied(peer.name)
                log.warning("peer %s is left out for %.0f s: wrong pieces in the swarm", peer.name, rest)

    async def _admit(self) -> None:
        known: tuple[Peer, ...] = self._others()
        while True:
            self._services.swarm.admit({peer.host for peer in known})
            names = {peer.name for peer in known}
            self._resting = {name: until for name, until in self._resting.items() if name in names}
            known = await self._members.discovery.changed(known)
