"""How the paths to a chunk do: whether a peer is silent or too slow, and whether the origin would be quicker.

A peer has several streams, and sends them in its order: so what any of them brings speaks for all. A peer
that is silent or slow by the clock has failed. One that only is slower than the origin would be has not: a
reader leaves that path for the origin, as both were measured here, and keeps off that peer for a while. What
nobody waits for stays, since every byte that leaves the origin once more is paid by all. Used on the loop.
"""

from __future__ import annotations

from collections import Counter

from agent.clock import Clock
from agent.errors import HeadraceError
from agent.peers.exchange_client import PeerSilent
from agent.source import Progress, Urgency

SILENT_WITHIN = 3.0  # seconds in which a peer sends something, on any stream: it may wait for its own parent
LOOK_EVERY = 1.0  # seconds between two looks at a stream
LOOK_FOR_READER = 0.5
JUDGED_AFTER = 1.0  # seconds on a path until it is compared with the origin
# And while this agent itself fetches from that origin: its link is shared by its own doing then. In some runs
# a reader left its path for that, and brought 2 % of the file from the origin once more.
JUDGED_BUSY = 4.0
WORTH = 2.0  # times that the origin has to be quicker
KEPT_OFF = 10.0  # seconds that readers do not ask a peer whose path they have left
NEWEST = 0.25  # share of the newest fetch in what is known of an origin


class PathSlower(HeadraceError):
    """The origin would be quicker than the peer: nobody's fault."""


def leaves(seconds: float, idle: float, rate: float, left: int, anew: int, origin: float | None) -> bool:
    """Whether a reader that is on a path for so many seconds goes to the origin.

    `idle`: seconds since this agent has fetched from that origin itself. `rate` is the path's, `origin` the
    origin's where it is known (bytes a second); `left` bytes are missing from the path, `anew` would be asked
    of the origin.
    """
    if origin is None or (min(seconds, idle) < JUDGED_AFTER and seconds < JUDGED_BUSY):
        return False
    return left * origin > WORTH * anew * rate


class Speed:
    """Bytes a second over fetches, the newer ones counting more, each by its size."""

    def __init__(self) -> None:
        self._bytes = 0.0
        self._seconds = 0.0

    def took(self, count: int, seconds: float) -> None:
        """A fetch brought so many bytes in so many seconds, its waiting included."""
        self._bytes += NEWEST * (count - self._bytes)
        self._seconds += NEWEST * (seconds - self._seconds)

    @property
    def rate(self) -> float | None:
        """None where nothing is known."""
        return self._bytes / self._seconds if self._bytes and self._seconds else None


class Paths:
    """What this agent has seen of its peers' streams and of the origins."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.origins: dict[str, Speed] = {}
        self._fetching: Counter[str] = Counter()  # by origin
        self._fetched: dict[str, float] = {}  # and when the last fetch has ended
        self.sent: dict[str, float] = {}  # peer -> when bytes of it were last seen to have come
        self.brought: dict[str, float] = {}  # and when a unit
        self._left: dict[str, float] = {}  # and until when readers keep off

    def now(self) -> float:
        """Seconds, as the clock has them."""
        return self._clock.monotonic()

    def left(self, peer: str) -> None:
        """A reader has gone to the origin."""
        self._left[peer] = self.now() + KEPT_OFF

    def worth_asking(self, peer: str, urgency: Urgency) -> bool:
        """Whether a fetch tries this peer, as far as its speed goes."""
        return urgency is not Urgency.READER or self._left.get(peer, 0.0) <= self.now()

    def keep_only(self, names: frozenset[str]) -> None:
        """Forget whoever is no member any more."""
        for known in (self.sent, self.brought, self._left):
            for name in known.keys() - names:
                del known[name]

    def fetch_began(self, origin: str) -> None:
        """A fetch from an origin begins; `fetch_ended` has to follow."""
        self._fetching[origin] += 1

    def fetch_ended(self, origin: str, count: int, seconds: float) -> None:
        """It has brought so many bytes, well or not."""
        self._fetching[origin] -= 1
        self._fetched[origin] = self.now()
        self.origins.setdefault(origin, Speed()).took(count, seconds)

    def idle(self, origin: str) -> float:
        """Seconds since this agent has fetched from an origin."""
        if self._fetching[origin]:
            return 0.0
        return self.now() - self._fetched.get(origin, float("-inf"))


class Path:
    """One stream from a peer: its bytes come in at `raw`, and go on into `sink` once they are right."""

    def __init__(
        self, paths: Paths, peer: str, origin: str, raw: Progress, sink: Progress, urgency: Urgency
    ) -> None:
        """`urgency` is who asked for the chunk first; `origin` where it comes from at last."""
        self._paths = paths
        self._for_reader = urgency is Urgency.READER
        self._peer = peer
        self._origin = origin
        self._raw = raw
        self._sink = sink
        self._began = self._at = paths.now()
        self._first = self._raw_at = raw.position
        self._sink_at = sink.position
        self._rate = 0.0

    @property
    def look_every(self) -> float:
        """Seconds between two looks."""
        return LOOK_FOR_READER if self._for_reader else LOOK_EVERY

    def look(self) -> None:
        """See what has come since the last look."""
        now, raw, right = self._paths.now(), self._raw.position, self._sink.position
        if raw > self._raw_at:
            self._paths.sent[self._peer] = now
        if right > self._sink_at:
            self._paths.brought[self._peer] = now
        if now > self._at:  # what begins late and then is quick is not slow
            so_far = (raw - self._first) / (now - self._began)
            self._rate = max(so_far, (raw - self._raw_at) / (now - self._at))
        self._at, self._raw_at, self._sink_at = now, raw, right

    def judge(self, within: float, grace: float = 1.0) -> None:
        """Raises TimeoutError for no unit within so many seconds, PeerSilent for nothing, PathSlower.

        `grace` makes the time longer that a peer has for the first two."""
        now, name = self._at, self._peer
        if self._for_reader:
            speed = self._paths.origins.get(self._origin, Speed()).rate
            left, anew = self._raw.end - self._raw_at, self._sink.end - self._sink_at
            idle = self._paths.idle(self._origin)
            if leaves(now - self._began, idle, self._rate, left, anew, speed):
                raise PathSlower(f"{name} sends {self._rate:.0f} bytes a second, the origin {speed:.0f}")
        if now - max(self._began, self._paths.brought.get(name, 0.0)) >= grace * within:
            raise TimeoutError(f"no unit within {within:g} s")
        if now - max(self._began, self._paths.sent.get(name, 0.0)) >= grace * SILENT_WITHIN:
            raise PeerSilent(f"{name} has sent nothing for {SILENT_WITHIN:g} s")
