"""What is measured, with the goals of issue and design; the order of the table."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Goals:
    """The most that each figure may be."""

    slowest: float | None = None
    origin: float | None = None
    spread: float | None = None
    cpu: float | None = None


@dataclass(frozen=True, slots=True)
class Scenario:
    """`every`: seconds between two nodes' starts. `read`: how a pod reads through each node's mount, "" where
    the nodes fill themselves. `strike`: what happens, and at which share of F/C."""

    name: str
    nodes: int
    goals: Goals
    every: float = 0.0
    read: str = ""
    strike: str = ""
    at: float = 0.5

    @property
    def plain(self) -> bool:
        """Whether all nodes begin at once, and nothing happens to them."""
        return not (self.every or self.read or self.strike)


NONE = Goals()
ALL_AT_ONCE = Goals(slowest=1.10, spread=1.05, origin=1.02, cpu=3.0)
MOUNTED = Goals(slowest=1.25, origin=1.03)
STRUCK = Goals(slowest=1.20, origin=1.15)

SCENARIOS = (
    Scenario("8 nodes", 8, ALL_AT_ONCE),
    Scenario("15 nodes", 15, ALL_AT_ONCE),
    Scenario("8 mounts, dd", 8, MOUNTED, read="dd"),
    Scenario("8 mounts, safetensors", 8, MOUNTED, read="safetensors"),
    Scenario("one joins every 2 s", 8, Goals(slowest=1.15, origin=1.05), every=2.0),
    Scenario("one killed at half", 8, STRUCK, strike="kill"),
    Scenario("the tracker killed at half", 8, STRUCK, strike="kill the tracker"),
    Scenario("a head killed at a quarter", 8, STRUCK, strike="kill a head", at=0.25),
    Scenario("one at a quarter of the speed", 8, STRUCK, strike="slow"),
)
