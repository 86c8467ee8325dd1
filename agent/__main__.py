"""`headrace-agent`: arguments, logging, signals and exit status. `agent/node.py` does the wiring."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import logging
import resource
import signal
import sys
from pathlib import Path

from agent.clock import SystemClock
from agent.config import Config, load
from agent.errors import ConfigError, HeadraceError
from agent.logs import LEVELS, set_up
from agent.metrics import build_version

OOM_SCORE_ADJ = 500  # of -1000 to 1000; kubelet's own -997 to 999 would leave the order to chance


def main() -> int:
    """Run the agent until SIGTERM or SIGINT, or the check of its store (agent/fsck.py).

    Exit status 0 done, 1 failed, 2 wrong usage or configuration.
    """
    if sys.argv[1:2] == ["fsck"]:
        from agent.fsck import main as fsck

        return fsck(sys.argv[2:])
    arguments = _parser().parse_args()
    set_up(arguments.log_level)
    try:
        config = load(arguments.config)
    except ConfigError as error:
        return _fail(2, error)
    _raise_file_limit()
    _offer_to_the_oom_killer()
    try:
        asyncio.run(_serve(config))
    except ConfigError as error:
        return _fail(2, error)
    except HeadraceError as error:
        return _fail(1, error)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="headrace-agent",
        description="Serves datasets to the pods of this node. `headrace-agent fsck` checks the store.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="the TOML file")
    parser.add_argument("--log-level", choices=LEVELS, default="info")
    parser.add_argument("--version", action="version", version=f"%(prog)s {build_version()}")
    return parser


async def _serve(config: Config) -> None:
    # Now that the configuration is right. What imports make stays for good: no garbage need be looked for.
    gc.disable()
    from agent.node import run

    gc.freeze()
    gc.enable()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await run(config, SystemClock(), stop)


def _raise_file_limit() -> None:
    """Every open object is a descriptor: take as many as the machine gives without asking."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _offer_to_the_oom_killer() -> None:
    """Where memory runs out the agent goes before the holder, which has what its successor needs (proc(5),
    /proc/pid/oom_score_adj; anybody may raise his own)."""
    path = Path("/proc/self/oom_score_adj")
    with contextlib.suppress(OSError):  # a process that may not is served as well
        if int(path.read_text()) < OOM_SCORE_ADJ:
            path.write_text(str(OOM_SCORE_ADJ))


def _fail(status: int, error: HeadraceError) -> int:
    logging.getLogger("agent").debug("failed", exc_info=error)
    print(f"headrace-agent: {error}", file=sys.stderr)  # noqa: T201
    return status


if __name__ == "__main__":
    sys.exit(main())
