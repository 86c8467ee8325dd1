"""`python -m bench.peers_simulation`: the tracker on a virtual clock, with 8 to 3,000 nodes.

Prints a table, writes JSON, and with matplotlib (the `bench` extra) a PNG. Needs no root and no network.
"F/C" is the time that one node's link needs to carry the object once; times count from a node's own start.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from agent.peers.relay import depth_of
from bench.peers_world import Scenario, World

RESULTS = Path(__file__).parent / "results"

SCENARIOS = (
    Scenario("8 nodes", 8, chunks=32, bound=10.7, pieces=1024),
    Scenario("15 nodes", 15, chunks=32, bound=10.7, pieces=1024),
    Scenario("10 nodes", 10),
    Scenario("100 nodes", 100),
    Scenario("1,000 nodes", 1000),
    Scenario("3,000 nodes", 3000, pieces=1024),
    Scenario("90 nodes, 3 zones", 90, zones=3),
    Scenario("flash crowd: one every 2 s", 20, bound=10.7, join=tuple(2.0 * n for n in range(20))),
    Scenario("one dies at half", 15, dies={7: 8.0}),
    Scenario("5 of 100 die", 100, dies={n * 17 + 3: 2.0 + 2 * n for n in range(5)}),
    Scenario("the tracker's memory lost at half", 15, tracker_dies=8.0),
    Scenario("one at a quarter speed", 15, links={5: 0.25}),
)

HEADS = (
    "formula",
    "slowest",
    "median",
    "origin",
    "sent, most",
    "sent, mean",
    "tracker/s",
    "peak/s",
    "unfinished",
)


@dataclass(frozen=True)
class Figures:
    """What one scenario came to; `formula` is (M+N-1)/M, with the tree's depth above 50 nodes.

    Times are relative to F/C and of the nodes with a full link; bytes relative to the object's size.
    """

    name: str
    nodes: int
    unfinished: int
    formula: float
    slowest: float
    median: float
    origin: float
    sent_most: float
    sent_mean: float
    requests_mean: float
    requests_peak: int
    wall: float


def simulate(scenario: Scenario) -> Figures:
    """Run one scenario to its end."""
    began = time.monotonic()
    world = World(scenario)
    while not world.over():
        world.step()
    healthy = [n for n in world.live() if world.number[n.peer.name] not in scenario.links]
    times = [(n.finished - n.joins) / scenario.bound for n in healthy if n.finished >= 0] or [float("inf")]
    return Figures(
        name=scenario.name,
        nodes=scenario.nodes,
        unfinished=sum(node.finished < 0 for node in healthy),
        formula=1 + depth_of(scenario.nodes) / scenario.pieces,
        slowest=max(times),
        median=statistics.median(times),
        origin=world.from_origin / scenario.chunks,
        sent_most=float(world.sent.max()) / scenario.chunks,
        sent_mean=float(world.sent.mean()) / scenario.chunks,
        requests_mean=sum(world.requests.values()) / max(world.now, 1.0),
        requests_peak=max(world.requests.values()),
        wall=time.monotonic() - began,
    )


def render(figures: list[Figures], console: Console) -> None:
    """Print the table."""
    table = Table("scenario", title="the relay in a simulation: time over F/C, bytes over the size")
    for head in HEADS:
        table.add_column(head, justify="right")
    for one in figures:
        ratios = (one.formula, one.slowest, one.median, one.origin, one.sent_most, one.sent_mean)
        rates = (f"{one.requests_mean:.0f}", str(one.requests_peak), str(one.unfinished))
        table.add_row(one.name, *(f"{ratio:.3f}" for ratio in ratios), *rates)
    console.print(table)


def plot(figures: list[Figures], path: Path) -> bool:
    """Draw times and origin bytes; False where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure  # an optional dependency
    except ImportError:
        return False
    canvas = Figure(figsize=(9, 0.5 * len(figures) + 1.5), layout="constrained")
    axes = canvas.subplots()
    rows = range(len(figures))
    axes.barh([row - 0.2 for row in rows], [one.slowest for one in figures], 0.35, label="slowest / (F/C)")
    axes.barh([row + 0.2 for row in rows], [one.origin for one in figures], 0.35, label="origin bytes / size")
    axes.plot([one.formula for one in figures], list(rows), "k|", markersize=14, label="formula")
    axes.set_yticks(list(rows), [one.name for one in figures])
    axes.invert_yaxis()
    axes.legend()
    canvas.savefig(path, dpi=120)
    return True


def main() -> int:
    """Exit status 0 done, 2 wrong usage."""
    parser = argparse.ArgumentParser(prog="bench.peers_simulation", description=__doc__)
    parser.add_argument("--json", type=Path, default=RESULTS / "peers_simulation.json")
    parser.add_argument("--png", type=Path, default=RESULTS / "peers_simulation.png")
    parser.add_argument("--most", type=int, default=3000, help="leave out scenarios with more nodes")
    chosen = parser.parse_args()
    figures = [simulate(one) for one in SCENARIOS if one.nodes <= chosen.most]
    render(figures, Console(width=None if sys.stdout.isatty() else 130))
    chosen.json.parent.mkdir(parents=True, exist_ok=True)
    chosen.json.write_text(json.dumps([asdict(one) for one in figures], indent=1) + "\n", "utf-8")
    print(f"\nwritten to {chosen.json}")
    print(f"plotted to {chosen.png}" if plot(figures, chosen.png) else "no plot: install the `bench` extra")
    return 0


if __name__ == "__main__":
    sys.exit(main())
