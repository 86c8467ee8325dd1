"""Who the other agents are: the seam, and the ways that need no more than a list or a resolver.

`NamedPeers` serves both `discovery = "static"` (a list of addresses, whose hosts may be names) and
`discovery = "dns"` (one name with an address for each agent, as a headless Service has it). Names are
resolved again and again; a resolver that fails or finds nothing changes nothing, for the peers are most
likely where they were, and one that is not is soon left out (agent/peers/liveness.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from agent.clock import Clock
from agent.peers.member import Peer

log = logging.getLogger(__name__)

RESOLVE_EVERY = 10.0  # seconds
RESOLVE_WITHIN = 10.0  # seconds; glibc gives up after two rounds of 5 s to each server, resolv.conf(5)
Resolve = Callable[[str], Awaitable[Sequence[str]]]


class Discovery(Protocol):
    """Who the other agents are. Used on the loop."""

    def peers(self) -> tuple[Peer, ...]:
        """The others, each once, in order; never this agent itself. They may be down."""

    async def changed(self, since: tuple[Peer, ...]) -> tuple[Peer, ...]:
        """The peers, as soon as they are not those of `since`."""

    async def close(self) -> None:
        """Look no further; waiters are cancelled by who started them."""


class Announced:
    """What every discovery keeps: the peers as they are known now, and who waits for others."""

    def __init__(self, own: str) -> None:
        """`own` is this agent's address."""
        self._own = own
        self._peers: tuple[Peer, ...] = ()
        self._next = asyncio.Event()

    def peers(self) -> tuple[Peer, ...]:
        return self._peers

    async def changed(self, since: tuple[Peer, ...]) -> tuple[Peer, ...]:
        while self._peers == since:
            await self._next.wait()
        return self._peers

    def set(self, peers: Sequence[Peer]) -> None:
        """These are the peers from now on; this agent's own address is left out."""
        found = tuple(sorted({peer for peer in peers if peer.address != self._own}))
        if found != self._peers:
            self._peers = found
            self._next.set()
            self._next = asyncio.Event()


class NamedPeers(Announced):
    """Peers by their hosts' names or addresses."""

    def __init__(
        self, own: str, targets: Sequence[tuple[str, int]], clock: Clock, resolve: Resolve, *, every: bool
    ) -> None:
        """`own` is this agent's address, `targets` are hosts and ports.

        Of each host the first address is a peer, or where `every` is true each of them is one.
        """
        super().__init__(own)
        self._targets = targets
        self._clock = clock
        self._resolve = resolve
        self._every = every
        self._known: dict[tuple[str, int], tuple[Peer, ...]] = {}
        self._told: set[str] = set()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to resolve. Addresses that are no names are peers at once."""
        named = [target for target in self._targets if not self._take_literal(target)]
        self._publish()
        if named:
            self._task = asyncio.create_task(self._keep_resolving(named))

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def _take_literal(self, target: tuple[str, int]) -> bool:
        try:
            address = joined(*target)
        except ValueError:
            return False
        self._known[target] = (Peer(address, address),)
        return True

    async def _keep_resolving(self, targets: Sequence[tuple[str, int]]) -> None:
        while True:
            for target in targets:
                await self._look_up(target)
            self._publish()
            await self._clock.sleep(RESOLVE_EVERY)

    async def _look_up(self, target: tuple[str, int]) -> None:
        host, port = target
        try:
            async with self._clock.timeout(RESOLVE_WITHIN):
                found = await self._resolve(host)
        except (OSError, TimeoutError, UnicodeError) as error:
            self._complain(host, str(error) or "no answer")
            return
        if not found:
            self._complain(host, "it has no address of our family")
            return
        self._told.discard(host)
        addresses = sorted(joined(one, port) for one in found) if self._every else [joined(found[0], port)]
        self._known[target] = tuple(Peer(address, address) for address in addresses)

    def _complain(self, host: str, reason: str) -> None:
        if host not in self._told:
            self._told.add(host)
            log.warning("cannot find peers by the name %s: %s; those known stay", host, reason)

    def _publish(self) -> None:
        self.set([peer for peers in self._known.values() for peer in peers])


class KnownHosts:
    """Where the peers are, whatever their ports."""

    def __init__(self, discovery: Discovery) -> None:
        self._discovery = discovery
        self._peers: tuple[Peer, ...] = ()
        self._hosts: frozenset[ipaddress.IPv4Address | ipaddress.IPv6Address] = frozenset()

    def has(self, host: str) -> bool:
        """Whether a connection from this address may be a peer's."""
        peers = self._discovery.peers()
        if peers is not self._peers:
            self._peers, self._hosts = peers, frozenset(_plain(peer.host) for peer in peers)
        return _plain(host) in self._hosts


def _plain(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """An address in its one form: one of IPv4 that a socket of IPv6 shows (RFC 4291, 2.5.5.2) is that."""
    address = ipaddress.ip_address(host)
    return (address.ipv4_mapped or address) if isinstance(address, ipaddress.IPv6Address) else address


async def forget_the_gone(discovery: Discovery, keepers: Sequence[Callable[[frozenset[str]], None]]) -> None:
    """Tell `keepers` the names of the peers, now and whenever others are: what they know of the rest can go.

    It ends by being cancelled."""
    known = discovery.peers()
    while True:
        names = frozenset(peer.name for peer in known)
        for keep_only in keepers:
            keep_only(names)
        known = await discovery.changed(known)


def joined(host: str, port: int) -> str:
    """An address of a peer in its one form, "10.1.0.17:7411" or "[fd00::17]:7411". ValueError for a name."""
    address = ipaddress.ip_address(host)
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"


def system_resolver(own: str) -> Resolve:
    """The system's resolver (getaddrinfo(3)), for addresses of the family that `own` (an address) has."""
    family = socket.AF_INET6 if own.startswith("[") else socket.AF_INET

    async def resolve(host: str) -> Sequence[str]:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(UnicodeError):
            found = await loop.getaddrinfo(host, None, family=family, type=socket.SOCK_STREAM)
            return [str(address[0]) for *_, address in found]
        raise OSError(f"{host!r} is no name of a host")

    return resolve
