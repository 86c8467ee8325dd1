"""A plain sequential chain: each node passes on to the next while it receives, by plain sockets.

SHA-256 on the way; no chunks, no choice, and nobody may fail: what a relay of one stripe comes to at best.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import sys
import time
from pathlib import Path

from bench.child import BenchError
from bench.peers.rig import Rig, Run, per_gib
from bench.peers.scenario import Scenario

PIECE = 64 * 1024
PORT = 9000
CONNECTED_WITHIN = 30.0


class Chain:
    """A `Way`."""

    name = "plain chain"

    def takes(self, scenario: Scenario) -> bool:
        return scenario.plain

    def carry(self, rig: Rig, scenario: Scenario) -> Run:
        cluster, source = rig.cluster, rig.file()
        digest = hashlib.sha256(source.read_bytes()).hexdigest()
        hosts = [cluster.origin, *(node.host for node in cluster.nodes)]
        jobs = []
        for number, host in enumerate(hosts):
            path = source if not number else cluster.directory / f"chain-{number}"
            above = hosts[number - 1].address if number else ""
            last = number == len(hosts) - 1
            jobs.append((host, {"path": str(path), "above": above, "own": host.address, "last": last}))
        before = rig.origin_sent()
        answers = rig.programs("bench.peers.chain", jobs)[1:]
        origin = (rig.origin_sent() - before) / rig.size
        for _, job in jobs[1:]:
            Path(str(job["path"])).unlink()
        if any(answer["sha256"] != digest for answer in answers):
            raise BenchError("a node of the chain has other bytes")
        cpu = per_gib(sum(answer["cpu"] for answer in answers), rig.size, len(answers))
        return Run(
            scenario.name, self.name, rig.bound, [answer["seconds"] for answer in answers], origin, cpu
        )


WAY = Chain()


def main() -> None:
    """One link of the chain: the origin where nobody is above."""
    job = json.loads(sys.argv[1])
    listener = None if job["last"] else socket.create_server((job["own"], PORT))
    above = _connected(job["above"]) if job["above"] else None
    below = listener.accept()[0] if listener is not None else None
    time.sleep(max(0.0, job["at"] - time.monotonic()))
    digest, cpu = hashlib.sha256(), time.process_time()
    if above is None:
        assert below is not None
        with open(job["path"], "rb") as file:
            below.sendfile(file)
    else:
        _pass_on(above, below, job["path"], digest)
    if below is not None:
        below.close()
    seconds = time.monotonic() - job["at"]
    used = time.process_time() - cpu
    print(json.dumps({"seconds": seconds, "cpu": used, "sha256": digest.hexdigest()}))


def _pass_on(above: socket.socket, below: socket.socket | None, path: str, digest: hashlib._Hash) -> None:
    buffer = memoryview(bytearray(PIECE))
    with open(path, "wb") as file:
        while count := above.recv_into(buffer):
            part = buffer[:count]
            if below is not None:
                below.sendall(part)
            os.write(file.fileno(), part)
            digest.update(part)


def _connected(address: str) -> socket.socket:
    give_up = time.monotonic() + CONNECTED_WITHIN
    while True:
        try:
            return socket.create_connection((address, PORT))
        except ConnectionRefusedError:
            if time.monotonic() > give_up:
                raise
            time.sleep(0.01)


if __name__ == "__main__":
    main()
