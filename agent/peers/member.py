"""A peer as the rest of `agent/peers` knows it: a value."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Peer:
    """Another agent, or this one.

    `name` is its identity, by which all agents rank it alike: its address, unless discovery knows a better
    one. `address` is where its exchange listens, "10.1.0.17:7411" or "[fd00::17]:7411". `zone` is "" where
    it is not known.
    """

    name: str
    address: str
    zone: str = ""

    @property
    def host(self) -> str:
        """The address without its port."""
        return host_of(self.address)


def host_of(address: str) -> str:
    """An address without its port, and an IPv6 one without its brackets."""
    return address.rpartition(":")[0].strip("[]")
