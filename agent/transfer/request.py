"""What the receiving engine is asked for: one conditional GET of a range. Values only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from agent.content import Extent
from agent.errors import OriginError

# Bytes that are received, hashed, written and handed on at once: half of a usual cache of the second level,
# so that they are in it still. Measured on 2 cores, cold reads over the raw download: 0.74 and 0.72; with
# twice as much 0.72 and 0.70.
PIECE = 512 * 1024


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a connection goes: scheme 'http' or 'https', host as in the URL (no brackets), port."""

    scheme: str
    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Units:
    """A body in units of `size` bytes, the last may be shorter, each with a trailer of `trailer` bytes."""

    size: int
    trailer: int

    def body(self, length: int) -> int:
        """How long a body is that has so many bytes of an object."""
        return length + -(-length // self.size) * self.trailer


class UnitSink(Protocol):
    """Who takes such a body."""

    def take(self, data: memoryview, trailers: memoryview) -> None:
        """The next units, whole and side by side, and their trailers; both are valid until this returns."""


@dataclass(frozen=True, slots=True)
class RangedGet:
    """One GET of `extent` out of an object of `size` bytes, ready to be sent.

    `target` is the request target (percent-encoded path and query). `headers` hold everything but
    Connection (Host, Range, If-Match, Authorization ... as signed). `check` gets the
    response's headers (lower-case names) and raises VersionChanged where they are of another version.
    `as_stored` says that the version proves the very bytes: a Content-Encoding is then how they were stored,
    and not made for the answer. `name` is for messages: no secret in it. `stall_timeout` is how many seconds
    the origin may stay silent. `units` says that the answer has more than the extent's bytes.
    """

    endpoint: Endpoint
    target: str
    headers: Mapping[str, str]
    extent: Extent
    size: int
    check: Callable[[Mapping[str, str]], None]
    name: str
    as_stored: bool = False
    verify_tls: bool = True
    stall_timeout: float = 10.0
    units: Units | None = None

    @property
    def length(self) -> int:
        """Bytes of the answer's body."""
        return self.extent.length if self.units is None else self.units.body(self.extent.length)


class Redirected(OriginError):
    """The origin answered with a redirect: ask again at `location`."""

    def __init__(self, location: str) -> None:
        super().__init__("the origin redirects")
        self.location = location
