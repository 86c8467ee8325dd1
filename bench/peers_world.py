"""A cluster as flows: nodes, links and an origin in steps of virtual time, led by the agents' own tracker
code.

In each step every transfer moves what its parent had at the step's beginning and what the links allow, so a
hop costs one step: with T/dt = M steps for the bound F/C, a chain of N nodes takes (M+N-1)/M as the formula
says. The unit of bytes is the chunk; the full link carries `chunks` of them in `bound` seconds. No latency is
modelled.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field

import numpy as np

from agent.clock import Timer
from agent.peers.member import Peer
from agent.peers.messages import Reason, SpanId, Standing
from agent.peers.relay import SPAN, Place
from agent.peers.tracker import Tracker

WINDOW = 8  # chunks that a node has under way, as the agent's fills have
HEARTBEAT = 2.0  # seconds between two announcements
LEFT_OUT = 30.0  # seconds that a node asks without a parent that failed it
NOTICE = 0.3  # seconds until the children of a node that died know it
SOON = 1e-9
ROUNDS = 4  # of sharing out; more move less than 1 % of the bytes
AHEAD = 1.0  # seconds; the next span is asked for when this one begins
POOR = 0.4  # of its link, for two seconds: what a node calls slow
BACKLOG = 0.1  # of a chunk: what a stream may hold back without being to blame
ORIGIN, NOBODY = -1, -2


@dataclass(frozen=True)
class Scenario:
    """What is simulated. Times are seconds; links are relative to the full link, `origin` too."""

    name: str
    nodes: int
    chunks: int = 64
    bound: float = 16.0
    pieces: int = 2048  # steps in `bound`
    zones: int = 1
    origin: float = 2.0
    join: tuple[float, ...] = ()  # per node; missing ones join at 0
    links: dict[int, float] = field(default_factory=dict)
    dies: dict[int, float] = field(default_factory=dict)
    tracker_dies: float | None = None


class VirtualClock:
    """A clock that the world moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        raise NotImplementedError("the tracker needs no timers")

    async def sleep(self, delay: float) -> None:
        raise NotImplementedError("the tracker never sleeps")

    def timeout(self, seconds: float) -> AbstractAsyncContextManager[object]:
        raise NotImplementedError("the tracker waits for nothing")


class Node:
    """What one agent knows: its peers' routes, its places, whom it leaves out."""

    def __init__(self, number: int, zone: str, joins: float) -> None:
        self.peer = Peer(f"node-{number}", f"10.{number >> 8}.{number & 255}.1:7411", zone)
        self.joins = joins
        self.routes: dict[int, tuple[tuple[Peer, ...], ...]] = {}
        self.places: dict[int, Place | None] = {}
        self.ask_at: dict[int, float] = {}
        self.has: Counter[int] = Counter()
        self.left_out: dict[str, float] = {}
        self.queue: list[int] = []  # chunks to begin, the next one last
        self.finished = -1.0


class World:
    """The simulation: `step` until `over`."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = s = scenario
        self.clock = VirtualClock()
        self.start = self.clock.now
        self.dt = s.bound / s.pieces
        self.tracker = Tracker(self.clock)
        self.requests: Counter[int] = Counter()
        joins = [*s.join, *[0.0] * s.nodes]
        self.nodes = [Node(n, f"zone-{n % s.zones}", self.start + joins[n]) for n in range(s.nodes)]
        self.number = {node.peer.name: n for n, node in enumerate(self.nodes)}
        for node in self.nodes:
            node.queue = list(range(s.chunks))[::-1]
        self.link = np.array([s.links.get(n, 1.0) for n in range(s.nodes)]) * s.chunks / s.pieces
        self.have = np.zeros((s.nodes, s.chunks))
        self.chunk = np.full((s.nodes, WINDOW), -1)
        self.parent = np.full((s.nodes, WINDOW), NOBODY)
        self.alive = np.ones(s.nodes, dtype=bool)
        self.sent = np.zeros(s.nodes)
        self.received = np.zeros(s.nodes)
        self.from_origin = 0.0
        self._told = np.zeros(s.nodes)
        self._oldest = np.full(s.nodes, -1)
        self._hungry = np.ones(s.nodes, dtype=bool)
        self._joins = np.array([node.joins for node in self.nodes]) - SOON
        self._beat_at = self._joins.copy()
        self._review_at = self.start + 1.0
        self._rows = np.repeat(np.arange(s.nodes), WINDOW)

    @property
    def now(self) -> float:
        """Seconds since the start."""
        return self.clock.now - self.start

    def live(self) -> list[Node]:
        """The nodes that have not died."""
        return [node for n, node in enumerate(self.nodes) if self.alive[n]]

    def over(self) -> bool:
        """Whether all that are alive have everything, or it takes far too long."""
        late = self.now > 6 * self.scenario.bound + max(self.scenario.join, default=0.0)
        return late or all(node.finished >= 0 for node in self.live())

    def step(self) -> None:
        """Let `dt` pass."""
        self._strike()
        idle = (self.chunk < 0).any(axis=1) & self._hungry
        for n in np.flatnonzero(self.alive & (self._joins <= self.clock.now) & (idle | self._beat_due())):
            self._act(int(n), self.nodes[n])
        self._flow()
        self.clock.now += self.dt
        self._complete()
        if self.clock.now >= self._review_at:
            self._review_at += 1.0
            self._find_slow()

    def _strike(self) -> None:
        """Let nodes die, which their children notice a little later, and the tracker's memory."""
        s = self.scenario
        for n, at in s.dies.items():
            if self.alive[n] and self.now >= at:
                self.alive[n] = False
                self.chunk[n] = -1
            if at + NOTICE <= self.now < at + NOTICE + self.dt:
                self._leave_parent(np.argwhere((self.parent == n) & (self.chunk >= 0)), "silent")
        if s.tracker_dies is not None and s.tracker_dies <= self.now < s.tracker_dies + self.dt:
            self.tracker = Tracker(self.clock)
            self._beat_at = np.minimum(self._beat_at, self.clock.now + NOTICE)

    def _beat_due(self) -> np.ndarray:
        due: np.ndarray = self._beat_at <= self.clock.now
        return due

    def _act(self, n: int, node: Node) -> None:
        if self.clock.now >= self._beat_at[n]:
            self._beat_at[n] = self.clock.now + HEARTBEAT
            self._announce(node)
        if self._hungry[n]:
            for slot in np.flatnonzero(self.chunk[n] < 0):
                if not node.queue or not self._begin(n, node, int(slot)):
                    break

    def _begin(self, n: int, node: Node, slot: int) -> bool:
        """Start the next chunk; False where its span has no routes yet."""
        chunk = node.queue[-1]
        span = chunk // SPAN
        if span not in node.routes and not self._ask(node, span):
            return False
        node.queue.pop()
        self._hungry[n] = bool(node.queue)
        ahead = span + 1
        if ahead not in node.routes and ahead * SPAN < self.scenario.chunks:
            self._ask(node, ahead, patience=AHEAD)
        self.chunk[n, slot] = chunk
        self.parent[n, slot] = self._first(node, chunk)
        return True

    def _first(self, node: Node, chunk: int) -> int:
        """The parent to go by: a dead one is tried too, until it is noticed."""
        for peer in node.routes[chunk // SPAN][chunk % SPAN]:
            number = self.number[peer.name]
            if node.left_out.get(peer.name, 0.0) <= self.clock.now and (
                self.alive[number] or self.now < self.scenario.dies[number] + NOTICE
            ):
                return number
        return ORIGIN

    def _ask(self, node: Node, span: int, patience: float = 0.0) -> bool:
        """Ask the tracker for a span; whether there are routes now."""
        if node.ask_at.get(span, 0.0) > self.clock.now + SOON:
            return False
        without = {name for name, until in node.left_out.items() if until > self.clock.now}
        count = min(SPAN, self.scenario.chunks - span * SPAN)
        self._count()
        answer = self.tracker.ask(node.peer, SpanId("object", span), count, without, patience)
        node.ask_at[span] = self.clock.now + answer.wait
        if answer.wait > 0:
            return span in node.routes
        node.places[span] = answer.place
        node.routes[span] = answer.routes
        return True

    def _announce(self, node: Node) -> None:
        self._count()
        said = {SpanId("object", s): Standing(node.has[s], place) for s, place in node.places.items()}
        renewal = self.tracker.announce(node.peer, said)
        for span in renewal.again:
            self._ask(node, span.number)

    def _count(self) -> None:
        self.requests[int(self.now)] += 1

    def _flow(self) -> None:
        """Move bytes: links share themselves evenly between transfers that want more, in rounds."""
        rows, chunks, parents = self._rows, self.chunk.ravel(), self.parent.ravel()
        active = np.flatnonzero((chunks >= 0) & (parents > NOBODY))
        if not len(active):
            return
        rows, chunks, parents = rows[active], chunks[active], parents[active]
        at_parent = np.where(parents >= 0, self.have[parents, chunks], 1.0)
        at_parent[(parents >= 0) & ~self.alive[parents]] = 0.0
        want = np.clip(at_parent - self.have[rows, chunks], 0.0, None)
        up = np.append(self.link, self.scenario.origin * self.scenario.chunks / self.scenario.pieces)
        down = self.link.copy()
        moved = np.zeros(len(active))
        for _ in range(ROUNDS):
            wanting = (want - moved > SOON).astype(float)
            fair_down = down / np.maximum(np.bincount(rows, wanting, len(down)), 1.0)
            fair_up = up / np.maximum(np.bincount(parents % len(up), wanting, len(up)), 1.0)
            part = np.minimum(want - moved, np.minimum(fair_down[rows], fair_up[parents]))
            moved += part
            up -= np.bincount(parents % len(up), part, len(up))
            down -= np.bincount(rows, part, len(down))
            np.clip(up, 0.0, None, out=up)
            np.clip(down, 0.0, None, out=down)
        np.add.at(self.have, (rows, chunks), moved)
        out = np.bincount(parents % len(up), moved, len(up))
        self.sent += out[:-1]
        self.from_origin += float(out[-1])
        self.received += np.bincount(rows, moved, len(down))

    def _complete(self) -> None:
        """Take chunks that are whole out of the windows."""
        whole = (self.chunk >= 0) & (self.have[np.arange(len(self.nodes))[:, None], self.chunk] >= 1 - 1e-6)
        for n, slot in np.argwhere(whole):
            chunk = int(self.chunk[n, slot])
            self.have[n, chunk] = 1.0
            self.chunk[n, slot] = -1
            node = self.nodes[n]
            node.has[chunk // SPAN] |= 1 << chunk % SPAN
            if not node.queue and (self.chunk[n] < 0).all():
                node.finished = self.clock.now

    def _find_slow(self) -> None:
        """A node that gets little, and has waited two seconds for the same oldest chunk, blames that one's
        parent where the bytes stop there: it has them and does not send, or could have them and does not."""
        low = self.received - self._told < POOR * self.link / self.dt
        self._told = self.received.copy()
        oldest = np.where(self.chunk >= 0, self.chunk, self.scenario.chunks).min(axis=1)
        stuck = low & (oldest == self._oldest) & (self._joins + 2.0 <= self.clock.now)
        self._oldest = oldest
        for n in np.flatnonzero(stuck & (oldest < self.scenario.chunks)):
            slot = int(np.flatnonzero(self.chunk[n] == oldest[n])[0])
            parent = int(self.parent[n, slot])
            if parent >= 0 and self._stops_at(parent, int(oldest[n]), self.have[n, oldest[n]]):
                self._leave_parent(np.array([[n, slot]]), "slow")

    def _stops_at(self, parent: int, chunk: int, below: float) -> bool:
        here = float(self.have[parent, chunk])
        if here - below > BACKLOG:
            return True
        slots = np.flatnonzero(self.chunk[parent] == chunk)
        if not len(slots):
            return here < 1.0
        above = int(self.parent[parent, slots[0]])
        return bool((self.have[above, chunk] if above >= 0 else 1.0) - here > BACKLOG)

    def _leave_parent(self, slots: np.ndarray, reason: Reason) -> None:
        """Report the parents of these transfers, ask anew, and go on at the byte from another."""
        for n, slot in slots:
            node, chunk = self.nodes[n], int(self.chunk[n, slot])
            name = self.nodes[self.parent[n, slot]].peer.name
            if node.left_out.get(name, 0.0) <= self.clock.now:
                self._count()
                span = SpanId("object", chunk // SPAN)
                self.tracker.failed(node.peer.name, span, chunk % SPAN, name, reason)
                node.left_out[name] = self.clock.now + LEFT_OUT
                for known in {int(one) // SPAN for one in self.chunk[n] if one >= 0}:
                    self._ask(node, known)
            self.parent[n, slot] = self._first(node, chunk)
