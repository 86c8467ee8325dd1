"""A member of the cluster that has the secret and does what it should not: real sockets, scripted faults.

It tells the trackers of all agents that it has whole objects, so that they give it as a parent, and counts
the ranges that it is asked for. What it answers to a tracker's calls is no answer.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import struct
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType

from agent.clock import SystemClock
from agent.content import ObjectRef, chunk_count
from agent.peers.messages import ALL, SpanId
from agent.peers.protocol import PREFIX, UNITS_HEADER
from agent.peers.relay import SPAN
from agent.peers.secrets import Secrets
from agent.peers.token import Bound, Tokens, body_digest
from agent.peers.units import KIND
from agent.peers.wire import CALL, Batch
from tests.fakes.raw_http import head as http_head
from tests.harness.units import answer

FAULTS = ("flips", "stalls", "trickles", "ignores Range", "closes", "lies about the length")
ANNOUNCE_EVERY = 1.0  # seconds
CHUNK = 8 << 20
TRICKLE = 4096  # bytes of the right ones, twenty times a second
_RANGE = re.compile(rb"\r\nRange: bytes=(\d+)-(\d+)\r\n", re.IGNORECASE)


class RoguePeer:
    """A context manager; `asked` counts requests for bytes, `tracked` those to a tracker."""

    def __init__(self, port: int, secret: Path, fault: str, agents: Iterable[str]) -> None:
        self.address = f"127.0.0.1:{port}"
        self.asked = 0
        self.tracked = 0
        self.known = threading.Event()  # all agents have heard of what it says to have
        self._fault = fault
        self._agents = list(agents)
        self._tokens = Tokens(Secrets(secret, SystemClock()), SystemClock(), self.address)
        self._data: dict[str, bytes] = {}
        self._stop = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", port))
        self._threads: list[threading.Thread] = []

    def has(self, objects: Mapping[ObjectRef, bytes]) -> None:
        """Say from now on to have these objects, and serve them in its way."""
        self._data = {ref.key: data for ref, data in objects.items()}
        self.known.clear()

    def __enter__(self) -> RoguePeer:
        self._start(self._accept)
        self._start(self._keep_announcing)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(15)

    def _start(self, target: object, *args: object) -> None:
        assert callable(target)
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._stop.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._start(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        connection.settimeout(20)
        with connection, contextlib.suppress(OSError):
            head = b""
            while b"\r\n\r\n" not in head:
                more = connection.recv(4096)
                if not more:
                    return
                head += more
            if head.startswith(b"POST"):
                self.tracked += 1
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\n[1,2]")
            elif (found := _RANGE.search(head)) is not None:
                self.asked += 1
                self._misbehave(connection, head, int(found[1]), int(found[2]) + 1)

    def _misbehave(self, connection: socket.socket, head: bytes, start: int, end: int) -> None:
        data = next(data for key, data in self._data.items() if key.encode() in head)
        if self._fault == "closes":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return
        if self._fault == "ignores Range":
            fields = f"{UNITS_HEADER}: {KIND}", f"Content-Length: {len(data)}"
            connection.sendall(http_head("200 OK", *fields) + data)
            return
        right = answer(data, start, end)
        said, _, body = right.partition(b"\r\n\r\n")
        if self._fault == "lies about the length":
            said = re.sub(rb"Content-Length: \d+", b"Content-Length: %d" % (len(body) // 2), said)
        connection.sendall(said + b"\r\n\r\n")
        if self._fault == "stalls":
            self._stop.wait(20)
        elif self._fault == "trickles":
            for at in range(0, len(body), TRICKLE):
                connection.sendall(body[at : at + TRICKLE])
                if self._stop.wait(0.05):
                    return
        else:
            wrong = bytearray(body)
            wrong[len(wrong) // 2] ^= 1
            connection.sendall(wrong)

    def _keep_announcing(self) -> None:
        while not self._stop.wait(ANNOUNCE_EVERY):
            if self._data:
                heard = [self._announce(agent) for agent in self._agents]
                if all(heard):
                    self.known.set()

    def _announce(self, agent: str) -> bool:
        spans: list[tuple[tuple[str, int], int, tuple[int, int, int, int, int] | None]] = [
            (SpanId(key, number), ALL, None)
            for key, data in self._data.items()
            for number in range(-(-chunk_count(len(data), CHUNK) // SPAN))
        ]
        body = Batch(announce=spans, whole=True).model_dump_json().encode()
        target = f"{PREFIX}/{CALL}"
        headers = {
            "Authorization": self._tokens.issue(agent, Bound.of("POST", target, body)),
            "Headrace-Body": body_digest(body),
        }
        connection = http.client.HTTPConnection(agent, timeout=5)
        try:
            connection.request("POST", target, body, headers)
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()
