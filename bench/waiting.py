"""Workload `waiting`: warm reads through the agent while 64 cold readers of its mount wait for the origin.

The limit is the same reads where nobody waits. The file that is read is never complete, so no passthrough
serves it, and the page cache is dropped before each read. Each of the two has an agent of its own: a reader
that is killed leaves its read with the agent until its patience ends.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from bench.child import ROOT, BenchError, run_program
from bench.figures import SPEED, Goal
from bench.mounts import local_stack
from bench.options import Options
from bench.site import Site
from bench.workload import HEADRACE, Measure, Subjects, Workload
from deploy.local.layout import AgentSettings
from deploy.local.stack import LocalStack

READERS = 64
TIMES = 20  # passes over the 16 MiB that are present
ALL_WAIT_SECONDS = 30.0
SETTINGS = AgentSettings(patience="10min", origins={"http://": {"max_connections": READERS + 8}})


@contextlib.contextmanager
def held_origin() -> Iterator[str]:
    """A URI whose file `warm` gives its first 16 MiB and is never complete; the others give nothing."""
    command = [sys.executable, "-m", "bench.held_server", str(READERS)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, cwd=ROOT)
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/index.json"
    finally:
        process.kill()
        process.communicate()


@contextlib.contextmanager
def _mounted(site: Site, uri: str) -> Iterator[tuple[LocalStack, Path]]:
    with local_stack(site, SETTINGS) as stack:
        yield stack, stack.mount(uri)


@contextlib.contextmanager
def _readers(stack: LocalStack, mount: Path) -> Iterator[None]:
    """64 readers, all of them waiting, until the block ends."""
    readers = [
        subprocess.Popen(
            ["dd", f"if={mount / f'cold-{number}'}", "of=/dev/null", "bs=1M"],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for number in range(READERS)
    ]
    try:
        deadline = time.monotonic() + ALL_WAIT_SECONDS
        while stack.metrics()["headrace_waiting_reads"] < READERS:
            if time.monotonic() > deadline:
                raise BenchError("the cold readers do not wait")
            time.sleep(0.05)
        yield
    finally:
        for reader in readers:
            reader.kill()
        for reader in readers:
            reader.wait(10)


def warm_reads(mount: Path, times: int = TIMES) -> Measure:
    """So many passes over what is present of `warm`, through the agent."""
    job = {"way": "uncached", "path": str(mount / "warm"), "times": times}
    run_program("bench.readers", {**job, "times": 1})  # fills what is read from now on
    return lambda _: run_program("bench.readers", job)


@contextlib.contextmanager
def _open(site: Site, options: Options) -> Iterator[Subjects]:
    with contextlib.ExitStack() as stack:
        uri = stack.enter_context(held_origin())
        _, alone = stack.enter_context(_mounted(site, uri))
        crowded, beside = stack.enter_context(_mounted(site, uri))
        subjects: dict[str, Measure | None] = {
            "nobody waits": warm_reads(alone),
            HEADRACE: warm_reads(beside),
        }
        stack.enter_context(_readers(crowded, beside))
        yield subjects


WORKLOAD = Workload(
    name="waiting",
    title="warm read by the agent, 64 readers wait",
    unit=SPEED,
    limit="nobody waits",
    open=_open,
    goal=Goal(0.90),
)
