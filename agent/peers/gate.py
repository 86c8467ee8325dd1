"""The exchange's door: accepts connections, and shuts out those that cost without bringing anything.

aiohttp parses and serves; what it does not do is done here. The number of connections is bounded, that of
strangers (who have not shown a good token yet) more tightly, so that no flood of them keeps members out, and
neither takes the descriptors that mounts, store and origins need. A member is a stranger too until its first
request: so those who come from where peers are have room of their own. Only a flood from there keeps a new
connection of a member out; those that members have it leaves alone. A connection that is in no request for
too long is closed, be it idle or sending a head byte by byte.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import resource
import socket
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address

from aiohttp import web

from agent.clock import Clock, Timer

log = logging.getLogger(__name__)

CONNECTIONS = 4096  # a tracker of 3,000 agents has one or two of each
# Connections that have not shown a good token; a member shows one in its first request. So many from where
# peers are, and so many from elsewhere.
STRANGERS = 512
HEAD_WITHIN = 10.0  # seconds from the connection to the end of the first request's head
IDLE_WITHIN = 30.0  # seconds between two requests; agents keep idle connections for 20
SWEEP_EVERY = 2.0  # seconds
LOOK_EVERY = 0.05  # seconds between two searches for room
BACKLOG = 1024
FULL = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
# Bytes that the kernel takes before it can send them: what it has is sent before what is wanted more.
UNSENT = 512 << 10
TCP_NOTSENT_LOWAT = 25  # linux/tcp.h
# On loopback there is no link to be spared. Where the machine's default is BBR, which paces, a timer for each
# 64 KiB costs half of what sending costs: 0.2 CPU-seconds a GB. This one every process may choose.
UNPACED = b"reno"
SHARE = 2  # of the process's descriptors: peers have at most one in so many
STRANGERS_SHARE = 8
OUT_OF_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


@dataclass(slots=True)
class _Visit:
    """One connection."""

    transport: asyncio.Transport
    since: float  # monotonic, of its connection or of the end of its last request
    known: bool  # whether it comes from where a peer is
    member: bool = False
    requests: int = 0  # under way


def bounds(descriptors: int) -> tuple[int, int]:
    """How many connections there may be with so many descriptors, and how many of each kind of strangers."""
    if descriptors == resource.RLIM_INFINITY:
        return CONNECTIONS, STRANGERS
    return min(CONNECTIONS, descriptors // SHARE), min(STRANGERS, descriptors // STRANGERS_SHARE)


class Gate:
    """Accepts on one listening socket. Used on the loop."""

    def __init__(self, clock: Clock, known: Callable[[str], bool] = lambda _: False) -> None:
        """`known` says of an address whether a peer is there."""
        self._clock = clock
        self._known = known
        self._visits: dict[asyncio.BaseTransport, _Visit] = {}
        self._strangers: Counter[bool] = Counter()  # from where peers are, and from elsewhere
        self._bounds = CONNECTIONS, STRANGERS
        self._looked = 0.0
        self._accepting: asyncio.Task[None] | None = None
        self._sweep: Timer | None = None

    def start(self, listener: socket.socket, server: web.Server) -> None:
        """Serve what connects to `listener`, which becomes this gate's."""
        listener.setblocking(False)
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._bounds = bounds(descriptors)
        if self._bounds != (CONNECTIONS, STRANGERS):
            log.warning("%d open files are allowed: peers get %d connections", descriptors, self._bounds[0])
        self._accepting = asyncio.create_task(self._accept(listener, server))
        self._sweep = self._clock.call_later(SWEEP_EVERY, self._close_idle)

    async def close(self) -> None:
        """Accept no more; connections are the runner's to end."""
        if self._sweep is not None:
            self._sweep.cancel()
        if self._accepting is not None:
            self._accepting.cancel()
            await asyncio.wait([self._accepting])

    def begin(self, transport: asyncio.BaseTransport | None) -> None:
        """A request of a member begins on this connection."""
        visit = self._visits.get(transport) if transport is not None else None
        if visit is not None:
            self._strangers[visit.known] -= not visit.member
            visit.member = True
            visit.requests += 1

    def end(self, transport: asyncio.BaseTransport | None) -> None:
        """That request has been answered."""
        visit = self._visits.get(transport) if transport is not None else None
        if visit is not None:
            visit.requests -= 1
            visit.since = self._clock.monotonic()

    async def _accept(self, listener: socket.socket, server: web.Server) -> None:
        loop = asyncio.get_running_loop()
        with listener:
            while True:
                try:
                    connection, address = await loop.sock_accept(listener)
                except OSError as error:  # most likely it was gone before it was accepted, accept(2)
                    if error.errno in OUT_OF_RESOURCES:
                        log.warning("cannot take a peer's connection: %s", error.strerror)
                        await self._clock.sleep(SWEEP_EVERY)
                    continue
                await self._admit(connection, address[0], server)

    async def _admit(self, connection: socket.socket, host: str, server: web.Server) -> None:
        known = self._known(host)
        if self._full(known):
            self._forget_closed()
        if self._full(known):
            with connection, contextlib.suppress(OSError):
                connection.setblocking(False)
                connection.send(FULL)
            return
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT, UNSENT)
            if ip_address(host).is_loopback:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, UNPACED)
        transport, _ = await loop.connect_accepted_socket(server, connection)
        assert isinstance(transport, asyncio.Transport)
        self._visits[transport] = _Visit(transport, self._clock.monotonic(), known)
        self._strangers[known] += 1

    def _full(self, known: bool) -> bool:
        connections, strangers = self._bounds
        return len(self._visits) >= connections or self._strangers[known] >= strangers

    def _forget_closed(self) -> None:
        """Make room of connections that have ended; not for each of a flood."""
        now = self._clock.monotonic()
        if now - self._looked >= LOOK_EVERY:
            self._looked = now
            for visit in [one for one in self._visits.values() if one.transport.is_closing()]:
                self._forget(visit)

    def _forget(self, visit: _Visit) -> None:
        del self._visits[visit.transport]
        self._strangers[visit.known] -= not visit.member

    def _close_idle(self) -> None:
        now = self._clock.monotonic()
        for visit in list(self._visits.values()):
            allowed = IDLE_WITHIN if visit.member else HEAD_WITHIN
            if not visit.requests and now - visit.since > allowed:
                visit.transport.abort()
            if visit.transport.is_closing():
                self._forget(visit)
        self._sweep = self._clock.call_later(SWEEP_EVERY, self._close_idle)
