"""The seam between the store and whatever has the bytes: an origin today, peers later.

A source brings the bytes of one chunk, in order, into a `Sink`. It does not retry, does not decide and
does not know who waits: the fill does that, and the sink says how urgent it is. It checks what only it can
see: that every answer is of the version and the range that were asked for.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Protocol

from agent.content import Dataset, ObjectRef


class Urgency(enum.IntEnum):
    """Who wants a chunk; the smaller goes first (DESIGN.md rule 6)."""

    READER = 0
    PEER = 1  # another agent, for a reader of its own
    PREFETCH = 2
    PRELOAD = 3

    @property
    def awaited(self) -> bool:
        """Whether a reader waits, of this agent or of another."""
        return self <= Urgency.PEER


class Progress(Protocol):
    """How far the bytes of one chunk have come."""

    @property
    def position(self) -> int:
        """Offset in the object of the next byte; a retry goes on from here."""

    @property
    def end(self) -> int:
        """Offset in the object behind the chunk's last byte."""


class Sink(Progress, Protocol):
    """Where the bytes of one chunk go, in order; called from any one thread at a time."""

    @property
    def urgency(self) -> Urgency:
        """Who wants the chunk, by now: it may become more urgent while it is fetched."""

    @property
    def unproven(self) -> bool:
        """Whether it has, or is about to have, bytes that only the end of a fetch proves."""

    def doubt(self) -> None:
        """What comes from now on is unproven: no peer gets it before the chunk is recorded."""

    def write(self, data: memoryview) -> None:
        """Take the next bytes, all of them. Raises StoreError; ValueError where they go past `end`."""


@dataclass(frozen=True, slots=True)
class Checksum:
    """What an origin states of all bytes of an object; the algorithms are in agent/cache/whole.py."""

    algorithm: str
    value: bytes


@dataclass(frozen=True, slots=True)
class Budget:
    """What may be under way at once towards one source, and how long one request may take.

    `name` says which origin it is (for lanes and metrics); `bytes_in_flight` counts whole chunks;
    `deadline` is seconds, retries included. `proven_late` says that a fetch compares the version once more
    behind the last byte, and nothing before that proves the bytes.
    """

    name: str
    connections: int
    bytes_in_flight: int
    deadline: float
    proven_late: bool = False


class ChunkSource(Protocol):
    """Something that can bring chunks of objects."""

    def budget(self, ref: ObjectRef) -> Budget:
        """The budget that fetches of this object draw on."""

    async def fetch(self, ref: ObjectRef, sink: Sink) -> None:
        """Write `[sink.position, sink.end)` of the object into the sink.

        When it returns, raises or is cancelled, no thread of it touches the sink any more.
        Raises OriginError; VersionChanged where the origin no longer has `ref.version`.
        """


class Origin(ChunkSource, Protocol):
    """A place that datasets come from."""

    async def resolve(self, uri: str) -> Dataset:
        """List the tree (or the one object) at `uri` as it is now. Raises OriginError."""

    async def checksum(self, ref: ObjectRef) -> Checksum | None:
        """What the origin states of the whole object at this version; None where it states nothing that can
        be checked. Raises OriginError."""

    async def close(self) -> None:
        """Give back connections and threads."""
