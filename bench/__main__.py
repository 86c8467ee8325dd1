"""`python -m bench`: run the workloads, print the table, write the JSON file."""

from __future__ import annotations

import os
import sys

from rich.console import Console

from bench import (
    cold,
    cold_mapped,
    exchange,
    first_mib,
    flooded,
    options,
    oversized,
    promoted,
    small_files,
    transfer,
    waiting,
    warm,
    warm_start,
)
from bench.child import BenchError
from bench.report import document, render, save
from bench.site import Site
from bench.workload import Outcome, Workload, run

WORKLOADS: tuple[Workload, ...] = (
    cold.WORKLOAD,
    cold_mapped.WORKLOAD,
    warm.SEQUENTIAL,
    warm.MAPPED,
    promoted.SEQUENTIAL,
    promoted.MAPPED,
    first_mib.WORKLOAD,
    small_files.WORKLOAD,
    waiting.WORKLOAD,
    flooded.WORKLOAD,
    warm_start.WORKLOAD,
    oversized.WORKLOAD,
    exchange.WORKLOAD,
    transfer.TLS,
    transfer.HTTP,
)


def measure(chosen: options.Options) -> list[Outcome]:
    """Run the chosen workloads, one after another. Raises BenchError, RuntimeError (no S3 server)."""
    with Site.started(chosen.rivals) as site:
        return [run(one, site, chosen) for one in WORKLOADS if not chosen.only or one.name in chosen.only]


def main() -> int:
    """Exit status 0 done, 1 failed, 2 wrong usage; a goal that is missed is shown, and no failure."""
    chosen = options.parse(sys.argv[1:], [one.name for one in WORKLOADS])
    if os.geteuid() != 0:
        print("bench: mounting needs root; run it with sudo", file=sys.stderr)
        return 1
    try:
        outcomes = measure(chosen)
    except (BenchError, RuntimeError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    render(outcomes, Console(width=None if sys.stdout.isatty() else 130))
    print(f"\nwritten to {save(document(outcomes, chosen), chosen.json)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
