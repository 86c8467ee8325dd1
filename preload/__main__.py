"""`preload`: warms nodes before a campaign. It is not there yet; the command says so and changes nothing."""

from __future__ import annotations

import sys


def main() -> int:
    """Say that the command is not there yet. Exit status 1."""
    print("preload: not there yet: mount the dataset and read it to warm a node", file=sys.stderr)  # noqa: T201
    return 1


if __name__ == "__main__":
    sys.exit(main())
