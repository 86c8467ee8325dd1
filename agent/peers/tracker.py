"""The tracker of dataset revisions: who has what, who wants what, and who is whose parent. No I/O.

One agent is the tracker of a revision (agent/peers/placement.py). What it knows is soft: agents announce what
they have and where they stand, under a lease; after a change of tracker the new one has the same order again
as soon as they have announced to it. It decides nothing twice: a member's place in a span is fixed when it is
formed, and every parent comes before its child in an order that never changes (agent/peers/span.py).

    unknown --announce--> member --ask--> gathering --GATHER s--> placed --ask--> routes
    member --ask, others have all of it--> placed
    placed --found slow--> aside --all others asked again--> gathering    any --lease over, leave--> unknown

An ask of somebody new waits until nobody else has come for `GATHER` seconds, `GATHER_MOST` at the most, so
that agents that start together form one group and share the heads' work. Where others have all of the span
already nobody has to be a head, and nobody waits. A new tracker waits `REBUILD` seconds from the first
announcement of a place that it did not give. Who announces one later takes it as well, and those who have
their routes already ask again, since it may be a parent of theirs.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from agent.clock import Clock
from agent.peers.member import Peer
from agent.peers.messages import Answer, Reason, Renewal, SpanId, Standing
from agent.peers.relay import RUN, SPAN
from agent.peers.reputation import Reputation
from agent.peers.span import SpanRelay
from agent.peers.speeds import Speeds

LEASE = 6.0  # seconds without a word after which a member is forgotten; it announces every 2 s
GATHER = 0.04  # seconds: agents that are told of the same work begin with no longer gaps
GATHER_MOST = 0.2  # seconds: below what a reader waits for its routes (agent/peers/guide.py)
GATHER_LONG = 1.0  # seconds for those who ask ahead: the last of a chain is that much behind the first
SETTLE = 0.2  # seconds between two asks of a member that cannot have its place yet
# Seconds: by then all that receive have seen that the tracker is another: each half second they tell it what
# they have (guide.py). With 0.5 one of them came too late in three of eight runs, got no children any more,
# and those that it had shared another one's uplink to the end.
REBUILD = 1.0


@dataclass(slots=True)
class _Member:
    peer: Peer
    heard: float
    spans: set[SpanId] = field(default_factory=set)


@dataclass(slots=True)
class _Gathering:
    """Who waits for a place in a span: given at `limit`, or `pace` seconds after the last one came."""

    names: set[str] = field(default_factory=set)
    limit: float = float("inf")
    pace: float = float("inf")
    last: float = 0.0

    @property
    def due(self) -> float:
        return min(self.limit, self.last + self.pace)


class Tracker:
    """The state of one revision, or of many: spans are named by their object's key. Used on the loop."""

    def __init__(self, clock: Clock) -> None:
        self.run = RUN  # chunks of a stripe, in spans that nobody has asked for yet
        self._clock = clock
        self._members: dict[str, _Member] = {}
        self._spans: dict[SpanId, SpanRelay] = {}
        self._gathering: dict[SpanId, _Gathering] = {}
        self._reputation = Reputation()
        self._speeds = Speeds()
        self._moving: dict[SpanId, set[str]] = {}  # spans in which slow members go to the end, and who
        self._outdated: dict[SpanId, set[str]] = {}  # whose routes are from before somebody came back
        self._formed = False
        self._ready_at = 0.0
        self._look_at = 0.0

    def members(self) -> list[Peer]:
        """All members whose lease runs."""
        self._expire()
        return [member.peer for member in self._members.values()]

    def announce(self, peer: Peer, spans: Mapping[SpanId, Standing], whole: bool = False) -> Renewal:
        """An agent says what it has, and where it stands: everything (`whole`), or what has changed.

        An announcement without spans renews the lease.
        """
        self._expire()
        known = peer.name in self._members
        member = self._hear(peer)
        if whole:
            for gone in member.spans - spans.keys():
                self.release(peer.name, gone)
        for span, standing in spans.items():
            self._take(peer, span, standing)
        self._reputation.announced(peer.name)
        self._look(peer.name)
        again = (span for span in member.spans if self._must_ask(peer.name, span, spans.get(span)))
        return Renewal(LEASE, tuple(sorted(again)), unknown=not known and not whole)

    def ask(
        self,
        peer: Peer,
        span: SpanId,
        count: int = SPAN,
        without: Collection[str] = frozenset(),
        patience: float = 0.0,
    ) -> Answer:
        """Join the relay of a span: the parents for its first `count` chunks, none out of `without`.

        `patience`: seconds until the asker needs the routes. Who asks for the next span ahead of time meets
        those behind it there, and the heads' work is shared by all; up to `GATHER_LONG` of it is used.
        """
        self._expire()
        now = self._clock.monotonic()
        self._hear(peer).spans.add(span)
        relay = self._relay(span)
        relay.note(peer.name, peer.zone, 0)
        relay.set_aside(peer.name, self._aside(peer.name, now))
        wait = self._ready_at - now
        if wait <= 0:
            self._move_if_slow(peer.name, span, now)
            if span not in self._gathering and relay.held(peer.name, min(count, SPAN)):
                self._form(relay, [peer.name])  # no head's work is to be shared: who comes next stands behind
            wait = self._gather(peer.name, span, relay, min(patience, GATHER_LONG))
        relay.saw(peer.name)
        self._note_up_to_date(peer.name, span)
        routes = relay.routes(peer.name, min(count, SPAN), without)
        named = tuple(tuple(self._members[name].peer for name in route) for route in routes)
        slow = frozenset(one for one in self._speeds.names() if one in relay and self.is_slow(one))
        return Answer(wait, relay.place(peer.name), named, slow)

    def done(self, name: str, span: SpanId, chunks: int) -> None:
        """A member has these chunks now (a bit for each). Nothing from one that is no member."""
        if name in self._members:
            self._members[name].spans.add(span)
            self._relay(span).note(name, self._members[name].peer.zone, chunks)

    def failed(self, name: str, span: SpanId, chunk: int, parent: str, reason: Reason) -> None:
        """A member did not get a chunk (its number in the span) from a parent. Only members are heard."""
        self._expire()
        if name not in self._members or parent not in self._members:
            return
        if reason in ("absent", "wrong") and span in self._spans:
            self._spans[span].lost(parent, chunk)
        now = self._clock.monotonic()
        if self.is_slow(name) and reason in ("slow", "silent"):
            return  # of its few bytes a second a parent among many may get none for a while
        self._reputation.report(name, parent, reason, now)
        for one in (name, parent):
            self._look(one)

    def speeds(self, name: str, fastest: float, held_up_by: Collection[str]) -> set[str]:
        """A member received so many bytes a second at its best, and these children take theirs slowly.

        Who is slow from now on, or no more."""
        if name not in self._members:
            return set()
        now, count = self._clock.monotonic(), len(self._members)
        changed = self._speeds.receives(name, fastest, now, count)
        changed |= self._speeds.held_up(name, [one for one in held_up_by if one in self._members], now, count)
        for one in changed:
            self._look(one)
            for span in self._members[one].spans if one in self._members else ():
                self._move_if_slow(one, span, now)
        return changed

    def is_slow(self, name: str) -> bool:
        """Whether a member is known to take its bytes slowly: it has no children."""
        return self._speeds.slow(name, self._clock.monotonic())

    def again(self, name: str) -> list[SpanId]:
        """The spans that a member should ask for at once: somebody slow goes to their end, or somebody has
        come back to the place in them that it had from an earlier tracker."""
        for span, names in list(self._moving.items()):
            relay = self._spans.get(span)
            left = {one for one in names if relay is not None and one in relay and relay.place(one) is None}
            self._moving[span] = left
            if not left:
                del self._moving[span]
        outdated = [span for span, names in self._outdated.items() if name in names]
        moving = [span for span in self._moving if name in self._spans[span] and self._waits(name, span)]
        return outdated + [span for span in moving if span not in outdated]

    def _waits(self, name: str, span: SpanId) -> bool:
        asked = span in self._gathering and name in self._gathering[span].names
        return (name in self._moving[span] and not asked) or self._spans[span].awaited(name)

    def release(self, name: str, span: SpanId) -> None:
        """A member wants no more of a span, and has nothing of it to give."""
        if name in self._members:
            self._members[name].spans.discard(span)
            self._drop(name, span)

    def leave(self, name: str) -> None:
        """An agent goes: an orderly end, or its lease is over."""
        member = self._members.pop(name, None)
        if member is not None:
            self._reputation.forget(name)
            self._speeds.forget(name)
            for span in member.spans:
                self._drop(name, span)

    def _hear(self, peer: Peer) -> _Member:
        now = self._clock.monotonic()
        member = self._members.get(peer.name)
        if member is None:
            member = self._members[peer.name] = _Member(peer, now)
        member.peer, member.heard = peer, now
        return member

    def _relay(self, span: SpanId) -> SpanRelay:
        relay = self._spans.get(span)
        if relay is None:
            relay = self._spans[span] = SpanRelay(span.key, span.number, self.run)
        return relay

    def _take(self, peer: Peer, span: SpanId, standing: Standing) -> None:
        relay = self._relay(span)
        self._members[peer.name].spans.add(span)
        relay.note(peer.name, peer.zone, standing.has)
        if standing.place is None or relay.place(peer.name) is not None:
            return
        now = self._clock.monotonic()
        if not self._formed and not self._ready_at:
            self._ready_at = now + REBUILD
        if relay.put(peer.name, standing.place) and now >= self._ready_at:
            self._outdated.setdefault(span, set()).update(relay.routed() - {peer.name})

    def _note_up_to_date(self, name: str, span: SpanId) -> None:
        outdated = self._outdated.get(span, set())
        outdated.discard(name)
        if not outdated:
            self._outdated.pop(span, None)

    def _must_ask(self, name: str, span: SpanId, standing: Standing | None) -> bool:
        """Whether others wait for a member to ask again, or the place it believes to have is not its own."""
        relay = self._spans[span]
        if standing is not None and standing.place is not None and standing.place != relay.place(name):
            return True
        return relay.awaited(name)

    def _gather(self, name: str, span: SpanId, relay: SpanRelay, patience: float) -> float:
        """Wait for others who begin now; 0 once the member has its place."""
        if relay.place(name) is not None:
            return 0.0
        now = self._clock.monotonic()
        gathering = self._gathering.setdefault(span, _Gathering())
        if name not in gathering.names:
            gathering.names.add(name)
            gathering.last = now
            gathering.limit = min(gathering.limit, now + max(patience, GATHER_MOST))
            gathering.pace = min(gathering.pace, max(patience, GATHER))
        if now < gathering.due:
            return gathering.due - now
        self._form(relay, sorted(one for one in gathering.names if one in relay))
        left = {one for one in gathering.names if one in relay and relay.place(one) is None}
        if left:
            gathering.names = left
        else:
            del self._gathering[span]
        return 0.0 if relay.place(name) is not None else SETTLE

    def _form(self, relay: SpanRelay, names: Collection[str]) -> None:
        self._formed = True
        relay.form(names)

    def _move_if_slow(self, name: str, span: SpanId, now: float) -> None:
        """A slow member goes to the end of the order."""
        slow = self._reputation.slow(name, now) or self._speeds.slow(name, now)
        if slow and self._spans[span].move(name):
            self._moving.setdefault(span, set()).add(name)

    def _aside(self, name: str, now: float) -> bool:
        return self._reputation.aside(name, now) or self._speeds.slow(name, now)

    def _look(self, name: str) -> None:
        """Let what is reported of a member count in all its spans."""
        if name in self._members:
            aside = self._aside(name, self._clock.monotonic())
            for span in self._members[name].spans:
                self._spans[span].set_aside(name, aside)

    def _drop(self, name: str, span: SpanId) -> None:
        relay = self._spans.get(span)
        self._note_up_to_date(name, span)
        if relay is not None:
            relay.drop(name)
            if not len(relay):
                del self._spans[span]
                self._gathering.pop(span, None)

    def _expire(self) -> None:
        """Forget whoever was not heard of within a lease; at most once a second."""
        now = self._clock.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + 1.0
        for name in [name for name, one in self._members.items() if now - one.heard >= LEASE]:
            self.leave(name)
        self._reputation.review(now)
        for name in (*self._reputation.names(), *self._speeds.names()):
            self._look(name)
