"""What this agent knows of its spans, and what it has to tell their trackers. Pure state."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field

from agent.content import Extent, ObjectRef, chunk_count
from agent.peers.messages import Reason, SpanId
from agent.peers.relay import SPAN, Place
from agent.peers.units import UNIT, digests_name

MOST_UNITS = 1 << 18  # digests that are kept: of 64 GiB, in about 40 MB
UNITS_AT_ONCE = 8192  # digests in one batch: about 400 KB of JSON


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
    answered: asyncio.Event = field(default_factory=asyncio.Event)  # with other ones: set at the next answer

    def learn(self, place: Place | None, routes: tuple[tuple[str, ...], ...], slow: frozenset[str]) -> None:
        """Go by these routes from now on, and let those look who are on their way."""
        self.place, self.routes, self.slow, self.stale = place, routes, slow, False
        self.answered.set()
        self.answered = asyncio.Event()

    def left_by(self, own: str, chunk: int, parent: str) -> bool:
        """Whether a stream from a parent is to be left: it is slow, or this agent is and belongs elsewhere.

        `own` is this agent's name, `parent` "" for the origin."""
        route = self.routes[chunk] if chunk < len(self.routes) else ()
        return parent in self.slow or (own in self.slow and bool(route) and parent not in route)


@dataclass(slots=True)
class Book:
    """The digests of one object's units, and who waits for more."""

    group: str
    units: dict[int, bytes] = field(default_factory=dict)
    upto: int = 0
    tracker: str = ""  # whose `upto` that is
    waiting: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    wanted: float = 0.0  # monotonic, when more of them were last wanted
    learning: asyncio.Task[None] | None = None

    def knows(self, extent: Extent) -> bool:
        """Whether the digests of all units of an extent are known."""
        return all(unit in self.units for unit in range(extent.offset // UNIT, -(-extent.end // UNIT)))

    def learn(self, units: dict[int, bytes]) -> None:
        """Know more digests, and wake who waits."""
        if units:
            self.units |= units
            self.changed.set()
            self.changed = asyncio.Event()


@dataclass(slots=True)
class Outbox:
    """What waits to be told to the tracker of one group."""

    done: dict[SpanId, int] = field(default_factory=dict)
    failed: list[tuple[SpanId, int, str, Reason]] = field(default_factory=list)
    released: list[SpanId] = field(default_factory=list)
    made: dict[tuple[str, int], bytes] = field(default_factory=dict)
    speeds: bool = False  # every batch tells how fast this agent receives; this one is for that

    def __bool__(self) -> bool:
        return bool(self.done or self.failed or self.made or self.released or self.speeds)

    def take(self) -> Outbox:
        """What goes in one batch; the rest stays."""
        made = {unit: self.made.pop(unit) for unit in list(self.made)[:UNITS_AT_ONCE]}
        taken = Outbox(self.done, self.failed[:1024], self.released[:4096], made)
        self.done, self.failed, self.released = {}, self.failed[1024:], self.released[4096:]
        self.speeds = False
        return taken

    def put_back(self, taken: Outbox) -> None:
        """It has not been told."""
        for span, bits in taken.done.items():
            self.done[span] = self.done.get(span, 0) | bits
        self.failed, self.released = taken.failed + self.failed, taken.released + self.released
        self.made = taken.made | self.made

    def digests(self) -> list[tuple[str, list[tuple[int, str]]]]:
        """`made` as the wire has it."""
        books: dict[str, list[tuple[int, str]]] = {}
        for (key, unit), digest in self.made.items():
            books.setdefault(digests_name(key), []).append((unit, digest.hex()))
        return list(books.items())


class Courses:
    """All spans and digests of one agent."""

    def __init__(self, chunk_size: int) -> None:
        self._chunk_size = chunk_size
        self._courses: dict[SpanId, Course] = {}
        self._books: dict[str, Book] = {}
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
        return course, chunk % SPAN

    def takes_part(self, key: str) -> bool:
        """Whether this agent takes part in the relay of an object."""
        return key in self._books

    def book(self, ref: ObjectRef) -> Book:
        """The digests of an object."""
        book = self._books.pop(ref.key, None) or Book(group_of(ref))
        self._books[ref.key] = book  # the last one used
        return book

    def known(self, key: str, unit: int) -> bytes | None:
        """A digest that is known; called from any thread. It may miss one whose book is just moved."""
        book = self.known_book(key)
        return book.units.get(unit) if book is not None else None

    def known_book(self, key: str) -> Book | None:
        """The digests of an object in whose relay this agent takes part."""
        return self._books.get(key)

    def trim(self) -> bool:
        """Forget what was not asked for longest, where there are too many digests; whether any was."""
        count, forgotten = sum(len(book.units) for book in self._books.values()), set()
        for key, book in list(self._books.items())[:-1]:
            if count <= MOST_UNITS:
                break
            if not book.waiting:
                count -= len(book.units)
                forgotten.add(key)
                del self._books[key]
        for course in self:
            if course.span.key in forgotten and course.asking is None:
                del self._courses[course.span]
                self.outbox(course.group).released.append(course.span)
        return bool(forgotten)

    def books(self) -> list[tuple[str, Book]]:
        """All digests, by the objects' keys."""
        return list(self._books.items())

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
