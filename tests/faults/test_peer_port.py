"""The peers' port of a real agent against all that may come in at it, while a program reads through a mount.

The agent is in a memory cgroup of 256 MiB, whose limit ends it.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import os
import random
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from agent.clock import SystemClock
from agent.content import ObjectRef
from agent.peers.protocol import OBJECT_HEADER, UNITS_HEADER, object_name, object_target
from agent.peers.secrets import Secrets
from agent.peers.token import Bound, Tokens
from agent.peers.units import KIND, UNIT
from bench.crowd import crowd
from deploy.local.layout import AgentSettings
from deploy.local.peering import peers_table, write_secret
from deploy.local.s3 import SeaweedS3, free_ports
from deploy.local.stack import LocalStack
from tests.harness.cgroup import memory_cgroup
from tests.harness.reading import read

pytestmark = pytest.mark.timeout(120)

MIB = 1 << 20
CAP = 256 * MIB
FLOOD = 10_000
FEW = 512  # descriptors; as many strangers are let in where there are enough
SHORT = "cannot take a peer's connection: "
WITHIN = 20.0  # seconds for one answer


@dataclass(frozen=True)
class Port:
    """One agent's port, and what a member of its cluster has."""

    stack: LocalStack
    address: str
    tokens: Tokens

    def connect(self) -> socket.socket:
        host, _, port = self.address.rpartition(":")
        return socket.create_connection((host, int(port)), timeout=WITHIN)

    def status(self, target: str, **headers: str) -> int:
        """What a member is answered to a GET."""
        connection = http.client.HTTPConnection(self.address, timeout=WITHIN)
        with contextlib.closing(connection):
            token = self.tokens.issue(self.address, Bound("GET", target))
            connection.request("GET", target, headers={"Authorization": token, UNITS_HEADER: KIND, **headers})
            return connection.getresponse().status

    def pid(self) -> int:
        return self.stack.process("agent").pid

    def open_files(self) -> int:
        return len(os.listdir(f"/proc/{self.pid()}/fd"))

    def log(self) -> str:
        return self.stack.process("agent").log.read_text()


@pytest.fixture
def port(request: pytest.FixtureRequest, seaweed: SeaweedS3, traversable: Path) -> Iterator[Port]:
    """An agent with as many descriptors as the test's parameter says."""
    descriptors: int | None = getattr(request, "param", None)
    secret = write_secret(traversable / "peer-secret")
    own, other = (f"127.0.0.1:{one}" for one in free_ports(2))
    settings = AgentSettings(extra=peers_table(own, [own, other], secret), promote="never")
    with (
        memory_cgroup(CAP) as cgroup,
        LocalStack(settings, s3=seaweed, cgroup=cgroup, descriptors=descriptors) as stack,
    ):
        tokens = Tokens(Secrets(secret, SystemClock()), SystemClock(), other)
        yield Port(stack, own, tokens)


def test_ten_thousand_connections_bad_heads_ranges_and_ids_cost_no_read_and_stay_under_the_cap(
    port: Port,
) -> None:
    data = random.Random(7).randbytes(48 * MIB)
    etag = port.stack.s3.put("peer-port", "model/weights", data).strip('"')
    ref = ObjectRef("s3://peer-port/model/weights", etag, len(data))
    path = port.stack.mount("s3://peer-port/model") / "weights"
    started = port.pid()
    with crowd(port.address, FLOOD // 2) as first, ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read, "sequential", path)
        with crowd(port.address, FLOOD // 2) as second:
            assert reading.result() == [hashlib.sha256(data).hexdigest()]
            assert first.refused() + second.refused()
    for head in (b"GET / HTTP/1.1\r\nX: " + b"a" * MIB, b"GET /" + b"a" * MIB + b" HTTP/1.1"):
        with port.connect() as stranger:
            with contextlib.suppress(OSError):  # cut off before the end
                stranger.sendall(head + b"\r\n\r\n")
            assert answer(stranger)[:10] in (b"", b"HTTP/1.1 4", b"HTTP/1.0 4")
    target, named = object_target(ref), {OBJECT_HEADER: object_name(ref)}
    assert port.status(target, **named, Range=f"bytes=0-{UNIT - 1}") == 206
    for wanted in ("bytes=9-1", "bytes=0-1,5-6", "bytes=-5", f"bytes=0-{len(data)}", "bytes=a-b"):
        assert port.status(target, **named, Range=wanted) == 416
    for key in ("../../etc/passwd", "..%2f..%2fetc%2fpasswd", "%2e%2e", "a" * 33, "%00" * 10):
        assert 400 <= port.status(f"/peer/v1/objects/{key}", **named, Range="bytes=0-9") < 500
    wrong = base64.urlsafe_b64encode(b'["file:///etc/passwd", "v", 9]').decode()
    assert port.status(target, **{OBJECT_HEADER: wrong}, Range="bytes=0-9") == 400
    assert port.pid() == started
    assert port.stack.metrics()
    assert peak(started) < CAP


@pytest.mark.parametrize("port", [FEW], indirect=True)
def test_where_few_descriptors_are_allowed_a_flood_leaves_enough_of_them_for_readers(port: Port) -> None:
    data = random.Random(8).randbytes(16 * MIB)
    port.stack.s3.put("few-descriptors", "model/weights", data)
    with crowd(port.address, 2 * FEW) as flood:
        path = port.stack.mount("s3://few-descriptors/model") / "weights"
        assert read("sequential", path) == [hashlib.sha256(data).hexdigest()]
        assert port.open_files() < FEW
        assert flood.refused()
    assert SHORT not in port.log()


def answer(stranger: socket.socket) -> bytes:
    """What came; nothing where the connection was cut off."""
    with contextlib.suppress(ConnectionError):
        return stranger.recv(4096)
    return b""


def peak(pid: int) -> int:
    """VmHWM of a process (proc(5)), in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024
