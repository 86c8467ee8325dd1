"""The command line of `python -m bench`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.units import parse_size

MIB = 1024 * 1024
RESULTS = Path(__file__).parent / "results"
QUICK_SIZE = 128 * MIB


@dataclass(frozen=True, slots=True)
class Options:
    """What to run and how: `size` of the large objects in bytes, `only` names of workloads (empty: all)."""

    rounds: int
    size: int
    only: tuple[str, ...]
    json: Path | None
    quick: bool
    rivals: bool


def parse(arguments: Sequence[str], workloads: Sequence[str]) -> Options:
    """Read the arguments; exits with 2 where they are wrong (argparse)."""
    found = _parser(workloads).parse_args(arguments)
    quick: bool = found.quick
    return Options(
        rounds=found.rounds or (1 if quick else 5),
        size=found.size or (QUICK_SIZE if quick else 1024 * MIB),
        only=tuple(found.only),
        json=found.json,
        quick=quick,
        rivals=not found.no_rivals,
    )


def _parser(workloads: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description="Measure Headrace beside its limits and its rivals (needs root)."
    )
    parser.add_argument("--rounds", type=_rounds, metavar="N", help="alternating rounds (default 5)")
    parser.add_argument("--size", type=_size, metavar="SIZE", help="of the large object (default 1GiB)")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        choices=workloads,
        metavar="NAME",
        help="one workload; repeatable",
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="where the result goes (default bench/results)"
    )
    parser.add_argument("--quick", action="store_true", help="one round of 128 MiB: does it work at all")
    parser.add_argument("--no-rivals", action="store_true", help="leave out what else is installed")
    parser.epilog = f"workloads: {', '.join(workloads)}"
    return parser


def _rounds(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError("at least one round")
    return count


def _size(text: str) -> int:
    size = parse_size(text)
    if size < 8 * MIB:
        raise argparse.ArgumentTypeError("at least 8MiB")
    return size
