"""`python -m bench.peers`: run the scenarios in all ways, print the table, write the JSON file."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from agent.units import parse_size
from bench.child import BenchError, kept_memory
from bench.figures import Goal
from bench.options import RESULTS
from bench.peers import chain, direct, relay, torrent
from bench.peers.rig import Rig, Run, Way
from bench.peers.scenario import NONE, SCENARIOS, Scenario
from bench.workload import HEADRACE
from deploy.local.cluster import LocalCluster
from deploy.local.layout import AgentSettings
from deploy.local.network import NetworkError
from deploy.local.process import StackError

WAYS: tuple[Way, ...] = (relay.WAY, relay.SWARM, torrent.DEFAULT, torrent.TUNED, chain.WAY, direct.WAY)
RATE = 200  # Mbit/s each way of a node
ORIGIN_RATE = 400
COPIES = 4  # of the file that each node may have in memory: the store's, the mount's, the reader's, and more
COLUMNS = (
    "way",
    "F/C",
    "slowest / (F/C)",
    "slowest / median",
    "origin bytes / size",
    "CPU-s per GiB and node",
)


def measure(scenario: Scenario, size: int, console: Console) -> list[Run]:
    """All ways in one scenario, on a new cluster; on one each where something happens to its nodes."""
    ways = [way for way in WAYS if way.takes(scenario)]
    groups = [[way] for way in ways] if scenario.strike else [ways]
    return [run for group in groups for run in _measure(scenario, group, size, console)]


def _measure(scenario: Scenario, ways: list[Way], size: int, console: Console) -> list[Run]:
    rates = {"rate": f"{RATE}mbit", "origin_rate": f"{ORIGIN_RATE}mbit"}
    settings = AgentSettings(promote="never", patience="2min", extra="swarm = true\n")  # of [peers]
    runs = []
    with LocalCluster(scenario.nodes, settings=settings, serve=bool(scenario.read), **rates) as cluster:
        rig = Rig(cluster, size, RATE)
        for way in ways:
            os.sync()  # what the one before has left to be written must not slow the next one down
            runs.append(way.carry(rig, scenario))
            console.print(f"{scenario.name}, {way.name}: {runs[-1].slowest:.3f} x F/C", highlight=False)
    return runs


def render(runs: list[Run], console: Console) -> None:
    """Print the table, with the goals of Headrace's rows."""
    table = Table("scenario", *COLUMNS, box=None, pad_edge=False)
    scenarios = {one.name: one for one in SCENARIOS}
    for run in runs:
        goals = scenarios[run.scenario].goals if run.way == HEADRACE else NONE
        most = (goals.slowest, goals.spread, goals.origin, goals.cpu)
        figures = (run.slowest, run.spread, run.origin, run.cpu)
        cells = map(_cell, figures, most)
        table.add_row(run.scenario, run.way, f"{run.bound:.1f} s", *cells)
    console.print(table)


def _cell(value: float | None, most: float | None) -> str:
    if value is None:
        return ""
    if most is None:
        return f"{value:.3f}"
    goal = Goal(most, at_least=False)
    return f"{value:.3f} ({goal} {'met' if goal.met(value) else 'missed'})"


def document(runs: list[Run], size: int) -> dict[str, Any]:
    """Everything that was measured, for the JSON file."""
    shown = [{**asdict(run), "slowest": run.slowest, "spread": run.spread} for run in runs]
    moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return {"time": moment, "size": size, "rate": RATE, "origin_rate": ORIGIN_RATE, "runs": shown}


def main() -> int:
    """Exit status 0 done, 1 failed, 2 wrong usage; a goal that is missed is shown, and no failure."""
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description=__doc__)
    parser.add_argument("--size", type=parse_size, default=256 << 20, help="of the object (default 256MiB)")
    names = [one.name for one in SCENARIOS]
    parser.add_argument("--only", action="append", default=[], choices=names, metavar="SCENARIO")
    parser.add_argument("--json", type=Path, default=RESULTS / "peers.json")
    parser.epilog = f"scenarios: {', '.join(names)}"
    chosen = parser.parse_args()
    if os.geteuid() != 0:
        print("bench.peers: network namespaces need root; run it with sudo", file=sys.stderr)
        return 1
    console = Console(width=None if sys.stdout.isatty() else 150)
    runs: list[Run] = []
    failed = False
    for scenario in SCENARIOS:
        if chosen.only and scenario.name not in chosen.only:
            continue
        try:
            with kept_memory(COPIES * chosen.size * scenario.nodes):
                runs += measure(scenario, chosen.size, console)
        except (BenchError, NetworkError, StackError, RuntimeError, TimeoutError) as error:
            print(f"bench.peers: {scenario.name}: {error}", file=sys.stderr)
            failed = True
    render(runs, console)
    chosen.json.parent.mkdir(parents=True, exist_ok=True)
    chosen.json.write_text(json.dumps(document(runs, chosen.size), indent=1) + "\n")
    print(f"\nwritten to {chosen.json}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
