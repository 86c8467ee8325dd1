"""What the receiving engine is asked for: one conditional GET of a range. Values only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

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
class RangedGet:
    """One GET of `extent` out of an object of `size` bytes, ready to be sent.

    `target` is the request target (percent-encoded path and query). `headers` hold everything but
    Connection (Host, Range, If-Match, Authorization ... as signed). `check` gets the
    response's headers (lower-case names) and raises VersionChanged where they are of another version.
    `as_stored` says that the version proves the very bytes: a Content-Encoding is then how they were stored,
    and not made for the answer. `name` is for messages: no secret in it. `stall_timeout` is how many seconds
    the origin may stay silent. `piece` is how many bytes are written into the sink at once, at most.
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
    piece: int = PIECE


class Redirected(OriginError):
    """The origin answered with a redirect: ask again at `location`."""

    def __init__(self, location: str) -> None:
        super().__init__("the origin redirects")
        self.location = location
