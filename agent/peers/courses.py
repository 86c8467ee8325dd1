"""What this agent knows of its spans, and what it has to tell their trackers. Pure state."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

from agent.content import Extent, ObjectRef, chunk_count
from agent.peers.messages import Reason, SpanId
from agent.peers.relay import SPAN, Place
from agent.peers.wire import MOST

MOST_COURSES = 1 << 10  # spans that this agent takes part in or has something of, some with 30 KB of routes


@dataclass(eq=False, slots=True)
class Course:
    """One span: how to come by it, and what of it is here."""

    span: SpanId
    group: str
    count: int  # chunks of the span
    has: int = 0
    place: Place | None = None
    routes: tuple[tuple[str, ...], ...] = ()
    stale: bool = True  # to be asked for: never were, or a parent has failed since
    told: str = ""  # the tracker that knows of this standing
    without: set[str] = field(default_factory=set)
    asking: asyncio.Task[None] | None = None
    slow: frozenset[str] = frozenset()  # whom the tracker gives no children
    _next: asyncio.Future[None] | None = field(default=None, init=False)

    def learn(self, place: Place | None, routes: tuple[tuple[str, ...], ...], slow: frozenset[str]) -> None:
        """Go by these routes from now on, and let those look who are on their way."""
        self.place, self.routes, self.slow, self.stale = place, routes, slow, False
        if self._next is not None:
            self._next.set_result(None)
            self._next = None

    def next_answer(self) -> asyncio.Future[None]:
        """What is done when other routes have come. All who wait share it, so nobody cancels it."""
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
        return self._next

    def left_by(self, own: str, chunk: int, parent: str) -> bool:
        """Whether a stream from a parent is to be left: it is slow, or this agent is and belongs elsewhere.

        `own` is this agent's name, `parent` "" for the origin."""
        route = self.routes[chunk] if chunk < len(self.routes) else ()
        return parent in self.slow or (own in self.slow and bool(route) and parent not in route)


@dataclass(slots=True)
class Outbox:
    """What waits to be told to the tracker of one group."""

    done: dict[SpanId, int] = field(default_factory=dict)
    failed: list[tuple[SpanId, int, str, Reason]] = field(default_factory=list)
    released: list[SpanId] = field(default_factory=list)
    speeds: bool = False  # every batch tells how fast this agent receives; this one is for that

    def __bool__(self) -> bool:
        return bool(self.done or self.failed or self.released or self.speeds)

    def take(self) -> Outbox:
        """What goes in one batch; the rest stays."""
        taken = Outbox(dict(islice(self.done.items(), MOST)), self.failed[:1024], self.released[:MOST])
        self.done = dict(islice(self.done.items(), MOST, None))
        self.failed, self.released = self.failed[1024:], self.released[MOST:]
        self.speeds = False
        return taken

    def put_back(self, taken: Outbox) -> None:
        """It has not been told."""
        for span, bits in taken.done.items():
            self.done[span] = self.done.get(span, 0) | bits
        self.failed, self.released = taken.failed + self.failed, taken.released + self.released


class Courses:
    """All spans of one agent."""

    def __init__(self, chunk_size: int) -> None:
        self._chunk_size = chunk_size
        self._courses: dict[SpanId, Course] = {}
        self._used: dict[str, None] = {}  # keys of all objects, the one that was used last at the end
        self._members: set[str] = set()  # those in whose relays this agent takes part
        self._busy: set[str] = set()  # those of them that were used since the last trim
        self._outboxes: dict[str, Outbox] = {}

    def __iter__(self) -> Iterator[Course]:
        return iter(list(self._courses.values()))

    def get(self, span: SpanId) -> Course | None:
        """The course of a span, where this agent takes part in it."""
        return self._courses.get(span)

    def at(self, ref: ObjectRef, extent: Extent) -> tuple[Course, int]:
        """The course for a chunk's bytes, made where there is none, and the chunk's number in the span."""
        chunk = (extent.end - 1) // self._chunk_size
        span = SpanId.of(ref.key, chunk)
        course = self._courses.get(span)
        if course is None:
            count = min(SPAN, chunk_count(ref.size, self._chunk_size) - span.number * SPAN)
            course = self._courses[span] = Course(span, group_of(ref), count)
        self._touch(ref.key)
        return course, chunk % SPAN

    def use(self, ref: ObjectRef) -> None:
        """Take part in the relay of an object."""
        self._members.add(ref.key)
        self._touch(ref.key)

    def _touch(self, key: str) -> None:
        self._used.pop(key, None)
        self._used[key] = None
        if key in self._members:
            self._busy.add(key)

    def takes_part(self, key: str) -> bool:
        """Whether this agent takes part in the relay of an object."""
        return key in self._members

    def trim(self) -> bool:
        """Forget the objects that were not used longest, where there are too many spans.

        Those in use, whose relays this agent has been in since the last time, go after all others. Whether
        any was."""
        busy, self._busy = self._busy, set()
        too_many, forgotten = len(self._courses) - MOST_COURSES, False
        if too_many <= 0:
            return False
        by_key: defaultdict[str, list[Course]] = defaultdict(list)
        for course in self:
            by_key[course.span.key].append(course)
        for key in sorted(list(self._used)[:-1], key=busy.__contains__):
            if too_many <= 0:
                break
            if any(course.asking is not None for course in by_key[key]):
                continue
            del self._used[key]
            self._members.discard(key)
            for course in by_key[key]:
                del self._courses[course.span]
                self.outbox(course.group).released.append(course.span)
            too_many -= len(by_key[key])
            forgotten = True
        return forgotten

    def outbox(self, group: str) -> Outbox:
        """What waits for the tracker of a group."""
        return self._outboxes.setdefault(group, Outbox())

    def full_outboxes(self) -> list[tuple[str, Outbox]]:
        """The groups for which something waits."""
        return [(group, outbox) for group, outbox in self._outboxes.items() if outbox]


def group_of(ref: ObjectRef) -> str:
    """What has one tracker: the objects of one directory at the origin (agent/README.md, "Trackers").

    Like a dataset's revision it is one for all that is read together; unlike it, an object that two
    revisions or two datasets share has one tracker, and leaves the origin once for both.
    """
    return ref.uri.rpartition("/")[0]
