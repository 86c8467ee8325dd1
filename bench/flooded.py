"""Workload `flooded`: warm reads through the agent while 10,000 strangers hang on its peers' port.

The limit is the same reads of the same agent with nobody there. As in `waiting`, no passthrough serves them.
The strangers come from this machine, so that their own CPU time is counted against Headrace.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bench.child import BenchError
from bench.crowd import crowd
from bench.figures import SPEED, Goal, Reading
from bench.options import Options
from bench.site import Site
from bench.waiting import held_origin, warm_reads
from bench.workload import HEADRACE, Measure, Subjects, Workload
from deploy.local.layout import AgentSettings
from deploy.local.process import StackError
from deploy.local.s3 import free_ports
from deploy.local.stack import LocalStack

STRANGERS = 10_000
TIMES = 200  # passes: some seconds, in which each stranger sends and comes again


def _settings(directory: Path, address: str) -> AgentSettings:
    """Those of an agent with a peers' port; its secret lies where the agent's user may read it."""
    secret = directory / "secret"
    secret.write_text(os.urandom(32).hex())
    secret.chmod(0o600)
    directory.chmod(0o711)
    identity = pwd.getpwnam("nobody")  # as the agent of a stack
    os.chown(secret, identity.pw_uid, identity.pw_gid)
    peers = {"listen": address, "discovery": "static", "secret_file": str(secret)}
    lines = [f"{name} = {json.dumps(value)}" for name, value in peers.items()]
    return AgentSettings(extra="\n".join(["[peers]", *lines, f"addresses = {json.dumps([address])}", ""]))


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
    try:
        with (
            tempfile.TemporaryDirectory(prefix="headrace-flooded-") as directory,
            held_origin() as uri,
            LocalStack(_settings(Path(directory), address), s3=site.s3) as stack,
        ):
            read = warm_reads(stack.mount(uri), TIMES)
            yield {"nobody is there": read, HEADRACE: _beside_strangers(read, address)}
    except StackError as error:
        raise BenchError(f"headrace: {error}".replace("\n", "; ")) from error


WORKLOAD = Workload(
    name="flooded",
    title="warm read by the agent, 10,000 strangers",
    unit=SPEED,
    limit="nobody is there",
    open=_open,
    goal=Goal(0.80),
)
