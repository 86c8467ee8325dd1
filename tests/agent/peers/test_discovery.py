"""What only discovery by names does: literals, failures, families, the system's resolver."""

from __future__ import annotations

import asyncio

import pytest

from agent.peers.discovery import (
    RESOLVE_EVERY,
    RESOLVE_WITHIN,
    KnownHosts,
    NamedPeers,
    forget_the_gone,
    joined,
    system_resolver,
)
from agent.peers.liveness import Liveness
from agent.peers.member import Peer
from agent.peers.paths import Paths
from agent.source import Urgency
from tests.fakes.clock import ManualClock
from tests.fakes.discovery import MemoryDiscovery, ScriptedResolver

OWN = "10.1.0.17:7411"


def named(clock: ManualClock, resolver: ScriptedResolver, *hosts: str, every: bool = False) -> NamedPeers:
    return NamedPeers(OWN, [(host, 7411) for host in hosts], clock, resolver, every=every)


async def test_addresses_are_peers_at_once_and_nobody_is_asked() -> None:
    resolver = ScriptedResolver()
    found = named(ManualClock(), resolver, "10.1.0.18", "fd00:0::18", "10.1.0.17")
    found.start()
    assert [peer.address for peer in found.peers()] == ["10.1.0.18:7411", "[fd00::18]:7411"]
    assert not resolver.asked
    await found.close()


async def test_an_outage_of_the_resolver_loses_nobody_and_is_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock, resolver = ManualClock(), ScriptedResolver()
    resolver.names["agents"] = ["10.1.0.18", "10.1.0.19"]
    found = named(clock, resolver, "agents", every=True)
    found.start()
    await clock.next_sleep()
    known = found.peers()
    assert len(known) == 2
    for names in ({}, {}, {"agents": ()}):
        resolver.names = dict(names)
        clock.advance(RESOLVE_EVERY)
        await clock.next_sleep()
        assert found.peers() == known
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    await found.close()


async def test_a_resolver_that_hangs_is_given_up_and_asked_again() -> None:
    clock = ManualClock()

    class Hanging(ScriptedResolver):
        async def __call__(self, host: str) -> list[str]:
            self.asked.append(host)
            await clock.sleep(10 * RESOLVE_WITHIN)
            return []

    resolver = Hanging()
    found = named(clock, resolver, "agents")
    found.start()
    assert await clock.next_sleep() == 10 * RESOLVE_WITHIN
    clock.advance(RESOLVE_WITHIN)
    assert await clock.next_sleep() == RESOLVE_EVERY
    clock.advance(RESOLVE_EVERY)
    assert await clock.next_sleep() == 10 * RESOLVE_WITHIN
    assert resolver.asked == ["agents", "agents"]
    await found.close()


async def test_of_a_listed_name_the_first_address_counts() -> None:
    clock, resolver = ManualClock(), ScriptedResolver()
    resolver.names["gpu-18"] = ["10.1.0.18", "10.2.0.18"]
    found = named(clock, resolver, "gpu-18")
    found.start()
    await clock.next_sleep()
    assert found.peers() == (Peer("10.1.0.18:7411", "10.1.0.18:7411"),)
    await found.close()


async def test_the_systems_resolver_gives_addresses_of_the_own_family() -> None:
    assert set(await system_resolver(OWN)("localhost")) == {"127.0.0.1"}
    assert await system_resolver(OWN)("127.0.0.9") == ["127.0.0.9"]


@pytest.mark.parametrize("host", ["a" * 300, "..", "a..b", "\udcff"])
async def test_what_is_no_name_is_an_error_of_the_resolver(host: str) -> None:
    with pytest.raises(OSError):
        await system_resolver(OWN)(host)


def test_a_peers_host_is_known_in_every_form_and_as_long_as_a_peer_is_there() -> None:
    discovery = MemoryDiscovery(OWN)
    hosts = KnownHosts(discovery)
    assert not hosts.has("10.1.0.18")
    discovery.set([Peer(address, address) for address in ("10.1.0.18:7411", "[fd00::18]:7411")])
    assert all(hosts.has(host) for host in ("10.1.0.18", "::ffff:10.1.0.18", "fd00::18", "fd00:0::0018"))
    assert not any(hosts.has(host) for host in ("10.1.0.17", "::ffff:10.1.0.17", "fd00::19", "fe80::1%1"))
    discovery.set([])
    assert not hosts.has("10.1.0.18")


async def test_what_is_known_of_a_peer_is_forgotten_when_it_is_none_any_more() -> None:
    clock, discovery = ManualClock(), MemoryDiscovery(OWN)
    liveness, paths = Liveness(clock), Paths(clock)
    stays, goes = [Peer(address, address) for address in ("10.1.0.18:7411", "10.1.0.19:7411")]
    heard: asyncio.Queue[frozenset[str]] = asyncio.Queue()
    discovery.set([stays, goes])
    keepers = [liveness.keep_only, paths.keep_only, heard.put_nowait]
    work = asyncio.create_task(forget_the_gone(discovery, keepers))
    assert await asyncio.wait_for(heard.get(), 10) == {stays.name, goes.name}
    for one in (stays, goes):
        liveness.failed(one.name)
        paths.left(one.name)
        paths.sent[one.name] = paths.brought[one.name] = paths.now()
    discovery.set([stays])
    assert await asyncio.wait_for(heard.get(), 10) == {stays.name}
    for one in (stays, goes):
        assert liveness.usable(one.name) == paths.worth_asking(one.name, Urgency.READER) == (one is goes)
    assert list(paths.sent) == list(paths.brought) == [stays.name]
    work.cancel()
    await asyncio.wait([work])


def test_an_address_has_one_form() -> None:
    assert joined("FD00:0::1", 1) == "[fd00::1]:1"
    with pytest.raises(ValueError):
        joined("localhost", 1)
