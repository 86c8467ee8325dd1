"""Workload `flooded`: warm reads through the agent while 10,000 strangers hang on its peers' port.

The limit is the same reads of the same agent with nobody there. As in `waiting`, no passthrough serves them.
The strangers come from this machine, so that their own CPU time is counted against Headrace.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bench.child import BenchError
from bench.crowd import crowd
from bench.figures import SPEED, Goal, Reading
from bench.mounts import local_stack
from bench.options import Options
from bench.site import Site
from bench.waiting import held_origin, warm_reads
from bench.workload import HEADRACE, Measure, Subjects, Workload
from deploy.local.layout import AgentSettings
from deploy.local.peering import peers_table, write_secret
from deploy.local.s3 import free_ports

STRANGERS = 10_000
TIMES = 200  # passes: some seconds, in which each stranger sends and comes again


def _settings(directory: Path, address: str) -> AgentSettings:
    """Those of an agent with a peers' port; its secret lies where the agent's user may read it."""
    directory.chmod(0o711)
    return AgentSettings(extra=peers_table(address, [address], write_secret(directory / "secret")))


def _beside_strangers(read: Measure, address: str) -> Measure:
    def measure(turn: int) -> Reading:
        try:
            with crowd(address, STRANGERS):
                return read(turn)
        except (OSError, RuntimeError) as error:
            raise BenchError(f"the strangers: {error}") from error

    return measure


@contextlib.contextmanager
def _open(site: Site, options: Options) -> Iterator[Subjects]:
    address = f"127.0.0.1:{free_ports(1)[0]}"
    with (
        tempfile.TemporaryDirectory(prefix="headrace-flooded-") as directory,
        held_origin() as uri,
        local_stack(site, _settings(Path(directory), address)) as stack,
    ):
        read = warm_reads(stack.mount(uri), TIMES)
        yield {"nobody is there": read, HEADRACE: _beside_strangers(read, address)}


WORKLOAD = Workload(
    name="flooded",
    title="warm read by the agent, 10,000 strangers",
    unit=SPEED,
    limit="nobody is there",
    open=_open,
    goal=Goal(0.80),
)
