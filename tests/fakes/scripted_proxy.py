"""A reverse proxy with a script: before a real S3 or HTTP server it counts requests and spoils answers.

Requests go on byte for byte, the Host header too, so signatures stay valid: point the client's endpoint at
the proxy. One thread serves one connection; bodies pass in pieces. Rules are tried in the order in which they
were added; the first that matches and is not used up is applied.

    with ScriptedProxy(seaweed.endpoint) as proxy:
        proxy.fault(Truncate(after=1000), key="models/*", times=1)
        gate = proxy.hold(key="*/weights.bin", after=1 << 20)
        ...
        gate.await_held(1)
        gate.release()
        assert len(proxy.object_gets()) == 2
"""

from __future__ import annotations

import fnmatch
import socket
import threading
import time
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from tests.fakes.faults import Fault, Gate
from tests.fakes.proxy_connection import Connection, Seen

Target = Literal["objects", "others", "all"]


@dataclass(slots=True)
class _Rule:
    action: Fault | Gate
    key: str
    on: Target
    left: int | None  # None: for ever
    skip: int

    def takes(self, seen: Seen) -> bool:
        """Whether the rule is for this request; counts it if so."""
        if self.left == 0 or not fnmatch.fnmatchcase(seen.key, self.key):
            return False
        if self.on != "all" and (self.on == "objects") != seen.is_object_get:
            return False
        if self.skip:
            self.skip -= 1
            return False
        if self.left is not None:
            self.left -= 1
        return True


class ScriptedProxy:
    """The proxy, running from construction to `close`; also a context manager."""

    def __init__(self, upstream: str) -> None:
        """`upstream` is the server's URL, `http://host:port`."""
        parts = urlsplit(upstream)
        self._upstream = (parts.hostname or "127.0.0.1", parts.port or 80)
        self._lock = threading.Lock()
        self._seen: list[Seen] = []
        self._news = threading.Condition(self._lock)
        self._rules: list[_Rule] = []
        self._gates: list[Gate] = []
        self._connections: set[Connection] = set()
        self._listener: socket.socket | None = None
        self._accepting: threading.Thread | None = None
        self.port = 0
        self.up()
        self.endpoint = f"http://127.0.0.1:{self.port}"

    def fault(
        self, fault: Fault, *, key: str = "*", times: int | None = 1, skip: int = 0, on: Target = "objects"
    ) -> None:
        """Spoil the next `times` answers (None: all) to requests whose key matches, but for the first `skip`.

        `key` is a pattern of fnmatch ('*' matches '/' too); `on` says whether GETs of objects, all other
        requests, or both are meant.
        """
        with self._lock:
            self._rules.append(_Rule(fault, key, on, times, skip))

    def hold(
        self, *, key: str = "*", after: int | None = None, times: int | None = None, on: Target = "objects"
    ) -> Gate:
        """Hold the answers to matching requests, before the request goes on or `after` bytes of the body."""
        gate = Gate(after)
        with self._lock:
            self._gates.append(gate)
            self._rules.append(_Rule(gate, key, on, times, 0))
        return gate

    def clear(self) -> None:
        """Forget all rules and open all gates; requests already under a fault stay so."""
        with self._lock:
            self._rules.clear()
            gates, self._gates = self._gates, []
        for gate in gates:
            gate.release()

    def seen(self, key: str = "*") -> list[Seen]:
        """All requests so far whose key matches."""
        with self._lock:
            return [one for one in self._seen if fnmatch.fnmatchcase(one.key, key)]

    def object_gets(self, key: str = "*") -> list[Seen]:
        """The GETs of objects among them."""
        return [one for one in self.seen(key) if one.is_object_get]

    def forget(self) -> None:
        """Begin to count anew."""
        with self._lock:
            self._seen.clear()

    def await_object_gets(self, count: int, key: str = "*", within: float = 10.0) -> None:
        """Wait until `count` GETs of objects have come. Raises TimeoutError after `within` seconds."""
        with self._news:
            if not self._news.wait_for(lambda: self._count(key) >= count, within):
                raise TimeoutError(f"{self._count(key)} of {count} GETs came")

    def down(self) -> None:
        """Refuse connections from now on and reset those that there are."""
        with self._lock:
            listener, self._listener = self._listener, None
            connections = list(self._connections)
        if listener is not None:
            listener.shutdown(socket.SHUT_RDWR)  # wakes accept
            listener.close()
        for connection in connections:
            connection.abort()
        if self._accepting is not None:
            self._accepting.join(10)
            self._accepting = None

    def up(self) -> None:
        """Accept connections (again), on the same port."""
        if self._listener is not None:
            return
        listener = socket.create_server(("127.0.0.1", self.port), backlog=256)
        self.port = listener.getsockname()[1]
        self._listener = listener
        self._accepting = threading.Thread(target=self._accept, args=(listener,), name="proxy", daemon=True)
        self._accepting.start()

    def close(self) -> None:
        """Open all gates, cut all connections and end the threads."""
        self.clear()
        self.down()
        deadline = time.monotonic() + 10
        for connection in list(self._connections):
            connection.join(max(0.0, deadline - time.monotonic()))

    def __enter__(self) -> ScriptedProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def take(self, seen: Seen) -> list[Fault | Gate]:
        """Note a request and say what is to happen to it: gates, and one fault at most (for connections)."""
        with self._news:
            self._seen.append(seen)
            self._news.notify_all()
            actions: list[Fault | Gate] = []
            for rule in self._rules:
                done = any(not isinstance(action, Gate) for action in actions)
                if not (done and not isinstance(rule.action, Gate)) and rule.takes(seen):
                    actions.append(rule.action)
            return actions

    def left(self, connection: Connection) -> None:
        """A connection has ended (for connections)."""
        with self._lock:
            self._connections.discard(connection)

    def _count(self, key: str) -> int:
        return sum(one.is_object_get and fnmatch.fnmatchcase(one.key, key) for one in self._seen)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = Connection(self, client, self._upstream)
            with self._lock:
                self._connections.add(connection)
            connection.start()
