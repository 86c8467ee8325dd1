"""`headrace-csi`: the commands' arguments and exit statuses; each command's work is in its own module."""

from __future__ import annotations

import argparse
import importlib.metadata
import logging
import os
import sys

from csi.holder.hold import CannotHold, hold

RUN_DIRECTORY = "/run/headrace"


def _hold(arguments: argparse.Namespace) -> None:
    hold(arguments.holder_socket, arguments.agent_user, arguments.store, _build())


def _build() -> str:
    return importlib.metadata.version("headrace")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="headrace-csi", description="Mounts Headrace datasets.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {_build()}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    command = commands.add_parser("hold", help="mount and keep the descriptors (root)", allow_abbrev=False)
    command.add_argument("--holder-socket", default=f"{RUN_DIRECTORY}/holder.sock", metavar="PATH")
    command.add_argument("--agent-user", metavar="NAME", help="whom to serve beside root")
    command.add_argument(
        "--store", action="append", default=[], metavar="DIR", help="a store directory; repeatable"
    )
    command.set_defaults(run=_hold)
    return parser


def main() -> int:
    """Run a command; the exit status of DESIGN.md: 0 done, 1 failed, 2 wrong usage (argparse)."""
    arguments = _parser().parse_args()
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s", stream=sys.stderr)
    if os.geteuid() != 0:
        print(f"headrace-csi {arguments.command}: needs root; run it with sudo", file=sys.stderr)  # noqa: T201
        return 1
    try:
        arguments.run(arguments)
    except CannotHold as error:
        print(f"headrace-csi {arguments.command}: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
