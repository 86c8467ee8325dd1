"""Workload `exchange`: an agent receives a complete object from another one on loopback, through all it does.

The one that serves has the object in its store; each round another one, with an empty store, fetches it as
`preload` would: tracker, tokens, HTTP, digests, checksums, and the index. The limit is the same bytes by
sendfile and bare sockets (bench/raw.py), hashed by nobody.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from agent.peers.member import Peer
from agent.peers.placement import tracker_of
from agent.peers.tracker import LEASE
from bench.child import ROOT, BenchError, cpu_seconds, kept_memory, run_program
from bench.figures import SPEED, Reading
from bench.options import Options
from bench.site import Site
from bench.workload import HEADRACE, Measure, Subjects, Workload
from deploy.local.s3 import free_ports

CONNECTIONS = 8  # as many as `preload` has chunks under way
KEPT = 8  # times the object's size that memory is kept at hand: every round writes it twice
FORGOTTEN = LEASE + 1.5  # seconds until nobody is sent to the last round's agent, which has gone
BARE = "sendfile, recv, pwrite"


@contextlib.contextmanager
def _process(command: Sequence[str], text: str = "") -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process that serves, and the first line that it said."""
    process = subprocess.Popen(
        [sys.executable, "-m", *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(text)
        process.stdin.flush()
        line = process.stdout.readline().strip()
        if not line:
            raise BenchError(f"{command[0]} did not start")
        yield process, line
    finally:
        process.kill()
        process.communicate()


def _addresses(uri: str, rounds: int) -> list[str]:
    """One for the server, which comes first and is the tracker, and one for each round."""
    group = uri.rpartition("/")[0]
    while True:
        found = [f"127.0.0.1:{port}" for port in free_ports(rounds + 1)]
        winner = tracker_of(group, [Peer(address, address, "") for address in found])
        if winner is not None:
            return [winner.name, *(address for address in found if address != winner.name)]


def _secret(site: Site) -> Path:
    path = site.directory / "exchange-secret"
    path.write_text(os.urandom(32).hex())
    path.chmod(0o600)
    return path


def _bare(site: Site, port: str, options: Options) -> Measure:
    job = {
        "way": "raw",
        "url": f"http://127.0.0.1:{port}/object",
        "size": options.size,
        "connections": CONNECTIONS,
        "path": str(site.directory / "exchange.bin"),
    }

    def measure(_: int) -> Reading:
        return run_program("bench.receive", job)

    return measure


def _received(site: Site, server: int, job: Mapping[str, object], options: Options) -> Measure:
    addresses = job["addresses"]
    assert isinstance(addresses, list)

    def measure(turn: int) -> Reading:
        if turn:
            time.sleep(FORGOTTEN)
        store = site.fresh("exchange-received")
        before = cpu_seconds([server])
        try:
            own = addresses[1 + turn]
            reading = run_program(
                "bench.exchange_agent", {**job, "way": "receive", "own": own, "store": str(store)}
            )
        finally:
            shutil.rmtree(store)
        per_gb = (cpu_seconds([server]) - before) / options.size * 1e9
        print(f"exchange: the serving side used {per_gb:.2f} CPU-s per GB", file=sys.stderr)
        return reading

    return measure


@contextlib.contextmanager
def _open(site: Site, options: Options) -> Iterator[Subjects]:
    path = site.fresh("exchange") / "object"
    with path.open("wb") as file:
        for _ in range(options.size >> 20):
            file.write(os.urandom(1 << 20))
    job = {
        "uri": f"file://{path}",
        "addresses": _addresses(f"file://{path}", options.rounds),
        "secret": str(_secret(site)),
    }
    serving = {**job, "way": "serve", "own": job["addresses"][0], "store": str(site.fresh("exchange-served"))}
    with (
        kept_memory(KEPT * options.size),
        _process(["bench.sendfile_server", str(path)]) as (_, port),
        _process(["bench.exchange_agent"], json.dumps(serving) + "\n") as (server, _),
    ):
        yield {
            BARE: _bare(site, port, options),
            HEADRACE: _received(site, server.pid, job, options),
        }


WORKLOAD = Workload(
    name="exchange",
    title="one agent from another, loopback",
    unit=SPEED,
    limit=BARE,
    open=_open,
)
