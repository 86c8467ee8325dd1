"""Whom to ask for a chunk, as the tracker has it: the `Guide` of agent/peers/guiding.py.

Routes are kept per span and asked for again when a parent failed or the tracker says so. A reader waits
`ASK_WITHIN` for them, then goes to the origin; the asking goes on for those who come later. An agent without
peers asks nobody. The tracker's state is soft: what this agent has and stands for is announced under a lease,
to a new tracker all of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence

from agent.clock import Clock, Timer
from agent.content import Extent, ObjectRef
from agent.errors import BadRequest
from agent.peers.courses import Course, Courses, group_of
from agent.peers.discovery import Discovery
from agent.peers.exchange_client import ExchangeClient
from agent.peers.liveness import Liveness
from agent.peers.member import Peer
from agent.peers.messages import Reason
from agent.peers.tasks import Tasks
from agent.peers.trackers import Trackers
from agent.peers.tracking import Tracking
from agent.peers.wire import MOST, Ask, Batch, Reply, peer_of, place_as, place_of, span_of

log = logging.getLogger(__name__)

ASK_WITHIN = 0.25  # seconds that a reader waits for its routes: gathering takes 0.03 of them
ASKS = 8  # times that a place is asked for in a row
TELL_WITHIN = 0.02  # seconds in which what trackers are told gathers
DONE_AFTER = 0.5  # and chunks that are here, where there is nothing else to tell: nobody waits for that
ANNOUNCE_EVERY = 2.0  # seconds; a third of the tracker's lease


class RelayGuide:
    """This agent as a member of relays. Made and used on one loop."""

    def __init__(
        self,
        own: Peer,
        discovery: Discovery,
        liveness: Liveness,
        client: ExchangeClient,
        tracking: Tracking,
        courses: Courses,
        clock: Clock,
    ) -> None:
        self._own = own
        self._discovery = discovery
        self._liveness = liveness
        self._trackers = Trackers(own, discovery, liveness, client, tracking, clock, self._ask_again)
        self._pace = self._trackers.pace
        self._courses = courses
        self._clock = clock
        self._tasks = Tasks()
        self._tell_at = float("inf")
        self._telling: Timer | None = None
        self._closing = False

    def start(self) -> None:
        """Begin to announce."""
        self._tasks.spawn(self._keep_announcing())

    async def close(self) -> None:
        """End all that goes on."""
        self._closing = True
        if self._telling is not None:
            self._telling.cancel()
        await self._tasks.close()
        await self._trackers.close()

    @property
    def called_again(self) -> Callable[[str, bytes], Awaitable[bytes]]:
        """What trackers call (agent/peers/wire.py, `AGAIN`)."""
        return self._trackers.called_again

    def takes_part(self, ref: ObjectRef) -> bool:
        """Whether this agent fetches an object as a member: then it fetches a chunk for its children too."""
        return self._courses.takes_part(ref.key)

    async def parents(self, ref: ObjectRef, extent: Extent) -> Sequence[Peer] | None:
        self._courses.use(ref)
        self._pace.active(group_of(ref), self._clock.monotonic())
        if self._closing or not self._discovery.peers():
            return ()
        course, chunk = self._courses.at(ref, extent)
        if course.stale:
            asking = self._begin_to_ask(course)
            if not self._usable(course, chunk):
                try:
                    async with self._clock.timeout(ASK_WITHIN):
                        await asyncio.wait([asking])
                except TimeoutError:
                    if not self._usable(course, chunk):
                        return None
        return self._usable(course, chunk)

    def _usable(self, course: Course, chunk: int) -> list[Peer]:
        names = course.routes[chunk] if chunk < len(course.routes) else ()
        return [peer_of(name) for name in names if name != self._own.name and self._liveness.usable(name)]

    def left(self, ref: ObjectRef, extent: Extent, peer: Peer | None) -> bool:
        self._pace.active(group_of(ref), self._clock.monotonic())
        course, chunk = self._courses.at(ref, extent)
        return course.left_by(self._own.name, chunk, peer.name if peer is not None else "")

    def relays(self, ref: ObjectRef, extent: Extent) -> bool:
        return self._courses.at(ref, extent)[0].place is not None

    def slow(self, ref: ObjectRef, extent: Extent) -> bool:
        return self._own.name in self._courses.at(ref, extent)[0].slow

    def rerouted(self, ref: ObjectRef, extent: Extent) -> asyncio.Future[None]:
        return self._courses.at(ref, extent)[0].next_answer()

    def receives(self, fastest: float, held_up_by: Sequence[str], short: bool) -> None:
        """So fast this agent has received at its best, and these children do not take theirs: to be told."""
        for group in self._pace.seen(fastest, held_up_by, short, self._clock.monotonic()):
            self._courses.outbox(group).speeds = True
            self._tell_soon()

    def brought(self, ref: ObjectRef, extent: Extent, peer: Peer | None) -> None:
        course, chunk = self._courses.at(ref, extent)
        course.has |= 1 << chunk
        done = self._courses.outbox(course.group).done
        done[course.span] = done.get(course.span, 0) | 1 << chunk
        self._tell_soon(DONE_AFTER)

    def failed(self, ref: ObjectRef, extent: Extent, peer: Peer, reason: Reason) -> None:
        course, chunk = self._courses.at(ref, extent)
        self._courses.outbox(course.group).failed.append((course.span, chunk, peer.name, reason))
        if reason != "absent":
            course.without.add(peer.name)
            course.stale = True
        self._tell_soon()

    def _begin_to_ask(self, course: Course) -> asyncio.Task[None]:
        if course.asking is None:
            course.asking = self._tasks.spawn(self._ask(course))
        return course.asking

    async def _ask(self, course: Course) -> None:
        try:
            for _ in range(ASKS):
                without = [name for name in sorted(course.without) if not self._liveness.usable(name)][:64]
                course.without = set(without)
                asks: list[Ask] = [(course.span, course.count, without)]
                tracker = self._trackers.of(course.group)
                if course.place is None:
                    reply = await self._trackers.say(tracker, Batch(zone=self._own.zone, asks=asks))
                else:
                    # One that is new has to know the order as it is before it gives anybody a place.
                    told = course.told == tracker.name
                    courses = [course] if told else self._by_tracker()[tracker]
                    reply = await self._announce(tracker, courses, asks)
                    if reply is not None and course.told != tracker.name:
                        continue  # it has the name of one that was told, and has been restarted since
                if reply is None:
                    continue  # it is left out now: another one is the tracker
                answer = reply.answers[0]
                if not answer.wait:
                    routes = tuple(tuple(route) for route in answer.routes)
                    course.learn(place_of(answer.place), routes, frozenset(answer.slow))
                    return
                await self._clock.sleep(answer.wait)
        except BadRequest as error:
            log.warning("the tracker's answer is of no use: %s", error)
        finally:
            course.asking = None

    def _ask_again(self, spans: Sequence[tuple[str, int]]) -> None:
        for span in spans:
            waited_for = self._courses.get(span_of(span))
            if waited_for is not None:
                self._begin_to_ask(waited_for)

    def _tell_soon(self, within: float = TELL_WITHIN) -> None:
        at = self._clock.monotonic() + within
        if at >= self._tell_at or self._closing:
            return
        if self._telling is not None:
            self._telling.cancel()
        self._tell_at, self._telling = at, self._clock.call_later(within, self._begin_to_tell)

    def _begin_to_tell(self) -> None:
        self._tell_at, self._telling = float("inf"), None
        self._tasks.spawn(self._tell())

    async def _tell(self) -> None:
        for group, outbox in self._courses.full_outboxes():
            taken = outbox.take()
            done: list[tuple[tuple[str, int], int]] = list(taken.done.items())
            failed: list[tuple[tuple[str, int], int, str, Reason]] = list(taken.failed)
            released: list[tuple[str, int]] = list(taken.released)
            batch = Batch(zone=self._own.zone, done=done, failed=failed, released=released)
            tracker = self._trackers.of(group)
            if await self._trackers.say(tracker, batch) is None:
                self._forget_told(tracker.name)
                outbox.put_back(taken)  # for the next one, who may have all that came before
        if self._courses.full_outboxes():
            self._tell_soon()

    def _forget_told(self, tracker: str) -> None:
        for course in self._courses:
            if course.told == tracker:
                course.told = ""

    async def _keep_announcing(self) -> None:
        while True:
            self._trackers.gone.clear()
            by_tracker = self._by_tracker() if self._discovery.peers() else {}
            # All at once: a silent one must not make the lease at the others run out.
            await asyncio.gather(*(self._announce(*one) for one in by_tracker.items()))
            if self._courses.trim():
                self._tell_soon()
            with contextlib.suppress(TimeoutError):
                async with self._clock.timeout(ANNOUNCE_EVERY):
                    await self._trackers.gone.wait()

    def _by_tracker(self) -> dict[Peer, list[Course]]:
        by_group: defaultdict[str, list[Course]] = defaultdict(list)
        for course in self._courses:
            by_group[course.group].append(course)
        found: defaultdict[Peer, list[Course]] = defaultdict(list)
        for group, courses in by_group.items():  # who is the tracker costs a look at each peer
            found[self._trackers.of(group)] += courses
        return found

    async def _announce(self, tracker: Peer, courses: list[Course], asks: Sequence[Ask] = ()) -> Reply | None:
        new = [course for course in courses if course.told != tracker.name]
        batch = Batch(
            zone=self._own.zone,
            announce=[(course.span, course.has, place_as(course.place)) for course in new[:MOST]],
            asks=list(asks),
        )
        reply = await self._trackers.say(tracker, batch)
        if reply is None or reply.renewal is None:
            return reply
        if reply.renewal.unknown:
            self._forget_told(tracker.name)
        for course in new[:MOST]:
            course.told = tracker.name
        self._ask_again(reply.renewal.again)
        return reply
