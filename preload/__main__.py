"""`preload`: not there yet. It says so, with the exit status of a command that failed."""

from __future__ import annotations

import argparse
import sys


def main() -> int:
    """Exit status 1 with one line; 2 for wrong usage."""
    parser = argparse.ArgumentParser(
        prog="preload", description="Warms datasets on chosen nodes (not there yet).", allow_abbrev=False
    )
    parser.add_argument("arguments", nargs="*", help="nothing is taken yet")
    parser.parse_args()
    message = "preload: not there yet; a mount fills the node's store when files are read"
    print(message, file=sys.stderr)  # noqa: T201
    return 1


if __name__ == "__main__":
    sys.exit(main())
