"""Whose bytes go next, of the streams to one peer: those that come first in the object.

A peer asks for several chunks at once, the first ones the most. With equal shares they would all come late,
and each hop of a chain would add the time of a unit at the speed of one stream among many: with eight of them
over a link of 200 Mbit/s a twelfth of a second, where the link carries a unit in a hundredth. So one stream
has the turn and sends as much as it has. All agents have the same order, so that a chunk passes down a chain
at full speed. What a reader of the peer waits for goes first. No stream is silent for long, since whoever
waits for bytes takes a silent peer for a dead one.

Some others send beside it, what their sockets take: one connection does not fill the link. It begins slowly
where it has been idle, and after a loss its window is half and grows by a packet for each answer, which takes
40 ms past two full queues; a chunk is over before that has come to an end. Where not the link but the
receiver is the limit one beside is enough: more of its threads would wait for each other.
"""

from __future__ import annotations

import select
import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from agent.cache.objects import CachedObject
from agent.content import Extent
from agent.peers.units import UNIT
from agent.transfer.landing import Landing

# Seconds after which a stream has its turn although one of a lower rank has bytes: well below the 16 in which
# whoever waits gives a stream up. With 1, all turns went to late ones where eight chunks waited.
SILENT = 6.0
BESIDE = 4  # streams that send beside the one whose turn it is
# And where the receiver is the limit. On loopback: 1.54 GB/s and 0.70 CPU-seconds a GB of the receiver; with
# four 1.36 and 0.79.
BESIDE_FOR_BUSY = 1
BUSY = 0.6  # share of its window that is on its way; 0.8 and more there, on a link nearly always below 0.3
TCP_INFO = 232  # bytes of tcp_info (linux/tcp.h) up to the end of tcpi_snd_wnd
SEGMENT = 16  # where tcpi_snd_mss is in it; tcpi_unacked comes next but one


def landing_of(cached: CachedObject, chunk: int) -> Landing | None:
    """Where a chunk arrives in the object's file; one that is only passed through is no business of peers."""
    landing = cached.landings.get(chunk)
    return landing if type(landing) is Landing else None


def available(cached: CachedObject, offset: int, end: int) -> int:
    """Where the bytes that peers may have end, from `offset` on, at most `end`; `offset` for none."""
    while offset < end:
        chunk = offset // cached.chunk_size
        chunk_end = min(end, (chunk + 1) * cached.chunk_size)
        if not cached.present[chunk]:
            landing = landing_of(cached, chunk)
            arrived = landing.proven if landing is not None else offset
            if arrived < chunk_end:
                return max(offset, arrived)
        offset = chunk_end
    return offset


@dataclass(eq=False, slots=True)
class Stream:
    """One extent of whole units on its way. `ended` is called once, by any thread, with what went wrong.

    `connection` is the stream's own descriptor of the socket, closed at its end; `gone` says whether the
    socket is given up by who serves it.
    """

    cached: CachedObject
    extent: Extent
    urgent: bool  # a reader of the peer waits
    connection: socket.socket
    gone: Callable[[], bool]
    ended: Callable[[BaseException | None], None]
    position: int = field(init=False)
    digest: bytes = b""  # what has not gone of the digest of the unit that ends at `position`
    ready: bool = True  # whether there may be bytes to send; else `arrival` waits in `landing`
    full: bool = False  # its socket took no more when it was last sent beside another
    blocked: bool = False  # the peer takes nothing of it, and the others have their turns
    due: float | None = None  # monotonic, of the slice that is being sent
    since: float = 0.0  # monotonic, of its last turn, or of the bytes that came since
    landing: Landing | None = None
    arrival: Arrival | None = None
    given_up: bool = False
    writable: select.poll = field(default_factory=select.poll)

    def __post_init__(self) -> None:
        self.position = self.extent.offset
        self.writable.register(self.connection, select.POLLOUT)

    @property
    def over(self) -> bool:
        """Whether everything has gone."""
        return self.position == self.extent.end and not self.digest

    @property
    def sent(self) -> int:
        """Bytes of the extent that have gone, with their digests where their unit is whole."""
        end = (self.position - 1) // UNIT * UNIT if self.digest else self.position
        return end - self.extent.offset

    def __lt__(self, other: Stream) -> bool:
        return (not self.urgent, self.extent.offset) < (not other.urgent, other.extent.offset)


@dataclass(eq=False, slots=True)
class Arrival:
    """A waiter (agent/transfer/landing.py) that makes a stream ready, again and again."""

    ready: Callable[[memoryview, int], None]
    needs: int = 0


def chosen(streams: Sequence[Stream], now: float) -> Stream | None:
    """Whose turn it is of the streams to one peer, which come in their order."""
    first = late = blocked = None
    for stream in streams:
        if not stream.ready:
            continue
        if stream.blocked:
            blocked = _longest_ago(stream, blocked)
        elif first is None:
            first = stream
        elif now - stream.since >= SILENT:
            late = _longest_ago(stream, late)
    return late or first or blocked


def _longest_ago(stream: Stream, other: Stream | None) -> Stream:
    return stream if other is None or stream.since < other.since else other


def beside(streams: Sequence[Stream], first: Stream, busy: bool) -> list[Stream]:
    """Which streams may use what the one whose turn it is leaves: those that come next.

    `busy`: the receiver is the limit."""
    others = [one for one in streams if one is not first and one.ready and not one.blocked]
    return others[: BESIDE_FOR_BUSY if busy else BESIDE]


def receiver_is_busy(connection: socket.socket) -> bool:
    """Whether the receiver and not the link is the limit where bytes wait: its window is nearly full."""
    try:
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO)
    except OSError:  # not TCP
        return False
    if len(info) < TCP_INFO:  # before Linux 5.4
        return False
    size, _, segments = struct.unpack_from("=III", info, SEGMENT)
    (window,) = struct.unpack_from("=I", info, TCP_INFO - 4)
    return bool(size * segments > BUSY * window)
